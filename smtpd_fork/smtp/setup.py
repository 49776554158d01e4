"""Setup: what all sessions of a server have in common, worked out once.

Stock aiosmtpd looks through class and handler for every connection, which is a quarter of a
session's cost.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from warnings import warn

from aiosmtpd.handlers import Sink
from aiosmtpd.smtp import CALL_LIMIT_DEFAULT

from smtpd_fork.gate import Reporter, client_reporter
from smtpd_fork.smtp.budget import Budget
from smtpd_fork.smtp.content import BareNewline
from smtpd_fork.smtp.tally import Tally
from smtpd_fork.smtp.waits import never_waits
from smtpd_fork.smtp.wire import MeteredWire, Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["Limits", "Setup", "ehlo_parameters"]

_NEW_EHLO, _OLD_EHLO = 5, 4
"""Parameters of handle_EHLO, now and in aiosmtpd's first years."""


async def _taken(*_: object) -> str:
    """Stand in for the handle_DATA that aiosmtpd's Sink has not: it is there to take messages."""
    return "250 OK"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one session may take.

    :ivar command_seconds: for the next command (RFC 5321 4.5.3.2.7)
    :ivar data_seconds: for the next part of a message (4.5.3.2.5: 3 minutes)
    :ivar data_rate: bytes a second that a message has to come with, after a minute
    :ivar handler_seconds: for one answer of a handler
    :ivar handshake_seconds: for a TLS handshake
    :ivar session_seconds: for the whole session; 0 is no limit
    :ivar errors: commands that are none, before the session is ended
    :ivar recipients: of one message (RFC 9422 RCPTMAX)
    :ivar rejects: commands that are refused, before the session is ended
    :ivar line: octets of a line of a message with its line end; 0 is no limit
    """

    command_seconds: float = 300.0
    data_seconds: float = 180.0
    data_rate: float = 100.0
    handler_seconds: float = 300.0
    handshake_seconds: float = 30.0
    session_seconds: float = 3600.0
    errors: int = 20
    recipients: int = 1000
    rejects: int = 100
    line: int = 0


class Setup:
    """Commands, hooks and limits of one class of sessions with one handler.

    :param cls: the class of the sessions
    :param handler: aiosmtpd's
    """

    def __init__(
        self,
        cls: type,
        handler: Any,
        *,
        limits: Limits,
        strict_paths: bool = False,
        bare: BareNewline = BareNewline.ACCEPT,
        budget: Budget | None = None,
        tally: Tally | None = None,
        reporter: Reporter | None = None,
        enhanced: bool = True,
        lmtp: bool = False,
        command_call_limit: int | dict[str, int] | None = None,
        auth_exclude: Iterable[str] = (),
        has_authenticator: bool = False,
        commands: Mapping[str, Callable[[Any, str | None], Any]] | None = None,
    ) -> None:
        self.limits = limits
        self.bare = bare
        self.strict_paths = strict_paths
        self.budget = budget or Budget(0)
        self.tally = tally or Tally()
        self.reporter = reporter or client_reporter()
        """Writes lines about clients, of which any client can cause many."""
        self.wire: Callable[[Any], Wire] = Wire
        """What the loop's transport talks to, for a session."""
        if self.tally.timing:
            self.wire = partial(MeteredWire, self.tally)
        self.enhanced = enhanced
        self.ok = {
            status: f"250 {status} OK\r\n".encode() if enhanced else b"250 OK\r\n"
            for status in ("2.0.0", "2.1.0", "2.1.5")
        }
        self.ok["Bye"] = b"221 2.0.0 Bye\r\n" if enhanced else b"221 Bye\r\n"
        """The most frequent replies, ready to be sent."""
        self.lmtp = lmtp
        self.hooks: dict[str, Callable[..., Any]] = {
            name.removeprefix("handle_"): getattr(handler, name)
            for name in dir(handler)
            if name.startswith("handle_") and name != "handle_exception"
        }
        if "DATA" not in self.hooks and isinstance(handler, Sink):
            self.hooks["DATA"] = _taken
        self.at_once = frozenset(name for name, hook in self.hooks.items() if never_waits(hook))
        """Hooks that cannot wait for anything: they need no task."""
        self.ehlo_is_old = self._ehlo_is_old()
        self.hooks = {name: self.tally.timed_hook(name, hook) for name, hook in self.hooks.items()}
        self.methods = [n.removeprefix("smtp_") for n in dir(cls) if n.startswith("smtp_")]
        self.builtin = {name for name in self.methods if _is_inherited(cls, f"smtp_{name}")}
        """Commands that nobody has overridden: plain functions."""
        if lmtp:
            self.builtin.add("LHLO")
        self.own = set(self.methods) - self.builtin
        """Commands of a user's subclass: coroutines."""
        self.chunking = "DATA" in self.builtin or "BDAT" in self.own
        """Whether BDAT is offered: not where it would go around a subclass's smtp_DATA."""
        if not self.chunking:
            self.methods.remove("BDAT")
        self.binarymime = self.chunking and bool(getattr(handler, "supports_binarymime", False))
        """Whether EHLO offers BINARYMIME, and MAIL takes it: the handler has to say so."""
        self.dsn = bool(getattr(handler, "supports_dsn", False))
        """Whether EHLO offers DSN, and its parameters are taken: the handler has to say so."""
        self.auth_names = _auth_names(
            cls, handler, has_authenticator=has_authenticator or "AUTH" in self.hooks
        )
        for name in auth_exclude:
            self.auth_names.pop(name, None)
        self.auth_offer = " ".join(sorted(self.auth_names, key=_by_preference))
        """The mechanisms as EHLO offers them."""
        self.call_limits, self.call_limit_default = _call_limits(command_call_limit)
        known = commands or {}
        self.fast = {
            word.encode(): known[name]
            for name in self.builtin & known.keys()
            for word in (name, name.lower())
            if self.call_limits is None
        }
        """Commands that are plain functions, by the two ways in which clients write them."""
        self.all_fast = {
            b"MAIL",
            b"RCPT",
            b"DATA",
            b"QUIT",
            b"RSET",
            b"NOOP",
            b"EHLO",
            b"HELO",
        } <= self.fast.keys()

    def _ehlo_is_old(self) -> bool:
        hook = self.hooks.get("EHLO")
        count = _NEW_EHLO if hook is None else ehlo_parameters(hook)
        if count is None:
            raise RuntimeError("Unsupported EHLO Hook")
        if count == _OLD_EHLO:
            warn(
                "Use the 5-argument handle_EHLO() hook instead of the 4-argument handle_EHLO() "
                "hook; support for the 4-argument handle_EHLO() hook will be removed in "
                "version 2.0",
                DeprecationWarning,
                stacklevel=2,
            )
        return count == _OLD_EHLO


