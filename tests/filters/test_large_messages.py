"""Large messages that filters change: the event loop neither copies nor hashes them."""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client
from support.handlers import Collect
from support.milter import TestMilter, frame
from support.policy import TestPolicy
from support.rspamd import TestRspamd, rspamd_server
from support.scripted_server import listening
from support.server import serve

from smtpd_fork.filters import Milter, Policy, Rspamd

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

FORGED = "Authentication-Results: mx.example.com; dkim=pass\r\n"

QUARANTINE = [frame(b"q", b"odd\0")]


def _milter(edits: list[bytes]) -> AbstractAsyncContextManager[Any]:
    return listening(TestMilter(edits=edits))


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], str]] = {
    "a policy server adds a field": (
        lambda: listening(TestPolicy("PREPEND X-A: b")), lambda it: Policy(it.address), "X-A: b",
    ),
    "a policy server quarantines": (
        lambda: listening(TestPolicy("HOLD odd")),
        lambda it: Policy(it.address, when_quarantined="mark"), "X-Quarantine: odd",
    ),
    "a milter adds a field": (
        lambda: _milter([frame(b"h", b"X-A\0b\0")]), lambda it: Milter(it.address), "X-A: b",
    ),
    "a milter quarantines": (
        lambda: _milter(QUARANTINE),
        lambda it: Milter(it.address, when_quarantined="mark"), "X-Quarantine: odd",
    ),
    "rspamd quarantines": (
        lambda: rspamd_server(TestRspamd({"action": "quarantine"})),
        lambda it: Rspamd([it.url], when_quarantined="mark"), "X-Quarantine: quarantine",
    ),
    "results are forged": (lambda: listening(TestPolicy()), lambda it: Policy(it.address), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
async def test_a_large_message_is_changed_in_a_thread(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, made, field = CHANGES[name]
    threads, sha256 = [], hashlib.sha256

    def noted(*octets: bytes) -> Any:
        if sum(map(len, octets)) > 100_000:
            threads.append(threading.current_thread())
        return sha256(*octets)

    monkeypatch.setattr(hashlib, "sha256", noted)
    text, kept = "Subject: x\r\n\r\n" + ("x" * 70 + "\r\n") * 5000, Collect()
    async with started() as program, serve([made(program), kept]) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            await client.say("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA")
            client.send(f"{'' if field else FORGED}{text}.\r\n")
            assert (await client.reply()).code == 250
    (stored,) = kept.messages
    assert len(stored) == len(text) + len(f"{field}\r\n") * bool(field)
    assert field.encode() in stored
    assert threads
    assert threading.main_thread() not in threads
