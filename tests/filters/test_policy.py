"""The filter policy in sessions: the requests to a policy server, and its answers."""

from __future__ import annotations

import asyncio
import logging
import smtplib

import pytest
from aiosmtpd.controller import Controller
from blockbuster import BlockBuster
from support.client import Client, code_and_enhanced
from support.handlers import Collect, check_password
from support.policy import MESSAGE, TestPolicy, door, recipient, send
from support.ports import free_port
from support.scripted_server import listening
from support.server import serve, until

from smtpd_fork.errors import HandlerError
from smtpd_fork.filters import Policy
from smtpd_fork.handlers import Chain, load_handlers


@pytest.mark.parametrize("tcp", [False, True])
async def test_a_request_has_the_attributes_of_postfix_in_one_write(tcp: bool) -> None:
    policy = TestPolicy()
    async with door(policy, tcp=tcp, policy_context="mx") as (client, _):
        assert await recipient(client, "b+c@example.com") == (250, "2.1.5")
        port = client.writer.get_extra_info("sockname")[1]
        server_port = client.writer.get_extra_info("peername")[1]
    (request,) = policy.requests[:1]
    instance = request.pop("instance")
    assert instance == request.pop("queue_id") != ""
    assert request.pop("mail_version").startswith("smtpd-fork ")
    assert request == {
        "request": "smtpd_access_policy",
        "protocol_state": "RCPT",
        "protocol_name": "ESMTP",
        "client_address": "127.0.0.1",
        "client_name": "unknown",
        "client_port": str(port),
        "reverse_client_name": "unknown",
        "server_address": "127.0.0.1",
        "server_port": str(server_port),
        "helo_name": "client.example",
        "sender": "a@example.org",
        "recipient": "b+c@example.com",
        "recipient_count": "0",
        "size": "123",
        "etrn_domain": "",
        "stress": "",
        "sasl_method": "",
        "sasl_username": "",
        "sasl_sender": "",
        "encryption_protocol": "",
        "encryption_cipher": "",
        "encryption_keysize": "0",
        "ccert_subject": "",
        "ccert_issuer": "",
        "ccert_fingerprint": "",
        "ccert_pubkey_fingerprint": "",
        "policy_context": "mx",
        "compatibility_level": "3.8",
    }


async def test_each_stage_sends_the_attributes_that_are_known() -> None:
    policy = TestPolicy()
    stages = ["connect", "helo", "mail", "rcpt", "data", "end-of-message"]
    async with door(policy, stages=stages) as (client, kept):
        await client.say("HELO old.example")
        assert await send(client, "b@example.com", "c@example.com") == (250, "2.0.0")
        assert await send(client) == (250, "2.0.0")
    one, other = [*["MAIL", "RCPT", "RCPT"], "DATA", "END-OF-MESSAGE"], ["MAIL", "RCPT"]
    assert policy.states == ["CONNECT", "EHLO", "HELO", *one, *other, "DATA", "END-OF-MESSAGE"]
    connect, ehlo, helo, mail, first, second, data, end, *_, last = policy.requests
    assert (connect["helo_name"], connect["sender"], connect["protocol_name"]) == ("", "", "SMTP")
    assert (ehlo["helo_name"], helo["helo_name"]) == ("client.example", "old.example")
    assert (mail["sender"], mail["recipient"]) == ("a@example.org", "")
    assert (first["recipient"], second["recipient"]) == ("b@example.com", "c@example.com")
    assert (data["recipient"], data["recipient_count"], data["size"]) == ("", "2", "0")
    assert end["size"] == last["size"] == str(len(MESSAGE))
    assert (last["recipient"], last["recipient_count"]) == ("b@example.com", "1")
    assert len(kept.messages) == 2


async def test_addresses_and_sizes_are_as_postfix_sends_them() -> None:
    policy = TestPolicy()
    async with door(policy) as (client, _):
        await client.say('MAIL FROM:<"a"@example.org> SIZE=00123')
        assert (await client.say(r'RCPT TO:<"b \"c"@example.com>')).code == 250
        assert (await client.say("RCPT TO:<postmaster>")).code == 250
    first, second = policy.requests
    assert (first["sender"], first["size"]) == ("a@example.org", "123")
    assert (first["recipient"], second["recipient"]) == ('b "c@example.com', "postmaster")


