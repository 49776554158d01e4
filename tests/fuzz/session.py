"""The session fuzzer.

Invariants: (1) with any input the session answers or closes, and the gate's counts return to 0.
(2) The result does not depend on how the bytes are cut (``cuts.py``).

It runs real servers on loopback, mutates the dialogues in ``corpus/``, cuts them into packets at
random, and ends them in each way a client can: half-closed, closed, reset, or silent. It also
checks that every reply line is valid, that neither smtpd-fork nor asyncio has logged a failure, and
that the memory for a client is bounded.

    python tests/fuzz/session.py --seconds 60 [--seed N] [--loop uvloop] [--grow]

With ``--grow`` a dialogue that gets two replies in a sequence that was never seen before is added
to the corpus, for this run and, as a file, for later ones.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import logging
import random
import re
import sys
import tempfile
import time
import warnings
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import uvloop

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
from support.server import running
from support.tls import Certificates

from fuzz.client import PATIENCE, BrokenError, talk
from fuzz.cuts import CutError, Cuts, well_formed
from fuzz.variants import variants
from smtpd_fork import Server
from smtpd_fork.dialogue.framer import LINE_LIMIT
from smtpd_fork.smtp import SMTP
from smtpd_fork.smtp.connection import HELD_INPUT
from smtpd_fork.smtp.protocol_adapter import BUFFER_SIZE

CORPUS = Path(__file__).parent / "corpus"

AT_ONCE = 16
"""Number of concurrent dialogues."""

LARGEST = 2000
"""Maximum size of a dialogue that is added to the corpus, bytes."""

CUT_EACH = 4
"""Dialogues of a batch that are cut in many ways without a socket; one more uses a socket."""

SEEN_FIRST = 10_000
"""Number of dialogues before any is added to the corpus."""

MESSAGE_SIZE = 4000
SILENCE = 0.3
CODES = re.compile(rb"[2-5]\d\d[ -](?:\d\.\d\.\d+)?")

WORDS = [
    *(b"\r\n", b"\r", b"\n", b"\0", b".", b"\r\n.\r\n", b"\n.\n", b"..", b" ", b"\t", b"<", b">"),
    *(b"@", b'"', b"\\", b"[", b"]", b":", b"=", b"*", b"\xff", b"\xc3\xa4", b"\xed\xa0\x80"),
    *(b"EHLO x\r\n", b"HELO x\r\n", b"MAIL FROM:<a@b.c>\r\n", b"RCPT TO:<d@e.f>\r\n", b"DATA\r\n"),
    *(b"BDAT 5\r\n", b"BDAT 0 LAST\r\n", b"BDAT 99999\r\n", b"RSET\r\n", b"NOOP\r\n", b"QUIT\r\n"),
    *(
        b"STARTTLS\r\n",
        b"AUTH PLAIN\r\n",
        b"AUTH LOGIN\r\n",
        b"VRFY a\r\n",
        b"HELP\r\n",
        b"XSLOW\r\n",
    ),
    *(b" SIZE=1", b" BODY=BINARYMIME", b" SMTPUTF8", b" NOTIFY=NEVER", b" LAST", b"x" * 1001),
    *(b"XCLIENT ADDR=192.0.2.7 PORT=25\r\n", b"XCLIENT ADDR=IPV6:::1 HELO=x PROTO=ESMTP\r\n"),
    *(b"XFORWARD NAME=x ADDR=192.0.2.7\r\n", b"XCLIENT ", b"XFORWARD ", b" LOGIN=bob", b"+40"),
    *(b"XCLIENT ADDR=[UNAVAILABLE] NAME=[TEMPUNAVAIL]\r\n", b"XCLIENT PROTO=SMTP LOGIN=\r\n"),
    *(
        b"AUTH PLAIN AHVzZXIAcGFzcw==\r\n",
        b"AUTH PLAIN AHVzZXIAbm8=\r\n",
        b"dXNlcg==\r\n",
        b"*\r\n",
    ),
    *(b"=[UNAVAILABLE]", b" DESTADDR=192.0.2.1 DESTPORT=25", b" IDENT=4F3C SOURCE=REMOTE"),
    *(b"y" * 12_300, b"999999999999", b"-1"),
]


class Watched(SMTP):
    """Checks that memory is bounded; has a command that waits."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        dialogue = self.connection.dialogue
        held = dialogue.pending
        if held > HELD_INPUT + BUFFER_SIZE + LINE_LIMIT:
            raise BrokenError(f"{held} bytes of input are buffered")
        reading = dialogue.reading
        if reading is not None and reading.held > MESSAGE_SIZE * 9 // 8 + 256:
            raise BrokenError(f"{reading.held} bytes of a message are buffered")

    async def smtp_XSLOW(self, arg: str | None) -> None:
        """Answer after a short time."""
        await asyncio.sleep(0.001)
        await self.push("250 2.0.0 slow")


