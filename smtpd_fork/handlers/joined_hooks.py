"""Joined hooks: combines the hooks of a chain's handlers.

A hook is called for each handler that has it, in order. The first answer is used; MISSING leaves
the decision to the next handler. Some hooks have their own rules:

- EHLO: each handler may change the list of replies, and the next one gets the changed list;
- RCPT: after a handler that redirects recipients (:class:`~smtpd_fork.filters.Filter`), the next
  handlers are called with each of the new addresses (:mod:`~smtpd_fork.handlers.redirection`);
- CONNECT, HELO, EHLO, MAIL, RCPT and DATA: after a filter with a provisional answer, the next
  handlers are called as well (:mod:`~smtpd_fork.handlers.provisional`);
- STARTTLS: all handlers must accept;
- DISCONNECT: every handler is called, also after errors of others.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from aiosmtpd.handlers import Sink as AiosmtpdSink
from aiosmtpd.smtp import MISSING

from smtpd_fork.dialogue.introspection import ehlo_parameters
from smtpd_fork.dialogue.notes import record_call, was_called
from smtpd_fork.dialogue.waiting import begins_at_once, may_end_at_once
from smtpd_fork.filters.provisional import Provisional
from smtpd_fork.handlers.provisional import is_of_filter, provisional_filter, with_later_handlers
from smtpd_fork.handlers.redirection import for_each_address, redirects
from smtpd_fork.message.quarantine_mark import WITHHELD, is_quarantined
from smtpd_fork.smtp.hooks import is_from_outside

if TYPE_CHECKING:
    from smtpd_fork.handlers.when import When

__all__ = ["Hook", "conditional", "hook_of", "is_hook", "message_hook", "one_hook"]

Hook: TypeAlias = Callable[..., Awaitable[Any]]

NO_ROOM = "452 4.3.1 Insufficient system storage, try again later"

_OLD_EHLO_PARAMETERS = 4
"""Parameters of aiosmtpd's deprecated handle_EHLO(server, session, envelope, hostname)."""


def one_hook(name: str, hooks: Sequence[Hook]) -> Any:
    """Return one hook that calls several hooks."""
    return _SPECIAL.get(name, _first_answer)(hooks)


def message_hook(hooks: Sequence[Hook], *, withhold: bool) -> Hook:
    """Return one hook DATA that calls several hooks.

    :param withhold: whether no sink stores quarantined messages
    """
    if len(hooks) == 1:
        return hooks[0]

    asked = [(each, is_of_filter(each), provisional_filter(each)) for each in hooks]

    async def handle_DATA(server: Any, session: Any, envelope: Any) -> Any:
        pending = None
        for each, is_filter, provisional in asked:
            if pending is not None and not is_filter:
                if pending.if_permitted:
                    return pending.if_permitted  # before a handler delivers the message
                pending = None  # a later rejection is not that of a filter
            content = envelope.original_content
            status = await each(server, session, envelope)
            if provisional is not None and (new := provisional.take_provisional(envelope)):
                status, pending = MISSING, new if pending is None else pending.joined(new)
            if status is not MISSING:
                return status if pending is None else pending.answer(status)
            if envelope.original_content is not content and not _fits_in_memory(server):
                return NO_ROOM
            if withhold and is_quarantined(envelope):
                return WITHHELD
        return MISSING if pending is None else pending.answer(MISSING)

    return may_end_at_once(handle_DATA) if all(map(begins_at_once, hooks)) else handle_DATA


def _fits_in_memory(server: Any) -> bool:
    """Return whether the memory limits allow a message that a handler has changed."""
    charge = getattr(server, "charge_message", None)  # aiosmtpd's server has none
    return charge is None or charge()


def conditional(
    name: str, hook: Callable[..., Any], when: When, handler: object
) -> Callable[..., Any]:
    """Return a hook that is called only if conditions match; otherwise it returns MISSING.

    A handler that was called for a session gets its DISCONNECT in any case, as it may have stored
    something for the session.
    """
    if name == "handle_STARTTLS":

        @functools.wraps(hook)
        def starttls(server: Any, session: Any, *args: Any) -> Any:
            if not when.holds_at(name, session, args):
                return True
            record_call(session, handler)
            return hook(server, session, *args)

        return starttls

    @functools.wraps(hook)
    async def asked(server: Any, session: Any, *args: Any) -> Any:
        if name == "handle_DISCONNECT" and was_called(session, handler):
            return await hook(server, session, *args)
        if when.holds_at(name, session, args):
            record_call(session, handler)
            return await hook(server, session, *args)
        return MISSING

    return asked


