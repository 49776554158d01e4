"""Deliveries that are cancelled at any moment: stored once after 250, otherwise not at all."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress
from email import message_from_bytes
from typing import TYPE_CHECKING

import pytest
from support.mail import a_mail

from smtpd_fork.message.results import per_recipient
from smtpd_fork.sinks import Maildir
from smtpd_fork.sinks.mbox import Mbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from smtpd_fork.message import Replies
    from smtpd_fork.sinks import Sink

DELIVERIES = 100
LONGEST_SECONDS = 0.05
"""Seconds until a delivery begins, and then until it is cancelled."""

RECIPIENTS = ("a@example.com", "b@example.com")


def in_maildirs(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the mailbox and the subject of every message."""
    for file in path.rglob("new/*"):
        yield file.parts[-3], str(message_from_bytes(file.read_bytes())["Subject"])


def in_mboxes(path: Path) -> Iterator[tuple[str, str]]:
    for file in path.iterdir():
        messages = file.read_bytes().split(b"\n\nFrom ")
        for message in messages if file.stat().st_size else []:
            head = message.removeprefix(b"From ").partition(b"\n")[2]
            yield file.name, str(message_from_bytes(head)["Subject"])


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    ("sink_class", "name", "found_in"),
    [
        (Maildir, "box", in_maildirs),
        (Maildir, "{user}", in_maildirs),
        (Mbox, "box", in_mboxes),
        (Mbox, "{user}", in_mboxes),
    ],
)
async def test_a_message_is_stored_once_after_250_and_not_after_another_reply(
    sink_class: Callable[[Path], Sink],
    name: str,
    found_in: Callable[[Path], Iterator[tuple[str, str]]],
    seed: int,
    tmp_path: Path,
) -> None:
    chance = random.Random(seed)
    sink = sink_class(tmp_path / name)
    sink.prepare()
    expected: Counter[tuple[str, str]] = Counter()

    async def deliver(number: int, begin: float, patience: float) -> None:
        subject = f"message {number}"
        body = b"From x\r\n" * chance.choice((1, 10, 1000))
        mail = a_mail(*RECIPIENTS, content=f"Subject: {subject}\r\n\r\n".encode() + body)
        await asyncio.sleep(begin)
        replies: Replies = "451"
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                replies = await sink.deliver(mail)
        for box, reply in zip("ab", per_recipient(replies, 2), strict=True):
            if reply[:3] == "250":
                expected[box if name == "{user}" else "box", subject] = 1

    times = [
        (chance.uniform(0, LONGEST_SECONDS), chance.uniform(0, LONGEST_SECONDS))
        for _ in range(DELIVERIES)
    ]
    times += [(0, 0), (0, 60)]
    await asyncio.gather(*(deliver(number, *each) for number, each in enumerate(times)))
    await sink.close()
    assert Counter(found_in(tmp_path)) == expected
    assert 0 < len(expected) < 2 * len(times)
