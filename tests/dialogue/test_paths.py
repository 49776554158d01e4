"""Paths of MAIL and RCPT: the addresses of RFC 5321 4.1.2, and no others."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.strategies import PIECES

from smtpd_fork.dialogue.path import parse_path

GOOD = {
    "<>": "<>",
    "<a@b>": "a@b",
    "<a@b.c>": "a@b.c",
    "<a.b.c@d.e.f>": "a.b.c@d.e.f",
    "<A@B.C>": "A@B.C",
    "<a+b-c_d=e@x-y.z9>": "a+b-c_d=e@x-y.z9",
    "<!#$%&'*+-/=?^_`{|}~@b.c>": "!#$%&'*+-/=?^_`{|}~@b.c",
    "<a@xn--bcher-kva.example>": "a@xn--bcher-kva.example",
    "<a@9.example>": "a@9.example",
    '<"a"@b.c>': '"a"@b.c',
    '<""@b.c>': '""@b.c',
    '<"a b"@c.d>': '"a b"@c.d',
    '<"a@b"@c.d>': '"a@b"@c.d',
    '<"a>b"@c.d>': '"a>b"@c.d',
    '<"a\\"b\\\\c"@d.e>': '"a\\"b\\\\c"@d.e',
    '<".a..b."@c.d>': '".a..b."@c.d',
    "<a@[192.0.2.1]>": "a@[192.0.2.1]",
    "<a@[IPv6:2001:db8::1]>": "a@[IPv6:2001:db8::1]",
    "<a@[IPV6:::ffff:192.0.2.1]>": "a@[IPV6:::ffff:192.0.2.1]",
    "<a@[127.0.0.01]>": "a@[127.0.0.01]",
    "<a@[ipv6:::ffff:192.0.2.001]>": "a@[ipv6:::ffff:192.0.2.001]",
    "<a@b_c.example>": "a@b_c.example",
    "<a@_b.c_>": "a@_b.c_",
    "<@x.y:a@b.c>": "a@b.c",
    "<@x.y,@z:a@b.c>": "a@b.c",
    "<postmaster>": "postmaster",
    "<Postmaster>": "Postmaster",
    "<POSTMASTER>": "POSTMASTER",
    "<ä@b.c>": "ä@b.c",
    "<用户@例子.广告>": "用户@例子.广告",
    '<"ä ö"@b.c>': '"ä ö"@b.c',
    "<😀@b.c>": "😀@b.c",
    "<" + "l" * 200 + "@b.c>": "l" * 200 + "@b.c",
    "<a@" + "d." * 126 + "d>": "a@" + "d." * 126 + "d",
    "<a@" + "d" * 63 + ".e>": "a@" + "d" * 63 + ".e",
    "<a@" + "bücher" * 8 + ".e>": "a@" + "bücher" * 8 + ".e",
}

WITHOUT_BRACKETS = [
    "a@b.c",
    "A.b+c=d@e-f.g",
    '"a b"@c.d',
    '"a@b"@c.d',
    '"<"@c.d',
    "a@[192.0.2.1]",
    "a@[IPv6:2001:db8::1]",
    "ä@b.c",
    "postmaster",
]

BAD = [
    "",
    " ",
    " a@b.c",
    "Joe <a@b.c>",
    "Joe<a@b.c>",
    '"Joe" <a@b.c>',
    "a@b.c<d@e.f>",
    "a@b.c(comment)",
    "(comment)a@b.c",
    "a@b.c,d@e.f",
    "a@b.c.",
    "a@b.c\r",
    "a@",
    "@b.c",
    "@x.y:a@b.c",
    "a",
    "<",
    ">",
    "<<>>",
    "<>x",
    "< >",
    "<a@b.c",
    "a@b.c>",
    "<a>",
    "<root>",
    "<@>",
    "<@b>",
    "<a@>",
    "<a@@b>",
    "<a@b@c>",
    "<.a@b>",
    "<a.@b>",
    "<a..b@c>",
    "<a@.b>",
    "<a@b..c>",
    "<a@-b.c>",
    "<a@b-.c>",
    "<a@b.-c>",
    "<a@b.c->",
    "<a@b.->",
    "<a b@c>",
    "<a@b c>",
    "< a@b.c>",
    "<a@b.c >",
    "<a@b.c>>",
    "<a@b.c>x",
    "<a@b.c>,<d@e.f>",
    "<a@b.c>\vSIZE=1",
    "<a@b.c>SIZE=1",
    "<a@b,c@d>",
    "<a:b@c>",
    "<a;b@c>",
    "<a(b)@c>",
    "<a\\b@c>",
    "<a[b]@c>",
    "<a@b/c>",
    "<a@b!c>",
    "<a@b%c>",
    "<a@[>",
    "<a@]>",
    "<a@[]>",
    "<a@[1.2.3.4>",
    "<a@1.2.3.4]>",
    "<a@[1.2.3.4]x>",
    "<a@[1.2 .3.4]>",
    "<a@[1.2.3]>",
    "<a@[1.2.3.256]>",
    "<a@[foo]>",
    "<a@[::1]>",
    "<a@[IPv6:]>",
    "<a@[IPv6:1.2.3.4]>",
    "<a@[IPv6:2001:db8::1::2]>",
    "<a@[ipv6:x]>",
    "<a@[tag:content]>",
    "<a@[1:2:3:4:5:6:7:8]>",
    "<a@[127.0.0.0001]>",
    "<a@[1.2.3.4.5]>",
    "<a@[.1.2.3]>",
    "<a@[IPv6:1.2.3.4::]>",
    "<a@[IPv6:::ffff:192.0.2.256]>",
    "<a@[\u0131pv6:::1]>",
    "<a@[\u0661.2.3.4]>",
    "<a@b.>",
    "<a@b.c.>",
    "<@x.:a@b.c>",
    "<a@[-:x]>",
    '<">',
    '<"a>',
    '<"a@b>',
    '<"a"b@c>',
    '<a"b"@c>',
    '<"a""b"@c>',
    '<"a"."b>@c',
    '<"a\\"@b>',
    '<"a\r"@b>',
    '<"a\n"@b>',
    '<"a\0"@b>',
    '<"a\\\n"@b>',
    "<a\r@b>",
    "<a\n@b>",
    "<a\0@b>",
    "<a\x7f@b>",
    "<a@b\n>",
    "<a@b>\n",
    "<a@b.c\r\n>",
    "<@x.y>",
    "<@x.y:>",
    "<@x.y:@z:a@b>",
    "<x.y:a@b>",
    "<@x.y a@b>",
    "<@:a@b>",
    "<@x,y:a@b>",
    "<postmaster@>",
    "<po\u017ftmaster>",
    "<a@" + "d" * 256 + ">",
    "<a@" + "d" * 64 + ">",
    "<a@e." + "d" * 64 + ".e>",
    "<a@" + "bücher" * 11 + ".e>",
    "<a@" + "d." * 128 + "d>",
]


@pytest.mark.parametrize(("text", "address"), GOOD.items())
@pytest.mark.parametrize("rest", ["", " ", " SIZE=1 BODY=8BITMIME", "  <x>"])
def test_an_address_is_accepted(text: str, address: str, rest: str) -> None:
    assert parse_path(text + rest) == (address, rest)


@pytest.mark.parametrize("text", BAD)
@pytest.mark.parametrize("rest", ["", " SIZE=1"])
@pytest.mark.parametrize("strict", [True, False])
def test_an_invalid_address_is_rejected(text: str, rest: str, strict: bool) -> None:
    assert parse_path(text + rest, strict=strict) is None


@pytest.mark.parametrize("address", WITHOUT_BRACKETS)
@pytest.mark.parametrize("rest", ["", " ", " SIZE=1 BODY=8BITMIME", "\tSIZE=1", "  <x>"])
def test_an_address_without_brackets_is_accepted_unless_paths_are_strict(
    address: str, rest: str
) -> None:
    assert parse_path(address + rest) == (address, rest)
    assert parse_path(address + rest, strict=True) is None


@pytest.mark.parametrize("path", ["<a@b.c>", "<>", '<"a b"@c.d>'])
def test_a_tab_after_an_address_is_a_space_unless_paths_are_strict(path: str) -> None:
    assert parse_path(f"{path}\tSIZE=1") is not None
    assert parse_path(f"{path}\tSIZE=1", strict=True) is None


@pytest.mark.parametrize("text", ["<postmaster>", "<POSTMASTER>", "postmaster"])
def test_postmaster_without_a_domain_may_be_disallowed(text: str) -> None:
    """RFC 5321 4.1.1.3 allows it for RCPT; as a sender it has no host for bounces."""
    assert parse_path(text) is not None
    assert parse_path(text, postmaster=False) is None


def test_lengths_are_measured_in_octets() -> None:
    """A domain in UTF-8 (RFC 5321 4.5.3.1.2, RFC 6531 3.7), a label in ASCII form (RFC 5890)."""
    thirty = "ä" * 20  # xn--, and 23 characters
    assert parse_path(f"<a@{'.'.join([thirty] * 6)}>") is not None  # 245 octets
    assert parse_path(f"<a@{'.'.join([thirty] * 7)}>") is None
    longest = max(n for n in range(1, 64) if parse_path(f"<a@{'ä' * n}.b>") is not None)
    assert len(("ä" * longest).encode("idna")) <= 63
    with pytest.raises(UnicodeError):
        ("ä" * (longest + 1)).encode("idna")


@settings(max_examples=2000)
@given(text=PIECES | PIECES.map(lambda text: f"<{text}>") | st.text())
@example(text="<a@b.-c>")
@example(text='<"@">')
def test_any_text_is_a_valid_address_or_none(text: str) -> None:
    parsed = parse_path(text)
    if parsed is None:
        return
    address, rest = parsed
    assert text.endswith(rest)
    assert rest[:1] in {"", " ", "\t"}
    assert address in text
    assert not set("\r\n\0") & set(address)
    assert all(
        len(label.encode("punycode")) <= 64 for label in address.rpartition("@")[2].split(".")
    )
    again = address if address == "<>" else f"<{address}>"
    assert parse_path(again) == (address, "")
    # The same at any position, and before any text.
    assert parse_path(f"{again} X=1") == (address, " X=1")
    # The strict mode only rejects more.
    assert parse_path(text, strict=True) in {None, parsed}
    assert parse_path(f"{again} X=1", strict=True) == (address, " X=1")


@settings(max_examples=500)
@given(
    labels=st.lists(st.from_regex(r"[a-z-]{1,4}", fullmatch=True), min_size=1, max_size=4),
)
def test_no_label_of_a_domain_begins_or_ends_with_a_hyphen(labels: list[str]) -> None:
    good = all(not each.startswith("-") and not each.endswith("-") for each in labels)
    assert (parse_path(f"<a@{'.'.join(labels)}>") is not None) is good


@pytest.mark.parametrize(
    "text",
    [
        "<" + "a" * 12_000,
        "<" + "a." * 6_000,
        "<a@" + "b" * 12_000,
        "<a@" + "b." * 6_000,
        "<a@" + "b-" * 6_000,
        "<a@" + "-" * 12_000,
        '<"' + "a" * 12_000,
        '<"' + "\\a" * 6_000,
        '<"' + "\\\\" * 6_000,
        "<a@[" + "1" * 12_000,
        "<" + "@b," * 4_000,
        "<" + "@b-b," * 2_400,
        "<@" + "b" * 12_000,
    ],
    ids=lambda text: text[:8],
)
def test_no_invalid_address_takes_long(text: str) -> None:
    began = time.process_time()
    assert parse_path(text) is None
    assert parse_path(text + ">") is None or text.endswith(("b", "."))
    assert time.process_time() - began < 0.1
