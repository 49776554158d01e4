"""Maps of recipients: rules are found as they were written, and errors contain the line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_fork.errors import HandlerError
from smtpd_fork.filters import rule_file
from smtpd_fork.filters.actions import OK
from smtpd_fork.filters.maps import RecipientMap
from smtpd_fork.filters.rule_file import RuleFile
from smtpd_fork.gate.networks import number_of
from smtpd_fork.message.mailbox import mailbox_of

if TYPE_CHECKING:
    from pathlib import Path

ATOMS = st.from_regex(r"[a-z0-9_=-]{1,8}(\.[a-z0-9]{1,4})?", fullmatch=True)
DOMAINS = st.sampled_from(["example.com", "b.example", "xn--bcher-kva.example", "[192.0.2.1]"])
ADDRESSES = st.builds("{}@{}".format, ATOMS, DOMAINS)
ACTIONS = (
    st.just("")
    | st.sampled_from(
        ["OK", "ok", "REJECT", "reject Gone", "DEFER", "550 5.7.1 No", "REJECT 5.2.1 x"]
    )
    | st.lists(ADDRESSES, min_size=1, max_size=4, unique=True).map(" ".join)
)
MEANINGS = {
    "": OK,
    "ok": OK,
    "REJECT": "550 5.1.1 No such mailbox",
    "reject Gone": "550 5.1.1 Gone",
    "DEFER": "450 4.7.1 Not accepted now, try again later",
    "REJECT 5.2.1 x": "550 5.2.1 x",
}
"""Actions whose parsed form differs from the text."""

NOISE = st.sampled_from(["", "# a comment", "\t ", "#"])


def read(directory: Path, text: str | bytes) -> RecipientMap:
    path = directory / "recipients.map"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return RecipientMap.read(RuleFile(str(path)))


def found(rules: RecipientMap, address: str) -> str | None:
    return rules.find(mailbox_of(address))


def refused(directory: Path, text: str | bytes) -> str:
    """Return the error of a map, without its directory."""
    with pytest.raises(HandlerError) as raised:
        read(directory, text)
    return str(raised.value).replace(f"{directory}/", "")


@given(
    rules=st.dictionaries(ADDRESSES, ACTIONS, max_size=30),
    noise=st.lists(NOISE, min_size=31, max_size=31),
    end=st.sampled_from(["\n", "\r\n"]),
    between=st.sampled_from([" ", "\t", "   "]),
    upper=st.booleans(),
    piece=st.integers(1, 200),
)
def test_every_rule_of_any_map_is_found(
    tmp_path_factory: pytest.TempPathFactory,
    rules: dict[str, str],
    noise: list[str],
    end: str,
    between: str,
    upper: bool,
    piece: int,
) -> None:
    lines: list[str] = []
    for (address, action), other in zip(rules.items(), noise, strict=False):
        left = address.upper() if upper else address
        lines += [other, f"{left}{between}{action}" if action else left]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rule_file, "PIECE", piece)
        read_back = read(tmp_path_factory.getbasetemp(), end.join(lines))
    assert len(read_back) == len(rules)
    for address, action in rules.items():
        assert found(read_back, address) == MEANINGS.get(action, action)
        assert found(read_back, address.upper()) == MEANINGS.get(action, action)


def test_an_address_that_begins_with_three_digits_is_not_a_reply(tmp_path: Path) -> None:
    rules = read(tmp_path, "a@example.com 400-a@example.com 550-@example.com\n")
    assert found(rules, "a@example.com") == "400-a@example.com 550-@example.com"


@given(data=st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_a_map_or_an_error_with_file_and_line(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    said = "recipients.map, line 1: nothing is wrong"
    try:
        read(tmp_path_factory.getbasetemp(), data)
    except HandlerError as error:
        said = str(error)
    line = re.search(r"recipients\.map, line (\d+):", said)
    assert line is not None, said
    assert 1 <= int(line[1]) <= data.count(b"\n") + 1
    assert "\n" not in said


LEFT = st.sampled_from(
    ["a@b.c", "@b.c", "/x/", "/x/i", "192.0.2.0/24", "::1", "/", '"a b"@b.c', "x"]
)


@given(
    left=LEFT,
    right=ACTIONS | st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=20),
)
def test_any_right_hand_side_is_a_rule_or_an_error_with_its_line(
    tmp_path_factory: pytest.TempPathFactory, left: str, right: str
) -> None:
    said = "recipients.map, line 1:"
    try:
        read(tmp_path_factory.getbasetemp(), f"{left} {right}")
    except HandlerError as error:
        said = str(error)
    assert "recipients.map, line 1:" in said


def test_rules_are_searched_by_address_extension_pattern_and_domain(tmp_path: Path) -> None:
    text = "@b.c 550 domain\n/^bob/ 550 pattern\n/^bob/i 550 later\nbob@b.c 550 user\n"
    rules = read(tmp_path, f"{text}bob+x@b.c 550 address\n")
    assert found(rules, "bob+x@b.c") == "550 address"
    assert found(rules, "bob+y@b.c") == "550 user"
    assert found(rules, "bobby@b.c") == "550 pattern"
    assert found(rules, "bobby@other.example") == "550 pattern"
    assert found(rules, "carol@b.c") == "550 domain"
    assert found(rules, "carol@other.example") is None


def test_equivalent_forms_of_an_address_find_the_same_rule(tmp_path: Path) -> None:
    text = '"john doe"@b.c 550 quoted\nmüller@bücher.example 550 idn\nplain@b.c 550 plain\n'
    rules = read(tmp_path, text)
    assert found(rules, '"John\\ Doe"@B.C') == "550 quoted"
    assert found(rules, "MÜLLER@XN--BCHER-KVA.example.") == "550 idn"
    assert found(rules, "mu\N{COMBINING DIAERESIS}ller@Bücher.example") == "550 idn"
    assert found(rules, '"plain"@b.c.') == "550 plain"


def test_a_character_whose_lower_case_is_ascii_is_another_domain() -> None:
    assert mailbox_of("x@ban\N{KELVIN SIGN}.example").domain != "bank.example"


def test_a_line_that_begins_with_a_blank_continues_the_previous_line(tmp_path: Path) -> None:
    rules = read(tmp_path, "all@b.c a@b.c,\n  b@b.c\n\tc@b.c\nx@b.c\n")
    assert (len(rules), found(rules, "all@b.c")) == (2, "a@b.c b@b.c c@b.c")


def test_the_smallest_network_that_contains_the_client_is_used(tmp_path: Path) -> None:
    rules = read(
        tmp_path, "192.0.2.0/24 REJECT\n192.0.2.1 OK\n2001:db8::/32 DEFER 451 4.7.1 Wait\n"
    )
    refusal = "550 5.7.1 Not accepted from your network"
    for host, action in {
        "192.0.2.2": refusal, "::ffff:192.0.2.2": refusal, "192.0.2.1": OK, "198.51.100.1": None,
        "2001:db8::1": "451 4.7.1 Wait",
    }.items():  # fmt: skip
        assert rules.of_client(number_of(host)) == action


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("ok@b.c\nno address\n", "line 2: 'no address': the left side has to be an address, "),
        ("a@b.c OK\na@b.c REJECT\n", "line 2: 'a@b.c REJECT': another rule says that a@b.c is"),
        ("@b.c x@b.c\n@b.c\n", "line 2: '@b.c': another rule says that this is 'x@b.c'"),
        ("\n/x REJECT\n", "line 2: '/x REJECT': no second / ends the regular expression"),
        ("/(/ OK\n", "line 1: '/(/ OK': the regular expression does not compile: missing ),"),
        ("/x/g OK\n", "flag 'g' of the regular expression: only i is known"),
        ("/(.*)/ $1@b.c\n", "'$1@b.c': groups of a match cannot be inserted"),
        ("a@b.c REJECT 450 no\n", "the code has to be 5yz"),
        ("a@b.c DEFER 5.1.1 no\n", "the enhanced status code has to be 4.y.z"),
        ("a@b.c b@b.c nonsense\n", "'nonsense' is neither OK, REJECT, DEFER nor an address"),
        ("10.0.0.0/8 b@b.c\n", "the action for a network is OK, REJECT or DEFER"),
        ("10.0.0.1/8 OK\n", "an address within 10.0.0.0/8, not a network: it has host bits set"),
        ("@*.b.c OK\n", "one rule for each domain"),
        ("  a@b.c\n", "line 1: 'a@b.c': the line begins with a blank, but continues no rule"),
        (b"a@b.c\n\xe9@b.c\n", "line 2: the line is not UTF-8 (byte 0xe9)"),
        (f"a@b.c REJECT {'x' * 600}\n", "the text is too long for one line of a reply"),
    ],
)  # fmt: skip
def test_an_error_names_file_line_text_and_reason(
    tmp_path: Path, text: str | bytes, error: str
) -> None:
    said = refused(tmp_path, text)
    assert said.startswith("recipients.map, line ")
    assert error in said


def test_a_missing_file_and_an_endless_file_are_errors(tmp_path: Path) -> None:
    for path, error in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(HandlerError, match=error):
            RecipientMap.read(RuleFile(str(path)))
    with pytest.raises(HandlerError, match="not a regular file"):
        RecipientMap.read(RuleFile("/dev/zero"))


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    assert found(read(tmp_path, "\ufeffa@b.c\n"), "a@b.c") == OK


def test_an_endless_rule_is_an_error_with_bounded_memory(tmp_path: Path) -> None:
    said = refused(tmp_path, "ok@b.c\n" + "all@b.c a@b.c\n" + " b@b.c\n" * 300_000)
    assert "line 2: the line is longer than 1048576 bytes" in said
