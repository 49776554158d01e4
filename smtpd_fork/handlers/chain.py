"""Chain: several aiosmtpd handlers that act as one.

A hook is asked of each handler that has it, in order. The first answer wins; MISSING is "no
opinion". Three hooks have a rule of their own:

- EHLO: each handler may change the list of replies, and the next one gets what it made of it;
- CONNECT: as the others, without an envelope;
- DISCONNECT: everybody is told, whatever the others did.

The chain has a hook only if one of its handlers has: aiosmtpd looks for that, and what is not
there costs nothing.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Self

from aiosmtpd.handlers import Sink as AiosmtpdSink
from aiosmtpd.smtp import MISSING

from smtpd_fork.dialogue.introspection import ehlo_parameters
from smtpd_fork.errors import HandlerError
from smtpd_fork.handlers.check import COMMANDS, check_handler
from smtpd_fork.sinks import Sink
from smtpd_fork.smtp import SMTP
from smtpd_fork.smtp.hooks import is_from_outside

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    Hook = Callable[..., Awaitable[Any]]

__all__ = ["Chain"]

_OLD_EHLO_PARAMETERS = 4
"""aiosmtpd's deprecated handle_EHLO(server, session, envelope, hostname)."""


class Chain:
    """Handlers in order, as one.

    :param handlers: as aiosmtpd documents them; at least one
    :param commands: of a subclass of SMTP, which may ask hooks of its own
    :raises HandlerError: one of them cannot be asked
    """

    def __init__(self, handlers: Sequence[Any], *, commands: Collection[str] = ()) -> None:
        self.handlers = tuple(handlers)
        if not self.handlers:
            raise HandlerError("there is no handler: give one at least")
        for handler in self.handlers:
            check_handler(handler, commands)
        names = {name for handler in handlers for name in dir(handler) if _is_hook(name)}
        if any(isinstance(handler, AiosmtpdSink) for handler in handlers):
            names.add("handle_DATA")
        for name in sorted(names):
            hooks = [hook for handler in handlers if (hook := _hook_of(handler, name)) is not None]
            setattr(self, name, _SPECIAL.get(name, _first_answer)(hooks))
        for name in ("handle_exception", "process_message"):
            self._take_over(name)
        takers = [handler for handler in self._reachable if _takes_messages(handler)]
        self.supports_dsn = _all_have("supports_dsn", takers)
        """Whether each handler that may take a message sees to what a client asks for by DSN."""
        self.supports_binarymime = _all_have("supports_binarymime", takers)
        """Whether each handler that may take a message keeps every octet of a binary one."""
        for handler in handlers:
            for name in dir(handler):
                if name.startswith("auth_") and not hasattr(self, name):
                    setattr(self, name, getattr(handler, name))

    @classmethod
    def of(cls, handler: Any, session_class: type = SMTP) -> Self:
        """Return *handler*, or several in a list or tuple, in order, as a chain.

        A handler whose class is derived from ``tuple`` (a ``NamedTuple``) or ``list`` is one
        handler.

        :param session_class: may ask hooks of its own
        :raises HandlerError: one of them cannot be asked
        """
        if isinstance(handler, cls):
            return handler
        commands = {n.removeprefix("smtp_") for n in dir(session_class) if n.startswith("smtp_")}
        several = handler if type(handler) in (list, tuple) else [handler]
        return cls(several, commands=commands - COMMANDS)

    def _take_over(self, name: str) -> None:
        """Have the first handler that has *name* speak for all."""
        for handler in self.handlers:
            if hasattr(handler, name):
                setattr(self, name, getattr(handler, name))
                return

    def measure(self, timed: Callable[[str, Hook], Hook]) -> None:
        """Have the hook DATA of each sink be what *timed* makes of its name and the hook."""
        if not any(isinstance(handler, Sink) for handler in self.handlers):
            return
        self.handle_DATA = _first_answer(
            [
                timed(type(handler).__name__.lower(), hook) if isinstance(handler, Sink) else hook
                for handler in self.handlers
                if (hook := _hook_of(handler, "handle_DATA")) is not None
            ]
        )

    @property
    def _reachable(self) -> Sequence[Any]:
        """The handlers up to the first sink, which answers every message."""
        for index, handler in enumerate(self.handlers):
            if isinstance(handler, Sink):
                return self.handlers[: index + 1]
        return self.handlers

    @property
    def unreachable(self) -> Sequence[Any]:
        """Handlers behind a sink: a sink answers every message, so they see none."""
        behind = self.handlers[len(self._reachable) :]
        return [handler for handler in behind if hasattr(handler, "handle_DATA")]

    def prepare(self) -> None:
        """Have the sinks make what they need, as the user who will write there.

        :raises CannotCreateError: one of them cannot
        """
        for handler in self.handlers:
            if isinstance(handler, Sink):
                handler.prepare()

    async def close(self) -> None:
        """Have the sinks finish."""
        for handler in self.handlers:
            if isinstance(handler, Sink):
                await handler.close()


