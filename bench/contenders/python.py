"""The servers in Python: this daemon, stock aiosmtpd, and a minimal uvloop protocol."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

from bench.contenders.base import HOST, Contender, Needs, Place
from bench.process import ROOT
from smtpd_fork.version import __version__

if TYPE_CHECKING:
    from typing import ClassVar

__all__ = [
    "BareProtocol",
    "SmtpdFork",
    "SmtpdForkAllRules",
    "SmtpdForkFilters",
    "SmtpdForkFleet",
    "SmtpdForkPool",
    "SmtpdForkTwo",
    "StockAiosmtpd",
]


BOB = "$6$x$" + "." * 86
"""A hash of crypt(3); its password is not known."""


class SmtpdFork(Contender):
    """This daemon, from the tree that is measured."""

    name = "smtpd-fork"
    setup = (
        "as it ships: uvloop, its gate on, its log at the default level and into a file; "
        "`--handler discard` (in W10 `relay:HOST:PORT`, in W11 `lmtp:unix:PATH`, in W12 "
        "`maildir:PATH`), and `-m 0` where one address connects often"
    )

    def missing(self) -> str:
        """Return an empty string: the daemon is in this tree."""
        return ""

    def version(self) -> str:
        """Return the name and the version."""
        return f"smtpd-fork {__version__}"

    def command(self, place: Place, needs: Needs) -> list[str]:
        """Return the daemon's command line."""
        command = [
            *(sys.executable, "-m", "smtpd_fork"),
            *("--listen-address", f"{HOST}:{place.port}"),
            *(word for each in self.handlers(place, needs) for word in ("--handler", each)),
            *("--hostname", "localhost"),
            *("--limit-connections", str(needs.capacity)),
            *("--max-from-ip", str(needs.limit)),
            *("--max-message-size", str(needs.largest)),
            *("--log-to", str(place.folder / "log")),
        ]
        if needs.tls:
            command += ["--tls-cert", str(place.certificates.certificate)]
            command += ["--tls-key", str(place.certificates.key)]
        return command

    def handlers(self, place: Place, needs: Needs) -> list[str]:
        """Return the filters and the sink of a message, in the order of ``--handler``."""
        if needs.handlers:
            return [*needs.handlers]
        handlers = [f"milter:{needs.milter}"] if needs.milter else []
        handlers += [f"rspamd:{needs.rspamd}"] if needs.rspamd else []
        if needs.hop:
            return [*handlers, f"relay:{needs.hop}"]
        return [*handlers, f"maildir:{place.mail}" if needs.keep else "discard"]


class SmtpdForkAllRules(SmtpdFork):
    """This daemon with every rule of the gate enabled; the benchmark reaches none of the limits."""

    name = "all-rules"
    setup = (
        "smtpd-fork with every rule of its gate on, and no limit reached: limits for networks of "
        "two sizes, rate limits per client and per network, fair share, 100,000 denied networks, "
        "exempt networks with reserved connection slots, and a limit of the event-loop lag"
    )
    only: ClassVar[tuple[str, ...]] = ("W1", "W5", "W6", "W18")

    def command(self, place: Place, needs: Needs) -> list[str]:
        """Return the daemon's command line."""
        denied = place.folder / "denied"
        denied.write_text("".join(f"10.{n >> 8}.{n & 255}.0/25\n" for n in range(0x10000)))
        more = place.folder / "more"
        more.write_text("".join(f"172.16.{n >> 8}.{n & 255}\n" for n in range(34_464)))
        return [
            *super().command(place, needs),
            *("--max-from-net", "1000000/24", "--max-from-net", "1000000/16"),
            *("--rate", "1000000/s", "--rate-net", "1000000/s/24", "--fair-share"),
            *("--deny", str(denied), "--deny", str(more)),
            *("--exempt", "192.0.2.0/24", "--reserve", "1", "--max-loop-lag", "10s"),
        ]


class SmtpdForkFleet(SmtpdForkAllRules):
    """This daemon as a node of a fleet."""

    name = "fleet"
    setup = "all-rules with `--fleet unix:PATH`, a redis-server on the same machine"
    only: ClassVar[tuple[str, ...]] = ("W18",)

    def command(self, place: Place, needs: Needs) -> list[str]:
        """Return the daemon's command line."""
        return [*super().command(place, needs), "--fleet", needs.fleet]


