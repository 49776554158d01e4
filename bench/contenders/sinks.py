"""This daemon with each of its sinks, and a measure of how long its event loop is held."""

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

    :ivar destination: where the sink delivers
    """

    setup = ""
    only: ClassVar[tuple[str, ...]] = ("W10", "W14")

    def __init__(self, destination: Destination) -> None:
        self.name = destination.sink  # type: ignore[misc]  # there is an instance for each sink
        self.destination = destination

    def missing(self) -> str:
        """Look for what the sink delivers to."""
        return self.destination.missing()

    def command(self, place: Place, needs: Needs) -> list[str]:
        """Return the daemon's command line."""
        command = super().command(place, needs)
        if not needs.handler:
            return command
        holds = holds_of(place.folder)
        Holds().write(holds)
        first = command.index("--handler")
        return [*command[:first], "--handler", f"bench.peers.held:Held:{holds}", *command[first:]]

    def handler(self, place: Place, needs: Needs) -> str:  # noqa: ARG002 - as the other's
        """Return the sink."""
        return needs.handler or self.name


SINKS = tuple(map(SmtpdForkSink, DESTINATIONS))
