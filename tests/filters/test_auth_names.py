"""The user name that a client claims, in its response to any mechanism."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_fork.dialogue.auth_offer import with_mechanisms
from smtpd_fork.filters.auth.claimed_user import LONGEST_USER, claimed_user, plain_parts
from smtpd_fork.filters.auth.dovecot_backend import DovecotBackend


@pytest.mark.parametrize(
    ("mechanism", "response"),
    [
        ("PLAIN", b"\0bob\0x"),
        ("PLAIN", b"carol\0bob\0x"),
        ("LOGIN", b"bob"),
        ("CRAM-MD5", b"bob 0123456789abcdef"),
        ("SCRAM-SHA-1", b"n,,n=bob,r=abc"),
        ("SCRAM-SHA-256", b"y,a=carol,n=bob,r=n=eve"),
        ("OAUTHBEARER", b"n,a=bob,\x01host=mx\x01auth=Bearer user=eve\x01\x01"),
        ("XOAUTH2", b"user=bob\x01auth=Bearer a\x01\x01"),
    ],
)
def test_the_user_name_is_found_in_the_response_of_each_mechanism(
    mechanism: str, response: bytes
) -> None:
    assert claimed_user(mechanism, response) == "bob"


def test_escaped_commas_and_equals_signs_are_decoded() -> None:
    assert claimed_user("SCRAM-SHA-256", b"n,,n=a=2Cb=3Dc,r=x") == "a,b=c"
    assert claimed_user("OAUTHBEARER", b"n,a=a=2Cb,\x01auth=x\x01\x01") == "a,b"


@given(st.sampled_from([*DovecotBackend.known, "X-NEW"]), st.binary(max_size=400))
def test_any_response_gives_a_bounded_name(mechanism: str, response: bytes) -> None:
    assert len(claimed_user(mechanism, response)) <= LONGEST_USER + 1
    plain_parts(response)


@pytest.mark.parametrize(
    ("lines", "offered", "changed"),
    [
        (["250-mx", "250-AUTH PLAIN LOGIN"], ["X"], ["250-mx", "250-AUTH X"]),
        (["250-mx", "250 AUTH PLAIN OWN"], ["X", "PLAIN"], ["250-mx", "250 AUTH OWN X PLAIN"]),
        (["250-mx", "250-AUTH PLAIN", "250 HELP"], [], ["250-mx", "250 HELP"]),
        (["250-mx", "250 HELP"], ["X"], ["250-mx", "250 HELP"]),
    ],
)  # fmt: skip
def test_an_existing_auth_line_of_ehlo_is_replaced(
    lines: list[str], offered: list[str], changed: list[str]
) -> None:
    assert with_mechanisms(lines, {"PLAIN", "LOGIN"}, offered) == changed
