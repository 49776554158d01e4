"""The commands of a mail transaction: MAIL, RCPT, DATA."""

from __future__ import annotations

import inspect
import logging
from functools import partial
from typing import TYPE_CHECKING, Any
from warnings import warn

from aiosmtpd.smtp import MISSING, syntax

from smtpd_fork.smtp.body import Body
from smtpd_fork.smtp.budget import ALLOWANCE
from smtpd_fork.smtp.content import BodyFault, Content
from smtpd_fork.smtp.envelope import Envelope, weight
from smtpd_fork.smtp.hello import Hello
from smtpd_fork.smtp.params import Params, mail_fault, parse_params, rcpt_fault
from smtpd_fork.smtp.path import NULL, parse_path
from smtpd_fork.smtp.reply import answer_of, replies_of

if TYPE_CHECKING:
    from smtpd_fork.smtp.framer import Chunk
    from smtpd_fork.smtp.work import Waiting

__all__ = ["FAULT_REPLIES", "Mail"]


FAULT_REPLIES = {
    BodyFault.TOO_LONG: (500, "5.6.0", "Line too long (see RFC5321 4.5.3.1.6)"),
    BodyFault.TOO_MUCH: (552, "5.3.4", "Error: Too much mail data"),
    BodyFault.BARE: (550, "5.6.11", "Error: bare CR, LF or NUL in the message"),
    BodyFault.NO_ROOM: (452, "4.3.1", "Insufficient system storage, try again later"),
}

NO_SINK = "451 4.3.0 Nobody here takes messages, try again later"

_MAIL_PARAMS = {"AUTH", "BODY", "SIZE", "SMTPUTF8"}
_MAIL_PARAMS_OF_DSN = {"ENVID", "RET"}
_RCPT_PARAMS_OF_DSN = {"NOTIFY", "ORCPT"}


OVERSHOOT = 1000
"""Recipients past the limit of a message, in one session, whose refusal does not count:
Postfix's smtpd_recipient_overshoot_limit. The client sends them the message later (RFC 5321
4.5.3.1.10); 421 in the middle of them would keep it from all."""