class _Failures(logging.Handler):
    """Stores failures from the log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR or record.exc_info:
            self.seen.append(logging.Formatter().format(record))


@dataclass
class Fuzzer:
    """Runs dialogues until its time is over.

    :ivar rounds: number of dialogues so far
    :ivar cuts: cuts streams, and counts them
    :ivar said: number of replies so far, by code
    """

    seed: int
    grow: bool = False
    rounds: int = 0
    said: dict[bytes, int] = field(default_factory=dict)
    _orders: set[tuple[bytes, bytes]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.corpus = [path.read_bytes() for path in sorted(CORPUS.glob("*.smtp"))]
        self.cuts = Cuts()
        self._failures = _Failures()
        self._warnings: list[warnings.WarningMessage] = []

    async def run(self, seconds: float) -> None:
        """Fuzz for *seconds*.

        :raises BrokenError: an invariant was violated; the message has seed, round and bytes
        """
        loop = asyncio.get_running_loop()
        old = loop.get_exception_handler()
        loop.set_exception_handler(self._unhandled)
        loggers = [logging.getLogger(name) for name in ("smtpd_fork", "asyncio")]
        for logger in loggers:
            logger.addHandler(self._failures)
        try:
            with warnings.catch_warnings(record=True) as self._warnings:
                warnings.simplefilter("always")
                await self._run(time.monotonic() + seconds)
        finally:
            loop.set_exception_handler(old)
            for logger in loggers:
                logger.removeHandler(self._failures)

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._failures.seen.append(f"{context.get('message')}: {context.get('exception')!r}")

    async def _run(self, deadline: float) -> None:
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            certificates = Certificates(folder)
            await self.cuts.serve(stack, certificates)
            servers = [
                await stack.enter_async_context(
                    Server(
                        handler,
                        hostname="mx.example.com",
                        session_class=Watched,
                        max_message_size=MESSAGE_SIZE,
                        timeout=SILENCE,
                        data_timeout=SILENCE,
                        tls_handshake_timeout=SILENCE,
                        shutdown_timeout=1,
                        **({"listen": ["127.0.0.1:0"]} | options),
                    )
                )
                for handler, options in variants(certificates.server)
            ]
            while time.monotonic() < deadline:
                batch = range(self.rounds, self.rounds + AT_ONCE)
                await asyncio.gather(
                    self._administer(servers, batch.start),
                    *(self._one(servers, number) for number in batch),
                )
                await self._cut(batch)
                self.rounds += AT_ONCE
                await self._at_rest([*servers, *self.cuts.servers], batch)

    async def _administer(self, servers: list[Server], number: int) -> None:
        """End some sessions of a batch, as an administrator does, or make slots scarce."""
        chance = random.Random(f"{self.seed}/{number}/administer")
        if chance.random() < 0.5:
            return
        for server in chance.sample(servers, 5):
            await asyncio.sleep(chance.choice([0, 0.001, 0.01]))
            if chance.random() < 0.2:
                await server.reload()
            elif chance.random() < 0.5:
                await server.kick(lambda _: chance.random() < 0.5)
            else:
                session = chance.choice(
                    [None, *(each for each, _ in running(server).sessions.all())]
                )
                if session is not None:
                    session.shut_down()

    async def _at_rest(self, servers: list[Server], batch: range) -> None:
        """Check that nothing is left of a batch."""
        for _ in range(int(PATIENCE / 0.001)):
            if not any(server.gate.count or server.sessions for server in servers):
                break
            await asyncio.sleep(0.001)
        where = f"seed {self.seed}, rounds {batch.start} to {batch.stop - 1}"
        for server in servers:
            if server.gate.count or server.gate.clients or server.sessions:
                raise BrokenError(f"{where}: the gate does not return to 0: {server.gate.count}")
            if waiting := running(server)._tarpit.waiting:
                raise BrokenError(f"{where}: {waiting} ended sessions are counted in the tarpit")
            if wrong := server.audit():
                raise BrokenError(f"{where}: {wrong}")
            used = server._budget.used
            if used:
                raise BrokenError(f"{where}: {used} bytes of buffers are not released")
        self._failures.seen += [str(warning.message) for warning in self._warnings]
        if self._failures.seen:
            raise BrokenError(f"{where}: {self._failures.seen[0]}")

    async def _cut(self, batch: range) -> None:
        """Cut some dialogues of a batch."""
        for number in batch[:CUT_EACH]:
            chance = random.Random(f"{self.seed}/{number}/cut")
            stream = well_formed(chance) if chance.random() < 0.5 else self.mutated(chance)
            try:
                await self.cuts.offline(chance, stream)
                if number == batch[0]:
                    await self.cuts.over_the_wire(chance)
            except CutError as error:
                raise BrokenError(f"seed {self.seed}, round {number}, cut: {error}") from None

    async def _one(self, servers: list[Server], number: int) -> None:
        """Run one dialogue, which depends on the seed and the number alone."""
        chance = random.Random(f"{self.seed}/{number}")
        data = self.mutated(chance)
        server = chance.choice(servers)
        end = chance.choices(["half-close", "close", "reset", "silence"], [80, 5, 10, 5])[0]
        try:
            said = await talk(server.addresses[0], data, end, chance)
        except BrokenError as error:
            index = servers.index(server)
            raise BrokenError(
                f"seed {self.seed}, round {number}, server {index}, {end}: {error}; sent {data!r}"
            ) from None
        for line in said:
            self.said[line[:3]] = self.said.get(line[:3], 0) + 1
        if self.grow and len(data) <= LARGEST:
            self._learn(data, said)

    def _learn(self, data: bytes, said: list[bytes]) -> None:
        """Keep a dialogue with two replies in a new sequence."""
        codes = [b"", *(CODES.match(line)[0] for line in said)]  # type: ignore[index]  # they are replies
        orders = set(pairwise(codes))
        if orders <= self._orders:
            return
        self._orders |= orders
        if self.rounds < SEEN_FIRST:
            return  # Sequences that the initial corpus already gives.
        self.corpus.append(data)
        (CORPUS / f"found-{hashlib.sha256(data).hexdigest()[:12]}.smtp").write_bytes(data)

    def mutated(self, chance: random.Random) -> bytes:
        """Return a mutation of dialogues of the corpus."""
        data = chance.choice(self.corpus)
        for _ in range(chance.choice([0, 1, 1, 2, 3, 5, 8, 20])):
            at = chance.randint(0, len(data))
            to = min(len(data), at + chance.choice([0, 1, 1, 2, 5, 20, 100]))
            match chance.randrange(6):
                case 0:
                    data = data[:at] + data[to:]
                case 1:
                    data = data[:at] + chance.choice(WORDS) + data[at:]
                case 2:
                    data = data[:at] + chance.choice(WORDS) + data[to:]
                case 3:
                    data = data[:to] + data[at:]  # repeats a piece
                case 4:
                    other = chance.choice(self.corpus)
                    data = data[:at] + other[chance.randint(0, len(other)) :]
                case _:
                    data = data[:at] + chance.randbytes(to - at) + data[to:]
        return data


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument(
        "--grow", action="store_true", help="keep dialogues with new sequences of replies"
    )
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    fuzzer = Fuzzer(options.seed, options.grow)
    factory = uvloop.new_event_loop if options.loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(fuzzer.run(options.seconds))
    told = ", ".join(f"{code.decode()}: {count}" for code, count in sorted(fuzzer.said.items()))
    print(f"{fuzzer.rounds} dialogues; {told}")
    print(
        f"{fuzzer.cuts.count} cut streams with {fuzzer.cuts.commands} lines of replies, all alike"
    )


if __name__ == "__main__":
    main()
