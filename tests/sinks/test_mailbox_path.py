"""A path with words of an address: no word leaves its component, and all paths are unique."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtpd_fork.message.mailbox import mailbox_of
from smtpd_fork.setting_types import SettingError
from smtpd_fork.sinks.mailbox_path import LONGEST_NAME, MailboxPath, words_of


def name_of(user: str) -> str:
    (name,) = MailboxPath("/m/{user}", delimiter="").names(f"{user}@example.com")
    return name


@pytest.mark.parametrize(
    ("address", "names"),
    [
        ("john@example.com", ("example.com", "john")),
        ("John.Doe@EXAMPLE.com", ("example.com", "john.doe")),
        ("john+list@example.com", ("example.com", "john")),
        ('"john"@example.com', ("example.com", "john")),
        ('"a\\"b"@example.com', ("example.com", "a%22b")),
        ("+list@example.com", ("example.com", "+list")),
        ("postmaster", ("%", "postmaster")),
        ("a=b_c-d@[192.0.2.1]", ("%5b192.0.2.1%5d", "a=b_c-d")),
        ("jörg@example.com", ("example.com", "j%c3%b6rg")),
        ("john@example.com.", ("example.com", "john")),
        ("john@BÜCHER.example", ("xn--bcher-kva.example", "john")),
        ("", ("%", "%")),
    ],
)
def test_an_address_becomes_components_of_the_path(address: str, names: tuple[str, ...]) -> None:
    assert MailboxPath("/var/mail/{domain}/{user}").names(address) == names


@pytest.mark.parametrize(
    ("user", "name"),
    [
        (".", "%2e"),
        ("..", "%2e."),
        ("../../etc/passwd", "%2e./../etc/passwd".replace("/", "%2f")),
        ("/etc/passwd", "%2fetc%2fpasswd"),
        ("a\0b", "a%00b"),
        ("100%", "100%25"),
        ("%2e", "%252e"),
        (".hidden", "%2ehidden"),
        ("a b\n", "a%20b%0a"),
        ("É", "%c3%a9"),
        ("~root", "%7eroot"),
        ("$HOME", "%24home"),
    ],
)
def test_a_user_name_cannot_leave_its_component(user: str, name: str) -> None:
    assert name_of(user) == name


any_word = st.text() | st.text("./%+aA\0é", max_size=6) | st.text("a", min_size=190, max_size=210)


@given(any_word, any_word)
@example("a" * 200 + "b", "a" * 200 + "c")
@example("é" * 100, "é" * 101)
def test_different_domains_have_different_names(a: str, b: str) -> None:
    one, other = (f"x@{word.replace('@', '')}" for word in (a, b))
    path = MailboxPath("/m/{domain}", delimiter="")
    assert (path.names(one) == path.names(other)) is (mailbox_of(one) == mailbox_of(other))


@given(any_word)
def test_a_name_is_short_and_plain_and_has_no_leading_dot(word: str) -> None:
    name = name_of(word)
    assert 0 < len(name) <= LONGEST_NAME
    assert re.fullmatch(r"[a-z0-9_+=%-][a-z0-9._+=%-]*", name)


@given(st.tuples(any_word, any_word), st.tuples(any_word, any_word))
def test_words_separated_by_an_at_sign_are_distinguished(
    one: tuple[str, str], other: tuple[str, str]
) -> None:
    path = MailboxPath("/m/{domain}@{ext}@x", delimiter="+")
    addresses = [
        f"u+{ext.replace('@', '')}@{domain.replace('@', '')}" for domain, ext in (one, other)
    ]
    first, second = map(path.names, addresses)
    assert (first == second) is (mailbox_of(addresses[0]) == mailbox_of(addresses[1]))


def test_the_extension_begins_after_the_first_delimiter() -> None:
    assert words_of("a+b+c@d", "+") == ("a", "d", "b+c")
    assert words_of("a--b@d", "--") == ("a", "d", "b")
    assert words_of("a+b@d", "") == ("a+b", "d", "")
    assert words_of("a+@d", "+") == ("a", "d", "")


def test_the_component_of_the_extension_is_omitted_without_an_extension() -> None:
    path = MailboxPath("/m/{user}/.{ext}")
    assert path.names("a@example.com") == ("a",)
    assert path.names("a+b@example.com") == ("a", ".b")
    assert path.names("a+..@example.com") == ("a", ".%2e.")


def test_the_root_is_the_path_before_the_first_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert MailboxPath("/var/mail/x-{user}").root == Path("/var/mail")
    assert MailboxPath("mail/{user}").root == tmp_path / "mail"
    assert MailboxPath("{user}").root == tmp_path
    assert MailboxPath("/{user}").root == Path("/")
    assert str(MailboxPath("/{user}/x")) == "/{user}/x"
    assert MailboxPath("/{{x}}/{user}").root == Path("/{x}")
    plain = MailboxPath("M")
    assert (plain.varies, plain.root) == (False, tmp_path / "M")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("/m/{usr}", "unknown {usr}; did you mean {user}?"),
        ("/m/{Domain}", "unknown {Domain}; did you mean {domain}?"),
        ("/m/{q}", "unknown {q}; known words are {user}, {domain}, {ext}"),
        ("/m/{}", "unknown {}; known words are {user}, {domain}, {ext}"),
        ("/m/{user", "write {{ for a brace"),
        ("/m/user}", "write }} for a brace"),
        ("/m/{user}{ext}", "write / or @ between the words"),
        ("/m/{user}+{ext}", "write / or @ between the words"),
        ("/m/{user}/../x", ".. is not allowed after a word"),
        ("", "expected a path"),
        ("/m/a\0b", "expected a path"),
    ],
)
def test_a_template_that_cannot_be_used_is_an_error(template: str, reason: str) -> None:
    with pytest.raises(SettingError, match=re.escape(reason)):
        MailboxPath(template)
