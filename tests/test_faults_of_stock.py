"""The faults of stock aiosmtpd that smtpd_fork.smtp.SMTP exists to be free of, each shown on both.

One probe for each, the answer that stock gives, and the one that we give. A test of the first half
that fails says that aiosmtpd was mended, and one of the second that we are broken.
"""

from __future__ import annotations

import asyncio
import tracemalloc
from base64 import b64encode
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import aiosmtpd.smtp
import pytest
from aiosmtpd.smtp import MISSING, AuthResult
from support.client import PATIENCE, Client

import smtpd_fork.smtp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from support.tls import Certificates

STOCK, OURS = aiosmtpd.smtp.SMTP, smtpd_fork.smtp.SMTP

BEGIN = ("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>", "DATA")
PLAIN = b64encode(b"\0user\0secret").decode()
HANG_SECONDS = 0.5
"""How long a handshake is awaited that stock never answers; ours has the client's patience."""


class Keep:
    """Takes all messages, and what hooks are given."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.senders: list[str] = []
        self.params: list[Any] = []

    async def handle_MAIL(self, server: Any, session: Any, envelope: Any, *args: Any) -> Any:
        self.senders.append(args[0])
        self.params.append(getattr(envelope, "mail_params", args[1]))
        return MISSING

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.messages.append(envelope.content)
        return "250 OK"


class Bench:
    """What a probe has: one of the two engines, and certificates.

    :ivar sessions: all that were made, oldest first
    """

    def __init__(self, engine: type[aiosmtpd.smtp.SMTP], certificates: Certificates) -> None:
        self.engine = engine
        self.certificates = certificates
        self.sessions: list[Any] = []

    @asynccontextmanager
    async def client(
        self, handler: Any = None, *, tls: bool = False, **options: Any
    ) -> AsyncIterator[Client]:
        """Serve, and connect a client; afterwards no session is left."""
        loop = asyncio.get_running_loop()
        options.setdefault("auth_require_tls", False)

        def session() -> Any:
            made = self.engine(handler or Keep(), hostname="mx.example.com", **options)
            self.sessions.append(made)
            return made

        context = self.certificates.server if tls else None
        server = await loop.create_server(session, "127.0.0.1", 0, ssl=context)
        trust = self.certificates.client if tls else None
        try:
            self.address = server.sockets[0].getsockname()
            async with await Client.to(self.address, tls=trust) as client:
                yield client
        finally:
            server.close()
            await self._end_sessions()

    async def _end_sessions(self) -> None:
        for session in self.sessions:
            if session.transport is not None:
                session.transport.abort()
            ended = session._handler_coroutine
            if not isinstance(session, OURS):
                session._handler_coroutine.cancel()
            with suppress(asyncio.CancelledError):
                await ended


async def codes(client: Client, *commands: str) -> list[int]:
    return [(await client.say(command)).code for command in commands]


# -- 1, 2, 3: memory and time ----------------------------------------------------------------


async def peak_of(bench: Bench, piece: bytes, pieces: int, **options: Any) -> int:
    """Send a message of so many pieces; return by how many bytes memory grew meanwhile."""
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
        client.send("RCPT TO:<a@b>\r\n")
        one = len(await client.reader.readuntil(b"\r\n"))
        client.send(b"RCPT TO:<a@b>\r\n" * commands)
        counting = asyncio.create_task(count())
        await client.reader.readexactly(one * commands)
        counting.cancel()
    return turns < commands / 100


# -- 6, 17: STARTTLS -------------------------------------------------------------------------


async def what_a_second_starttls_is_answered(bench: Bench) -> int:
    async with bench.client(tls_context=bench.certificates.server) as client:
        await client.greet()
        await client.start_tls(bench.certificates.client)
        return (await codes(client, "EHLO x", "STARTTLS"))[-1]


async def is_there_tls_with_much_pipelined_behind_starttls(bench: Bench) -> bool:
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
        except TimeoutError:
            client.writer.transport.abort()
            # A cancelled handshake never tells the stream of its end, and close() waits for that.
            client.writer._protocol.connection_lost(None)  # type: ignore[attr-defined]
            return False
        return (await client.say("EHLO x")).code == 250


# -- 7: sessions and one another -------------------------------------------------------------


async def does_another_connection_take_away_what_ehlo_gave(bench: Bench) -> list[int]:
    """A command of more than 512 bytes, before and after somebody else connects."""
    mail = f"MAIL FROM:<{'a' * 490}@example.com> SIZE=1"
    async with bench.client() as client:
        await client.greet()
        answers = await codes(client, mail, "RSET")
        async with await Client.to(bench.address) as other:
            await other.reply()
            return [answers[0], *await codes(client, mail)]


# -- 8, 20: handlers that fail, or have had enough -------------------------------------------


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


# -- 9, 10, 11, 16: addresses ----------------------------------------------------------------


async def what_is_no_path_and_is_answered(bench: Bench) -> list[int]:
    # "<" alone is 500 as well, before Python 3.13 has mended its parser
    paths = ('"', "<a@example.com", "<a..b@example.com>", "a@example.com")
    answers = []
    for path in paths:
        async with bench.client() as client:
            await client.greet()
            answers += await codes(client, f"MAIL FROM:{path}")
    return answers


async def which_senders_with_controls_reach_a_handler(bench: Bench) -> list[str]:
    handler = Keep()
    for control in "\r\0":
        async with bench.client(handler) as client:
            await client.greet()
            await client.say(f'MAIL FROM:<"a{control}b"@example.com>')
    return handler.senders


async def is_an_unknown_command_echoed_with_its_cr(bench: Bench) -> bool:
    async with bench.client() as client:
        await client.greet()
        client.send("FOO\rBAR\r\n")
        return b"\r" in (await client.reader.readuntil(b"\r\n"))[:-2]


async def what_the_null_sender_is_to_a_handler(bench: Bench) -> list[str]:
    handler = Keep()
    async with bench.client(handler) as client:
        await client.greet()
        await client.say("MAIL FROM:<>")
    return handler.senders


async def what_8_bit_addresses_without_smtputf8_are_answered(bench: Bench) -> int:
    async with bench.client(enable_SMTPUTF8=True) as client:
        await client.greet()
        return (await client.say("MAIL FROM:<é@example.com>")).code


async def what_bytes_that_are_no_utf8_are_answered(bench: Bench) -> str:
    """By a handler that repeats them."""

    class Echo(Keep):
        async def handle_MAIL(self, *args: Any) -> str:
            return f"250 {args[3]} OK"

    async with bench.client(Echo(), enable_SMTPUTF8=True) as client:
        await client.greet()
        client.send(b"MAIL FROM:<\xff@example.com>\r\n")
        return (await client.reply()).text.split("'")[0].strip()


# -- 12, 13, 14: limits and AUTH -------------------------------------------------------------


async def how_many_recipients_a_message_may_have(bench: Bench) -> int:
    async with bench.client() as client:
        await client.greet()
        await client.say(BEGIN[0])
        wanted = 1100
        client.send(f"{BEGIN[1]}\r\n" * wanted)
        return [(await client.reply()).code for _ in range(wanted)].count(250)


def check(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
    return AuthResult(success=data.password != b"wrong", handled=False)


async def how_often_a_client_may_fail_to_authenticate(bench: Bench) -> int:
    """Of ten times."""
    wrong = b64encode(b"\0user\0wrong").decode()
    async with bench.client(authenticator=check) as client:
        await client.greet()
        client.send(f"AUTH PLAIN {wrong}\r\n" * 10)
        return [(await client.reply()).code for _ in range(10)].count(535)


async def auth(bench: Bench, command: str, *responses: str, before: str = "NOOP") -> int:
    async with bench.client(authenticator=check) as client:
        await client.greet()
        return (await codes(client, before, command, *responses))[-1]


async def what_auth_within_a_transaction_is_answered(bench: Bench) -> int:
    return await auth(bench, f"AUTH PLAIN {PLAIN}", before=BEGIN[0])


async def what_a_mechanism_in_small_letters_is_answered(bench: Bench) -> int:
    return await auth(bench, f"AUTH plain {PLAIN}")


async def what_a_long_initial_response_is_answered(bench: Bench) -> int:
    token = b64encode(b"\0user\0" + b"x" * 2000).decode()
    return await auth(bench, f"AUTH PLAIN {token}")


async def what_a_long_response_is_answered(bench: Bench) -> int:
    token = b64encode(b"\0user\0" + b"x" * 2000).decode()
    return await auth(bench, "AUTH PLAIN", token)


async def is_auth_offered_with_nothing_to_check_it(bench: Bench) -> bool:
    async with bench.client() as client:
        return any(line.startswith("AUTH") for line in (await client.greet()).lines)


async def what_auth_is_answered_under_implicit_tls(bench: Bench) -> tuple[bool, int]:
    """Whether it is offered, and what it is answered."""
    async with bench.client(tls=True, authenticator=check, auth_require_tls=True) as client:
        offered = any(line.startswith("AUTH") for line in (await client.greet()).lines)
        return offered, (await client.say(f"AUTH PLAIN {PLAIN}")).code


# -- 18, 19: line ends, and the end of input -------------------------------------------------


async def what_commands_with_bare_lf_are_answered(bench: Bench) -> list[int]:
    async with bench.client() as client:
        await client.greet()
        client.send("NOOP\nRSET\r\nQUIT\r\n")
        return [code for _ in range(3) if (code := (await client.reply()).code)]


async def what_becomes_of_a_smuggled_message(bench: Bench) -> tuple[int, list[bytes]]:
    handler = Keep()
    async with bench.client(handler) as client:
        await client.greet()
        reply = await client.deliver("one\n.\nMAIL FROM:<x@example.com>\r\n.\ntwo\0\r\n")
        return reply.code, handler.messages


async def what_becomes_of_a_message_when_its_client_half_closes(bench: Bench) -> str:
    """While the handler has it in hand."""
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


# -- 22: extensions --------------------------------------------------------------------------


async def which_extensions_are_offered(bench: Bench) -> set[str]:
    sought = {"PIPELINING", "CHUNKING", "BINARYMIME", "DSN", "LIMITS"}
    async with bench.client() as client:
        return sought & {line.split()[0] for line in (await client.greet()).lines}


async def what_bdat_with_a_binary_message_is_answered(bench: Bench) -> int:
    async with bench.client() as client:
        await client.greet()
        await codes(client, f"{BEGIN[0]} BODY=BINARYMIME", BEGIN[1])
        client.send(b"BDAT 4 LAST\r\nh\0i\n")
        return (await client.reply()).code


async def what_envid_is_to_a_handler(bench: Bench) -> Any:
    """And MAIL's AUTH."""
    handler = Keep()
    async with bench.client(handler) as client:
        await client.greet()
        await client.say("MAIL FROM:<a@example.com> ENVID=Qq12 AUTH=<>")
    return handler.params


