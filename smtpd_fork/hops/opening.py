"""Opening: an SMTP or LMTP session from the greeting to the first message. Sans-io.

The steps are EHLO, STARTTLS, AUTH and XCLIENT. :meth:`Opening.receive` gets bytes of the server,
and :meth:`Opening.data_to_send` returns the bytes to send. A server may send only replies to
commands that were sent. Any other reply breaks the connection, because all later replies would be
attributed to the wrong commands. The result does not depend on how the server's bytes are split
into packets.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from smtpd_fork.hops.authentication import Authentication
from smtpd_fork.hops.client_reply import CLOSING, client_reply, printable
from smtpd_fork.hops.errors import NOT_AVAILABLE, HopError
from smtpd_fork.hops.hop_client import HopClient, State
from smtpd_fork.hops.passed_client import ehlo_name, xclient_command
from smtpd_fork.hops.replies import GarbageError, HopReply, ReplyReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from smtpd_fork.message import MailClient

__all__ = ["BAD_REPLY", "UNTRUSTED", "Opening", "State", "Terms"]

UNTRUSTED = "451 4.7.0 The next mail server is not available, try again later"
ACCESS_DENIED = 554
"""Refuses a client instead of the greeting (RFC 5321 3.1), also instead of that after XCLIENT."""

BAD_REPLY = "451 4.5.0 The next mail server gave a wrong reply, try again later"


_SILENT = frozenset({State.READY, State.HANDSHAKE})
"""States in which no reply is expected."""

_OF_CLIENT = frozenset({State.CLIENT, State.EHLO, State.HELO})
"""States in which a refusal concerns the client that XCLIENT has named."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The requirements of a session.

    :ivar name: our host name for EHLO
    :ivar lmtp: whether the protocol is LMTP
    :ivar starttls: ``no``, ``required``, or ``offered``: use STARTTLS if the server offers it
    :ivar user: the user name for AUTH; None: no AUTH
    :ivar password: the password for AUTH; None: no AUTH
    :ivar xclient: whether the server has to offer XCLIENT
    """

    name: str
    lmtp: bool = False
    starttls: str = "no"
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    xclient: bool = False


class Opening(HopClient):
    """The state of a session with a server up to the first message.

    :param terms: the requirements of the session
    :param encrypted: whether the connection uses implicit TLS
    """

    farewell = b"QUIT\r\n"

    def __init__(self, terms: Terms, *, encrypted: bool = False) -> None:
        super().__init__(State.GREETING)
        self._terms = terms
        self._reader = ReplyReader()
        self._pieces: Iterator[bytes] | None = None
        self._early = False  # the next reply began before the end of the message was sent
        self._authentication: Authentication | None = None
        self.secure = encrypted
        self._ehlo_name = terms.name
        self._xclient: bytes | None = None  # the last command XCLIENT

    # -- sending -----------------------------------------------------------------------------------

    def data_to_send(self) -> bytes:
        """Return the bytes to send next; empty while the client waits for the server."""
        if self._output:
            return super().data_to_send()
        if self._pieces is not None:
            for piece in self._pieces:
                return piece
            self._pieces = None
            self._early = self._reader.pending
        return b""

    def encrypted(self) -> None:
        """Continue after the TLS handshake; earlier replies are forgotten (RFC 3207 4.2)."""
        self.secure = True
        self.offered = {}
        self._send_ehlo()

    def set_client(self, client: MailClient) -> None:
        """Send XCLIENT for a client, unless it was sent already; the state has to be READY."""
        assert self.state is State.READY
        command = xclient_command(client, self.offered.get("XCLIENT", ""))
        name = ehlo_name(client, self._terms.name)
        if command == self._xclient and name == self._ehlo_name:
            return
        self.has_answered = False
        if "XCLIENT" not in self.offered:
            self.fail("the hop accepts no other client on this connection")
            return
        self._xclient, self._ehlo_name = command, name
        self._output.append(command)
        self.state = State.CLIENT

    def _client_set(self, reply: HopReply) -> None:
        """Begin the session again after XCLIENT."""
        if reply.positive:
            self.offered = {}
            self._send_ehlo()
        else:
            self._refused("XCLIENT", reply)

    def fail(self, reason: str, reply: str = NOT_AVAILABLE) -> None:
        """Mark the connection as broken, because it has ended or an error has occurred."""
        super().fail(reason, reply)
        self._pieces = None

    # -- receiving ---------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Handle bytes of the server; check :attr:`state` and :meth:`data_to_send` afterwards."""
        if self.state is State.BROKEN:
            return
        try:
            for reply in self._reader.feed(data):
                self._answer(reply)
                if self.fault is not None:
                    return
        except GarbageError as error:
            # After AUTH the text may contain a part of the password, if the server has echoed it.
            shown = str(error) if self._authentication is None else str(error).partition(":")[0]
            self.fail(shown, BAD_REPLY)
            return
        if self.state in _SILENT and self._reader.pending:
            # Data after the reply to STARTTLS would be taken for data that was sent under TLS.
            self._unexpected()

    def _unexpected(self) -> None:
        # Without the text, because only a part of it may have been received.
        self.fail("the hop sent an unexpected reply", BAD_REPLY)

    def _answer(self, reply: HopReply) -> None:
        answer = None if self._output else self.answers.get(self.state)
        if answer is None:
            self._unexpected()
        else:
            answer(self, reply)

    # -- opening -----------------------------------------------------------------------------------

    def _refused(self, step: str, reply: HopReply, answer: str = NOT_AVAILABLE) -> None:
        reason = f"{step} was answered {self._shown(reply)}"
        of_client = self._xclient is not None and self.state in _OF_CLIENT
        self.fail(reason, client_reply(reply) if of_client else answer)
        if of_client and reply.code != CLOSING:
            # Not a ConnectionLostError: another connection would be refused as well. A 5yz to
            # XCLIENT other than 554 refuses the command and not the client.
            ours = step == "XCLIENT" and reply.code >= 500 and reply.code != ACCESS_DENIED  # noqa: PLR2004 - RFC 5321 4.2.1
            self.fault = HopError(reason, UNTRUSTED if ours else client_reply(reply))

    def _shown(self, reply: HopReply) -> str:
        """Return a reply for the log, without secrets: a server may repeat them in any reply."""
        text = str(reply)
        if self._authentication is not None:
            text = self._authentication.without_secrets(text)
        return printable(text)

    def _greeted(self, reply: HopReply) -> None:
        if reply.positive:
            self._send_ehlo()
        else:
            self._refused("the connection", reply)

    def _send_ehlo(self) -> None:
        word = "LHLO" if self._terms.lmtp else "EHLO"
        self._output.append(f"{word} {self._ehlo_name}\r\n".encode())
        self.state = State.EHLO

    def _extensions(self, reply: HopReply) -> None:
        """Handle the reply to EHLO (RFC 5321 4.1.1.1)."""
        if not reply.positive:
            if reply.code >= 500 and not self._terms.lmtp:  # noqa: PLR2004 - RFC 5321 4.2.1
                self._output.append(f"HELO {self._ehlo_name}\r\n".encode())
                self.state = State.HELO
            else:
                self._refused("LHLO" if self._terms.lmtp else "EHLO", reply)
            return
        for line in reply.lines[1:]:
            name, _, parameters = line.partition(" ")
            self.offered[name.upper()] = parameters.upper()
        self._after_ehlo()

    def _helo_answered(self, reply: HopReply) -> None:
        if reply.positive:
            self._after_ehlo()
        else:
            self._refused("HELO", reply)

    def _after_ehlo(self) -> None:
        """Continue with TLS, AUTH, or the first message."""
        if self._xclient is not None:  # TLS and AUTH are done
            self.state = State.READY
            return
        wanted = "no" if self.secure else self._terms.starttls
        if wanted != "no" and "STARTTLS" in self.offered:
            self._output.append(b"STARTTLS\r\n")
            self.state = State.STARTTLS
        elif wanted == "required":
            self.fail("the hop does not offer STARTTLS", UNTRUSTED)
        else:
            self._authenticate()

    def _may_start_tls(self, reply: HopReply) -> None:
        if reply.positive:
            self.state = State.HANDSHAKE
        elif self._terms.starttls == "required":
            self._refused("STARTTLS", reply, UNTRUSTED)
        else:
            self._authenticate()

    def _authenticate(self) -> None:
        user, password = self._terms.user, self._terms.password
        if self._terms.xclient and "XCLIENT" not in self.offered:
            self.fail("the hop does not offer XCLIENT to this host", UNTRUSTED)
            return
        if user is None or password is None:
            self.state = State.READY
            return
        self._authentication = Authentication.of(self.offered.get("AUTH", ""), user, password)
        if self._authentication is None:
            self.fail("the hop offers neither AUTH PLAIN nor AUTH LOGIN", UNTRUSTED)
            return
        self.state = State.AUTH
        self._output.append(self._authentication.next())

    def _authenticated(self, reply: HopReply) -> None:
        assert self._authentication is not None
        if reply.positive:
            self.state = State.READY
        elif reply.code == 334 and self._authentication.has_more:  # noqa: PLR2004 - RFC 4954 4
            self._output.append(self._authentication.next())
        else:
            self._refused("AUTH", reply, UNTRUSTED)

    answers: ClassVar[Mapping[State, Callable[[Any, HopReply], None]]] = {
        State.GREETING: _greeted,
        State.EHLO: _extensions,
        State.HELO: _helo_answered,
        State.STARTTLS: _may_start_tls,
        State.AUTH: _authenticated,
        State.CLIENT: _client_set,
    }
    """The method that handles a reply in each state; in other states a reply is an error."""
