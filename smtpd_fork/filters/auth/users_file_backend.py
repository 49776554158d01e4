"""UsersFileBackend: verify credentials of PLAIN and LOGIN with a file of users."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.filters.auth.claimed_user import user_key
from smtpd_fork.filters.auth.exchange import credentials
from smtpd_fork.filters.auth.libcrypt import HashError
from smtpd_fork.filters.auth.outcome import TEMPORARY, WRONG, Outcome
from smtpd_fork.filters.auth.password_threads import PasswordThreads, ThreadsBusyError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_fork.filters.auth.exchange import Exchange
    from smtpd_fork.filters.auth.users_file import Users

__all__ = ["UsersFileBackend"]


class UsersFileBackend:
    """Verifies credentials with a file of users.

    :ivar users: the content of the file; None before it was read
    """

    known: Sequence[str] = ("PLAIN", "LOGIN")
    status = None

    def __init__(self) -> None:
        self.users: Users | None = None
        self._threads = PasswordThreads()

    async def offered(self, *, plaintext: bool) -> Sequence[str]:
        """Return both mechanisms, or none without *plaintext*: both reveal the password."""
        return self.known if plaintext else ()

    async def authenticate(self, exchange: Exchange) -> Outcome:
        """Verify the password in a thread; one attempt at a time for each client."""
        user, password = await credentials(exchange)
        assert self.users is not None
        try:
            async with exchange.attempt(at_once=1):
                verifying = self._threads.run(exchange.network, self.users.verify, user, password)
                right = await exchange.in_time(verifying)
                if not right:
                    exchange.failed()
        except ThreadsBusyError:
            return Outcome(reply=TEMPORARY, reason="too many attempts wait for a thread")
        except HashError as error:
            return Outcome(reply=TEMPORARY, reason=f"the hash cannot be computed: {error}")
        return Outcome(user_key(user)) if right else Outcome(reply=WRONG)

    async def close(self) -> None:
        """Stop the threads."""
        self._threads.close()
