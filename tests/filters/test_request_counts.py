"""The metrics of a filter count the requests that were sent to its program, and nothing else."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest
from support import milter_door, policy, rspamd
from support.auth import b64, connected, hello
from support.client import Client
from support.dovecot_auth import AuthService, challenge
from support.handlers import Collect, check_password
from support.milter import TestMilter, frame
from support.scripted_server import listening
from support.server import serve

from smtpd_fork.dialogue.tally import AnswerCounts
from smtpd_fork.filters import Auth, Filter, Policy
from smtpd_fork.handlers import Route

if TYPE_CHECKING:
    from support.tls import Certificates

LOGIN = base64.b64encode(b"\0bob\0pass").decode()


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> AnswerCounts:
    """The counts of all filters in a test."""
    made = AnswerCounts()
    monkeypatch.setattr(Filter, "_request_counts", made)
    return made


def seen(counts: AnswerCounts) -> dict[str, int]:
    assert sum(counts.latency.counts) == sum(counts.replies.values())
    return {f"{first:c}xx": count for first, count in counts.replies.items() if count}


@pytest.mark.parametrize(
    "stages", [["rcpt"], ["mail"], ["connect", "helo"], ["data", "end-of-message"]]
)
async def test_a_policy_server_is_counted_at_its_stages(
    counts: AnswerCounts, stages: list[str]
) -> None:
    server = policy.TestPolicy()
    async with policy.door(server, stages=stages) as (client, _):
        assert await policy.send(client, "b@example.com", "c@example.com") == (250, "2.0.0")
    assert len(server.requests) == len({"mail": [1]}.get(stages[0], [1, 2]))
    assert seen(counts) == {"2xx": len(server.requests)}


async def test_refusals_of_a_policy_server_are_counted_by_class(counts: AnswerCounts) -> None:
    answers = {"b": "REJECT", "c": "DEFER", "d": "DEFER_IF_PERMIT", "e": "nonsense"}
    server = policy.TestPolicy(action=lambda request: answers[request["recipient"][0]])
    async with policy.door(server) as (client, _):
        for name in "bcd":
            await policy.recipient(client, f"{name}@example.com")
        server.says = b"action=\n\n"
        await policy.recipient(client, "e@example.com")
    assert seen(counts) == {"5xx": 1, "4xx": 3}


async def test_a_filter_is_not_counted_for_clients_without_a_matching_condition(
    counts: AnswerCounts,
) -> None:
    async with listening(server := policy.TestPolicy()):
        route = Route(Policy(server.address), when={"client": "192.0.2.0/24"})
        async with serve([route, Collect()]) as door, await Client.to(door.addresses[0]) as client:
            await client.greet()
            assert await policy.send(client) == (250, "2.0.0")
    assert seen(counts) == {}


def test_a_request_without_an_answer_counts_as_4xx(counts: AnswerCounts) -> None:
    with pytest.raises(TimeoutError), Filter().request():
        raise TimeoutError
    assert seen(counts) == {"4xx": 1}


@pytest.mark.parametrize("skip", [True, False])
async def test_rspamd_is_not_counted_for_clients_that_are_skipped(
    counts: AnswerCounts, skip: bool
) -> None:
    options = {"session_options": {"authenticator": check_password, "auth_require_tls": False}}
    server = rspamd.TestRspamd({"action": "reject"})
    async with rspamd.door(server, options=options, skip_authenticated=skip) as (client, _):
        assert (await client.say(f"AUTH PLAIN {LOGIN}")).code == 235
        assert (await rspamd.send(client)).code == (250 if skip else 554)
    assert seen(counts) == ({} if skip else {"5xx": 1})


STAGES = ["connect", "helo", "mail", "rcpt"]
DOWN = frame(b"no such answer")


@pytest.mark.parametrize(
    ("answers", "keys", "counted"),
    [
        ({}, {}, {"2xx": 2}),
        ({}, {"stages": STAGES}, {"2xx": 8}),
        ({b"C": frame(b"a")}, {}, {"2xx": 1}),
        ({b"C": frame(b"a")}, {"stages": STAGES}, {"2xx": 1}),
        ({b"M": frame(b"a")}, {"stages": STAGES}, {"2xx": 4}),
        ({b"M": DOWN}, {"stages": STAGES, "when_down": "accept"}, {"2xx": 4}),
    ],
)
async def test_a_milter_is_not_counted_for_unwanted_events(
    counts: AnswerCounts, answers: Any, keys: dict[str, Any], counted: dict[str, int]
) -> None:
    milter = TestMilter(answers=answers)
    async with milter_door.door(milter, **keys) as (client, _):
        for _ in range(2):
            assert await milter_door.send(client) == (250, "2.0.0")
    assert seen(counts) == counted


async def test_a_recipient_that_a_milter_refuses_is_counted(counts: AnswerCounts) -> None:
    milter = TestMilter(answers={b"R": frame(b"y", b"550 5.1.1 No such user\0")})
    async with milter_door.door(milter, stages=["rcpt"]) as (client, _):
        assert (await client.say("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>")).code
    assert seen(counts) == {"5xx": 1}


async def test_an_unreachable_milter_is_counted_once_per_message(
    counts: AnswerCounts,
) -> None:
    milter = TestMilter(answers={b"M": DOWN})
    async with milter_door.door(milter) as (client, _):
        assert await milter_door.send(client) == (451, "4.7.1")
    assert seen(counts) == {"4xx": 1}


async def test_dovecot_is_counted_for_each_auth_command(
    counts: AnswerCounts, certificates: Certificates
) -> None:
    answers: dict[str, str | None] = {
        "AUTH CRAM-MD5": challenge(b"<1@mx>"),
        "CONT": "OK\t{id}\tuser=carol\n",
        "AUTH LOGIN": "FAIL\t{id}\ttemp\n",
    }
    async with listening(service := AuthService(answers=answers)):
        chain = [Auth(dovecot=service.address, required=True, max_failures=1), Collect()]
        async with connected("starttls", certificates, chain, authenticator=None) as client:
            await hello(client)
            assert (await client.say("MAIL FROM:<a@example.org>")).code == 530
            assert (await client.say("AUTH LOGIN")).code == 454
            assert seen(counts) == {"4xx": 1}
            assert (await client.say("AUTH CRAM-MD5")).code == 334
            assert (await client.say(b64("carol 0123"))).code == 235
            assert seen(counts) == {"4xx": 1, "2xx": 1}
        async with connected("starttls", certificates, chain, authenticator=None) as client:
            await hello(client)
            assert (await client.say(f"AUTH PLAIN {LOGIN}")).code == 535
            assert (await client.say(f"AUTH PLAIN {LOGIN}")).code == 421, "it is not asked"
    assert seen(counts) == {"4xx": 1, "2xx": 1, "5xx": 1}