async def what_a_parameter_with_a_hyphen_is_answered(bench: Bench) -> int:
    """555 is for one that is not known, 501 for what is none."""
    async with bench.client() as client:
        await client.greet()
        return (await client.say("MAIL FROM:<a@example.com> X-TO=1")).code


class Fault(NamedTuple):
    """A probe, and what it finds with each engine."""

    probe: Callable[[Bench], Awaitable[Any]]
    stock: object
    ours: object


SMUGGLED = b"one\n.\nMAIL FROM:<x@example.com>\r\n\ntwo\0\r\n"

FAULTS = [
    Fault(is_a_message_past_the_limit_kept, stock=True, ours=False),
    Fault(do_empty_lines_take_ten_times_their_size, stock=True, ours=False),
    Fault(
        is_all_that_is_pipelined_answered_before_others_have_a_turn,
        stock=True,
        ours=False,
    ),
    Fault(what_a_second_starttls_is_answered, stock=220, ours=503),
    Fault(is_there_tls_with_much_pipelined_behind_starttls, stock=False, ours=True),
    Fault(does_another_connection_take_away_what_ehlo_gave, stock=[250, 500], ours=[250, 250]),
    Fault(what_a_client_is_told_of_an_error, stock=(500, True), ours=(451, False)),
    Fault(what_rcpt_is_answered_after_a_failed_data, stock=250, ours=503),
    Fault(what_is_answered_after_a_hooks_421, stock=250, ours=0),
    Fault(what_is_no_path_and_is_answered, stock=[500, 250, 250, 250], ours=[553] * 4),
    Fault(
        which_senders_with_controls_reach_a_handler,
        stock=["a\rb@example.com", "a\0b@example.com"],
        ours=[],
    ),
    Fault(is_an_unknown_command_echoed_with_its_cr, stock=True, ours=False),
    Fault(what_the_null_sender_is_to_a_handler, stock=["<>"], ours=["<>"]),  # that is kept
    Fault(what_8_bit_addresses_without_smtputf8_are_answered, stock=250, ours=553),
    Fault(
        what_bytes_that_are_no_utf8_are_answered,
        stock="Error: (UnicodeEncodeError)",
        ours="Error: bad syntax",
    ),
    Fault(how_many_recipients_a_message_may_have, stock=1100, ours=1000),
    Fault(how_often_a_client_may_fail_to_authenticate, stock=10, ours=3),
    Fault(what_auth_within_a_transaction_is_answered, stock=235, ours=503),
    Fault(what_a_mechanism_in_small_letters_is_answered, stock=504, ours=235),
    Fault(what_a_long_initial_response_is_answered, stock=500, ours=235),
    Fault(what_a_long_response_is_answered, stock=500, ours=235),
    Fault(is_auth_offered_with_nothing_to_check_it, stock=True, ours=False),
    Fault(what_auth_is_answered_under_implicit_tls, stock=(False, 538), ours=(True, 235)),
    Fault(what_commands_with_bare_lf_are_answered, stock=[250, 250, 221], ours=[500, 221]),
    Fault(what_becomes_of_a_smuggled_message, stock=(250, [SMUGGLED]), ours=(550, [])),
    Fault(
        what_becomes_of_a_message_when_its_client_half_closes,
        stock="cancelled 0",
        ours="delivered 250",
    ),
    Fault(
        which_extensions_are_offered,
        stock=set(),
        ours={"PIPELINING", "CHUNKING", "BINARYMIME", "DSN", "LIMITS"},
    ),
    Fault(what_bdat_with_a_binary_message_is_answered, stock=500, ours=250),
    Fault(what_envid_is_to_a_handler, stock=[], ours=[{"ENVID": "Qq12", "AUTH": "<>"}]),
    Fault(what_a_parameter_with_a_hyphen_is_answered, stock=501, ours=555),
]

each_fault = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.probe.__name__)


@each_fault
@pytest.mark.asyncio(loop_factories=["asyncio"])  # one loop does to show what aiosmtpd is like
async def test_stock_aiosmtpd_has_the_fault(fault: Fault, certificates: Certificates) -> None:
    assert await fault.probe(Bench(STOCK, certificates)) == fault.stock


@each_fault
async def test_ours_has_not(fault: Fault, certificates: Certificates) -> None:
    assert await fault.probe(Bench(OURS, certificates)) == fault.ours