class Mail(Hello):
    """Commands of a mail transaction."""

    _overshoot = 0
    _accepted = 0
    """Recipients of an LMTP transaction that were answered 2yz: each gets a reply of its own."""

    # -- MAIL ----------------------------------------------------------------------------------

    def _cmd_MAIL(self, arg: str | None) -> Waiting | None:
        if self._needs_hello() or self._needs_auth():
            return None
        parsed = self._path("FROM:", arg, "MAIL FROM: <address>", malformed="5.1.7")
        if parsed is None:
            return None
        return self._sender(*parsed)

    def _sender(self, address: str, params: Params) -> Waiting | None:
        """Begin a transaction with a sender that is well-formed."""
        envelope = self.envelope
        assert envelope is not None
        if envelope.mail_from:
            self._say(503, "5.5.1", "Error: nested MAIL command")
            return None
        if self._setup.lmtp:
            self._accepted = 0
        if self._chunk_fault is not None:
            self._chunk_fault = None  # of a message that never began
        if (params or not address.isascii()) and not self._mail_params_fit(address, params):
            return None
        if "MAIL" in self._setup.hooks:
            options = _upper_words(params)
            self._note_mail_params(params)
            return self._ask("MAIL", partial(self._take_sender, address, options), address, options)
        if params:
            self._note_mail_params(params)
            envelope.mail_options.extend(_upper_words(params))
        envelope.mail_from = address
        self._ok("2.1.0")
        return None

    def _take_sender(self, address: str, options: list[str], status: Any) -> None:
        """Begin a transaction, unless a handler has had its say about that."""
        if status is not MISSING:
            self._put(status)
            return
        assert self.envelope is not None
        self.envelope.mail_from = address
        self.envelope.mail_options.extend(options)
        self._ok("2.1.0")

    def _path(
        self, keyword: str, arg: str | None, usage: str, *, malformed: str
    ) -> tuple[str, Params] | None:
        """Return address and parameters of MAIL or RCPT, or answer why there are none.

        :param malformed: the enhanced status code for an address that cannot be read
        """
        assert self.session is not None
        strict = self._setup.strict_paths
        if self.session.extended_smtp:
            usage += " [SP <mail-parameters>]"
        keyed = arg is not None and arg[: len(keyword)].upper() == keyword
        text = arg[len(keyword) :].lstrip(" " if strict else " \t") if keyed and arg else ""
        parsed = parse_path(text, strict=strict, postmaster=keyword == "TO:")
        if not text or (parsed is None and text[0] != "<" and "<" in text):
            self._say(501, "5.5.4", f"Syntax: {usage}")  # a display name before the address
            return None
        if parsed is None or self._local_part_is_long(parsed[0]):
            # Without enhanced status codes the reply is aiosmtpd's, which has one all the same.
            status = malformed if self._setup.enhanced else "5.1.3"
            self._put(f"553 {status} Error: malformed address")
            return None
        address, rest = parsed
        if not rest:
            return address, {}
        if not strict:
            rest = rest.replace("\t", " ")
        params = parse_params(rest) if self.session.extended_smtp else None
        if params is None:
            self._say(501, "5.5.4", f"Syntax: {usage}")
            return None
        return address, params

    def _local_part_is_long(self, address: str) -> bool:
        """Whether aiosmtpd's ``local_part_limit`` forbids an address; 0 allows all."""
        return 0 < self.local_part_limit < len(address.rpartition("@")[0])

    def _mail_params_fit(self, address: str, params: Params) -> bool:
        """See that MAIL asks for nothing that cannot be had; else answer so."""
        if not params:
            return self._ascii_unless(address, allowed=False)
        body = str(params.get("BODY", "7BIT")).upper()
        bodies = _BODIES if self._setup.binarymime else _BODIES[:2]
        if "BODY" in params and not self._decode_data and body not in bodies:
            self._say(501, "5.5.4", f"Error: BODY can only be one of {', '.join(bodies)}")
        elif params.get("SMTPUTF8", True) is not True:
            self._say(501, "5.5.4", "Error: SMTPUTF8 takes no arguments")
        elif "SMTPUTF8" in params and not self.enable_SMTPUTF8:
            self._say(501, "5.5.4", "Error: SMTPUTF8 disabled")
        elif not self._size_fits(params.get("SIZE")):
            pass
        elif self._unknown(params, _MAIL_PARAMS_OF_DSN) - _MAIL_PARAMS or (
            self._decode_data and "BODY" in params
        ):
            self._say(555, "5.5.4", "MAIL FROM parameters not recognized or not implemented")
        elif (fault := mail_fault(params)) is not None:
            self._say(501, "5.5.4", f"Error: {fault} has no such value")
        else:
            return self._ascii_unless(address, allowed="SMTPUTF8" in params)
        return False

    def _unknown(self, params: Params, of_dsn: set[str]) -> set[str]:
        """Return the names of *params* without those of DSN, if that is offered (RFC 3461 4)."""
        return params.keys() - of_dsn if self._setup.dsn else set(params)

    def _size_fits(self, size: str | bool | None) -> bool:
        if size is None:
            return True
        if not isinstance(size, str) or not size.isdigit() or not size.isascii():
            self._say(501, "5.5.4", "Syntax: MAIL FROM: <address> [SP <mail-parameters>]")
            return False
        if self.data_size_limit and (len(size) > 20 or int(size) > self.data_size_limit):  # noqa: PLR2004 - RFC 1870 4
            text = "Error: message size exceeds fixed maximum message size"
            self._setup.tally.too_big += 1
            self._say(552, "5.3.4", text)
            return False
        return True

    def _ascii_unless(self, address: str, *, allowed: bool) -> bool:
        """See that an address is ASCII where SMTPUTF8 was not asked for (RFC 6531 3.4)."""
        if allowed or address.isascii() or self._decode_data:
            return True
        self._say(553, "5.6.7", "Error: such an address takes SMTPUTF8")
        return False

    def _note_mail_params(self, params: Params) -> None:
        assert self.envelope is not None
        self.envelope.smtp_utf8 = "SMTPUTF8" in params
        if isinstance(self.envelope, Envelope):
            self.envelope.mail_params = params
            self.envelope.body = str(params.get("BODY", "7BIT")).upper()

    # -- RCPT ----------------------------------------------------------------------------------

    def _cmd_RCPT(self, arg: str | None) -> Waiting | None:
        if self._needs_hello() or self._needs_auth():
            return None
        assert self.envelope is not None
        if not self.envelope.mail_from:
            self._say(503, "5.5.1", "Error: need MAIL command")
            return None
        parsed = self._path("TO:", arg, "RCPT TO: <address>", malformed="5.1.3")
        if parsed is None:
            return None
        address, params = parsed
        if address == NULL:
            self._say(501, "5.1.3", "Syntax: RCPT TO: <address>")
            return None
        if params and not self._rcpt_params_fit(params):
            return None
        return self._recipient(address, params)

    def _rcpt_params_fit(self, params: Params) -> bool:
        """See that RCPT asks for nothing that cannot be had; else answer so."""
        if self._unknown(params, _RCPT_PARAMS_OF_DSN):
            self._say(555, "5.5.4", "RCPT TO parameters not recognized or not implemented")
        elif (fault := rcpt_fault(params)) is not None:
            self._say(501, "5.5.4", f"Error: {fault} has no such value")
        else:
            return True
        return False

    def _recipient(self, address: str, params: Params) -> Waiting | None:
        """Take a recipient that is well-formed, within a transaction."""
        envelope = self.envelope
        assert envelope is not None
        if self._in_chunks():
            self._say(503, "5.5.1", "Error: BDAT has begun")  # RFC 3030 3
        elif len(envelope.rcpt_tos) >= self._setup.limits.recipients:
            self._overshoot += 1
            excused = self._overshoot <= OVERSHOOT
            self._say(452, "4.5.3", "Too many recipients", counted=not excused)
        elif self._charged and not self._setup.budget.has_room(self, weight(address, params)):
            self._say(*FAULT_REPLIES[BodyFault.NO_ROOM])
        elif not self._ascii_unless(address, allowed=envelope.smtp_utf8):
            pass
        elif "RCPT" in self._setup.hooks:
            known = len(envelope.rcpt_tos)
            then = partial(self._judge_recipient, address, params, known)
            return self._ask("RCPT", then, address, _upper_words(params))
        else:
            self._take_recipient(address, params)
            self._ok("2.1.5")
        return None

    def _take_recipient(self, address: str, params: Params) -> None:
        envelope = self.envelope
        assert envelope is not None
        envelope.rcpt_tos.append(address)
        if self._setup.lmtp:
            self._accepted += 1
        if isinstance(envelope, Envelope):
            envelope.rcpt_params.append(params)
        if params:
            envelope.rcpt_options.extend(_upper_words(params))
        self._weigh_recipient(address, params)

    def _weigh_recipient(self, address: str, params: Params) -> None:
        """Add a recipient to what is held for the client."""
        self._envelope_bytes += weight(address, params)
        if self._envelope_bytes > ALLOWANCE:
            self._charge()

    def _judge_recipient(self, address: str, params: Params, known: int, status: Any) -> None:
        """Take a recipient, unless a handler has had its say; *known* were there before it."""
        if status is MISSING:
            self._take_recipient(address, params)
            self._ok("2.1.5")
            return
        envelope = self.envelope
        if isinstance(envelope, Envelope) and len(envelope.rcpt_tos) == known + 1:
            envelope.rcpt_params.append(params)  # the hook took the address itself
            self._weigh_recipient(address, params)
        if self._setup.lmtp and status[0] == "2":
            self._accepted += 1
        self._put(status)

    # -- DATA ----------------------------------------------------------------------------------

    def _cmd_DATA(self, arg: str | None) -> Waiting | None:
        if self._needs_hello() or self._needs_auth():
            return None
        envelope = self.envelope
        assert envelope is not None
        if not envelope.rcpt_tos:
            self._say(503, "5.5.1", "Error: need RCPT command")
        elif arg:
            self._say(501, "5.5.4", "Syntax: DATA")
        elif self._in_chunks():
            self._say(503, "5.5.1", "Error: BDAT has begun")
        elif isinstance(envelope, Envelope) and envelope.body == "BINARYMIME":
            self._say(503, "5.5.1", "Error: BINARYMIME takes BDAT")
        elif not self._has_room(self._declared()):
            self._setup.tally.no_room += 1
            self._say(*FAULT_REPLIES[BodyFault.NO_ROOM])
        else:
            self._pace = self.loop.time(), 0
            self._expect(Body(self.data_size_limit or 0, self._line_limit(), self._setup.bare))
            self._out.append(b"354 End data with <CR><LF>.<CR><LF>\r\n")
        return None

    def _in_chunks(self) -> bool:
        """Whether BDAT has brought a part of the message, wanted or not."""
        return self._chunks is not None or self._chunk_fault is not None

    def _expect(self, reading: Body | Chunk) -> None:
        """Read a message, or a part of one, next."""
        self._leave_rest()
        self._framer.expect(reading)

    def _line_limit(self) -> int:
        """Return how long a line of a message may be, by the class and by the option; 0: any."""
        own, option = self.line_length_limit, self._setup.limits.line
        return min(own, option) if own and option else own or option

    def _declared(self) -> int:
        """Return the size of the message that MAIL declared."""
        if isinstance(self.envelope, Envelope):
            return int(self.envelope.mail_params.get("SIZE", 0))
        return 0

    def _has_room(self, more: int) -> bool:
        """Whether so many bytes more can be held now; of a message some may be here already."""
        if more <= ALLOWANCE and not self._charged:
            return True  # as mostly; what comes is charged once it is more than that
        more = max(0, more - self._framer.pending)
        charge = self._held() + more - ALLOWANCE - self._charged
        return charge <= 0 or self._setup.budget.has_room(self, charge)

    def _received(self, message: Body | Chunk) -> Waiting | None:
        """Take a message, or a part of one, that is complete."""
        if self._charged or message.size + self._envelope_bytes > ALLOWANCE:
            self._charge(message)
        assert isinstance(message, Body)  # chunks are another floor's
        return self._deliver(message)

    def _deliver(self, content: Content) -> Waiting | None:
        """Have a message that has come whole delivered, or refuse it."""
        if content.fault is None:
            return self._content(content.take())
        self._note_fault(content.fault)
        self._refuse_message(*FAULT_REPLIES[content.fault])
        return None

    def _note_fault(self, fault: BodyFault) -> None:
        """Log and count a message that is not accepted for what it is."""
        self._report(logging.INFO, "message refused", fault.value, kind=fault.name)
        tally = self._setup.tally
        if fault is BodyFault.TOO_MUCH:
            tally.too_big += 1
        elif fault is BodyFault.NO_ROOM:
            tally.no_room += 1
        else:
            tally.malformed += 1

    def _refuse_message(self, code: int, enhanced: str, text: str) -> None:
        """Answer a message that was read to its end, and is not accepted."""
        replies = self._replies_owed()
        self._set_rset_state()
        self._put_verdict([self._worded(code, enhanced, text)] * replies)

    def _content(self, original: bytes) -> Waiting | None:
        """Have a message delivered."""
        envelope = self.envelope
        assert envelope is not None
        content: bytes | str = original
        if self._decode_data:
            try:
                content = self._decoded(original)
            except UnicodeDecodeError:
                self._setup.tally.malformed += 1
                self._refuse_message(500, "5.6.0", "Error: strict ASCII mode")
                return None
        envelope.content = content
        envelope.original_content = original
        if "DATA" in self._setup.hooks:
            self._take_in_hand()
            return self._ask("DATA", self._say_delivered)
        if hasattr(self.event_handler, "process_message"):
            self._take_in_hand()
            return self._process_message()
        self._say_delivered(MISSING)
        return None

    def _take_in_hand(self) -> None:
        """Hold a message until a handler has answered."""
        self._message_in_hand = True
        if self._charged:
            self._charge()

    def _decoded(self, content: bytes) -> str:
        if self.enable_SMTPUTF8:
            return content.decode("utf-8", errors="surrogateescape")
        return content.decode("ascii")

    async def _process_message(self) -> None:
        """Hand the message to a handler of aiosmtpd's first years."""
        warn(
            "Use handler.handle_DATA() instead of .process_message()",
            DeprecationWarning,
            stacklevel=2,
        )
        assert self.session is not None
        assert self.envelope is not None
        status = self.event_handler.process_message(
            self.session.peer,
            self.envelope.mail_from,
            self.envelope.rcpt_tos,
            self.envelope.content,
        )
        if inspect.isawaitable(status):
            status = await status
        if status is None or status is MISSING:
            status = "250 OK"
        self._say_delivered(self._checked("DATA", status))

    def _say_delivered(self, status: Any) -> None:
        tally = self._setup.tally
        unclaimed = status is MISSING
        if unclaimed:
            status = NO_SINK
        replies = self._per_recipient(status) if self._setup.lmtp else None
        # Of several replies the best counts: some recipient has the message.
        digit = status[0] if replies is None else min(replies)[0]
        if unclaimed:
            tally.unclaimed += 1
        else:
            tally.answered(digit)
            if digit == "2":
                self.messages += 1
                assert self._envelope is not None
                tally.content += len(self._envelope.original_content or b"")
        self._set_rset_state()
        self._noops = 0
        self._message_in_hand = False  # a subclass's smtp_DATA goes on
        self._put_verdict([status] if replies is None else replies)

    def _per_recipient(self, status: Any) -> list[str]:
        """Return a reply for each recipient (RFC 2033 4.2).

        A handler returns one for all, a list, or several in one text, as it would for aiosmtpd.

        :raises TypeError: it returned something else, or another number of replies
        :raises ValueError: as TypeError
        """
        count = self._replies_owed()
        if isinstance(status, (list, tuple)):
            replies = list(status)
        else:
            replies = list(replies_of(status)) if isinstance(status, str) else [status]
            if len(replies) == 1:
                replies *= count
        if len(replies) != count:
            raise TypeError(f"handle_DATA must return one reply, or {count}: not {len(replies)}")
        if MISSING in replies:
            raise TypeError("handle_DATA returned MISSING for some recipients")
        return [answer_of("DATA", reply) for reply in replies]

    def _replies_owed(self) -> int:
        """Return how many replies the client expects to a message."""
        if not self._setup.lmtp:
            return 1
        if "RCPT" in self._setup.own:
            assert self.envelope is not None
            return len(self.envelope.rcpt_tos) or 1
        # As many recipients as were accepted, whatever a handler has done to the envelope.
        return self._accepted or 1

    # -- for users' subclasses -----------------------------------------------------------------

    @syntax("MAIL FROM: <address>", extended=" [SP <mail-parameters>]")
    async def smtp_MAIL(self, arg: str | None) -> None:
        """Begin a transaction (RFC 5321 4.1.1.2)."""
        await self._settle(self._cmd_MAIL(arg))

    @syntax("RCPT TO: <address>", extended=" [SP <mail-parameters>]")
    async def smtp_RCPT(self, arg: str | None) -> None:
        """Take a recipient (RFC 5321 4.1.1.3)."""
        await self._settle(self._cmd_RCPT(arg))

    @syntax("DATA")
    async def smtp_DATA(self, arg: str | None) -> None:
        """Take a message (RFC 5321 4.1.1.4); ends when it is answered, as in aiosmtpd."""
        await self._settle(self._cmd_DATA(arg))
        if self._framer.reading is None:
            return
        self._answered = False  # 354 is the first half of a reply
        message = await self._next_event()
        assert isinstance(message, Body)
        await self._settle(self._received(message))


_BODIES = ("7BIT", "8BITMIME", "BINARYMIME")


def _upper_words(params: Params) -> list[str]:
    """Return the parameters as aiosmtpd hands them to handlers."""
    return [
        name if value is True else f"{name}={str(value).upper()}" for name, value in params.items()
    ]
