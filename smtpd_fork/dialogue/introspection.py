"""Introspection: inspects the session class and the handler, once for all clients."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any
from warnings import warn

from aiosmtpd.smtp import CALL_LIMIT_DEFAULT

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["auth_names", "call_limits", "ehlo_parameters", "is_inherited", "is_old_ehlo"]

_NEW_EHLO, _OLD_EHLO = 5, 4
"""Parameters of handle_EHLO, now and in early versions of aiosmtpd."""


def is_old_ehlo(hook: Callable[..., Any] | None) -> bool:
    """Return whether handle_EHLO has the parameters of early versions of aiosmtpd.

    :raises RuntimeError: it has neither these nor the present ones
    """
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
    """Return the number of arguments of handle_EHLO: 5, 4, or None for neither."""
    signature = inspect.signature(hook)
    for count in (_NEW_EHLO, _OLD_EHLO):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return count
    return None


def auth_names(cls: type, handler: Any, *, has_authenticator: bool) -> dict[str, tuple[str, bool]]:
    """Return for each mechanism its method, and whether that belongs to the session class.

    Without an authenticator, the built-in mechanisms cannot check credentials and are left out.
    """
    names: dict[str, tuple[str, bool]] = {}
    for owner, own in ((cls, True), (handler, False)):
        for attribute in dir(owner):
            if not attribute.startswith("auth_"):
                continue
            method = getattr(owner, attribute)
            if not callable(method):
                continue
            builtin = own and attribute in {"auth_PLAIN", "auth_LOGIN"}
            if builtin and not has_authenticator and is_inherited(cls, attribute):
                continue
            name = getattr(
                method, "__auth_mechanism_name__", attribute[5:].replace("__", "-")
            ).upper()
            names[name] = (attribute, own)
    return names


def is_inherited(cls: type, attribute: str) -> bool:
    """Return whether *attribute* is defined by a class of this package, not by a user's."""
    for base in cls.__mro__:
        if attribute in base.__dict__:
            return base.__module__.startswith("smtpd_fork.smtp.")
    return False


def call_limits(limit: int | dict[str, int] | None) -> tuple[dict[str, int] | None, int]:
    """Parse aiosmtpd's ``command_call_limit``: return limits by command, and the default.

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
