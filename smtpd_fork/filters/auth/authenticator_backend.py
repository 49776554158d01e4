"""AuthenticatorBackend: verify credentials of PLAIN and LOGIN with a Python function."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import MISSING, AuthResult, LoginPassword

from smtpd_fork.dialogue.reply import answer_of
from smtpd_fork.filters.auth.exchange import credentials
from smtpd_fork.filters.auth.outcome import WRONG, Outcome
from smtpd_fork.import_here import import_here
from smtpd_fork.setting_types import SettingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_fork.filters.auth.exchange import Exchange

__all__ = ["AuthenticatorBackend", "function_named"]


def function_named(name: str) -> Callable[..., Any]:
    """Return the function that ``module:attr`` names.

    :raises SettingError: it cannot be imported, or has other parameters
    """
    module, _, attr = name.partition(":")
    try:
        found: Any = attrgetter(attr)(import_here(module))
    except (Exception, SystemExit) as error:  # importing a module can raise anything
        reason = f"cannot be imported: {type(error).__name__}: {error}"
        raise SettingError("authenticator", name, " ".join(reason.split())) from error
    try:
        inspect.signature(found).bind(*_PARAMETERS)
    except (TypeError, ValueError):
        reason = f"expected a function with the parameters {', '.join(_PARAMETERS)}"
        raise SettingError("authenticator", name, reason) from None
    return found  # type: ignore[no-any-return]  # signature() has shown that it is callable


_PARAMETERS = ("server", "session", "envelope", "mechanism", "auth_data")


class AuthenticatorBackend:
    """Verifies credentials by calling a function.

    :param function: ``authenticator(server, session, envelope, mechanism, auth_data)``, which
        returns an AuthResult; it may be a coroutine function
    """

    known: Sequence[str] = ("PLAIN", "LOGIN")
    status = None

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    async def offered(self, *, plaintext: bool) -> Sequence[str]:
        """Return both mechanisms, or none without *plaintext*: both reveal the password."""
        return self.known if plaintext else ()

    async def authenticate(self, exchange: Exchange) -> Outcome:
        """Call the function with the credentials."""
        user, password = await credentials(exchange)
        data = LoginPassword(user.encode(), password)
        server, session = exchange.server, exchange.session
        async with exchange.attempt(at_once=1):
            result = self._function(server, session, server.envelope, exchange.mechanism, data)
            if inspect.isawaitable(result):
                result = await exchange.in_time(result)
            outcome = _outcome(user, result)
            if outcome.reply.startswith("5"):
                exchange.failed()
        return outcome

    async def close(self) -> None:
        """Do nothing: there are no resources."""


def _outcome(user: str, result: Any) -> Outcome:
    """Return the outcome that the result of the function means.

    :raises ValueError: the result is a failure with a positive reply
    """
    if not isinstance(result, AuthResult):
        accepted = result is not None and result is not MISSING and result is not False
        return Outcome(user, data=result) if accepted else Outcome(reply=WRONG)
    if result.success:
        return Outcome(user, data=result.auth_data)
    if result.message:
        reply = answer_of("AUTH", result.message)
        if reply[0] not in "45":
            raise ValueError(f"AuthResult(success=False) with message {result.message!r}")
        return Outcome(reply=reply)
    return Outcome(reply=WRONG)
