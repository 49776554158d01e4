"""Opening: from a hop's greeting to the first message: EHLO, STARTTLS, AUTH. Sans-io.

Replies are fed to :meth:`Opening.receive`, and :meth:`Opening.take` gives what is to be sent. The
law of it: a hop speaks only when it was asked. A reply to what has not been sent, or to nothing,
breaks the connection for good, because each later reply would be taken for that of another command.
Any split of the hop's bytes into packets gives the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from smtpd_fork.hops.authentication import Authentication
from smtpd_fork.hops.errors import NOT_AVAILABLE, HopError
from smtpd_fork.hops.hop_client import HopClient, State
from smtpd_fork.hops.passed_client import hello_name, xclient_command
from smtpd_fork.hops.passed_on import CLOSING, passed_on, printable
from smtpd_fork.hops.replies import GarbageError, HopReply, ReplyReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from smtpd_fork.message import MailClient

__all__ = ["NONSENSE", "UNTRUSTED", "Opening", "State", "Terms"]

UNTRUSTED = "451 4.7.0 The next mail server is not available, try again later"
ACCESS_DENIED = 554
"""What a client gets in place of the greeting (RFC 5321 3.1), and so in place of XCLIENT's."""

NONSENSE = "451 4.5.0 The next mail server gave a wrong reply, try again later"


_SILENT = frozenset({State.READY, State.HANDSHAKE})
"""The hop has nothing to say."""

_OF_CLIENT = frozenset({State.CLIENT, State.EHLO, State.HELO})
"""What it says then is about the client, if XCLIENT has named one."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What is asked of a hop before the first message.

    :ivar name: our own, for EHLO
    :ivar lmtp: the protocol is LMTP
    :ivar starttls: ``no``, ``offered``: if the hop offers it, or ``required``
    :ivar user: for AUTH; None without it
    :ivar password: so too
    :ivar xclient: the hop has to offer XCLIENT
    """

    name: str
    lmtp: bool = False
    starttls: str = "no"
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    xclient: bool = False


