"""Delivery: delivers a message to several sinks, each with its recipients, and to copies.

Each recipient has one sink: the first whose ``for`` and ``when`` match; for a quarantined message,
the first such sink with ``quarantine``. All sinks and copies of a message are called concurrently.
SMTP has one reply for all recipients, and this server writes no bounces. So if one sink has stored
a message and another has not, the reply is 4yz or 5yz, and after 4yz the client sends the message
again. A hash of the message is remembered with the sinks and recipients that have it, so that only
the other sinks are called the next time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import MISSING, Envelope
from aiosmtpd.smtp import Session as AnySession

from smtpd_fork.dialogue.client_log import summary
from smtpd_fork.dialogue.notes import marks_of
from smtpd_fork.gate import ClientLine, client_reporter
from smtpd_fork.handlers.delivered_parts import DeliveredParts
from smtpd_fork.message import Mail, Recipient
from smtpd_fork.message.quarantine_mark import WITHHELD
from smtpd_fork.message.results import per_recipient
from smtpd_fork.sinks.base import FAILED, answer, deliver_in_time, key_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_fork.dialogue.tally import AnswerCounts
    from smtpd_fork.handlers.route import Route

__all__ = ["Delivery"]

log = logging.getLogger("smtpd_fork.delivery")

NO_SINK = "550 5.1.1 No destination takes mail for this recipient"
STORED_BEFORE = "250 2.0.0 Ok: delivered before"

BEST_EFFORT_SECONDS = 10.0
"""Time that a reply waits for best-effort copies; clients wait ten minutes."""


@dataclass(eq=False)
class _Part:
    """The recipients of a message for one sink.

    :ivar indices: indices of the recipients in the message
    :ivar stored: indices of the recipients for which the sink has stored the message before
    """

    route: Route
    indices: list[int]
    stored: list[int] = field(default_factory=list)
    recipients: list[Recipient] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)

    @property
    def required(self) -> bool:
        return self.route.copy != "best-effort"

    @property
    def delivered(self) -> bool:
        stored = [reply for reply in self.replies if reply[:1] == "2"]
        return len(stored) == len(self.indices)


class Delivery:
    """The sinks of a chain as one handler.

    :param routes: the routes of the sinks, in order
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = tuple(routes)
        self._regular = [each for each in routes if not (each.copy or each.quarantine)]
        self._memory = DeliveredParts()
        self._reporter = client_reporter()
        self._counts: Callable[[str], AnswerCounts] | None = None

    def count_with(self, counts: Callable[[str], AnswerCounts]) -> None:
        """Count the replies of sinks; *counts* returns the counter of a sink."""
        self._counts = counts

    # -- hooks ---------------------------------------------------------------------------------

    async def handle_RCPT(
        self, server: Any, session: AnySession, envelope: Envelope, address: str, options: list[str]
    ) -> Any:
        """Reject a recipient without a sink; otherwise call the hook of its sink."""
        sender, marks = envelope.mail_from or "", marks_of(session, envelope)
        otherwise: Any = NO_SINK
        for route in self._regular:
            if not route.takes(address):
                continue
            if route.when is not None and not route.when.suits(session, sender):
                continue
            if route.when is not None and route.when.larger_than is not None:
                return MISSING  # the sink is known at the end of the message
            if route.when is not None and not route.when.allows(marks):
                otherwise = MISSING  # a filter may still set the score or tag of this sink
                continue
            hook = getattr(route.handler, "handle_RCPT", None)
            return await hook(server, session, envelope, address, options) if hook else MISSING
        return otherwise

    async def handle_DATA(self, server: Any, session: AnySession, envelope: Envelope) -> Any:
        """Deliver a message."""
        mail = Mail.of(server, session, envelope)
        return answer(await self.deliver(mail, session), mail, server, session)

    async def deliver(self, mail: Mail, session: AnySession) -> list[str]:
        """Deliver a message; return a reply for each recipient."""
        parts = self._parts(mail, session)
        if self._memory:
            known = self._memory.of(await _key_of(mail))
            for part in parts:
                _skip_delivered(part, known.get(part.route.name, frozenset()))
        again = {each.address for each in mail.recipients}
        try:
            await self._run(mail, [part for part in parts if part.indices])
            replies = _replies(mail, parts)
            again = _sent_again(mail, replies, session)
        finally:
            await self._remember(mail, parts, again)
        return replies

    # -- parts ---------------------------------------------------------------------------------

    def _parts(self, mail: Mail, session: AnySession) -> list[_Part]:
        sender, size = mail.sender, len(mail.content)
        routes = [
            route
            for route in self.routes
            if route.quarantine == bool(mail.quarantine)
            and (route.when is None or route.when.holds(session, sender, size, mail.marks))
        ]
        parts: dict[Route, _Part] = {}
        for index, recipient in enumerate(mail.recipients):
            found = [each for each in routes if each.takes(recipient.address)]
            regular = next((each for each in found if not each.copy), None)
            if regular is None:
                continue  # a copy alone does not count as a delivery
            for route in found:
                if route.copy or route is regular:
                    parts.setdefault(route, _Part(route, [])).indices.append(index)
        for part in parts.values():
            part.recipients = [mail.recipients[index] for index in part.indices]
        return [parts[route] for route in routes if route in parts]

    async def _run(self, mail: Mail, parts: Sequence[_Part]) -> None:
        """Call the sinks, and set the replies of each part, except of copies that took too long."""
        if len(parts) == 1 and parts[0].required:
            await self._call_sink(mail, parts[0])
            return
        tasks = {asyncio.ensure_future(self._call_sink(mail, part)): part for part in parts}
        required = [task for task, part in tasks.items() if part.required]
        end = asyncio.get_running_loop().time() + BEST_EFFORT_SECONDS
        try:
            if required:
                await asyncio.wait(required)
            left = max(0.0, end - asyncio.get_running_loop().time())
            others = tasks.keys() - required
            if others:
                _, slow = await asyncio.wait(others, timeout=left)
                for task in slow:
                    name = tasks[task].route.name
                    self._report(mail, name, ": the copy took too long and was cancelled")
        finally:
            unfinished = [task for task in tasks if not task.done()]
            for task in unfinished:
                task.cancel()
            if unfinished:
                await asyncio.wait(unfinished)

    async def _call_sink(self, mail: Mail, part: _Part) -> None:
        route = part.route
        own = mail.to(part.recipients)
        begun = time.perf_counter()
        try:
            replies = await deliver_in_time(route.handler, own)
            part.replies = per_recipient(replies, len(own.recipients))
        except Exception as error:  # noqa: BLE001 - a user's sink may raise anything
            self._report(mail, route.name, " failed", error)
            part.replies = [FAILED] * len(own.recipients)
        if self._counts:
            self._counts(route.name).note(part.replies, time.perf_counter() - begun)
        if not part.required and not part.delivered:
            self._report(mail, route.name, ": the copy was not stored", _first_refusal(part))

    def _report(self, mail: Mail, sink: str, event: str, reason: str | Exception = "") -> None:
        """Log a problem of a sink; many such lines of a client are summarized."""
        error = reason if isinstance(reason, Exception) else None
        line = ClientLine.of(
            log,
            logging.WARNING if error is None else logging.ERROR,
            mail.client.peer,
            f"sink {sink}{event}",
            str(reason) if error is None else summary(error),
            session=mail.id.rpartition("-")[0],
            queue_id=mail.id,
            sink=sink,
        )
        self._reporter.note(line, error=error)

    def close(self) -> None:
        """Log the summaries of lines."""
        self._reporter.close()

    # -- parts that were delivered before ------------------------------------------------------

    async def _remember(self, mail: Mail, parts: Sequence[_Part], again: set[str]) -> None:
        """Remember the sinks that have a message which the client will send again.

        :param again: the recipients for which it will be sent again
        """
        got = {
            part.route.name: frozenset(
                recipient.address
                for recipient, reply in zip(part.recipients, part.replies, strict=False)
                if reply[:1] == "2" and recipient.address in again
            )
            for part in parts
        }
        if self._memory or any(got.values()):
            done = {each.address for each in mail.recipients} - again
            self._memory.remember(await _key_of(mail), got, done)