class SmtpdForkTwo(SmtpdFork):
    """This daemon with two processes under a supervisor."""

    name = "two-processes"
    setup = "smtpd-fork with `--processes 2`"
    only: ClassVar[tuple[str, ...]] = ("W4", "W17")

    def command(self, place: Place, needs: Needs) -> list[str]:
        """Return the daemon's command line."""
        return [*super().command(place, needs), "--processes", "2"]


class SmtpdForkFilters(SmtpdFork):
    """This daemon with filters whose servers are down; no message reaches a filter."""

    name = "five-filters"
    setup = "smtpd-fork with the filters `accept`, `auth`, `policy`, `milter` and `rspamd`"
    only: ClassVar[tuple[str, ...]] = ("W4",)

    def handlers(self, place: Place, needs: Needs) -> list[str]:
        """Return the filters and the sink."""
        users, domains = place.folder / "users", place.folder / "domains"
        users.write_text(f"bob:{BOB}\n", encoding="ascii")
        users.chmod(0o600)
        domains.write_text("example.com\n", encoding="ascii")
        return [
            *(f"accept:{domains}", f"auth:{users}", f"policy:unix:{place.folder}/policy"),
            *(f"milter:unix:{place.folder}/milter", f"rspamd:http://{HOST}:1"),
            *super().handlers(place, needs),
        ]


class SmtpdForkPool(SmtpdFork):
    """This daemon with a handler that awaits for each recipient: ``bench/peers/pool.py``."""

    name = "pool"
    setup = (
        "smtpd-fork with a handler before the sink that, for each recipient, awaits one of 20 "
        "connections of a pool and one turn of the event loop"
    )
    only: ClassVar[tuple[str, ...]] = ("W1", "W2")

    def command(self, place: Place, needs: Needs) -> list[str]:
        """Return the daemon's command line."""
        return ["env", f"PYTHONPATH={ROOT}", *super().command(place, needs)]

    def handlers(self, place: Place, needs: Needs) -> list[str]:
        """Return the pool and the sink."""
        return ["bench.peers.pool:Pool", *super().handlers(place, needs)]


class StockAiosmtpd(Contender):
    """Unchanged aiosmtpd on uvloop: ``bench/peers/stock.py``."""

    name = "aiosmtpd"
    setup = (
        "`loop.create_server` on uvloop with `aiosmtpd.smtp.SMTP` and `aiosmtpd.handlers.Sink` (in "
        "W12 `Mailbox`, which syncs each file and no directory); where a limit is needed, a "
        "subclass that checks it in `connection_made`"
    )
    portion: ClassVar[float] = 0.5

    def missing(self) -> str:
        """Return an empty string: the daemon itself needs both packages."""
        return ""

    def version(self) -> str:
        """Return the names and the versions."""
        return f"aiosmtpd {version('aiosmtpd')} on uvloop {version('uvloop')}"

    def command(self, place: Place, needs: Needs) -> list[str]:
        """Return the command line of the script."""
        command = [
            *(sys.executable, "-m", "bench.peers.stock"),
            *("--host", HOST, "--port", str(place.port)),
            *("--limit", str(needs.limit), "--largest", str(needs.largest)),
        ]
        if needs.keep:
            command += ["--maildir", str(place.mail)]
        if needs.tls:
            command += ["--certificate", str(place.certificates.certificate)]
            command += ["--key", str(place.certificates.key)]
        return command


class BareProtocol(Contender):
    """The lower limit for a server in Python: ``bench/peers/bare.py``."""

    name = "bare"
    setup = (
        "not a server: a protocol on uvloop that answers 250 to everything, stores nothing, and "
        "looks only for DATA and the end of a message at the end of a read. It is the lower limit "
        "for a server in Python"
    )
    only: ClassVar[tuple[str, ...]] = ("W1", "W2", "W3", "W4")

    def missing(self) -> str:
        """Return an empty string: the daemon itself needs uvloop."""
        return ""

    def version(self) -> str:
        """Return the names and the versions."""
        return f"a bare protocol on uvloop {version('uvloop')}"

    def command(self, place: Place, needs: Needs) -> list[str]:  # noqa: ARG002 - see Contender
        """Return the command line of the script."""
        return [
            *(sys.executable, "-m", "bench.peers.bare"),
            *("--host", HOST, "--port", str(place.port)),
        ]