class Opening(HopClient):
    """A connection to a hop, without the connection, up to its first message.

    :param terms: what is asked of the hop
    :param encrypted: whether it is implicit TLS
    """

    farewell = b"QUIT\r\n"

    def __init__(self, terms: Terms, *, encrypted: bool = False) -> None:
        super().__init__(State.GREETING)
        self._terms = terms
        self._reader = ReplyReader()
        self._pieces: Iterator[bytes] | None = None
        self._early = False  # the next reply had begun before the end of the message was taken
        self._authentication: Authentication | None = None
        self.secure = encrypted
        self._hello = terms.name  # what EHLO says
        self._named: bytes | None = None  # the XCLIENT of the client whose session it is

    # -- what is sent ------------------------------------------------------------------------------

    def take(self) -> bytes:
        """Return what is to be sent next; nothing if it is the hop's turn."""
        if self._output:
            return super().take()
        if self._pieces is not None:
            for piece in self._pieces:
                return piece
            self._pieces = None
            self._early = self._reader.pending
        return b""

    def encrypted(self) -> None:
        """Go on after the TLS handshake; what was said before it does not count (RFC 3207 4.2)."""
        self.secure = True
        self.offered = {}
        self._say_hello()

    def become(self, client: MailClient) -> None:
        """Have the session be that of a client, unless it is already; the state has to be READY."""
        assert self.state is State.READY
        command = xclient_command(client, self.offered.get("XCLIENT", ""))
        name = hello_name(client, self._terms.name)
        if command == self._named and name == self._hello:
            return
        self.heard = False
        if "XCLIENT" not in self.offered:
            self.lose("the hop takes no other client on this connection")
            return
        self._named, self._hello = command, name
        self._output.append(command)
        self.state = State.CLIENT

    def _became(self, reply: HopReply) -> None:
        """Begin anew, as the client."""
        if reply.positive:
            self.offered = {}
            self._say_hello()
        else:
            self._refused("XCLIENT", reply)

    def lose(self, reason: str, reply: str = NOT_AVAILABLE) -> None:
        """Break the connection, which has ended or whose time is over."""
        super().lose(reason, reply)
        self._pieces = None

    # -- what is received --------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take bytes of the hop; then see :attr:`state`, and :meth:`take`."""
        if self.state is State.BROKEN:
            return
        try:
            for reply in self._reader.feed(data):
                self._answer(reply)
                if self.fault is not None:
                    return
        except GarbageError as error:
            # Behind AUTH it may be an echo of the password, cut anywhere.
            shown = str(error) if self._authentication is None else str(error).partition(":")[0]
            self.lose(shown, NONSENSE)
            return
        if self.state in _SILENT and self._reader.pending:
            # Behind the reply to STARTTLS it would pass for the first words under TLS.
            self._unasked()

    def _unasked(self) -> None:
        # The words are not shown: they may have come in part.
        self.lose("the hop said something that it was not asked for", NONSENSE)

    def _answer(self, reply: HopReply) -> None:
        answer = None if self._output else self.answers.get(self.state)
        if answer is None:
            self._unasked()
        else:
            answer(self, reply)

    # -- opening -----------------------------------------------------------------------------------

    def _refused(self, step: str, reply: HopReply, answer: str = NOT_AVAILABLE) -> None:
        reason = f"{step} was answered {self._shown(reply)}"
        of_client = self._named is not None and self.state in _OF_CLIENT
        self.lose(reason, passed_on(reply) if of_client else answer)
        if of_client and reply.code != CLOSING:
            # Another connection would do no good. Any other 5yz to XCLIENT is about the command.
            ours = step == "XCLIENT" and reply.code >= 500 and reply.code != ACCESS_DENIED  # noqa: PLR2004 - RFC 5321 4.2.1
            self.fault = HopError(reason, UNTRUSTED if ours else passed_on(reply))

    def _shown(self, reply: HopReply) -> str:
        """Return a reply for the log: what a hop repeats of AUTH may come at any time after it."""
        text = str(reply)
        if self._authentication is not None:
            text = self._authentication.without_secrets(text)
        return printable(text)

    def _greeted(self, reply: HopReply) -> None:
        if reply.positive:
            self._say_hello()
        else:
            self._refused("the connection", reply)

    def _say_hello(self) -> None:
        word = "LHLO" if self._terms.lmtp else "EHLO"
        self._output.append(f"{word} {self._hello}\r\n".encode())
        self.state = State.EHLO

    def _extensions(self, reply: HopReply) -> None:
        """Read the answer to EHLO (RFC 5321 4.1.1.1)."""
        if not reply.positive:
            if reply.code >= 500 and not self._terms.lmtp:  # noqa: PLR2004 - RFC 5321 4.2.1
                self._output.append(f"HELO {self._hello}\r\n".encode())
                self.state = State.HELO
            else:
                self._refused("LHLO" if self._terms.lmtp else "EHLO", reply)
            return
        for line in reply.lines[1:]:
            name, _, parameters = line.partition(" ")
            self.offered[name.upper()] = parameters.upper()
        self._introduced()

    def _plain_hello(self, reply: HopReply) -> None:
        if reply.positive:
            self._introduced()
        else:
            self._refused("HELO", reply)

    def _introduced(self) -> None:
        """Go on with TLS, AUTH, or the first message."""
        if self._named is not None:  # all that is behind it
            self.state = State.READY
            return
        wanted = "no" if self.secure else self._terms.starttls
        if wanted != "no" and "STARTTLS" in self.offered:
            self._output.append(b"STARTTLS\r\n")
            self.state = State.STARTTLS
        elif wanted == "required":
            self.lose("the hop does not offer STARTTLS", UNTRUSTED)
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
            self.lose("the hop does not offer XCLIENT to this host", UNTRUSTED)
            return
        if user is None or password is None:
            self.state = State.READY
            return
        self._authentication = Authentication.of(self.offered.get("AUTH", ""), user, password)
        if self._authentication is None:
            self.lose("the hop offers neither AUTH PLAIN nor AUTH LOGIN", UNTRUSTED)
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
        State.HELO: _plain_hello,
        State.STARTTLS: _may_start_tls,
        State.AUTH: _authenticated,
        State.CLIENT: _became,
    }
    """What takes the reply in each state; in the others a reply is a fault."""
