"""LMTP: a recipient with several addresses, or none, gets one reply, the worst of them."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from support.offline import Offline

from smtpd_fork.dialogue import Shared
from smtpd_fork.smtp import SMTP

REPLIES = st.sampled_from(["250 2.0.0 a", "250 2.0.0 b", "451 4.3.0 c", "550 5.1.1 d"])


class Aliases:
    """Adds as many addresses for a recipient as its local part says, and answers each."""

    def __init__(self, replies: list[str]) -> None:
        self.replies = replies
        self.recipients: list[str] = []
        self.params = 0

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        number = int(address.partition("@")[0])
        envelope.rcpt_tos.extend(f"{address}-{index}" for index in range(number))
        return "250 2.1.5 Ok"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> list[str]:
        self.recipients = list(envelope.rcpt_tos)
        self.params = len(envelope.rcpt_params)
        return self.replies[: len(envelope.rcpt_tos)]


def worst(replies: list[str]) -> str:
    return max(replies, key=lambda reply: "254".index(reply[0]))[0]


@given(
    numbers=st.lists(st.integers(0, 3), min_size=1, max_size=6).filter(sum),
    replies=st.lists(REPLIES, min_size=20, max_size=20),
)
@example(numbers=[2, 0], replies=["250 2.0.0 a", "451 4.3.0 c"] * 10)
@example(numbers=[1, 1], replies=["250 2.0.0 a", "451 4.3.0 c"] * 10)
def test_each_recipient_gets_the_worst_reply_of_its_addresses(
    numbers: list[int], replies: list[str]
) -> None:
    handler = Aliases(replies)
    offline = Offline(Shared(SMTP, handler, hostname="mx.example.com", lmtp=True))
    lines = [f"RCPT TO:<{number}@example.com>" for number in numbers]
    commands = ["LHLO x", "MAIL FROM:<a@b.c>", *lines, "DATA", "x", ".", "NOOP", ""]
    offline.feed("\r\n".join(commands).encode())
    codes = [line[:1] for line in offline.outcome.sent.decode().split("\r\n") if line[3:4] != "-"]
    expected, start = [], 0
    answers = replies[: sum(numbers)]
    for number in numbers:
        expected.append(worst(answers[start : start + number] or answers))
        start += number
    assert codes[-2 - len(numbers) : -2] == expected
    assert codes[-2] == "2"  # of NOOP
    assert len(handler.recipients) == handler.params == sum(numbers)