def ehlo_parameters(hook: Callable[..., Any]) -> int | None:
    """Return with how many arguments handle_EHLO is to be called: 5, 4, or None for neither."""
    signature = inspect.signature(hook)
    for count in (_NEW_EHLO, _OLD_EHLO):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return count
    return None


def _auth_names(cls: type, handler: Any, *, has_authenticator: bool) -> dict[str, tuple[str, bool]]:
    """Return by name of mechanism the method, and whether it is the session's own.

    Without an authenticator the built-in ones have nothing to check credentials with.
    """
    names: dict[str, tuple[str, bool]] = {}
    for thing, own in ((cls, True), (handler, False)):
        for attribute in dir(thing):
            if not attribute.startswith("auth_"):
                continue
            method = getattr(thing, attribute)
            if not callable(method):
                continue
            builtin = own and attribute in {"auth_PLAIN", "auth_LOGIN"}
            if builtin and not has_authenticator and _is_inherited(cls, attribute):
                continue
            name = getattr(
                method, "__auth_mechanism_name__", attribute[5:].replace("__", "-")
            ).upper()
            names[name] = (attribute, own)
    return names


def _by_preference(mechanism: str) -> tuple[bool, bool, str]:
    """Sort PLAIN first, which takes one exchange: of several, many clients use the first."""
    return mechanism != "PLAIN", mechanism != "LOGIN", mechanism


def _is_inherited(cls: type, attribute: str) -> bool:
    """Whether a class of this package defines *attribute*, not a user's."""
    for base in cls.__mro__:
        if attribute in base.__dict__:
            return base.__module__.startswith("smtpd_fork.smtp.")
    return False


def _call_limits(limit: int | dict[str, int] | None) -> tuple[dict[str, int] | None, int]:
    """Read aiosmtpd's ``command_call_limit``.

    :raises TypeError: it is neither a number nor numbers by command
    """
    if limit is None:
        return None, 0
    if isinstance(limit, int):
        return {}, limit
    if not isinstance(limit, dict):
        raise TypeError("command_call_limit must be int or Dict[str, int]")
    if not all(isinstance(value, int) for value in limit.values()):
        raise TypeError("All command_call_limit values must be int")
    return limit, limit.get("*", CALL_LIMIT_DEFAULT)
