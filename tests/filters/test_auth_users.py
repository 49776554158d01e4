"""The file of users: hashes of several programs, lines with errors, and file permissions."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.peers import peer

from smtpd_fork.errors import HandlerError
from smtpd_fork.filters.auth.password_hash import PasswordHash
from smtpd_fork.filters.auth.users_file import MOST_REPORTED, Users, UsersFile

if TYPE_CHECKING:
    from pathlib import Path

SHA512 = (
    "$6$rounds=1000$saltsalt$"
    "/IiX/CoEcxCZ9SksEXnbjfCT1LGvD4z5OpJkaFYl/T37OAwuKZ8I8BixDhruhPLkw6lS7dw/6wQWgQnGo7lLg/"
)
BCRYPT = "$2b$04$abcdefghijklmnopqrstuu/LVz6MZlItEy42I2juLihZ66HnQx/cy"


def read(path: Path, text: str, mode: int = 0o600) -> Users:
    path.write_text(text)
    path.chmod(mode)
    return UsersFile(str(path)).read_users()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "users"


@pytest.mark.parametrize(
    "scheme", ["ARGON2ID", "ARGON2I", "BLF-CRYPT", "SHA512-CRYPT", "SHA256-CRYPT", "MD5-CRYPT"]
)
@pytest.mark.parametrize("prefixed", [True, False])
def test_hashes_of_doveadm_are_accepted(scheme: str, prefixed: bool, file: Path) -> None:
    made = subprocess.run(
        [peer("doveadm"), "pw", "-s", scheme, "-p", "open sesame"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    users = read(file, f"bob:{made if prefixed else made.partition('}')[2]}\n")
    assert users.verify("bob", b"open sesame")
    assert not users.verify("bob", b"open sesam")
    assert not users.verify("bob", b"")
    assert not users.verify("carol", b"open sesame")
    assert bool(users.faults) == (scheme == "MD5-CRYPT")


@pytest.mark.parametrize("option", ["-6", "-5", "-1", "-apr1"])
def test_hashes_of_openssl_are_accepted(option: str, file: Path) -> None:
    made = subprocess.run(
        [peer("openssl"), "passwd", option, "pässword"], capture_output=True, text=True, check=True
    ).stdout.strip()
    users = read(file, f"bob@example.com:{{CRYPT}}{made}\n")
    assert users.verify("Bob@Example.COM", "pässword".encode())
    assert not users.verify("bob", "pässword".encode())


def test_a_dovecot_passwd_file_is_accepted_except_fields_that_restrict_a_user(file: Path) -> None:
    users = read(
        file,
        f"bob:{BCRYPT}:1000:1000:Bob:/home/bob:/bin/sh:userdb_quota_rule=*:bytes=1G\n"
        f"eve:{BCRYPT}::::::allow_nets=192.0.2.0/24\n"
        f"dave:{BCRYPT}::::::nopassword\n",
    )
    assert len(users) == 1
    assert users.faults == [
        f"{file}, line 2: user 'eve': the field allow_nets is unknown",
        f"{file}, line 3: user 'dave': the field nopassword is unknown",
    ]


@pytest.mark.parametrize(
    "line",
    [
        *("bob", "", ":x", f":{BCRYPT}", f" bob :{BCRYPT}", f"b\x1bob:{BCRYPT}"),
        *("bob:secret", "bob:{PLAIN}secret", "bob:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g="),
        *("bob:{SHA512-CRYPT}" + BCRYPT, "bob:{ARGON2ID}secret", "bob:$y$j9T$x$y"),
        *("bob:{NO-SUCH}x", "bob:{SSHA512}x", "bob:$6$", "bob:$6$salt", "bob:$2b$04$short"),
        *("bob:$argon2id$v=19$m=1,t=1", "bob:$$$", "bob:$2b$31$" + BCRYPT[7:]),
        *("bob:$y$jjT$abcdefgh$" + "A" * 43, "bob:$gy$jFU$abcdefgh$" + "A" * 43),
        *("bob:$y$j9TX$abcdefgh$" + "A" * 43, "bob:$y$/9T$abcdefgh$" + "A" * 43),
        *("bob:$y$j9T$a:b$" + "A" * 43, "bob:$y$j9T$" + "a" * 87 + "$" + "A" * 43),
        *("bob:$7$CU....zzzzzab$" + "A" * 43, "bob:$7$zU..../....ab$" + "A" * 43, "bob:$7$CU...."),
        "bob:$argon2id$v=19$m=9999999,t=1,p=1$c29tZXNhbHQ$" + "A" * 43,
        *("x" * 300 + f":{BCRYPT}", "bob:$6$" + "x" * 600, "bob:" + BCRYPT + "ä"),
    ],
)  # fmt: skip
def test_a_bad_line_is_reported_without_its_hash_and_the_rest_is_used(
    line: str, file: Path
) -> None:
    users = read(file, f"# the users\n\nalice:{BCRYPT}\n{line}\nzoe:{BCRYPT}\n")
    assert len(users) == 2
    if line:
        (fault,) = users.faults
        assert fault.startswith(f"{file}, line 4: ")
        assert "secret" not in fault
        assert BCRYPT[8:] not in fault
        assert len(fault) < 400


def test_the_first_line_of_a_duplicate_user_is_used(file: Path) -> None:
    users = read(file, f"bob:{BCRYPT}\nBOB:*\n")
    assert users.faults == [f"{file}, line 2: user 'BOB' is defined twice: the first line is used"]
    assert len(users) == 1


def test_the_number_of_reported_lines_is_limited(file: Path) -> None:
    users = read(file, "x\n" * 100)
    assert len(users.faults) == MOST_REPORTED + 1
    assert users.faults[-1] == f"{file}: 80 more lines have errors"


@pytest.mark.parametrize("hashed", ["*", "!", "", "x", "!" + BCRYPT, "*" + BCRYPT])
def test_a_locked_user_cannot_authenticate(hashed: str, file: Path) -> None:
    users = read(file, f"bob:{hashed}\nalice:{BCRYPT}\n")
    assert users.faults == []
    assert not any(users.verify("bob", word) for word in (b"", b"x", b"*", hashed.encode()))


def test_a_world_readable_file_is_a_warning_and_a_world_writable_one_an_error(
    file: Path,
) -> None:
    assert read(file, f"bob:{BCRYPT}\n", 0o640).faults == []
    (warning,) = read(file, f"bob:{BCRYPT}\n", 0o644).faults
    assert warning == f"{file}: all users of the system may read it: chmod o-r"
    with pytest.raises(HandlerError, match="may write to it"):
        read(file, f"bob:{BCRYPT}\n", 0o646)


@pytest.mark.parametrize("users", [0, 1, 20])
def test_a_hash_is_computed_for_an_unknown_user_as_well(
    users: int, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read(file, "".join(f"user{number}:{BCRYPT}\n" for number in range(users)))
    computed: list[object] = []

    def verify(of: PasswordHash, password: bytes) -> bool:
        computed.append(of)
        return True

    monkeypatch.setattr(PasswordHash, "verify", verify)
    assert not any(found.verify("nobody", b"x") for _ in range(5))
    assert len(computed) == 5
    assert len(set(computed)) == 1  # always the same hash
    for number in range(users):
        assert found.verify(f"user{number}", b"x")
    assert len(computed) == 5 + users


@given(st.binary(max_size=100))
def test_any_password_is_right_or_wrong(password: bytes) -> None:
    assert PasswordHash(BCRYPT).verify(password) is False


def test_an_impossible_password_is_wrong_for_every_hash() -> None:
    of_x = PasswordHash("$2b$04$abcdefghijklmnopqrstuuPp7HPfoAs8I2dCQCQ/fW7zEJv8I8C8e")
    assert of_x.verify(b"x")
    assert not any(of_x.verify(word) for word in (b"", b"x" * 2000, b"x\0", b"\0x"))


def test_a_password_may_be_of_any_length() -> None:
    assert PasswordHash(SHA512).verify(b"open sesame")
    for length in (73, 1025, 100_000):
        assert not PasswordHash(BCRYPT).verify(b"x" * length)
        assert not PasswordHash(SHA512).verify(b"x" * length)
