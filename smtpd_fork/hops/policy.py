"""The policy delegation protocol of Postfix (SMTPD_POLICY_README), the client's side. Sans-io.

A request is lines ``name=value`` and an empty line; so is the answer, which has ``action=`` among
its lines. A connection serves one request after the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from smtpd_fork.hops.hop_client import HopClient, State
from smtpd_fork.hops.passed_on import printable
from smtpd_fork.hops.target import Target

if TYPE_CHECKING:
    from smtpd_fork.hops.errors import HopError

__all__ = ["LONGEST_ANSWER", "PolicyClient", "PolicyTarget", "Question", "request"]

LONGEST_ANSWER = 8192
"""Octets: four times the longest line that Postfix takes (line_length_limit)."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(slots=True)
class Question:
    """A request, and in the end its answer.

    :ivar request: as it is sent
    :ivar action: what the server answers; None: it has not answered
    :ivar fault: why the connection ended before the answer, or with it
    """

    request: bytes
    action: str | None = None
    fault: HopError | None = None


@dataclass(frozen=True)
class PolicyTarget(Target):
    """A policy server.

    :ivar when_down: what happens while it is down, for the log
    """

    kind: ClassVar[str] = "policy server"

    when_down: str = "defer"

    def client(self, name: str, *, with_tls: bool = True) -> HopClient:
        """Return what speaks the protocol on a new connection."""
        return PolicyClient()

    def while_down(self, error: HopError) -> str:
        """Return what happens while it cannot be reached, for the log."""
        return f"when-down={self.when_down}"


def request(attributes: Mapping[str, str]) -> bytes:
    """Return a request as it is sent.

    A control character in a value, such as a line end, is sent as ``?``: it would be the end of the
    value, or of the request.
    """
    lines = [f"{name}={_CONTROL.sub('?', value)}\n" for name, value in attributes.items()]
    return "".join([*lines, "\n"]).encode("utf-8", "replace")


class PolicyClient(HopClient):
    """A connection to a policy server, without the connection."""

    server = "the policy server"

    def __init__(self) -> None:
        super().__init__(State.READY)
        self._question: Question | None = None
        self._came = b""

    def begin(self, order: Any) -> None:
        """Send a :class:`Question`; the state has to be READY."""
        assert self.state is State.READY
        self._question = order
        self._output.append(order.request)
        self.heard = False
        self.state = State.ANSWER

    def receive(self, data: bytes) -> None:
        """Take bytes of the server; then see :attr:`state`."""
        if self.state is State.ANSWER:
            self.heard = True
            self._came += data
            self._read()
        elif self.state is State.READY:
            self.lose(f"{self.server} said something that it was not asked for")

    def _read(self) -> None:
        """Take the answer, if all of it has come."""
        lines = self._came.replace(b"\r\n", b"\n")
        answer, end, more = b"", lines[:1] == b"\n", lines[1:]
        if not end:
            answer, _, more = lines.partition(b"\n\n")
            end = len(answer) < len(lines)
        # Without its end there may be LF CR behind it: it is as long however it is cut.
        if len(answer) > LONGEST_ANSWER + (0 if end else 2):
            self._came = b""
            self.lose(f"an answer has more than {LONGEST_ANSWER} octets")
        elif end:
            self._came = b""
            self._answered(answer)
            if more:
                self.lose(f"{self.server} said something that it was not asked for")

    def _answered(self, answer: bytes) -> None:
        for line in answer.split(b"\n"):
            name, equals, value = line.partition(b"=")
            if equals and name.strip() == b"action":
                assert self._question is not None
                self._question.action = value.decode("utf-8", "replace").strip()
                self.state = State.READY
                return
        shown = printable(answer[:80].decode("utf-8", "replace"))
        self.lose(f"an answer without a valid action: {shown!r}")
