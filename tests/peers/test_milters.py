"""The filter milter with milters in wide use, each a process with its own configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.ports import free_ports

from peers.milters import (
    EICAR,
    GTUBE,
    HAM,
    clamav,
    folder_of_all,
    opendkim,
    opendmarc,
    rspamd,
    spamassassin,
    through,
)
from smtpd_fork.message import fields
from smtpd_fork.testing import MESSAGES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.peers

STAGES = [["data"], ["connect", "helo", "mail", "rcpt"]]


@pytest.fixture
def folder() -> Iterator[Path]:
    with folder_of_all() as made:
        yield made


@pytest.mark.parametrize("stages", STAGES)
async def test_a_second_opendkim_verifies_the_signature_of_the_first(
    folder: Path, stages: list[str]
) -> None:
    signer, verifier = f"unix:{folder}/s", "127.0.0.1:{}".format(*free_ports(1))
    letters = [
        HAM.encode(),
        *(
            each.replace(b"a@example.org", b"bob@example.com")
            for each in MESSAGES.values()
            if each.startswith(b"From: ") and each.endswith(b"\n") and len(each) < 50_000
        ),
    ]
    with opendkim(folder, "s", signer), opendkim(folder, "v", verifier):
        replies, stored = await through([signer, verifier], *letters, stages=stages)
    assert {code for code, _ in replies} == {250}
    for letter, message in zip(letters, stored, strict=True):
        (result,) = [f.value for f in fields(message) if f.name == b"Authentication-Results"]
        assert b"dkim=pass" in result, message
        assert letter in message


@pytest.mark.parametrize("stages", STAGES)
async def test_a_message_without_a_header_is_checked_as_well(
    folder: Path, stages: list[str]
) -> None:
    letters = [b"", b"text alone\r\n", b"\r\ntext\r\n"]
    with opendkim(folder, "v", f"unix:{folder}/v") as address:
        replies, _ = await through([address], *letters, stages=stages)
    assert [code for code, _ in replies] == [250] * 3


@pytest.mark.parametrize("stages", STAGES)
async def test_clamav_milter_refuses_a_virus(folder: Path, stages: list[str]) -> None:
    with clamav(folder, f"unix:{folder}/m") as address:
        letters = HAM, f"{HAM}{EICAR}\r\n", HAM
        replies, stored = await through([address], *letters, stages=stages)
    assert [code for code, _ in replies] == [250, 550, 250]
    assert replies[1][1].startswith("5.7.1 infected: Eicar-Test")
    assert len(stored) == 2
    assert all(b"X-Virus-Status: Clean" in message for message in stored)


@pytest.mark.parametrize("stages", STAGES)
async def test_spamass_milter_marks_and_refuses_spam(folder: Path, stages: list[str]) -> None:
    with spamassassin(folder, f"unix:{folder}/m") as address:
        letters = HAM, f"{HAM}{GTUBE}\r\n", f"{HAM}unwanted words\r\n"
        replies, stored = await through([address], *letters, stages=stages)
    assert [code for code, _ in replies] == [250, 550, 250]
    ham, spam = stored
    assert b"X-Spam-Flag: NO" in ham
    assert ham.endswith(b"\r\n\r\nhello\r\n")
    assert b"X-Spam-Flag: YES" in spam
    assert b"multipart/mixed" in spam


@pytest.mark.parametrize("stages", STAGES)
async def test_opendmarc_gets_no_event_after_accepting_at_connect(
    folder: Path, stages: list[str]
) -> None:
    with opendmarc(folder, f"unix:{folder}/m") as address:
        replies, stored = await through([address], HAM, HAM, stages=stages)
    assert [code for code, _ in replies] == [250, 250]
    assert stored == [HAM.encode()] * 2


@pytest.mark.timeout(240)
@pytest.mark.parametrize("stages", STAGES)
async def test_rspamd_refuses_spam_and_accepts_other_messages(
    folder: Path, stages: list[str]
) -> None:
    async with rspamd(folder, "127.0.0.1:{}".format(*free_ports(1))) as address:
        letters = HAM, f"{HAM}{GTUBE}\r\n", HAM
        replies, stored = await through([address], *letters, stages=stages)
    assert replies[0][0] == 250, (folder / "rspamd.log").read_text()[-3000:]
    assert replies[1][0] in {550, 554}
    assert replies[2][0] == 250
    assert len(stored) == 2
