"""Whatever sinks answer, no message that got 250 is lost, and none is stored twice."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st
from support.handlers import a_session

from smtpd_fork.handlers import Route
from smtpd_fork.handlers.delivery import Delivery
from smtpd_fork.message.results import combined
from smtpd_fork.sinks import Sink
from smtpd_fork.testing import make_mail

if TYPE_CHECKING:
    from smtpd_fork.message import Mail

RECIPIENTS = [f"{user}@{domain}" for domain in ("a.example", "b.example") for user in "xyz"]

MOST_TRIES = 30

answers = st.lists(
    st.sampled_from(["250", "250", "451", "550", "raise", "hang"]), min_size=1, max_size=12
)


class Flaky(Sink):
    """Answers each recipient as the list says, and 250 after the end of the list."""

    def __init__(self, wanted: list[str]) -> None:
        self.wanted = list(wanted)
        self.has: list[str] = []
        self.time_limit = 0.01

    async def deliver(self, mail: Mail) -> list[str]:
        replies = []
        for _ in mail.recipients:
            word = self.wanted.pop(0) if self.wanted else "250"
            await asyncio.sleep(0)
            if word == "raise":
                raise OSError("the disk")
            if word == "hang":
                await asyncio.Event().wait()
            replies.append(f"{word} x")
        self.has += [
            each.address
            for each, reply in zip(mail.recipients, replies, strict=True)
            if reply[0] == "2"
        ]
        return replies


@settings(deadline=None)
@given(
    recipients=st.lists(st.sampled_from(RECIPIENTS), min_size=1, unique=True),
    first=answers,
    rest=answers,
    copy=answers,
    best_effort=answers,
)
def test_a_client_that_sends_a_message_until_it_is_accepted_has_it_delivered_once(
    recipients: list[str],
    first: list[str],
    rest: list[str],
    copy: list[str],
    best_effort: list[str],
) -> None:
    one, two, three, four = map(Flaky, (first, rest, copy, best_effort))
    delivery = Delivery(
        [
            Route(one, recipients=["a.example"], name="one"),
            Route(two, name="two"),
            Route(three, copy=True, name="three"),
            Route(four, copy="best-effort", name="four"),
        ]
    )
    mail = make_mail(recipients=recipients)
    session: Any = a_session()

    async def send() -> None:
        for _ in range(MOST_TRIES):
            replies = await delivery.deliver(mail, session)
            assert len(replies) == len(recipients)
            reply = combined(replies, mail.recipients)
            of_a = {each for each in recipients if each.endswith("@a.example")}
            if reply[0] == "2":
                assert set(one.has) == of_a
                assert set(two.has) == {*recipients} - of_a
                assert set(three.has) == {*recipients}
                return
            # A permanent rejection is sent only if no sink wants the message again.
            assert (reply[0] == "5") == all(each[0] in "25" for each in replies)
        raise AssertionError("it is never accepted")

    asyncio.run(send())
    for sink in (one, two, three, four):
        assert len(sink.has) == len(set(sink.has)), sink.has
    assert not delivery._memory


@settings(deadline=None)
@given(
    recipients=st.lists(st.sampled_from(RECIPIENTS), min_size=1, unique=True),
    sink=answers,
    copy=answers,
)
def test_an_lmtp_client_that_sends_it_again_to_those_who_did_not_get_it_has_it_delivered_once(
    recipients: list[str], sink: list[str], copy: list[str]
) -> None:
    one, two = Flaky(sink), Flaky(copy)
    delivery = Delivery([Route(one, name="one"), Route(two, copy=True, name="two")])
    session: Any = a_session()
    session.lmtp = True

    async def send(left: list[str]) -> None:
        for _ in range(MOST_TRIES):
            if not left:
                return
            mail = make_mail(recipients=left)
            replies = await delivery.deliver(mail, session)
            left = [each for each, reply in zip(left, replies, strict=True) if reply[0] != "2"]
        raise AssertionError("it is never accepted")

    asyncio.run(send(recipients))
    for each in (one, two):
        assert sorted(each.has) == sorted(recipients)
    assert not delivery._memory
