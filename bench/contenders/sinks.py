"""This daemon with each of its sinks, and a handler that measures how long the loop is blocked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.contenders.python import SmtpdFork
from bench.destinations import DESTINATIONS, Destination
from bench.peers.held import Holds

if TYPE_CHECKING:
    from pathlib import Path
    from typing import ClassVar

    from bench.contenders.base import Needs, Place

__all__ = ["SINKS", "SmtpdForkSink", "holds_of"]


def holds_of(folder: Path) -> Path:
    """Return the file of a daemon that was started in *folder*: see :class:`Holds`."""
    return folder / "holds"


class SmtpdForkSink(SmtpdFork):
    """The daemon with one sink.

    :ivar destination: the destination that the sink delivers to
    """

    setup = ""
    only: ClassVar[tuple[str, ...]] = ("W10", "W14")

    def __init__(self, destination: Destination) -> None:
        self.name = destination.sink  # type: ignore[misc]  # one instance per sink
        self.destination = destination

    def missing(self) -> str:
        """Check for the destination of the sink."""
        return self.destination.missing()

    def command(self, place: Place, needs: Needs) -> list[str]:
        """Write the file of the measuring handler, and return the daemon's command line."""
        Holds().write(holds_of(place.folder))
        return super().command(place, needs)

    def handlers(self, place: Place, needs: Needs) -> list[str]:
        """Return the measuring handler, and the handlers of the destination."""
        if not needs.handlers:
            return [self.name]
        return [f"bench.peers.held:Held:{holds_of(place.folder)}", *needs.handlers]


SINKS = tuple(map(SmtpdForkSink, DESTINATIONS))
