"""Provisional answers: a deferral is used unless a later handler rejects permanently."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.smtp import MISSING
from support.client import code_and_enhanced
from support.policy import TestPolicy, door, send
from support.scripted_server import listening

from smtpd_fork.filters import Filter, Policy
from smtpd_fork.handlers import load_handlers
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from support.tls import Certificates

    from smtpd_fork.filters.policy import Stage


class Says:
    """Returns the given answers; with 2yz it adds the address itself, as in aiosmtpd."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked = 0

    async def handle_MAIL(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> Any:
        self.asked += 1
        if self.answer is not MISSING and self.answer[:1] == "2":
            envelope.mail_from = address
        return self.answer

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> Any:
        self.asked += 1
        if self.answer is not MISSING and self.answer[:1] == "2":
            envelope.rcpt_tos.append(address)
            envelope.rcpt_options.extend(options)
        return self.answer


CASES = {
    ("DEFER_IF_PERMIT", MISSING): (450, "4.7.1"),
    ("DEFER_IF_PERMIT", "250 2.1.5 Ok"): (450, "4.7.1"),
    ("DEFER_IF_PERMIT", "451 4.3.0 later"): (450, "4.7.1"),
    ("DEFER_IF_PERMIT", "550 5.1.1 no"): (550, "5.1.1"),
    ("DEFER_IF_REJECT", MISSING): (250, ""),
    ("DEFER_IF_REJECT", "451 4.3.0 later"): (451, "4.3.0"),
    ("DEFER_IF_REJECT", "550 5.1.1 no"): (450, "4.7.1"),
    ("DEFER", "550 5.1.1 no"): (450, "4.7.1"),
    ("DUNNO", "550 5.1.1 no"): (550, "5.1.1"),
}


OF_SENDER = {case for case in CASES if case[0] != "DEFER_IF_PERMIT"}
"""Cases that are the same at MAIL: a sender is not deferred "if permitted", but its recipients
are."""


@pytest.mark.parametrize(
    ("stage", "action", "answer"),
    [("rcpt", *case) for case in CASES] + [("mail", *case) for case in CASES if case in OF_SENDER],
)
@pytest.mark.parametrize("conditional", [False, True])
async def test_a_deferral_is_used_unless_a_later_handler_rejects(
    action: str, answer: Any, stage: str, conditional: bool
) -> None:
    other, expected = Says(answer), CASES[action, answer]
    policy, last = TestPolicy(action if not conditional else "DUNNO"), TestPolicy(action)
    async with listening(last):
        entry = {"use": "policy", "address": last.address, "stages": [stage]}
        when = {"when": {"client": "127.0.0.1"}}
        more = load_handlers([entry | when]).routes if conditional else ()
        stages = [stage] if stage == "rcpt" else ["mail"]
        async with door(policy, *more, other, stages=stages) as (client, _):
            if stage == "rcpt":
                other.answer = MISSING
                await client.say("MAIL FROM:<a@example.org>")
                other.answer = answer
            command = "RCPT TO:<b@example.com>" if stage == "rcpt" else "MAIL FROM:<a@example.org>"
            code, enhanced = code_and_enhanced(await client.say(command))
            assert code == expected[0]
            assert code == 250 or enhanced == expected[1]
            refused = "DATA" if stage == "rcpt" else "RCPT TO:<b@example.com>"
            if code != 250:  # recipients that a later handler has added are removed
                assert (await client.say(refused)).code == 503


async def test_later_handlers_are_called_once_and_not_after_a_rejection() -> None:
    other, policy = Says(MISSING), TestPolicy("REJECT")
    async with door(policy, other, stages=["mail"]) as (client, _):
        await client.say("MAIL FROM:<a@example.org>")
        assert other.asked == 0
        policy.action = "DEFER_IF_PERMIT"
        await client.say("MAIL FROM:<a@example.org>")
        assert other.asked == 1
        assert (await client.say("RCPT TO:<b@example.com>")).code == 450
        assert other.asked == 2


async def test_two_policy_servers_may_both_defer() -> None:
    second = TestPolicy("DEFER_IF_PERMIT second")
    async with listening(second):
        more = Policy(second.address)
        async with door(TestPolicy("DEFER_IF_PERMIT first"), more) as (client, _):
            reply = await client.say("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>")
            assert reply.text == "4.7.1 first"
            second.action = "REJECT second"
            reply = await client.say("RCPT TO:<b@example.com>")
            assert reply.text == "5.7.1 second"


def at(state: str, action: str) -> TestPolicy:
    """Return a policy server that answers DUNNO at other states."""
    return TestPolicy(lambda asked: action if asked["protocol_state"] == state else "DUNNO")


@pytest.mark.parametrize("state", ["CONNECT", "EHLO", "HELO", "MAIL"])
@pytest.mark.parametrize("asks_rcpt", [False, True])
async def test_a_deferral_of_a_client_or_sender_applies_to_each_recipient(
    state: str, asks_rcpt: bool
) -> None:
    other = Says(MISSING)
    policy = TestPolicy(
        lambda asked: (
            f"DEFER_IF_PERMIT {asked['protocol_state']}"
            if asked["protocol_state"] in {state, "RCPT"}
            else "DUNNO"
        )
    )
    stages = ["connect", "helo", "mail", *(["rcpt"] if asks_rcpt else [])]
    async with door(policy, other, stages=stages, greet=False) as (client, kept):
        assert (await client.reply()).code == 220
        assert (await client.say(f"{'HELO' if state == 'HELO' else 'EHLO'} x")).code == 250
        for _ in range(2):
            assert (await client.say("MAIL FROM:<a@example.org>")).code == 250
            for _ in range(2):
                reply = await client.say("RCPT TO:<b@example.com>")
                assert (reply.code, reply.text) == (450, f"4.7.1 {state}")  # the first reason
            other.answer = "550 5.1.1 no"
            assert (await client.say("RCPT TO:<c@example.com>")).code == 550
            other.answer = MISSING
            assert (await client.say("RSET")).code == 250
        policy.action = "DUNNO"
        if state != "CONNECT":  # a later answer replaces it
            await client.say("EHLO x", "MAIL FROM:<a@example.org>")
            assert (await client.say("RCPT TO:<b@example.com>")).code == 250
    assert kept.messages == []


async def test_a_deferral_of_a_client_remains_after_starttls(certificates: Certificates) -> None:
    policy = at("CONNECT", "DEFER_IF_PERMIT")
    options = {"tls_context": certificates.server}
    async with door(policy, stages=["connect", "helo"], options=options) as (client, _):
        await client.start_tls(certificates.client)
        assert (await client.say("EHLO x", "MAIL FROM:<a@example.org>")).code == 250
        assert (await client.say("RCPT TO:<b@example.com>")).code == 450


@pytest.mark.parametrize("state", ["CONNECT", "EHLO", "HELO"])
@pytest.mark.parametrize(
    ("answer", "expected"), [("REJECT", 450), ("451 4.3.0 x", 451), ("DUNNO", 0)]
)
async def test_a_refusal_of_a_client_becomes_a_deferral_at_the_same_stage(
    state: str, answer: str, expected: int
) -> None:
    first, second = at(state, "DEFER_IF_REJECT later"), at(state, answer)
    stages: Sequence[Stage] = ("connect", "helo")
    async with listening(second):
        behind = [Policy(second.address, stages=stages), Says(MISSING)]
        async with door(first, *behind, stages=stages, greet=False) as (client, _):
            reply = await client.reply()
            if state != "CONNECT":
                assert reply.code == 220
                reply = await client.say(f"{state} x")
            assert reply.code == expected or (expected == 0 and reply.code in {220, 250})
            assert ("later" in reply.text) == (expected == 450)
            if state != "CONNECT":  # the answer about it has no effect any more
                second.action = "DUNNO"
                assert (await client.say("EHLO x")).code == 250
                assert (await client.say("MAIL FROM:<a@example.org>")).code == 250


class Judge(Filter):
    """Returns the given answers for messages."""

    def __init__(self, answer: Any = MISSING) -> None:
        self.answer = answer
        self.asked = 0

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> Any:
        self.asked += 1
        return self.answer


OF_MESSAGES = {
    ("DEFER_IF_PERMIT", MISSING): (450, "4.7.1"),
    ("DEFER_IF_PERMIT", "250 2.0.0 Ok: discarded"): (450, "4.7.1"),
    ("DEFER_IF_PERMIT", "451 4.3.0 later"): (450, "4.7.1"),
    ("DEFER_IF_PERMIT", "554 5.7.1 no"): (554, "5.7.1"),
    ("DEFER_IF_REJECT", MISSING): (250, "2.0.0"),
    ("DEFER_IF_REJECT", "451 4.3.0 later"): (451, "4.3.0"),
    ("DEFER_IF_REJECT", "554 5.7.1 no"): (450, "4.7.1"),
    ("DUNNO", "554 5.7.1 no"): (554, "5.7.1"),
}


@pytest.mark.parametrize(("action", "answer"), OF_MESSAGES)
@pytest.mark.parametrize("stages", [["data"], ["end-of-message"], ["data", "end-of-message"]])
async def test_for_a_message_later_filters_are_called_and_sinks_are_not(
    action: str, answer: Any, stages: list[str]
) -> None:
    policy = at(stages[0].upper(), action)
    first, second = Judge(), Judge(answer)
    async with door(policy, first, second, stages=stages) as (client, kept):
        expected = OF_MESSAGES[action, answer]
        assert await send(client) == expected
        assert (first.asked, second.asked) == (1, 1)
        policy.action, second.answer = "DUNNO", MISSING
        assert await send(client) == (250, "2.0.0")
    assert len(kept.messages) == 1 + (expected[0] == 250)


async def test_a_rejection_by_a_sink_is_not_replaced() -> None:
    class Refuses(Discard):
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            return "554 5.3.0 no"

    async with door(TestPolicy("DEFER_IF_REJECT"), Refuses(), stages=["data"]) as (client, _):
        assert await send(client) == (554, "5.3.0")


async def test_an_answer_about_a_recipient_does_not_apply_to_the_message() -> None:
    policy = TestPolicy("DEFER_IF_REJECT")
    async with door(policy, Judge("554 5.7.1 no"), stages=["mail", "rcpt"]) as (client, _):
        assert await send(client) == (554, "5.7.1")