async def test_all_recipients_of_a_transaction_have_the_same_instance() -> None:
    policy = TestPolicy()
    async with door(policy, stages=["connect", "mail", "rcpt", "end-of-message"]) as (client, _):
        await send(client, "b@example.com", "c@example.com")
        await client.say("MAIL FROM:<a@example.org>", "RSET")
        await send(client)
    instances = [each["instance"] for each in policy.requests]
    assert all(instances)
    sizes = [instances.count(each) for each in dict.fromkeys(instances)]
    assert sizes == [1, 4, 1, 3]


async def test_a_sender_after_a_refused_one_begins_a_new_transaction() -> None:
    actions = iter(["PREPEND X-A: 1", "DUNNO", "OK"])
    policy, other = TestPolicy(lambda _: next(actions)), TestPolicy("REJECT")
    async with listening(other):
        behind = Policy(other.address, stages=["mail"])
        async with door(policy, behind, stages=["mail"]) as (client, kept):
            assert (await client.say("MAIL FROM:<a@example.org>")).code == 554
            other.action = "OK"
            assert await send(client) == (250, "2.0.0")
    first, second = policy.requests
    assert first["instance"] != second["instance"]
    assert [each["instance"] for each in other.requests] == [first["instance"], second["instance"]]
    assert kept.messages == [MESSAGE.encode()]


@pytest.mark.parametrize("timeout", [10.0, 0.0])
async def test_the_attribute_stress_shows_whether_connection_slots_are_short(
    timeout: float,
) -> None:
    policy, options = TestPolicy(), {"limit_connections": 4, "stress_timeout": timeout}
    async with door(policy, options=options) as (client, _):
        await recipient(client)
        address = client.writer.get_extra_info("peername")
        async with await Client.to(address) as second, await Client.to(address) as third:
            await second.greet()
            await third.greet()
            await recipient(client)
    assert [each["stress"] for each in policy.requests] == ["", "yes" if timeout else ""]


async def test_the_user_of_an_authenticated_client_is_sent_and_such_clients_may_be_skipped() -> (
    None
):
    policy, strict = TestPolicy(), TestPolicy("REJECT")
    auth = {"authenticator": check_password, "auth_require_tls": False}
    async with listening(strict):
        entry = {
            "use": "policy",
            "address": strict.address,
            "when": {"authenticated": False},
        }
        handlers = load_handlers([entry]).routes
        async with door(policy, *handlers, options={"session_options": auth}) as (client, _):
            assert await recipient(client) == (554, "5.7.1")
            await client.say("RSET", "AUTH PLAIN AHVzZXIAcGFzcw==")
            await client.say("MAIL FROM:<a@example.org> AUTH=x@example.org")
            assert (await client.say("RCPT TO:<b@example.com>")).code == 250
    request = policy.requests[-1]
    assert request["sasl_method"] == "PLAIN"
    assert request["sasl_username"] == "user"
    assert request["sasl_sender"] == "x@example.org"
    assert len(strict.requests) == 1


async def test_a_client_cannot_inject_an_attribute() -> None:
    policy = TestPolicy()
    async with door(policy, options={"bare_newline": "accept"}, greet=False) as (client, _):
        await client.reply()
        client.writer.write(b"EHLO x\rclient_address=10.0.0.1\x00\xff\r\n")
        await client.reply()
        await recipient(client, '"b\\=c"@example.com')
    request = policy.requests[0]
    assert request["helo_name"].startswith("x?client_address=10.0.0.1?")
    assert request["client_address"] == "127.0.0.1"
    assert request["recipient"] == "b=c@example.com"


# -- answers -------------------------------------------------------------------------------------

REFUSALS = {
    "REJECT": (554, "5.7.1"),
    "550 5.7.23 SPF says no": (550, "5.7.23"),
    "DEFER_IF_PERMIT Greylisted": (450, "4.7.1"),
    "451 4.3.5 later": (451, "4.3.5"),
}
ACCEPTED = ["OK", "DUNNO", "INFO x", "WARN y", "DEFER_IF_REJECT", "FILTER smtp:x", "greylist_us"]


