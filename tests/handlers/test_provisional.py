"""Provisional answers: a deferral that stands unless a handler behind it refuses permanently."""

from __future__ import annotations

from typing import Any

import pytest
from aiosmtpd.smtp import MISSING
from support.client import code_and_enhanced
from support.policy import TestPolicy, door
from support.scripted_server import listening

from smtpd_fork.filters import Policy
from smtpd_fork.handlers import load_handlers


class Says:
    """Answers as it is told to; a 2yz takes the address itself, as aiosmtpd has it."""

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


@pytest.mark.parametrize(("action", "answer"), CASES)
@pytest.mark.parametrize("stage", ["mail", "rcpt"])
@pytest.mark.parametrize("conditional", [False, True])
async def test_a_deferral_stands_unless_a_handler_behind_refuses(
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
            if code != 250:  # nothing is left of what a handler behind has taken
                assert (await client.say(refused)).code == 503


async def test_handlers_behind_are_asked_once_and_not_after_a_refusal() -> None:
    other, policy = Says(MISSING), TestPolicy("REJECT")
    async with door(policy, other, stages=["mail"]) as (client, _):
        await client.say("MAIL FROM:<a@example.org>")
        assert other.asked == 0
        policy.action = "DEFER_IF_PERMIT"
        await client.say("MAIL FROM:<a@example.org>")
        assert other.asked == 1


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