def _hook_of(handler: Any, name: str) -> Hook | None:
    if name == "handle_DATA" and isinstance(handler, AiosmtpdSink):
        return getattr(handler, name, _taken)
    return getattr(handler, name, None)


def _all_have(name: str, handlers: Sequence[Any]) -> bool:
    return bool(handlers) and all(getattr(handler, name, False) for handler in handlers)


def _takes_messages(handler: Any) -> bool:
    return _hook_of(handler, "handle_DATA") is not None or hasattr(handler, "process_message")


async def _taken(*_: object) -> str:
    """Stand in for the handle_DATA that aiosmtpd's Sink has not: it is there to take messages."""
    return "250 2.0.0 Ok"


def _is_hook(name: str) -> bool:
    return name.startswith("handle_") and name != "handle_exception"


def _first_answer(hooks: Sequence[Hook]) -> Hook:
    if len(hooks) == 1:
        return hooks[0]

    async def hook(*args: Any) -> Any:
        for each in hooks:
            status = await each(*args)
            if status is not MISSING:
                return status
        return MISSING

    return hook


def _everybody(hooks: Sequence[Hook]) -> Hook:
    async def handle_DISCONNECT(server: Any, session: Any) -> None:
        errors = []
        for each in hooks:
            try:
                await each(server, session)
            except BaseException as error:
                if is_from_outside(error):
                    raise
                errors.append(error)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise BaseExceptionGroup("several handlers failed", errors)

    return handle_DISCONNECT


def _ehlo(hooks: Sequence[Hook]) -> Hook:
    if len(hooks) == 1:
        return hooks[0]
    old = [ehlo_parameters(each) == _OLD_EHLO_PARAMETERS for each in hooks]

    async def handle_EHLO(
        server: Any, session: Any, envelope: Any, hostname: str, responses: list[str]
    ) -> list[str]:
        for each, is_old in zip(hooks, old, strict=True):
            if is_old:
                status = await each(server, session, envelope, hostname)
                if status is not MISSING:
                    responses = [*responses[:-1], status]
            else:
                answer = await each(server, session, envelope, hostname, responses)
                if answer is not MISSING:
                    responses = answer
        return responses

    return handle_EHLO


def _starttls(hooks: Sequence[Callable[..., Any]]) -> Any:
    async def handle_STARTTLS(*args: Any) -> bool:
        accepted = True
        for each in hooks:
            answer = each(*args)  # aiosmtpd has a plain function here
            if inspect.isawaitable(answer):
                answer = await answer
            accepted = accepted and bool(answer)
        return accepted

    return handle_STARTTLS


_SPECIAL: dict[str, Callable[..., Any]] = {
    "handle_DISCONNECT": _everybody,
    "handle_EHLO": _ehlo,
    "handle_STARTTLS": _starttls,
}
