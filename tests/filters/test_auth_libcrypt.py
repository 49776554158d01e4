"""Hashes of crypt(3) from several programs, with libcrypt and without it."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.auth import RIGHT, connected, hello
from support.client import code_and_enhanced
from support.peers import cannot, peer

from smtpd_fork.filters import Auth
from smtpd_fork.filters.auth import libcrypt
from smtpd_fork.filters.auth.libcrypt import HashError
from smtpd_fork.filters.auth.password_hash import PasswordHash
from smtpd_fork.filters.auth.users_file import UsersFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.tls import Certificates

WORD = "open sésame"

YESCRYPT = "$y$j75$BryBNQWzV8g7Wi7Lj2DS..$zzUBo1d9UVvq.Q0z3JwEq3zqLy5yLPt46e78q7vUbpA"
SHA512 = (
    "$6$rounds=1000$saltsalt$"
    "/IiX/CoEcxCZ9SksEXnbjfCT1LGvD4z5OpJkaFYl/T37OAwuKZ8I8BixDhruhPLkw6lS7dw/6wQWgQnGo7lLg/"
)


@pytest.fixture
def no_libcrypt(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(libcrypt, "_NAMES", ("libcrypt-none.so",))
    libcrypt._library.cache_clear()
    yield
    libcrypt._library.cache_clear()


def needs_libcrypt(kind: str = YESCRYPT) -> None:
    if not libcrypt.computes(kind):
        cannot(f"this machine has no libcrypt that computes {kind[:4]}")


def made_by(*command: str) -> str:
    program, *arguments = command
    made = subprocess.run(
        [peer(program), *arguments], capture_output=True, text=True, check=True, timeout=30
    ).stdout.strip()
    return made.removeprefix("bob:")


@pytest.mark.parametrize(
    "command",
    [
        "mkpasswd -m yescrypt",
        "mkpasswd -m yescrypt -R 1",
        "mkpasswd -m gost-yescrypt",
        "mkpasswd -m scrypt -R 6",
        "mkpasswd -m bcrypt",
        "mkpasswd -m bcrypt-a",
        "mkpasswd -m sha512crypt",
        "mkpasswd -m sha256crypt -R 9999",
        "htpasswd -nbB bob",
        "htpasswd -nb5 bob",
        "htpasswd -nb2 bob",
    ],
)
def test_hashes_of_mkpasswd_and_htpasswd_are_accepted(command: str) -> None:
    made = made_by(*command.split(), WORD)
    if made.startswith(("$y", "$gy", "$7")):
        needs_libcrypt(made)
    assert PasswordHash("{CRYPT}" + made).verify(WORD.encode())
    parsed = PasswordHash(made)
    assert not any(parsed.verify(word) for word in (b"", WORD.encode() + b"\0", b"x" * 600))
    assert not parsed.weak


def test_concurrent_threads_get_correct_results() -> None:
    needs_libcrypt()
    right = PasswordHash(YESCRYPT)
    words = [b"open sesame", b"wrong"] * 8
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(right.verify, words)) == [True, False] * 8


def test_libcrypt_computes_sha_if_available_without_the_interpreter_lock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs_libcrypt(SHA512)
    monkeypatch.setattr("passlib.hash.sha512_crypt.verify", None)
    assert PasswordHash(SHA512).verify(b"open sesame")


def test_without_libcrypt_a_yescrypt_hash_is_an_error_with_its_line_and_sha_is_computed(
    tmp_path: Path, no_libcrypt: None
) -> None:
    file = tmp_path / "users"
    file.write_text(f"carol:{SHA512}\nbob:{YESCRYPT}\n")
    file.chmod(0o600)
    users = UsersFile(str(file)).read_users()
    assert users.faults == [
        f"{file}, line 2: user 'bob': this machine has no libcrypt that computes yescrypt"
    ]
    assert users.verify("carol", b"open sesame")
    assert not users.verify("bob", b"open sesame")


@pytest.mark.parametrize(
    "text",
    [
        "$y$jFT$" + "a" * 22 + "$" + "A" * 43,  # 1 GiB
        "$gy$jEj$" + "a" * 22 + "$" + "A" * 43,
        "$7$GU..../....abcdefgh$" + "A" * 43,
    ],
)
def test_a_hash_may_need_a_gibibyte_of_memory(text: str) -> None:
    needs_libcrypt(text)
    PasswordHash(text)


@pytest.mark.parametrize(
    "text",
    [
        "$y$jGT$" + "a" * 22 + "$" + "A" * 43,
        "$gy$jFU$" + "a" * 22 + "$" + "A" * 43,
        "$7$HU..../....abcdefgh$" + "A" * 43,
        "$7$CUzzzz/....abcdefgh$" + "A" * 43,
        "$7$CU....zzzzzabcdefgh$" + "A" * 43,
    ],
)
def test_a_hash_that_needs_more_memory_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="needs more than 1024 MiB"):
        PasswordHash(text)


def is_of(text: str, password: bytes) -> bool:
    """Return whether a text is the hash of a password; False if it is not a hash."""
    try:
        return PasswordHash(text).verify(password)
    except (ValueError, HashError):
        return False


@given(st.text("$.jyg769TU/Az\0: ", max_size=12), st.integers(7, 80))
@example("", 7)
def test_any_text_is_a_usable_hash_or_a_value_error(text: str, place: int) -> None:
    needs_libcrypt()
    spoilt = YESCRYPT[:place] + text + YESCRYPT[place + len(text) :]
    assert is_of(spoilt, b"open sesame") == (spoilt == YESCRYPT)


async def test_a_hash_that_cannot_be_computed_does_not_count_as_a_wrong_password(
    certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    needs_libcrypt()
    file = tmp_path / "users"
    file.write_text(f"bob:{YESCRYPT}\n")
    file.chmod(0o600)

    def short_of_memory(password: bytes, text: str) -> str:
        raise HashError("crypt(3): Cannot allocate memory")

    monkeypatch.setattr(libcrypt, "hash_of", short_of_memory)
    async with connected("starttls", certificates, [Auth(str(file))], authenticator=None) as client:
        await hello(client)
        assert code_and_enhanced(await client.say(RIGHT)) == (454, "4.7.0")
    assert "the hash cannot be computed: crypt(3): Cannot allocate memory" in caplog.text
