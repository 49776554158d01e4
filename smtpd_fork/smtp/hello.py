"""The commands about the session: HELO, EHLO, LHLO, NOOP, RSET, VRFY, EXPN, HELP, QUIT."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any
from warnings import warn

from aiosmtpd.smtp import MISSING, syntax

from smtpd_fork.smtp.engine import Engine
from smtpd_fork.smtp.path import parse_path
from smtpd_fork.smtp.reply import answer_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_fork.smtp.work import Waiting

__all__ = ["Hello", "echo"]

LONGEST_ECHO = 40
_UNPRINTABLE = re.compile(r"[^ -~]")

_USER = re.compile(r"[^\x00-\x1f\x7f<>@]+")
"""What VRFY takes beside an address: a user's name (RFC 5321 3.5.1)."""

_SMTPUTF8 = re.compile(r"[ \t]+SMTPUTF8", re.IGNORECASE | re.ASCII)
"""The parameter of VRFY (RFC 6531 3.7.4.2)."""

NOOPS = 50
"""Commands that do nothing, between two messages, before each more counts as an error."""


def _warn_of(hook: str, old: str) -> None:
    """Say, in aiosmtpd's words, that a subclass has a hook of its first years."""
    warn(f"Use handler.{hook}() instead of .{old}()", DeprecationWarning, stacklevel=2)


def echo(text: str) -> str:
    """Return what a client said as a reply may repeat it: printable, and not much of it."""
    return _UNPRINTABLE.sub("?", text[:LONGEST_ECHO])


