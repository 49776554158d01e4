"""policy and Postfix: the same two policy servers cause the same replies at every stage."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.client import Client
from support.handlers import Collect
from support.peers import needs_root, peers
from support.policy import TestPolicy
from support.ports import free_port
from support.scripted_server import listening
from support.server import serve

from peers.postfix import instance
from peers.test_accept_beside_postfix import until_open
from smtpd_fork.filters import Policy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from smtpd_fork.filters.policy import Stage

pytestmark = [pytest.mark.peers, pytest.mark.timeout(120)]

STAGES = {
    "CONNECT": "client",
    "EHLO": "helo",
    "MAIL": "sender",
    "RCPT": "recipient",
    "DATA": "data",
    "END-OF-MESSAGE": "end_of_data",
}
"""States, and Postfix's list of restrictions for each."""

OUR_STAGES: Sequence[Stage] = ("connect", "helo", "mail", "rcpt", "data", "end-of-message")

SETTINGS = """\
smtpd_delay_reject = no
relay_domains = example.com
relay_transport = discard:
smtpd_relay_restrictions = permit_auth_destination, reject
"""

CASES = [
    (action, stage, refused)
    for action, stage in itertools.product(["DEFER_IF_PERMIT", "DEFER_IF_REJECT"], STAGES)
    for refused in dict.fromkeys(["", stage, "RCPT", "DATA"])
    if (stage, refused) != ("END-OF-MESSAGE", "DATA")
]
"""The answer of the first server and its state, and the state in which the second one refuses. One
combination is omitted: in smtpd-fork a filter gets DATA and the end of the message at once, before
the next filter gets either.
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    needs_root()
    made = Path(tempfile.mkdtemp(prefix="smtpd-fork-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@asynccontextmanager
async def two_servers() -> AsyncIterator[tuple[TestPolicy, TestPolicy]]:
    async with (
        listening(TestPolicy(), tcp=True) as first,
        listening(TestPolicy(), tcp=True) as second,
    ):
        yield first, second


async def outcome(port: int) -> tuple[str, int]:
    """Send a message; return the state in which it ended, and the code of the reply."""
    async with await Client.to(("127.0.0.1", port)) as client:
        if (code := (await client.reply()).code) >= 400:
            return "CONNECT", code
        steps = ["EHLO x", "MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA"]
        for step in steps:
            if (code := (await client.say(step)).code) >= 400:
                return "message" if step == "DATA" else step.split()[0], code
        client.send("Subject: x\r\n\r\ntext\r\n.\r\n")
        return "message", (await client.reply()).code


async def outcomes(port: int, first: TestPolicy, second: TestPolicy) -> list[tuple[str, int]]:
    """Return the outcomes of all cases."""
    found = []
    for action, stage, refused in CASES:
        first.action = lambda asked, a=action, s=stage: (
            a if asked["protocol_state"] == s else "DUNNO"
        )
        second.action = lambda asked, r=refused: (
            "REJECT" if asked["protocol_state"] == r else "DUNNO"
        )
        found.append(await outcome(port))
    return found


async def test_a_provisional_answer_has_the_same_effect_at_each_stage(directory: Path) -> None:
    peers("postfix")
    port = free_port("127.0.0.1")
    async with two_servers() as (first, second):
        both = ", ".join(f"check_policy_service inet:{each.address}" for each in (first, second))
        lists = "".join(f"smtpd_{name}_restrictions = {both}\n" for name in STAGES.values())
        service = f"127.0.0.1:{port} inet n - n - 1 smtpd\n"
        with instance(directory, SETTINGS + lists, service):
            await until_open(port)
            of_postfix = await outcomes(port, first, second)
        filters = [Policy(each.address, stages=OUR_STAGES) for each in (first, second)]
        async with serve([*filters, Collect()]) as server:
            ours = await outcomes(server.port, first, second)
    assert dict(zip(CASES, ours, strict=True)) == dict(zip(CASES, of_postfix, strict=True))
    assert {code for _, code in ours} == {250, 450, 554}
