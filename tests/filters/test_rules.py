"""Rules: which recipients are accepted from which clients, and their aliases."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.strategies import PIECES

from smtpd_fork.dialogue.path import parse_path
from smtpd_fork.filters.actions import OK
from smtpd_fork.filters.expansion import Expansion
from smtpd_fork.filters.maps import RecipientMap
from smtpd_fork.filters.rule_file import RuleFile
from smtpd_fork.filters.rules import MALFORMED, RELAYING_DENIED, SOURCE_ROUTE, UNKNOWN, Rules
from smtpd_fork.gate.networks import number_of
from smtpd_fork.message.domains import Domains, domain_pattern

if TYPE_CHECKING:
    from pathlib import Path

DOMAINS = ("example.com", "*.sub.example", "bücher.example", "[192.0.2.1]")


def rules(
    directory: Path | None = None, text: str = "", domains: tuple[str, ...] = DOMAINS
) -> Rules:
    """Return rules with a map, or without one."""
    patterns = Domains(map(domain_pattern, domains))
    if directory is None:
        return Rules(patterns)
    path = directory / "recipients.map"
    path.write_text(text)
    return Rules(patterns, RecipientMap.read(RuleFile(str(path))))


def judged(of: Rules, address: str, client: str = "198.51.100.1") -> object:
    verdict = of.judge(address, number_of(client), may_relay=False)
    return verdict.addresses if isinstance(verdict, Expansion) else verdict


@pytest.mark.parametrize(
    ("address", "verdict"),
    {
        "bob@example.com": OK,
        "BOB@EXAMPLE.COM": OK,
        "bob@example.com.": OK,
        "bob@www.example.com": RELAYING_DENIED,
        "bob@a.sub.example": OK,
        "bob@a.b.Sub.Example": OK,
        "bob@sub.example": RELAYING_DENIED,
        "bob@notsub.example": RELAYING_DENIED,
        "bob@bücher.example": OK,
        "bob@xn--bcher-kva.example": OK,
        "bob@[192.0.2.1]": OK,
        "bob@[127.0.0.1]": RELAYING_DENIED,
        "bob@[IPv6:::1]": RELAYING_DENIED,
        "postmaster": OK,
        "PostMaster": OK,
        "postmaster@example.com": OK,
        "postmaster@example.net": RELAYING_DENIED,
        "postmaster@": RELAYING_DENIED,
        "bob": RELAYING_DENIED,
        "": MALFORMED,
        "@example.com": MALFORMED,
        '""@example.com': MALFORMED,
        '"bob"@example.com': OK,
        "bob%example.net@example.com": SOURCE_ROUTE,
        '"bob%example.net"@example.com': SOURCE_ROUTE,
        "example.net!bob@example.com": SOURCE_ROUTE,
        '"bob@example.net"@example.com': SOURCE_ROUTE,
        "bob@example.com@example.net": RELAYING_DENIED,
        "bob%example.com@example.net": RELAYING_DENIED,
        "@example.com:bob@example.net": RELAYING_DENIED,
        "bob@example.com\0.example.net": RELAYING_DENIED,
        "bob@ex\N{KELVIN SIGN}ample.com": RELAYING_DENIED,
    }.items(),
)
def test_a_recipient_in_the_domains_is_accepted_and_others_are_refused(
    address: str, verdict: str
) -> None:
    assert judged(rules(), address) == verdict


ADDRESSES = st.one_of(
    st.builds("{}@{}".format, PIECES, st.sampled_from(["example.com", "example.net", "a.example"])),
    st.builds("{}@{}".format, PIECES, PIECES),
    st.builds("{}{}{}{}".format, PIECES, st.sampled_from("@%!:"), PIECES, st.just("@example.com")),
    st.text(max_size=40),
    PIECES,
)
TEXT = (
    "bob@example.com\nlist@example.com x@example.net, bob@example.com\n@example.com OK\n"
    "/./ OK\n@example.net OK\nx@example.net y@example.com\n0.0.0.0/0 OK\n::/0 OK\n"
)


@pytest.fixture(scope="module")
def lavish(tmp_path_factory: pytest.TempPathFactory) -> Rules:
    """Return rules with a map that accepts everything."""
    return rules(tmp_path_factory.mktemp("lavish"), TEXT, ("example.com",))


@given(address=ADDRESSES, with_map=st.booleans(), host=st.sampled_from(["198.51.100.1", "::1"]))
@example(address="bob@example.net", with_map=True, host="198.51.100.1")
@example(address="bob%example.net@example.com", with_map=True, host="198.51.100.1")
@example(address='"@"@example.com', with_map=True, host="198.51.100.1")
@example(address="POSTMASTER@", with_map=True, host="198.51.100.1")
def test_no_recipient_outside_of_the_domains_is_ever_accepted_from_a_client_that_may_not_relay(
    lavish: Rules, address: str, with_map: bool, host: str
) -> None:
    some = lavish if with_map else rules(domains=("example.com",))
    verdict = judged(some, address, host)
    if isinstance(verdict, str) and verdict != OK:
        assert verdict in {RELAYING_DENIED, SOURCE_ROUTE, MALFORMED}
        return
    assert address.lower() == "postmaster" or address.lower().endswith(
        ("@example.com", "@example.com.")
    )
    local = address.rpartition("@")[0]
    assert not set(local.strip('"')) & set("%!@")


@given(address=ADDRESSES)
def test_a_client_that_may_relay_may_send_to_any_address(address: str) -> None:
    if parse_path(f"<{address}>") == (address, ""):
        verdict = rules().judge(address, None, may_relay=True)
        assert verdict == (MALFORMED if address.startswith('""@') else OK)


def test_a_recipient_without_a_rule_is_unknown_where_rules_accept_others(tmp_path: Path) -> None:
    text = "bob@example.com\nspam@a.sub.example REJECT\n"
    some = rules(tmp_path, text)
    assert judged(some, "carol@example.com") == UNKNOWN
    assert judged(some, "carol@a.sub.example") == OK
    assert judged(some, "spam@a.sub.example") == "550 5.1.1 No such mailbox"
    assert judged(some, "postmaster@example.com") == OK
    assert judged(some, "postmaster") == OK
    assert judged(rules(tmp_path, "/^bob@/\n"), "carol@a.sub.example") == UNKNOWN
    assert judged(rules(tmp_path, "/^bob@/ REJECT\n"), "carol@a.sub.example") == OK


def test_postmaster_is_refused_by_its_own_rule_but_not_by_a_rule_for_its_domain(
    tmp_path: Path,
) -> None:
    text = "postmaster bob@example.com\npostmaster@a.sub.example bob@example.com\nbob@example.com\n"
    some = rules(tmp_path, f"{text}@example.com REJECT\n/./ REJECT\n")
    assert judged(some, "Postmaster") == ("bob@example.com",)
    assert judged(some, "postmaster@a.sub.example") == ("bob@example.com",)
    assert judged(some, "postmaster@example.com") == OK


def test_a_network_with_ok_skips_refusals_but_may_not_relay(tmp_path: Path) -> None:
    some = rules(
        tmp_path, "192.0.2.0/24 OK\n198.51.100.0/24 REJECT\n/./ REJECT\nall@example.com x@y.z\n"
    )
    assert judged(some, "bob@example.com", "192.0.2.1") == OK
    assert judged(some, "bob@example.com", "203.0.113.1") == "550 5.1.1 No such mailbox"
    assert judged(some, "postmaster", "198.51.100.1") == (
        "550 5.7.1 Not accepted from your network"
    )
    assert judged(some, "bob@example.net", "192.0.2.1") == RELAYING_DENIED
    assert judged(some, "bob%example.net@example.com", "192.0.2.1") == SOURCE_ROUTE


def test_an_address_with_route_characters_is_accepted_if_it_is_in_the_map(tmp_path: Path) -> None:
    some = rules(tmp_path, "50%off@example.com\n@example.com\n/./\n")
    assert judged(some, "50%off@example.com") == OK
    assert judged(some, "60%off@example.com") == SOURCE_ROUTE


def test_aliases_expand_to_addresses_in_order_and_each_once(tmp_path: Path) -> None:
    some = rules(
        tmp_path,
        "all@example.com sales@example.com, bob@example.com, x@example.org\n"
        "sales@example.com carol@example.com bob@example.com\n"
        "carol@example.com carol@example.com archive@example.com\n"
        "bob@example.com\n@a.sub.example @example.com\n",
    )
    assert judged(some, "all@example.com") == (
        *("carol@example.com", "archive@example.com", "bob@example.com", "x@example.org"),
    )
    assert judged(some, "Sales+Me@Example.com") == (
        *("carol+Me@example.com", "archive+Me@example.com", "bob+Me@example.com"),
    )
    assert judged(some, "Dave@a.sub.example") == ("Dave@example.com",)
    assert judged(some, "sales@a.sub.example") == judged(some, "sales@example.com")


def test_an_extension_is_appended_to_the_addresses_of_a_rule(tmp_path: Path) -> None:
    some = rules(
        tmp_path,
        "info@example.com info+team@example.com\n"
        'quoted@example.com "a..b"@example.org x+1@example.org\n'
        "@a.sub.example @example.com\n"
        "bob@example.com carol@example.com\nbob+x@example.com dave@example.com\n"
        "/^re/ dave@example.com\n",
    )
    for address, addresses in {
        "info@example.com": ("info+team@example.com",),
        "info+x@example.com": ("info+team+x@example.com",),
        "quoted+X@example.com": ('"a..b+X"@example.org', "x+1+X@example.org"),
        '"quoted+X"@example.com': ('"a..b"@example.org', "x+1@example.org"),
        "bob+y@a.sub.example": ("carol+y@example.com",),
        "bob+x@example.com": ("dave@example.com",),
        "re+x@example.com": ("dave@example.com",),
    }.items():
        assert judged(some, address) == addresses


def test_an_alias_to_an_address_that_is_refused_is_refused(tmp_path: Path) -> None:
    some = rules(
        tmp_path, "all@example.com bob@example.com\nbob@example.com DEFER 451 4.2.0 Busy\n"
    )
    verdict = some.judge("all@example.com", None, may_relay=False)
    assert isinstance(verdict, Expansion)
    assert verdict == Expansion(refused="451 4.2.0 Busy")


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("a@example.com b@example.com\nb@example.com a@example.com\n", ()),
        ("a@example.com b@example.com\n/^b/ c@example.com a@example.com\n", ("c@example.com",)),
        ("@example.com @a.sub.example\n@a.sub.example @example.com\n", ()),
    ],
)
def test_an_alias_loop_ends_and_is_reported(
    tmp_path: Path, text: str, addresses: tuple[str, ...]
) -> None:
    verdict = rules(tmp_path, text).judge("a@example.com", None, may_relay=False)
    assert isinstance(verdict, Expansion)
    assert verdict.addresses == addresses
    assert verdict.fault == "<a@example.com> is an alias of itself"


def test_an_alias_with_too_many_addresses_is_an_error(tmp_path: Path) -> None:
    lines = []
    for n in range(30):
        others = " ".join(f"x{n}-{m}@example.com" for m in range(100))
        lines.append(f"l{n}@example.com {others} l{n + 1}@example.com")
    grows = "l0@example.com l1+x@example.com\nl1@example.com l0@example.com\n"
    for text in ("\n".join(lines), grows):
        verdict = rules(tmp_path, text).judge("l0@example.com", None, may_relay=False)
        assert verdict == Expansion(fault="the alias has more than 1000 addresses")


NODES = st.sampled_from(
    [f"{user}@{domain}" for user in ("a", "b", "c", "a+x", "b+x") for domain in ("d.e", "f.g")]
)
LEFTS = NODES | st.sampled_from(["@d.e", "@f.g", "/^a/", "/^b[+]/", "/c/"])
RIGHTS = st.lists(NODES | st.sampled_from(["@d.e", "@f.g"]), min_size=1, max_size=3, unique=True)


@given(aliases=st.dictionaries(LEFTS, RIGHTS, max_size=8), address=NODES)
def test_any_aliases_expand_to_unique_addresses_or_to_an_error(
    tmp_path_factory: pytest.TempPathFactory, aliases: dict[str, list[str]], address: str
) -> None:
    text = "".join(f"{left} {' '.join(right)}\n" for left, right in aliases.items())
    some = rules(tmp_path_factory.getbasetemp(), text, ("d.e", "f.g"))
    verdict = some.judge(address, None, may_relay=False)
    if not isinstance(verdict, Expansion):
        assert verdict in {OK, UNKNOWN}
        return
    keys = [each.lower() for each in verdict.addresses]
    assert len(set(keys)) == len(keys)
    assert keys or verdict.fault
    for each in verdict.addresses:
        after = some.judge(each, None, may_relay=False)
        # It is final: no rule replaces it, except a rule that contains it, possibly extended.
        if isinstance(after, Expansion) and not verdict.fault:
            assert each in after.addresses or after.fault or "+" in each


def test_probable_mistakes_cause_warnings(tmp_path: Path) -> None:
    some = rules(tmp_path, "bob@example.net\n", ("example.com", "b.example", "*.c.example"))
    assert list(some.warnings()) == [
        "rules for example.net (not in domains) only concern clients that may relay",
        "every recipient of b.example and 1 more is accepted: no rule accepts one of its addresses",
    ]
    assert list(rules(tmp_path, "bob@example.com\n", ("example.com",)).warnings()) == []


@pytest.mark.parametrize(
    "text", ["", ".", "example..com", ".example.com", "*", "a b", "@b.c", "x/y"]
)
def test_an_invalid_domain_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a domain, as in example\.com"):
        domain_pattern(text)