def hook_of(handler: Any, name: str) -> Hook | None:
    """Return the hook of a handler; aiosmtpd's Sink accepts messages without a hook."""
    if name == "handle_DATA" and isinstance(handler, AiosmtpdSink):
        return getattr(handler, name, _accept_message)
    return getattr(handler, name, None)


async def _accept_message(*_: object) -> str:
    """Accept a message, in place of the missing handle_DATA of aiosmtpd's Sink."""
    return "250 2.0.0 Ok"


def is_hook(name: str) -> bool:
    """Return whether *name* is the name of a hook."""
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

    return may_end_at_once(hook) if all(map(begins_at_once, hooks)) else hook


def _provisional(
    hooks: Sequence[Hook], *, redirected: bool = False, of_client: bool = False
) -> Hook:
    """Return a hook that handles provisional answers.

    :param redirected: for RCPT: a handler may replace the address by others
    :param of_client: for CONNECT or HELO; otherwise for MAIL or RCPT
    """
    for index, hook in enumerate(hooks[:-1]):
        if redirected and redirects(hook):
            join = partial(for_each_address, hook)
        elif (filter_ := provisional_filter(hook)) is not None:
            join = partial(with_later_handlers, hook, filter_, of_client=of_client)
        else:
            continue
        later = _provisional(hooks[index + 1 :], redirected=redirected, of_client=of_client)
        both = join(later)
        return _first_answer([*hooks[:index], both])
    return _first_answer(hooks)


def _all_handlers(hooks: Sequence[Hook]) -> Hook:
    async def handle_DISCONNECT(server: Any, session: Any) -> None:
        errors = []
        for each in hooks:
            try:
                await each(server, session)
            except BaseException as error:
                if is_from_outside(error, getattr(session, "id", None)):
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
    filters = [provisional_filter(each) for each in hooks]

    async def handle_EHLO(
        server: Any, session: Any, envelope: Any, hostname: str, responses: list[str]
    ) -> Any:
        changed, name, pending = False, session.host_name, Provisional()
        for each, is_old, filter_ in zip(hooks, old, filters, strict=True):
            if is_old:
                answer = await each(server, session, envelope, hostname)
                if answer is not MISSING:
                    answer = [*responses[:-1], answer]
            else:
                answer = await each(server, session, envelope, hostname, responses)
            if filter_ is not None and (new := filter_.take_provisional(session)):
                pending = pending.joined(new)
            if answer is MISSING:
                continue
            changed, responses = True, answer
            if responses and responses[0][:1] in {"4", "5"}:
                session.host_name = name  # EHLO is rejected, so the name is restored
                if pending.if_refused and responses[0][:1] == "5":
                    responses = [pending.if_refused]
                break
        return responses if changed else MISSING

    return _restoring_name(handle_EHLO)


def _restoring_name(hook: Hook) -> Hook:
    """Return a hook EHLO that restores the client's name if a handler fails."""

    @functools.wraps(hook)
    async def handle_EHLO(server: Any, session: Any, *args: Any) -> Any:
        name = session.host_name
        try:
            return await hook(server, session, *args)
        except BaseException:
            session.host_name = name  # an earlier handler has changed it
            raise

    return handle_EHLO


def _starttls(hooks: Sequence[Callable[..., Any]]) -> Any:
    async def handle_STARTTLS(*args: Any) -> bool:
        accepted = True
        for each in hooks:
            answer = each(*args)  # in aiosmtpd it is a plain function
            if inspect.isawaitable(answer):
                answer = await answer
            accepted = accepted and bool(answer)
        return accepted

    return handle_STARTTLS


_SPECIAL: dict[str, Callable[..., Any]] = {
    "handle_CONNECT": partial(_provisional, of_client=True),
    "handle_DISCONNECT": _all_handlers,
    "handle_EHLO": _ehlo,
    "handle_HELO": partial(_provisional, of_client=True),
    "handle_MAIL": _provisional,
    "handle_RCPT": partial(_provisional, redirected=True),
    "handle_STARTTLS": _starttls,
}
