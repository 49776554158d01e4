"""The client's side of Postfix's policy delegation protocol (SMTPD_POLICY_README). Sans-io.

A request consists of lines ``name=value`` and an empty line. An answer has the same form, with a
line ``action=``. A connection serves one request at a time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from smtpd_fork.hops.client_reply import printable
from smtpd_fork.hops.hop_client import HopClient, State
from smtpd_fork.hops.target import Target

if TYPE_CHECKING:
    from smtpd_fork.hops.errors import HopError

__all__ = ["LONGEST_ANSWER", "PolicyClient", "PolicyRequest", "PolicyTarget", "encode_request"]

LONGEST_ANSWER = 8192
"""Maximum octets of an answer: four times Postfix's limit of a line (line_length_limit)."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(slots=True)
class PolicyRequest:
    """A request, and finally its answer.

    :ivar request: the encoded request
    :ivar action: the action in the answer; None: not answered yet
    :ivar fault: why the connection ended before the answer or immediately after it
    """

    request: bytes
    action: str | None = None
    fault: HopError | None = None


@dataclass(frozen=True)
class PolicyTarget(Target):
    """A policy server.

    :ivar when_down: what happens while the server is down, for the log
    """

    kind: ClassVar[str] = "policy server"

    when_down: str = "defer"

    def client(self, name: str, *, with_tls: bool = True) -> HopClient:
        """Return the state of the protocol for a new connection."""
        return PolicyClient()

    def while_down(self, error: HopError) -> str:
        """Return what happens while the server is down, for the log."""
        return f"when-down={self.when_down}"


def encode_request(attributes: Mapping[str, str]) -> bytes:
    """Return the encoded request.

    Control characters in a value are replaced by ``?``, because a line end would end the value or
    the request.
    """
    lines = [f"{name}={_CONTROL.sub('?', value)}\n" for name, value in attributes.items()]
    return "".join([*lines, "\n"]).encode("utf-8", "replace")


class PolicyClient(HopClient):
    """The state of a connection to a policy server."""

    server = "the policy server"

    def __init__(self) -> None:
        super().__init__(State.READY)
        self._request: PolicyRequest | None = None
        self._received = b""

    def begin(self, order: Any) -> None:
        """Send a :class:`PolicyRequest`; the state has to be READY."""
        assert self.state is State.READY
        self._request = order
        self._output.append(order.request)
        self.has_answered = False
        self.state = State.ANSWER

    def receive(self, data: bytes) -> None:
        """Handle bytes of the server; check :attr:`state` afterwards."""
        if self.state is State.ANSWER:
            self.has_answered = True
            self._received += data
            self._read()
        elif self.state is State.READY:
            self.fail(f"{self.server} sent unexpected data")

    def _read(self) -> None:
        """Parse the answer if it is complete."""
        lines = self._received.replace(b"\r\n", b"\n")
        answer, end, more = b"", lines[:1] == b"\n", lines[1:]
        if not end:
            answer, _, more = lines.partition(b"\n\n")
            end = len(answer) < len(lines)
        # An incomplete answer may end in LF CR, the beginning of its end. They do not count, so
        # that the limit does not depend on how the answer is split.
        if len(answer) > LONGEST_ANSWER + (0 if end else 2):
            self._received = b""
            self.fail(f"an answer has more than {LONGEST_ANSWER} octets")
        elif end:
            self._received = b""
            self._answered(answer)
            if more:
                self.fail(f"{self.server} sent unexpected data")

    def _answered(self, answer: bytes) -> None:
        for line in answer.split(b"\n"):
            name, equals, value = line.partition(b"=")
            if equals and name.strip() == b"action":
                assert self._request is not None
                self._request.action = value.decode("utf-8", "replace").strip()
                self.state = State.READY
                return
        shown = printable(answer[:80].decode("utf-8", "replace"))
        self.fail(f"an answer without a valid action: {shown!r}")
