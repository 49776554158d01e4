"""SMTP: a session, ``aiosmtpd.smtp.SMTP`` by contract, with a wire and a dialogue of its own.

The class is put together by floors, each in a file: ``engine`` (life, wire, time), ``hello``,
``mail``, ``auth``, ``starttls`` (the commands), and here the constructor and the way from a line to
a command. ``framer``, ``body``, ``path`` and ``params`` are plain functions over plain data.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self
from warnings import warn
from weakref import WeakKeyDictionary

from aiosmtpd.smtp import DATA_SIZE_DEFAULT, __ident__

from smtpd_fork.smtp.content import BareNewline
from smtpd_fork.smtp.current_tls import CurrentTls
from smtpd_fork.smtp.framer import LINE_LIMIT, CommandFault
from smtpd_fork.smtp.hello import echo as _echo
from smtpd_fork.smtp.proxy import check_proxy_timeout
from smtpd_fork.smtp.setup import Limits, Setup
from smtpd_fork.smtp.short import Short
from smtpd_fork.smtp.state import log
from smtpd_fork.smtp.sweep import Sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from smtpd_fork.gate import Reporter
    from smtpd_fork.net import Peer
    from smtpd_fork.smtp.budget import Budget
    from smtpd_fork.smtp.tally import Tally
    from smtpd_fork.smtp.work import Waiting

__all__ = ["SMTP"]

MORE_FOR = {"MAIL": 26 + 10 + 20 + 500 + 110, "RCPT": 500 + 30, "AUTH": LINE_LIMIT}
"""Octets more, by extension: SIZE, SMTPUTF8, BODY, AUTH, RET and ENVID; ORCPT and NOTIFY; AUTH."""

BEFORE_STARTTLS = {"BDAT", "EHLO", "LHLO", "NOOP", "QUIT", "STARTTLS"}
"""What RFC 3207 4 lets a client say where TLS is required; BDAT refuses itself, with its chunk."""

HELLOS = {"EHLO", "HELO", "LHLO"}

OF_HTTP = {b"CONNECT", b"GET", b"HEAD", b"OPTIONS", b"POST", b"PUT"}
"""A browser, or somebody who makes one speak to us: nothing it says is mail."""

_sweeps: WeakKeyDictionary[asyncio.AbstractEventLoop, Sweep] = WeakKeyDictionary()


class SMTP(Short):
    """One SMTP session; takes all keywords of ``aiosmtpd.smtp.SMTP``, and these.

    :param setup: what the sessions of a server share, by :meth:`prepare`; without it it is worked
        out for this one session
    :param sweep: looks after the sessions' deadlines; default: one for each loop
    :param peer: the client, where accept(2) told; default: what the transport says
    :param on_close: called once, when the connection is gone
    :param limits: what a session may take; default: aiosmtpd's, and ours for the rest
    :param strict_paths: refuse an address without its angle brackets, and tabs in place of spaces
    :param bare_newline: what becomes of CR and LF that are not a pair; default: they are kept, as
        aiosmtpd keeps them (``smtpd_fork.Server`` and the daemon normalize them by default)
    :param enhanced: whether replies have enhanced status codes (RFC 2034)
    :param lmtp: whether LMTP is spoken: LHLO, and a reply per recipient (RFC 2033)
    :param budget: how much all sessions may hold of messages
    :param tls_context: aiosmtpd's; or what holds the one that is good at the time
    :param tally: counts what sessions do
    :param reporter: gathers the lines of the log that a client can cause again and again
    """

    _tls: CurrentTls | None = None
    require_starttls = False
    _decode_data = False
    _auth_required = False
    _auth_require_tls = True
    _authenticator = None
    _auth_callback = None
    _calls: dict[str, int] | None = None
    _variations: tuple[tuple[str, Any], ...] = ()

    def __init__(
        self,
        handler: Any,
        *,
        data_size_limit: int | None = DATA_SIZE_DEFAULT,
        enable_SMTPUTF8: bool = False,  # noqa: N803 - aiosmtpd's name
        decode_data: bool = False,
        hostname: str | None = None,
        ident: str | None = None,
        tls_context: ssl.SSLContext | CurrentTls | None = None,
        require_starttls: bool = False,
        timeout: float = 300,
        auth_required: bool = False,
        auth_require_tls: bool = True,
        auth_exclude_mechanism: Iterable[str] | None = None,
        auth_callback: Callable[[str, bytes, bytes], bool] | None = None,
        command_call_limit: int | dict[str, int] | None = None,
        authenticator: Callable[..., Any] | None = None,
        proxy_protocol_timeout: float | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        setup: Setup | None = None,
        sweep: Sweep | None = None,
        peer: Peer = None,
        on_close: Callable[[Any], None] | None = None,
        limits: Limits | None = None,
        strict_paths: bool = False,
        bare_newline: BareNewline = BareNewline.ACCEPT,
        enhanced: bool = False,
        lmtp: bool = False,
        budget: Budget | None = None,
        tally: Tally | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        # Not super().__init__(): it looks through class and handler for each connection.
        self.__ident__ = ident or __ident__
        self.event_handler = handler
        self.data_size_limit = data_size_limit
        self.enable_SMTPUTF8 = enable_SMTPUTF8
        self.hostname = hostname or socket.getfqdn()
        # The rest only where it is not as the class has it (see State).
        given = {
            "_decode_data": decode_data,
            "_tls": CurrentTls.of(tls_context),
            "require_starttls": require_starttls and tls_context is not None,
            "_auth_required": auth_required,
            "_auth_require_tls": auth_require_tls,
            "_authenticator": authenticator,
            "_auth_callback": auth_callback if authenticator is None else None,
            "_proxy_timeout": proxy_protocol_timeout,
        }
        self._vary(tuple((k, v) for k, v in given.items() if v != getattr(SMTP, k)))
        self.loop = loop or asyncio.get_event_loop()
        self._setup = setup or Setup(
            type(self),
            handler,
            limits=replace(limits or Limits(), command_seconds=timeout),
            bare=bare_newline,
            strict_paths=strict_paths,
            budget=budget,
            tally=tally,
            reporter=reporter,
            enhanced=enhanced,
            lmtp=lmtp,
            command_call_limit=command_call_limit,
            auth_exclude=auth_exclude_mechanism or (),
            has_authenticator=bool(authenticator or auth_callback),
            commands=_COMMANDS,
        )
        if setup is None:
            _warn_of(tls_context, auth_required=auth_required, auth_require_tls=auth_require_tls)
        self._sweep = sweep or _sweep_of(self.loop)
        if sweep is None:
            self._sweep.look_for(min(timeout, proxy_protocol_timeout or timeout))
        check_proxy_timeout(proxy_protocol_timeout)
        self._begin(peer, on_close)

    def _vary(self, variations: tuple[tuple[str, Any], ...]) -> None:
        if variations:
            self._variations = variations
            for name, value in variations:
                setattr(self, name, value)

    def another(self, peer: Peer, on_close: Callable[[Any], None] | None) -> Self:
        """Return a session set up as this one, for another client; costs half of a new one.

        The constructor of a subclass is not called again.
        """
        other = object.__new__(type(self))
        other.__ident__ = self.__ident__
        other.event_handler = self.event_handler
        other.data_size_limit = self.data_size_limit
        other.enable_SMTPUTF8 = self.enable_SMTPUTF8
        other.hostname = self.hostname
        other._vary(self._variations)
        other.loop = self.loop
        other._setup = self._setup
        other._sweep = self._sweep
        other._begin(peer, on_close)
        return other

    @property
    def tls_context(self) -> ssl.SSLContext | None:
        """The context that STARTTLS would take now; None if it is not offered."""
        return None if self._tls is None else self._tls.context

    @tls_context.setter
    def tls_context(self, context: ssl.SSLContext | None) -> None:
        self._tls = CurrentTls.of(context)

    @property
    def setup(self) -> Setup:
        """What this session shares with others of its server."""
        return self._setup

    # -- from a line to a command --------------------------------------------------------------

    def _command(self, line: bytes) -> Waiting | None:
        word, _, rest = line.partition(b" ")
        if self._loud:
            log.debug("[%s] >> %s", self._session_id, _loggable(line), extra=self._who())
        # What mostly comes: a known command with nothing special about it.
        command = self._setup.fast.get(word)
        if (
            command is not None
            and len(line) <= self.command_size_limit
            and rest.isascii()
            and (not self.require_starttls or self._tls_protocol)
            and self._tls_handshake_okay
        ):
            return command(self, rest.strip().decode("ascii") or None)  # type: ignore[no-any-return]
        if b"\t" in word:  # it separates words as a space does
            word, _, rest = line.replace(b"\t", b" ", 1).partition(b" ")
        word = word.upper()
        try:
            name = word.decode("ascii")
            arg = self._opaque(rest) if name in HELLOS else self._argument(rest)
        except UnicodeDecodeError:
            return self._nonsense(500, "5.5.2", "Error: bad syntax")
        if not name or arg is False:
            text = "Error: bad syntax" if not name else "Error: strict ASCII mode"
            return self._nonsense(500, "5.5.2", text)
        if len(line) > self._command_limit(name):
            return self._nonsense(500, "5.5.2", "Command line too long")
        return self._permitted(name, arg)

    def _argument(self, rest: bytes) -> Any:
        """Return the argument as text; None if there is none, False if it must not be so."""
        rest = rest.strip()
        if not rest:
            return None
        if rest.isascii():
            return rest.decode("ascii")
        return rest.decode("utf-8") if self.enable_SMTPUTF8 else False

    def _opaque(self, rest: bytes) -> str | None:
        r"""Return the name that a client gives itself, with bytes that are no text as ``\xe9``.

        So it can be printed, logged and sent everywhere, and says what came all the same.
        """
        encoding = "utf-8" if self.enable_SMTPUTF8 else "ascii"
        return rest.strip().decode(encoding, "backslashreplace") or None

    def _command_limit(self, name: str) -> int:
        assert self.session is not None
        base = self.command_size_limit
        return base + MORE_FOR.get(name, 0) if self.session.extended_smtp else base

    def _permitted(self, name: str, arg: Any) -> Waiting | None:  # noqa: PLR0911 - a list of cases
        """Carry out a command, if it may be in this place."""
        if not self._tls_handshake_okay and name != "QUIT":
            self._say(554, "5.7.0", "Command refused due to lack of security")
            return None
        if self.require_starttls and not self._tls_protocol and name not in BEFORE_STARTTLS:
            self._say(530, "5.7.0", "Must issue a STARTTLS command first")
            return None
        if self._setup.call_limits is not None and not self._within_calls(name):
            self._put(f"421 4.7.0 {_echo(name)} sent too many times")
            return None
        command = _COMMANDS.get(name)
        if command is not None and name in self._setup.builtin:
            return command(self, arg)
        if name in self._setup.own:
            return self._own_command(name, arg)
        if name.encode() in OF_HTTP:
            self._put(f"421 4.7.0 {self.hostname} This is not a web server")
            return None
        return self._nonsense(500, "5.5.1", f'Error: command "{_echo(name)}" not recognized')

    async def _own_command(self, name: str, arg: Any) -> None:
        self._answered = False
        try:
            await getattr(self, f"smtp_{name}")(arg)
        except BaseException as error:
            if not (self._answered or self._out) or self._is_end(error):
                raise
            # A second reply would be taken for that of the client's next command.
            self._report_failure(f"smtp_{name} failed after its reply", error)

    def _within_calls(self, name: str) -> bool:
        """Count a call of a command against aiosmtpd's command_call_limit.

        BDAT counts as DATA, once a message, unless it has a limit of its own.
        """
        limits = self._setup.call_limits
        assert limits is not None
        if name == "BDAT" and name not in limits:
            if self._chunks is not None:
                return True
            name = "DATA"
        if self._calls is None:
            self._calls = {}
        left = self._calls.get(name, limits.get(name, self._setup.call_limit_default))
        self._calls[name] = left - 1
        return left > 0

    def _command_fault(self, fault: CommandFault) -> Waiting | None:
        if fault is CommandFault.TOO_LONG:
            return self._nonsense(500, "5.5.2", "Command line too long")
        return self._nonsense(500, "5.5.2", "Error: bare CR, LF or NUL in a command")

    def _nonsense(self, code: int, enhanced: str, text: str) -> Waiting | None:
        """Answer what is no command, so many times."""
        if not self._count_error():
            self._say(code, enhanced, text, counted=False)
        return None


_COMMANDS: dict[str, Callable[[Any, Any], Waiting | None]] = {
    name.removeprefix("_cmd_"): getattr(SMTP, name)
    for name in dir(SMTP)
    if name.startswith("_cmd_")
}
"""The commands that are plain functions, by name."""


def _warn_of(
    tls_context: ssl.SSLContext | CurrentTls | None, *, auth_required: bool, auth_require_tls: bool
) -> None:
    """Say what can be, and is likely not meant; in aiosmtpd's words."""
    if auth_required and not auth_require_tls:
        warn(
            "Requiring AUTH while not requiring TLS can lead to security vulnerabilities!",
            stacklevel=3,
        )
        log.warning("auth_required == True but auth_require_tls == False")
    if not isinstance(tls_context, ssl.SSLContext):
        return
    if tls_context.verify_mode is ssl.CERT_REQUIRED:
        log.warning("tls_context.verify_mode is CERT_REQUIRED: clients without one are sent away")
    if tls_context.check_hostname:
        log.warning(
            "tls_context.check_hostname == True; this might cause client connection problems"
        )


def _sweep_of(loop: asyncio.AbstractEventLoop) -> Sweep:
    if loop not in _sweeps:
        _sweeps[loop] = Sweep(loop)
    return _sweeps[loop]


_SHOWN = re.compile(
    rb"(?:(?:EHLO|HELO|LHLO)[ \t]+\S+|(?:MAIL[ \t]+FROM|RCPT[ \t]+TO):[ \t]*(?:<|\S+@).*"
    rb"|BDAT +\d+(?: +LAST)?"
    rb"|DATA|HELP|NOOP|QUIT|RSET|STARTTLS) *",
    re.IGNORECASE | re.DOTALL,
)
"""Commands that the log may show whole."""


def _loggable(line: bytes) -> str:
    """Return a command as the log may hold it: on one line, no credentials, nothing of a message.

    Of other commands that is their name. And what is no command is not shown at all: clients that
    do not wait for replies send the password of a refused AUTH, or the message of a refused DATA.
    """
    if _SHOWN.fullmatch(line):
        return repr(line)[1:]
    name = line.split(maxsplit=1)[:1]
    word = name[0].upper().decode("ascii", "replace") if name else ""
    if word in _COMMANDS:
        return f"{word} ..."
    return f"({len(line)} octets, no command)"