@pytest.mark.parametrize("action", [*REFUSALS, *ACCEPTED])
@pytest.mark.parametrize("stage", ["mail", "rcpt", "data", "end-of-message"])
async def test_an_action_at_any_stage_refuses_or_does_not(action: str, stage: str) -> None:
    policy = TestPolicy(action)
    async with door(policy, stages=[stage]) as (client, kept):
        expected = REFUSALS.get(action, (250, "2.0.0"))
        if stage in {"mail", "rcpt"} and expected[0] != 250:
            if action.startswith("DEFER_IF_PERMIT"):
                stage = "rcpt"  # not the sender, but its recipients are deferred
            command = "RCPT TO:<b@example.com>" if stage == "rcpt" else "NOOP"
            mail = await client.say("MAIL FROM:<a@example.org>")
            refused = mail if stage == "mail" else await client.say(command)
            assert code_and_enhanced(refused) == expected
            assert (await client.say("DATA")).code == 503
        else:
            assert await send(client) == expected
        assert (await client.say("NOOP")).code == 250
    assert len(kept.messages) == (expected[0] == 250)


@pytest.mark.parametrize("state", ["CONNECT", "EHLO", "HELO"])
async def test_a_client_can_be_refused_before_mail(state: str) -> None:
    policy = TestPolicy(lambda asked: "550 no" if asked["protocol_state"] == state else "OK")
    async with door(policy, stages=["connect", "helo"], greet=False) as (client, _):
        greeting = await client.reply()
        assert greeting.code == (550 if state == "CONNECT" else 220)
        if state != "CONNECT":
            hello = await client.say(f"{state} x")
            assert code_and_enhanced(hello) == (550, "5.7.1")
            assert (await client.say("MAIL FROM:<a@example.org>")).code == 503


async def test_421_ends_the_session() -> None:
    async with door(TestPolicy("421 4.7.0 Go away")) as (client, _):
        assert await recipient(client) == (421, "4.7.0")
        assert await client.reader.read() == b""


async def test_fields_are_prepended_once_and_in_order() -> None:
    actions = iter(["PREPEND X-A: 1", "PREPEND X-A: 1", "PREPEND X-B: two words"])
    policy = TestPolicy(lambda _: next(actions))
    async with door(policy) as (client, kept):
        to = [f"{each}@example.com" for each in "bcd"]
        assert await send(client, *to) == (250, "2.0.0")
    assert kept.messages == [b"X-A: 1\r\nX-B: two words\r\n" + MESSAGE.encode()]


@pytest.mark.parametrize("field", ["nothing", "X A: y", ": y", "", "Grün: y"])
async def test_an_invalid_field_is_not_added(field: str, caplog: pytest.LogCaptureFixture) -> None:
    async with door(TestPolicy(f"PREPEND {field}")) as (client, kept):
        assert await send(client) == (250, "2.0.0")
    assert kept.messages == [MESSAGE.encode()]
    assert "PREPEND is not possible" in caplog.text


async def test_a_discarded_message_gets_250_and_a_log_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with door(TestPolicy("DISCARD spam")) as (client, kept):
        assert await send(client) == (250, "2.0.0")
    assert kept.messages == []
    (record,) = [each for each in caplog.records if each.name == "smtpd_fork.policy"]
    assert record.getMessage().endswith("message discarded: spam")
    assert record.__dict__["queue_id"]


@pytest.mark.parametrize(
    ("how", "expected"),
    [(None, (451, "4.7.1")), ("refuse", (550, "5.7.1")), ("mark", (250, "2.0.0"))],
)
async def test_a_held_message_is_never_delivered_unmarked(
    how: str | None, expected: tuple[int, str]
) -> None:
    async with door(TestPolicy("HOLD odd"), when_quarantined=how) as (client, kept):
        assert await send(client) == expected
    marked = [b"X-Quarantine: odd\r\n" + MESSAGE.encode()]
    assert kept.messages == (marked if how == "mark" else [])