class Hello(Engine):
    """Commands about the session."""

    _noops = 0

    def _needs_hello(self, name: str = "HELO") -> bool:
        """Answer 503 if the client has not introduced itself."""
        assert self.session is not None
        if self.session.host_name:
            return False
        self._say(503, "5.5.1", f"Error: send {name} first")
        return True

    def _needs_auth(self) -> bool:
        """Answer 530 if the client has to authenticate itself first."""
        assert self.session is not None
        if not self._auth_required or self.session.authenticated:
            return False
        self._put("530 5.7.0 Authentication required")
        return True

    async def check_helo_needed(self, helo: str = "HELO") -> bool:
        """Answer 503 if the client has not introduced itself (for users' subclasses)."""
        return self._needs_hello(helo)

    async def check_auth_needed(self, caller_method: str) -> bool:
        """Answer 530 if the client has to authenticate itself first (for users' subclasses)."""
        return self._needs_auth()

    def _count_noop(self) -> None:
        """Count a command that does nothing; who says nothing else is up to nothing."""
        self._noops += 1
        if self._noops > NOOPS:
            self._count_error()

    # -- HELO, EHLO, LHLO ------------------------------------------------------------------------

    def _cmd_HELO(self, arg: str | None) -> Waiting | None:
        if self._setup.lmtp:
            self._say(500, "5.5.1", "Error: this is LMTP, send LHLO")
            return None
        if not arg:
            self._say(501, "5.5.4", "Syntax: HELO hostname")
            return None
        assert self.session is not None
        self._set_rset_state()
        self.session.extended_smtp = False
        if "HELO" in self._setup.hooks:
            return self._ask("HELO", partial(self._greeted, arg), arg)
        self._greeted(arg, MISSING)
        return None

    def _greeted(self, name: str, status: Any) -> None:
        """Answer HELO with a handler's *status*, or ours."""
        if status is MISSING:
            assert self.session is not None
            self.session.host_name = name
            status = f"250 {self.hostname}"
        self._put(status)

    def _cmd_EHLO(self, arg: str | None) -> Waiting | None:
        if self._setup.lmtp:
            self._say(500, "5.5.1", "Error: this is LMTP, send LHLO")
            return None
        return self._hello("EHLO", arg)

    def _cmd_LHLO(self, arg: str | None) -> Waiting | None:
        return self._hello("LHLO", arg)

    def _hello(self, name: str, arg: str | None) -> Waiting | None:
        if not arg:
            self._say(501, "5.5.4", f"Syntax: {name} hostname")
            return None
        assert self.session is not None
        self._set_rset_state()
        self.session.extended_smtp = True
        replies = self._extensions()
        if "EHLO" in self._setup.hooks or hasattr(self, "ehlo_hook"):
            return self._ehlo_hook(arg, replies)
        self.session.host_name = arg
        self._put("\r\n".join([*replies, "250 HELP"]))
        return None

    def _extensions(self) -> list[str]:
        """Return the lines of EHLO's reply, without the last."""
        replies = [f"250-{self.hostname}"]
        if self.data_size_limit:
            replies.append(f"250-SIZE {self.data_size_limit}")
        if not self._decode_data:
            replies.append("250-8BITMIME")
        if self.enable_SMTPUTF8:
            replies.append("250-SMTPUTF8")
        if self.tls_context and not self._tls_protocol:
            replies.append("250-STARTTLS")
        if self._setup.auth_names and (not self._auth_require_tls or self._tls_protocol):
            replies.append(f"250-AUTH {self._setup.auth_offer}")
        replies.append("250-PIPELINING")
        if self._setup.chunking:
            replies.append("250-CHUNKING")
        if self._setup.binarymime and not self._decode_data:
            replies.append("250-BINARYMIME")
        if self._setup.dsn:
            replies.append("250-DSN")
        if self._setup.enhanced:
            replies.append("250-ENHANCEDSTATUSCODES")
        replies.append(f"250-LIMITS RCPTMAX={self._setup.limits.recipients}")
        return replies

    async def _ehlo_hook(self, arg: str, replies: list[str]) -> None:
        assert self.session is not None
        if hasattr(self, "ehlo_hook"):
            _warn_of("handle_EHLO", "ehlo_hook")
            await self.ehlo_hook()
        replies.append("250 HELP")
        if "EHLO" not in self._setup.hooks:
            self.session.host_name = arg
        elif self._setup.ehlo_is_old:
            status = await self._call_handler_hook("EHLO", arg)
            if status is MISSING:
                self.session.host_name = arg
            else:
                replies[-1] = status
        else:
            answer = await self._call_handler_hook("EHLO", arg, replies)
            if answer is MISSING:
                self.session.host_name = arg
            else:
                replies = answer
        if not isinstance(replies, (list, tuple)):
            raise TypeError(f"handle_EHLO must return the lines of a reply, not {replies!r:.200}")
        self._put(answer_of("EHLO", "\n".join(replies)))

    # -- the rest ------------------------------------------------------------------------------

    def _simple(self, hook: str, default: tuple[int, str, str], *args: Any) -> Waiting | None:
        """Answer *default*, unless a handler's hook knows better."""
        if hook in self._setup.hooks:
            return self._ask(hook, partial(self._simply, default), *args)
        self._say(*default)
        return None

    def _simply(self, default: tuple[int, str, str], status: Any) -> None:
        if status is MISSING:
            self._say(*default)
        else:
            self._put(status)

    def _cmd_NOOP(self, arg: str | None) -> Waiting | None:
        self._count_noop()
        return self._simple("NOOP", (250, "2.0.0", "OK"), arg)

    def _cmd_RSET(self, arg: str | None) -> Waiting | None:
        if arg:
            self._say(501, "5.5.4", "Syntax: RSET")
            return None
        if self._envelope is None or not self._envelope.mail_from:
            self._count_noop()  # else it ends a transaction, as those do who ask for addresses
        self._set_rset_state()
        rset_hook: Callable[[], Any] | None = getattr(self, "rset_hook", None)
        if rset_hook is not None:
            return self._old_rset_hook(rset_hook)
        return self._simple("RSET", (250, "2.0.0", "OK"))

    async def _old_rset_hook(self, rset_hook: Callable[[], Any]) -> None:
        _warn_of("handle_RSET", "rset_hook")
        await rset_hook()
        self._simply((250, "2.0.0", "OK"), await self._call_handler_hook("RSET"))

    def _cmd_VRFY(self, arg: str | None) -> Waiting | None:
        self._count_noop()
        if self._needs_auth():
            return None
        if not arg:
            self._say(501, "5.5.4", "Syntax: VRFY <address>")
            return None
        who = _SMTPUTF8.sub("", arg)
        parsed = parse_path(who)
        if parsed is not None and not parsed[1]:
            who = parsed[0]
        elif not _USER.fullmatch(who):
            self._say(502, "5.1.3", f"Could not VRFY {echo(arg)}")
            return None
        text = "Cannot VRFY user, but will accept message and attempt delivery"
        return self._simple("VRFY", (252, "2.0.0", text), who)

    def _cmd_EXPN(self, arg: str | None) -> Waiting | None:
        self._count_noop()
        self._say(502, "5.5.1", "EXPN not implemented")
        return None

    def _cmd_HELP(self, arg: str | None) -> Waiting | None:
        self._count_noop()
        if self._needs_auth():
            return None
        code = 250
        if arg:
            method = getattr(self, f"smtp_{arg.upper()}", None) if arg.isalnum() else None
            if method is not None and self._syntax_available(method):
                text = str(method.__smtp_syntax__)
                assert self.session is not None
                if self.session.extended_smtp and method.__smtp_syntax_extended__:
                    text += method.__smtp_syntax_extended__
                self._say(250, "2.0.0", f"Syntax: {text}")
                return None
            code = 501
        names = [m for m in self._setup.methods if self._syntax_available(self._method(m))]
        text = f"Supported commands: {' '.join(sorted(names))}"
        self._say(code, "2.0.0" if code == 250 else "5.5.4", text)  # noqa: PLR2004 - a reply's code
        return None

    def _method(self, name: str) -> Any:
        return getattr(self, f"smtp_{name}")

    def _cmd_QUIT(self, arg: str | None) -> Waiting | None:
        if arg:
            self._say(501, "5.5.4", "Syntax: QUIT")
            return None
        if "QUIT" in self._setup.hooks:
            return self._ask("QUIT", self._quit)
        self._ok("Bye")
        self._close()
        return None

    def _quit(self, status: Any) -> None:
        self._simply((221, "2.0.0", "Bye"), status)
        self._close()

    # -- for users' subclasses, who override these or await super()'s ------------------------------

    async def _settle(self, waiting: Waiting | None) -> None:
        """Wait for what a command left to be waited for."""
        if waiting is not None:
            await waiting
        if self._out:
            self._answered = True
        self._flush()

    @syntax("HELO hostname")
    async def smtp_HELO(self, hostname: str | None) -> None:
        """Greet (RFC 5321 4.1.1.1)."""
        await self._settle(self._cmd_HELO(hostname))

    @syntax("EHLO hostname")
    async def smtp_EHLO(self, hostname: str | None) -> None:
        """Greet, and tell of extensions (RFC 5321 4.1.1.1)."""
        await self._settle(self._cmd_EHLO(hostname))

    @syntax("NOOP [ignored]")
    async def smtp_NOOP(self, arg: str | None) -> None:
        """Do nothing (RFC 5321 4.1.1.9)."""
        await self._settle(self._cmd_NOOP(arg))

    @syntax("RSET")
    async def smtp_RSET(self, arg: str | None) -> None:
        """Forget the transaction (RFC 5321 4.1.1.5)."""
        await self._settle(self._cmd_RSET(arg))

    @syntax("VRFY <address>")
    async def smtp_VRFY(self, arg: str | None) -> None:
        """Say nothing of a user (RFC 5321 4.1.1.6 and 7.3)."""
        await self._settle(self._cmd_VRFY(arg))

    async def smtp_EXPN(self, arg: str | None) -> None:
        """Expand nothing (RFC 5321 4.1.1.7)."""
        await self._settle(self._cmd_EXPN(arg))

    @syntax("HELP [command]")
    async def smtp_HELP(self, arg: str | None) -> None:
        """Tell the commands (RFC 5321 4.1.1.8)."""
        await self._settle(self._cmd_HELP(arg))

    @syntax("QUIT")
    async def smtp_QUIT(self, arg: str | None) -> None:
        """End the session (RFC 5321 4.1.1.10)."""
        await self._settle(self._cmd_QUIT(arg))
