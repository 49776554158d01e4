"""Charges: after the end of a transaction, however it ends, no memory is charged for it."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from aiosmtpd.smtp import AuthResult
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.memory import LONG_RCPT, UTF8_MAIL
from support.server import until

from smtpd_fork.dialogue import Budget, memory
from smtpd_fork.dialogue.budget import ALLOWANCE
from smtpd_fork.dialogue.framer import LINE_LIMIT
from smtpd_fork.sinks import Discard
from smtpd_fork.smtp import SMTP

SMALL = 500
"""An allowance instead of 64 KiB, so that little input is enough."""

PEER = ("192.0.2.1", 25)


class Transport:
    """A transport without a socket, whose client reads or does not read."""

    def __init__(self) -> None:
        self.closed = False
        self.paused = False
        self.unread = 0

    def write(self, data: bytes) -> None: ...

    def close(self) -> None:
        self.closed = True

    abort = write_eof = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def get_write_buffer_size(self) -> int:
        return self.unread

    def get_extra_info(self, name: str) -> Any:
        return PEER if name == "peername" else None


class Whims(Discard):
    """Accepts, rejects, raises and waits, as the address says."""

    supports_dsn = True

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        if address.startswith("no"):
            return "550 5.7.1 No"
        await self._whim(address)
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Ok"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        await self._whim(envelope.rcpt_tos[-1])
        return "250 2.0.0 Ok"

    async def _whim(self, address: str) -> None:
        if address.startswith("raise"):
            raise ValueError(address)
        if address.startswith("end"):
            raise asyncio.CancelledError
        await asyncio.sleep(0.001 if address.startswith("wait") else 0)


BIG = b"x" * 70 + b"\r\n"
STEPS = st.one_of(
    st.sampled_from([
        b"EHLO x\r\n", b"HELO x\r\n", b"RSET\r\n", b"NOOP\r\n", b"QUIT\r\n", b"STARTTLS\r\n",
        b"MAIL FROM:<a@b.example>\r\n", b"MAIL FROM:<a@b.example> SMTPUTF8 SIZE=999\r\n",
        b"MAIL FROM:<a b>\r\n", b"AUTH LOGIN\r\n", b"YQ==\r\n", b"DATA\r\n", b".\r\n",
        BIG * 10, BIG * 80, b"DATA\r\n" + BIG * 30 + b".\r\n",
        b"BDAT 100\r\n" + b"x" * 100, b"BDAT 3000\r\n" + b"x" * 1000,
        b"BDAT 3000\r\n" + b"x" * 3000, b"BDAT 9000\r\n" + b"x" * 9000,
        b"BDAT 900 LAST\r\n" + b"x" * 900, b"BDAT 0 LAST\r\n", b"BDAT x\r\n",
        b"x" * 2000, b"\r\n", b"nonsense\r\n",
        "RCPT TO:<ä@d.example> ORCPT=utf-8;ä NOTIFY=NEVER\r\n".encode() * 3,
        *(b"RCPT TO:<%s@d.example>\r\n" % n for n in (b"c", b"no", b"raise", b"end", b"wait")),
    ]),
    st.sampled_from([
        *("blocked", "unblocked", "eof", "lost", "kick", "expired", "way", "shut", "turn"),
    ]),
)  # fmt: skip
ROUTINE = [b"EHLO x\r\n", b"MAIL FROM:<a@b.example>\r\n", b"RCPT TO:<c@d.example>\r\n"]


def act(session: SMTP, transport: Transport, step: str) -> None:
    """Make an event happen to a session that is not input."""
    if step == "blocked":
        transport.unread = 3000
        session.pause_writing()
    elif step == "unblocked":
        transport.unread = 0
        session.resume_writing()
    elif step == "eof":
        session.eof_received()
    elif step == "lost":
        session.connection_lost(None)
    elif step == "kick":
        session.connection.kick(b"421 4.3.2 kicked\r\n")
    elif step == "expired":
        session.connection.expired(session.loop.time())
    elif step == "way":
        session.connection.end_for_memory(0)
    elif step == "shut":
        session.connection.shut_down()


def held_by_transaction(session: SMTP) -> bool:
    """Return whether there is anything that may be charged."""
    connection, dialogue = session.connection, session.connection.dialogue
    envelope = dialogue.transaction
    return bool(
        connection.work is not None
        or connection.blocked
        or dialogue.chunks is not None
        or dialogue.pending
        or dialogue.reading is not None
        or (envelope is not None and (envelope.mail_from or envelope.rcpt_tos))
    )


async def lives_through(steps: list[bytes | str], limit: int, share: int) -> None:
    budget = Budget(limit, share)
    session = SMTP(
        Whims(),
        hostname="mx.example.com",
        budget=budget,
        enable_SMTPUTF8=True,
        auth_require_tls=False,
        authenticator=lambda *_: AuthResult(success=False),
    )
    transport = Transport()
    session.connection_made(transport)  # type: ignore[arg-type]  # as much of one as is needed
    for step in steps:
        if step == "turn":
            while (
                session.connection.task is not None and session.connection.dialogue.awaited is None
            ):
                await asyncio.sleep(0)
        elif isinstance(step, str):
            act(session, transport, step)
        elif not transport.paused:
            session.data_received(step)
        dialogue = session.connection.dialogue
        assert budget.used == dialogue.charged == sum(h.held for h in budget._by_holder.values())
        if not held_by_transaction(session):
            assert budget.used == 0, step
        # Except for a command that is not complete.
        framed = 0 if dialogue.framer is None else dialogue.framer.held
        held = memory.held(dialogue) - min(framed, LINE_LIMIT)
        # Parts that are small are not compared: an envelope, a message, input.
        assert dialogue.charged >= held - 4 * SMALL, step
    session.connection_lost(None)
    while session.connection.task is not None:
        await asyncio.sleep(0)
    assert budget.used == 0
    assert not budget._by_holder
    assert not budget._by_client


@pytest.mark.filterwarnings("ignore:Requiring AUTH")
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    steps=st.lists(STEPS, max_size=12),
    routine=st.booleans(),
    limit=st.sampled_from([0, 1500, 1 << 20]),
    share=st.sampled_from([0, 1000]),
)
def test_when_a_transaction_ends_nothing_is_charged_for_it(
    monkeypatch: pytest.MonkeyPatch, steps: list[Any], routine: bool, limit: int, share: int
) -> None:
    monkeypatch.setattr("smtpd_fork.dialogue.memory.ALLOWANCE", SMALL)
    monkeypatch.setattr("smtpd_fork.smtp.connection.HELD_INPUT", 2 * SMALL)
    logging.getLogger("smtpd_fork.session").setLevel(logging.CRITICAL)
    try:
        asyncio.run(lives_through([*(ROUTINE if routine else ()), *steps], limit, share))
    finally:
        logging.getLogger("smtpd_fork.session").setLevel(logging.NOTSET)


async def test_a_packet_is_charged_while_one_of_its_commands_waits() -> None:
    """It is stored until its last command has been processed, even if nothing else is left."""
    budget = Budget(0)
    session = SMTP(Whims(), hostname="mx.example.com", budget=budget, enable_SMTPUTF8=True)
    session.connection_made(Transport())  # type: ignore[arg-type]  # as much of one as is needed
    packet = ROUTINE[0] + UTF8_MAIL + LONG_RCPT * 300 + b"RCPT TO:<wait@d.example>\r\n"
    session.data_received(packet)
    dialogue = session.connection.dialogue
    await until(lambda: not dialogue.pending)
    assert session.connection.task is not None
    assert budget.used > dialogue.envelope_bytes + len(packet) - ALLOWANCE - 1000
    await until(lambda: session.connection.task is None)
    assert dialogue.framer is None
    session.connection_lost(None)
    assert budget.used == 0