async def test_recipients_can_be_replaced_or_added() -> None:
    wrong = ["BCC <no>", "REDIRECT @", "BCC <d\ufffd@example.net>"]
    actions = iter(["REDIRECT c@example.net", "OK", "BCC d@example.net", *wrong])
    async with door(TestPolicy(lambda _: next(actions))) as (client, kept):
        await send(client, "a@example.com", "b@example.com")
        for _ in range(4):
            await send(client)
    recipients = [each.rcpt_tos for each in kept.envelopes]
    one = ["b@example.com"]
    assert recipients == [["c@example.net"], [*one, "d@example.net"], one, one, one]


async def test_an_unsupported_action_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async with door(TestPolicy("FILTER smtp:[127.0.0.1]")) as (client, kept):
        await send(client)
        await send(client)
    assert len(kept.messages) == 2
    lines = [each.getMessage() for each in caplog.records if each.name == "smtpd_fork.policy"]
    assert [line.partition(": ")[2] for line in lines] == [
        "the action FILTER is not supported at RCPT, and treated as DUNNO"
    ]


async def test_warn_and_info_write_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    actions = iter(["WARN look\x1b here", "INFO there"])
    async with door(TestPolicy(lambda _: next(actions))) as (client, _):
        await recipient(client)
        await recipient(client)
    lines = [each for each in caplog.records if each.name == "smtpd_fork.policy"]
    assert [each.levelname for each in lines] == ["WARNING", "INFO"]
    assert lines[0].getMessage().endswith(r": RCPT warn: look\x1b here")


async def test_sleep_delays_all_later_replies() -> None:
    async with listening(TestPolicy("SLEEP 30")) as policy:
        async with serve([Policy(policy.address), Collect()]) as server:
            async with await Client.to(server.addresses[0]) as client:
                await client.greet()
                await client.say("MAIL FROM:<a@example.org>")
                client.send("RCPT TO:<b@example.com>\r\n")
                await until(lambda: [each.phase for each in server.gate.ledger()] == ["tarpit"])
                await server.stop()
                assert [(await client.reply()).code for _ in range(2)] == [250, 421]


def test_an_unknown_stage_or_address_is_an_error() -> None:
    for keys in ({"stages": ["vrfy"]}, {"address": "x"}, {"address": " "}, {"when-down": "x"}):
        with pytest.raises(HandlerError):
            load_handlers([{"use": "policy", "address": "unix:/x", **keys}, "discard"])
    load_handlers(["policy:inet:127.0.0.1:10023,stages=rcpt,stages=data", "discard"])


async def test_the_event_loop_is_not_blocked() -> None:
    async with door(TestPolicy("PREPEND X: y"), stages=["rcpt", "data"]) as (client, _):
        watch = BlockBuster()
        watch.activate()
        try:
            assert await send(client) == (250, "2.0.0")
        finally:
            watch.deactivate()


async def test_it_runs_under_aiosmtpd() -> None:
    policy = TestPolicy(lambda asked: "REJECT" if asked["recipient"][:1] == "x" else "PREPEND X: y")
    kept = Collect()
    stages = ["connect", "helo", "mail", "rcpt", "data", "end-of-message"]
    async with listening(policy, tcp=True):
        chain = Chain([Policy(policy.address, stages=stages), kept])  # type: ignore[arg-type]
        await asyncio.to_thread(_send_by_aiosmtpd, chain)
    assert [each.rcpt_tos for each in kept.envelopes] == [["b@example.com"]]
    assert kept.messages[0].startswith(b"X: y\r\nSubject")
    assert {each["client_address"] for each in policy.requests} == {"127.0.0.1"}


def _send_by_aiosmtpd(chain: Chain) -> None:
    controller = Controller(chain, "127.0.0.1", free_port("127.0.0.1"))
    controller.start()
    try:
        with smtplib.SMTP("127.0.0.1", controller.port) as client:
            client.sendmail("a@example.org", ["x@example.com", "b@example.com"], MESSAGE)
        asyncio.run_coroutine_threadsafe(chain.close(), controller.loop).result()
    finally:
        controller.stop()
