"""Macros: named values about a session that a milter gets before its events. Sans-io."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.hops.milter.events import CONNECT, HELO

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from smtpd_fork.hops.milter.events import Event

__all__ = ["Macros"]

NUL = "\0"


class Macros:
    """The macros of a conversation.

    :ivar values: the values of this transaction and of the session, by name
    """

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self._of_session: dict[str, str] = {}
        self._listed: dict[int, Sequence[str]] = {}
        self._sent: dict[Sequence[str], bytes] = {}  # the encoded macros, by their names

    def list(self, symbols: Mapping[int, Sequence[str]]) -> None:
        """Set the names that the milter wants, by the number of the stage."""
        self._listed.update(symbols)

    def begin(self) -> None:
        """Remove the values of the last transaction."""
        self.values = dict(self._of_session)
        self._sent.clear()

    def learn(self, event: Event, values: Mapping[str, str]) -> None:
        """Store values that are known from *event* on."""
        self.values |= values
        self._sent.clear()
        if event is CONNECT or event is HELO:
            self._of_session |= values

    def before(self, event: Event) -> bytes:
        """Return the encoded macros to send before an event; empty if none has a value.

        The result is cached, because several events have the same macros.
        """
        names = self._listed.get(event.stage, event.symbols)
        found = self._sent.get(names)
        if found is None:
            found = self._sent[names] = self._texts(names)
        return found

    def _texts(self, names: Sequence[str]) -> bytes:
        """Return names and values, each ended by NUL; a value is cut at its first NUL."""
        texts: list[str] = []
        for name in names:
            if value := self.values.get(name):
                texts += (name, value.partition(NUL)[0] if NUL in value else value)
        return NUL.join([*texts, ""]).encode("utf-8", "surrogateescape")
