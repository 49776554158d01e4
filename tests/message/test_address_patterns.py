"""AddressPatterns: the addresses that a list of addresses and domains matches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_fork.message.address_patterns import AddressPatterns


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        (
            "example.com",
            ["a@example.com", "B@EXAMPLE.com."],
            ["a@x.example.com", "example.com", ""],
        ),
        ("@Example.Com", ["a@example.com"], ["a@example.org"]),
        ("*.example.com", ["a@x.example.com", "a@y.x.example.com"], ["a@example.com"]),
        ("a@example.com", ["A@example.com", '"a"@example.com'], ["b@example.com", "a@example.org"]),
        ("münchen.example", ["a@xn--mnchen-3ya.example"], ["a@munchen.example"]),
        ("<>", ["", "<>"], ["a@example.com"]),
        ("*", ["", "a", "a@b"], []),
    ],
)
def test_a_pattern_matches_these_addresses_and_not_those(
    pattern: str, yes: list[str], no: list[str]
) -> None:
    patterns = AddressPatterns([pattern])
    assert [each for each in yes if not patterns.match(each)] == []
    assert [each for each in no if patterns.match(each)] == []


@pytest.mark.parametrize(
    "pattern", ["", "a b", "*.", "*.*", "a@", "@", "x@*.example.com", "ex ample"]
)
def test_an_invalid_pattern_is_an_error(pattern: str) -> None:
    with pytest.raises(ValueError, match="domain"):
        AddressPatterns([pattern])


labels = st.sampled_from(["a", "b", "c"])
domains = st.lists(labels, min_size=1, max_size=3).map(".".join)
patterns = st.lists(
    st.one_of(
        domains,
        domains.map("*.{}".format),
        domains.map("x@{}".format),
        st.sampled_from(["*", "<>"]),
    ),
    max_size=4,
)


@given(patterns, patterns, st.lists(domains.map("x@{}".format) | st.just(""), max_size=8))
def test_a_list_that_covers_another_matches_all_of_its_addresses(
    one: list[str], other: list[str], addresses: list[str]
) -> None:
    first, second = AddressPatterns(one), AddressPatterns(other)
    if first.covers(second):
        assert [each for each in addresses if second.match(each) and not first.match(each)] == []
