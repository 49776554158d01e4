"""Bugs of aiosmtpd, each tested with both servers: addresses, limits, AUTH, and extensions."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

from aiosmtpd.smtp import AuthResult
from support.stock import BEGIN, Bench, Fault, Keep, codes

# -- 9, 10, 11, 16: addresses ------------------------------------------------------------------


async def what_is_no_path_and_is_answered(bench: Bench) -> list[int]:
    # "<" alone is 500 as well, as Python fixed its parser in 3.13
    paths = ('"', "<a@example.com", "<a..b@example.com>")
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
    """With a handler that repeats them."""

    class Echo(Keep):
        async def handle_MAIL(self, *args: Any) -> str:
            return f"250 {args[3]} OK"

    async with bench.client(Echo(), enable_SMTPUTF8=True) as client:
        await client.greet()
        client.send(b"MAIL FROM:<\xff@example.com>\r\n")
        return (await client.reply()).text.split("'")[0].strip()


# -- 12, 13, 14: limits and AUTH ---------------------------------------------------------------

PLAIN = b64encode(b"\0user\0secret").decode()


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
    """The results of ten attempts."""
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
    """The offer of the extension, and the reply to its use."""
    async with bench.client(tls=True, authenticator=check, auth_require_tls=True) as client:
        offered = any(line.startswith("AUTH") for line in (await client.greet()).lines)
        return offered, (await client.say(f"AUTH PLAIN {PLAIN}")).code


# -- 22: extensions ----------------------------------------------------------------------------


async def which_extensions_are_offered(bench: Bench) -> set[str]:
    sought = {"PIPELINING", "CHUNKING", "BINARYMIME", "DSN", "LIMITS"}
    async with bench.client(Keep()) as client:
        return sought & {line.split()[0] for line in (await client.greet()).lines}


async def what_bdat_with_a_binary_message_is_answered(bench: Bench) -> int:
    async with bench.client() as client:
        await client.greet()
        await codes(client, f"{BEGIN[0]} BODY=BINARYMIME", BEGIN[1])
        client.send(b"BDAT 4 LAST\r\nh\0i\n")
        return (await client.reply()).code


async def what_envid_is_to_a_handler(bench: Bench) -> Any:
    """The extension, and AUTH of MAIL."""
    handler = Keep()
    async with bench.client(handler) as client:
        await client.greet()
        await client.say("MAIL FROM:<a@example.com> ENVID=Qq12 AUTH=<>")
    return handler.params


async def what_a_parameter_with_a_hyphen_is_answered(bench: Bench) -> int:
    """555 is the reply to an unknown parameter, 501 to a malformed one."""
    async with bench.client() as client:
        await client.greet()
        return (await client.say("MAIL FROM:<a@example.com> X-TO=1")).code


# -- all bugs ----------------------------------------------------------------------------------

FAULTS = [
    Fault(what_is_no_path_and_is_answered, stock=[500, 250, 250], ours=[553] * 3),
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
    Fault(
        which_extensions_are_offered,
        stock=set(),
        ours={"PIPELINING", "CHUNKING", "BINARYMIME", "DSN", "LIMITS"},
    ),
    Fault(what_bdat_with_a_binary_message_is_answered, stock=500, ours=250),
    Fault(what_envid_is_to_a_handler, stock=[], ours=[{"ENVID": "Qq12", "AUTH": "<>"}]),
    Fault(what_a_parameter_with_a_hyphen_is_answered, stock=501, ours=555),
]
