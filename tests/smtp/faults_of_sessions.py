"""Bugs of aiosmtpd, each tested with both servers: memory, time, TLS, handlers, and the end."""

from __future__ import annotations

import asyncio
import ssl
import tracemalloc
from typing import Any

from support.client import PATIENCE, Client
from support.stock import BEGIN, STOCK, Bench, Fault, Keep, codes

HANG_SECONDS = 0.5
"""Seconds to wait for a handshake that aiosmtpd never answers; ours has the client's timeout."""


# -- 1, 2, 3: memory and time ------------------------------------------------------------------


async def peak_of(bench: Bench, piece: bytes, pieces: int, **options: Any) -> int:
    """Send a message in *pieces* pieces; return the growth of memory in bytes."""
    async with bench.client(**options) as client:
        await client.greet()
        assert await codes(client, *BEGIN) == [250, 250, 354]
        tracemalloc.start()
        try:
            for _ in range(pieces):
                client.send(piece)
                await client.writer.drain()
            client.send("\r\n.\r\n")
            await client.reply()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


async def is_a_message_past_the_limit_kept(bench: Bench) -> bool:
    size, pieces = 256 * 1024, 32
    peak = await peak_of(bench, b"x" * size, pieces, data_size_limit=size)
    return peak > size * pieces * 0.9


async def do_empty_lines_take_ten_times_their_size(bench: Bench) -> bool:
    lines = 64 * 1024
    return await peak_of(bench, b"\r\n" * lines, 1, data_size_limit=0) > 10 * 2 * lines


async def is_all_that_is_pipelined_answered_before_others_have_a_turn(bench: Bench) -> bool:
    commands = 10_000
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with bench.client() as client:
        await client.greet()
        client.send("HELO x\r\n")
        one = len(await client.reader.readuntil(b"\r\n"))
        client.send(b"HELO x\r\n" * commands)
        counting = asyncio.create_task(count())
        await client.reader.readexactly(one * commands)
        counting.cancel()
    return turns < commands / 100


# -- 6, 17: STARTTLS ---------------------------------------------------------------------------


async def what_a_second_starttls_is_answered(bench: Bench) -> int:
    async with bench.client(tls_context=bench.certificates.server) as client:
        await client.greet()
        await client.start_tls(bench.certificates.client)
        return (await codes(client, "EHLO x", "STARTTLS"))[-1]


async def does_a_handshake_end_with_much_pipelined_behind_starttls(bench: Bench) -> bool:
    async with bench.client(tls_context=bench.certificates.server) as client:
        await client.greet()
        client.send("STARTTLS\r\n" + "NOOP\r\n" * 1000)
        assert (await client.reply()).code == 220
        patience = HANG_SECONDS if bench.engine is STOCK else PATIENCE
        try:
            async with asyncio.timeout(patience):
                await client.writer.start_tls(
                    bench.certificates.client, server_hostname="localhost"
                )
        except (ConnectionError, ssl.SSLError, TimeoutError) as error:
            client.writer.transport.abort()
            # After a failed handshake the stream gets no end, for which close() waits.
            client.writer._protocol.connection_lost(None)  # type: ignore[attr-defined]
            return not isinstance(error, TimeoutError)  # plaintext is not a handshake
        return True


# -- 7: effects on other sessions --------------------------------------------------------------


async def does_another_connection_take_away_what_ehlo_gave(bench: Bench) -> list[int]:
    """A command of more than 512 bytes, before and after another client connects."""
    mail = f"MAIL FROM:<{'a' * 490}@example.com> SIZE=1"
    async with bench.client() as client:
        await client.greet()
        answers = await codes(client, mail, "RSET")
        async with await Client.to(bench.address) as other:
            await other.reply()
            return [answers[0], *await codes(client, mail)]


# -- 8, 20: handlers that fail or time out -----------------------------------------------------


class FailsRcpt(Keep):
    async def handle_RCPT(self, *_: Any) -> str:
        raise ValueError("db password=secret")


class FailsData(Keep):
    async def handle_DATA(self, *_: Any) -> str:
        raise ValueError("db password=secret")


class Tired(Keep):
    async def handle_RCPT(self, *_: Any) -> str:
        return "421 4.7.0 Enough"


async def what_a_client_is_told_of_an_error(bench: Bench) -> tuple[int, bool]:
    async with bench.client(FailsRcpt()) as client:
        await client.greet()
        await client.say(BEGIN[0])
        reply = await client.say(BEGIN[1])
        return reply.code, "password" in reply.text


async def what_rcpt_is_answered_after_a_failed_data(bench: Bench) -> int:
    async with bench.client(FailsData()) as client:
        await client.greet()
        await client.deliver()
        return (await client.say(BEGIN[1])).code


async def what_is_answered_after_a_hooks_421(bench: Bench) -> int:
    async with bench.client(Tired()) as client:
        await client.greet()
        assert await codes(client, *BEGIN[:2]) == [250, 421]
        client.send("NOOP\r\n")
        return (await client.reply()).code  # 0 is the end


# -- 19: the end of input -----------------------------------------------------------------------


async def what_becomes_of_a_message_when_its_client_half_closes(bench: Bench) -> str:
    """While a handler processes the message."""
    in_hand, at_end, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
    fate = []

    class Slow(Keep):
        async def handle_DATA(self, *_: Any) -> str:
            in_hand.set()
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                fate.append("cancelled")
                raise
            fate.append("delivered")
            return "250 OK"

    class Noting(bench.engine):  # type: ignore[name-defined,misc]  # one of two classes
        def eof_received(self) -> bool | None:
            at_end.set()
            keep: bool | None = super().eof_received()
            return keep

    bench.engine = Noting
    async with bench.client(Slow()) as client:
        await client.greet()
        await codes(client, *BEGIN)
        client.send("hello\r\n.\r\n")
        await in_hand.wait()
        client.writer.write_eof()
        await at_end.wait()
        go_on.set()
        fate.append(str((await client.reply()).code))
    return " ".join(fate)


# -- all bugs ----------------------------------------------------------------------------------

FAULTS = [
    Fault(is_a_message_past_the_limit_kept, stock=True, ours=False),
    Fault(do_empty_lines_take_ten_times_their_size, stock=True, ours=False),
    Fault(
        is_all_that_is_pipelined_answered_before_others_have_a_turn,
        stock=True,
        ours=False,
    ),
    Fault(what_a_second_starttls_is_answered, stock=220, ours=503),
    Fault(does_a_handshake_end_with_much_pipelined_behind_starttls, stock=False, ours=True),
    Fault(does_another_connection_take_away_what_ehlo_gave, stock=[250, 500], ours=[250, 250]),
    Fault(what_a_client_is_told_of_an_error, stock=(500, True), ours=(451, False)),
    Fault(what_rcpt_is_answered_after_a_failed_data, stock=250, ours=503),
    Fault(what_is_answered_after_a_hooks_421, stock=250, ours=0),
    Fault(
        what_becomes_of_a_message_when_its_client_half_closes,
        stock="cancelled 0",
        ours="delivered 250",
    ),
]