async def _key_of(mail: Mail) -> str:
    """Return a hash of sender and content, as the client may omit some recipients the next time."""
    return await key_of(replace(mail, recipients=(), all_recipients=()))


def _sent_again(mail: Mail, replies: Sequence[str], session: AnySession) -> set[str]:
    """Return the recipients for which the client sends a message again; in SMTP, all or none."""
    refused = {
        recipient.address
        for recipient, reply in zip(mail.recipients, replies, strict=True)
        if reply[:1] != "2"
    }
    if not refused or getattr(session, "lmtp", False):
        return refused
    return {each.address for each in mail.recipients}


def _skip_delivered(part: _Part, known: frozenset[str]) -> None:
    """Remove the recipients from a part for which its sink has the message already."""
    if not known:
        return
    pairs = list(zip(part.indices, part.recipients, strict=True))
    part.stored = [index for index, recipient in pairs if recipient.address in known]
    left = [pair for pair in pairs if pair[0] not in part.stored]
    part.indices = [index for index, _ in left]
    part.recipients = [recipient for _, recipient in left]


def _replies(mail: Mail, parts: Sequence[_Part]) -> list[str]:
    """Return the reply for each recipient: that of its sink, or of a required copy that failed."""
    replies: list[str | None] = [None] * len(mail.recipients)
    for part in parts:
        if not part.required:
            continue
        each = [*zip(part.indices, part.replies, strict=True)]
        each += [(index, STORED_BEFORE) for index in part.stored]
        for index, reply in each:
            before = replies[index]
            if before is None or _severity(reply) > _severity(before):
                replies[index] = reply
    missing = WITHHELD if mail.quarantine else NO_SINK
    return [missing if reply is None else reply for reply in replies]


def _severity(reply: str) -> int:
    """Return the rank of a reply; 4yz is the highest, as the client must try again then."""
    return {"2": 0, "5": 1}.get(reply[:1], 2)


def _first_refusal(part: _Part) -> str:
    return next((reply for reply in part.replies if reply[:1] != "2"), "no reply")
