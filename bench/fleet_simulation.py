"""``python -m bench.fleet_simulation``: simulate a large fleet in simulated time.

The nodes are real except for their sockets: gates, and :class:`smtpd_fork.fleet.node.Node`. The
script is the real one and runs in a real Redis; the simulation passes the time to it. Clients
arrive as a Poisson process at a random node and stay for a random time; one client in five is a bot
that connects many times. In the middle of the simulation an empty Redis replaces the old one.

The output: how far a limit was exceeded, the number of messages and bytes, the CPU share of Redis,
and the time until all counts were correct again.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from zlib import crc32

import msgspec
import redis

from bench.redis_server import RedisServer
from smtpd_fork.fleet.messenger import BACKOFF_SECONDS
from smtpd_fork.fleet.node import Node
from smtpd_fork.fleet.question import Question
from smtpd_fork.fleet.redis_link import SCRIPT
from smtpd_fork.fleet.sync import Keys, decode, encode
from smtpd_fork.gate import FleetShare, Gate, Refusal, Ticket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LEASE = 6.0
TIMEOUT = 0.2
TELL = 0.02
ONE_WAY = 0.000_25
"""Seconds from a node to Redis, with both in one data centre."""

STAY = 10.0
"""Average duration of a session, seconds."""

BOTS = 0.2
"""Fraction of the clients that are bots."""

BEGINNING = 1000.0

JOIN_SECONDS = 2

LOOKS = 80
"""Maximum number of checks whether all counts are correct again."""

MAX_FROM_IP = 20
RATE = "60/m"

LIMITS = {"max_from_ip": MAX_FROM_IP, "max_from_net": ["200/24"], "rate": [RATE]}

TIME_IN_SCRIPT = "redis.call('TIME')"

REST_IN_SCRIPT = "math.ceil((at - us) / 1000)"
"""Period of a rate; Redis measures it in real time."""

SLOWER = 100
"""How many times slower simulated time may pass: keys in Redis expire so much later."""


@dataclass
class Outcome:
    """Measurements of one phase: before, during or after the outage."""

    arrivals: int = 0
    admitted: int = 0
    refused: int = 0
    without_redis: int = 0
    most_over_client: int = 0
    most_over_fleet: int = 0
    waited: float = 0.0


@dataclass
class Totals:
    """Correct counts over all nodes, to compare with those of Redis."""

    sessions: int = 0
    by_client: dict[str, int] = field(default_factory=dict)

    def count(self, key: str, change: int) -> int:
        """Add to the sessions of *key*; return their new number."""
        self.sessions += change
        self.by_client[key] = self.by_client.get(key, 0) + change
        return self.by_client[key]


class Simulation:
    """A fleet, its clients, and the simulated time.

    :param server: Redis
    :param nodes: number of nodes
    :param rate: clients per second, over all nodes
    :param connections: maximum number of sessions of the fleet
    :param shards: groups of nodes; each has its own Redis, and clients of a part of the networks
    """

    def __init__(
        self,
        server: redis.Redis,
        nodes: int,
        rate: float,
        connections: int,
        shards: int,
        random_: random.Random,
    ) -> None:
        self.now = BEGINNING
        self._server = server
        script = SCRIPT.replace(TIME_IN_SCRIPT, "{tonumber(ARGV[3]), tonumber(ARGV[4])}")
        self._script = server.register_script(
            script.replace(REST_IN_SCRIPT, f"{SLOWER} * {REST_IN_SCRIPT}")
        )
        self.up = True
        self.outcome = Outcome()
        self.truth = Totals()
        self.messages = self.sent = self.received = self.full_messages = 0
        self._random = random_
        self._rate = rate
        self._connections = connections
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._number_of_shards = shards
        # A network and its clients belong to one shard, which has a part of the slots.
        self._shards = [
            [SimulatedNode(self, shard, f"n{n}") for n in range(nodes // shards)]
            for shard in range(shards)
        ]

    @property
    def nodes(self) -> Iterator[SimulatedNode]:
        """Nodes of all shards."""
        return itertools.chain.from_iterable(self._shards)

    def connections_of_a_shard(self) -> int:
        """Return the part of the connection slots that a shard has."""
        return self._connections // self._number_of_shards

    def at(self, seconds: float, call: Callable[[], None]) -> None:
        """Schedule *call* to run after a simulated delay in seconds."""
        heapq.heappush(self._events, (self.now + seconds, next(self._order), call))

    def clock(self) -> float:
        """Return the simulated time."""
        return self.now

    def run(self, until: Callable[[], bool]) -> None:
        """Advance the time until a condition is true."""
        while not until():
            self.now, _, call = heapq.heappop(self._events)
            call()

    def sync(self, keys: Keys, names: list[str], message: bytes, clients: int) -> object:
        """Run the script in Redis with the simulated time."""
        seconds, part = divmod(self.now, 1)
        whole = [*keys.fixed, *map(keys.of, names)]
        arguments: list[bytes | str | int] = [message, keys.channel, int(seconds), int(part * 1e6)]
        data = self._script(keys=whole, args=arguments)
        self.messages += 1
        self.full_messages += clients > 1
        self.sent += len(message) + sum(map(len, whole))
        self.received += len(data)
        return decode(data, clients)

    # -- clients ---------------------------------------------------------------------------------

    def begin_arrivals(self) -> None:
        """Start the arrival of clients: each one schedules the next."""
        self.at(self._random.expovariate(self._rate), self._arrive)

    def _arrive(self) -> None:
        self.begin_arrivals()
        self.outcome.arrivals += 1
        draw = self._random
        if draw.random() < BOTS:
            number = draw.randrange(2000)  # The clients are spread over a hundred networks.
            client = f"198.18.{number // 20}.{number % 20}"
        else:
            client = f"{draw.randrange(1, 127)}.{draw.randrange(256)}.{draw.randrange(256)}.9"
        shard = self._shards[crc32(client.rpartition(".")[0].encode()) % len(self._shards)]
        draw.choice(shard).arrive(client)

    def entered(self, client: str) -> None:
        """Count a session, and schedule its end."""
        over = self.truth.count(client, 1) - MAX_FROM_IP
        outcome = self.outcome
        outcome.admitted += 1
        outcome.most_over_client = max(outcome.most_over_client, over)
        outcome.most_over_fleet = max(
            outcome.most_over_fleet, self.truth.sessions - self._connections
        )

    def draw(self, longest: float) -> float:
        """Return a random time."""
        return self._random.uniform(0, longest)

    def stay(self) -> float:
        """Return the duration of a session."""
        return self._random.expovariate(1 / STAY)

    # -- the outage ------------------------------------------------------------------------------

    def lose(self) -> None:
        """Lose Redis and all its data."""
        self.up = False
        self._server.flushall()
        self._server.script_load(self._script.script)
        for node in self.nodes:
            node.lost()

    def uncounted(self) -> int:
        """Return the number of sessions that Redis does not count, or counts without a session."""
        found: dict[str, int] = {}
        for shard in self._shards:
            names = [
                name.decode() for name in self._server.scan_iter(f"*{shard[0].keys.of('c:')}*")
            ]
            for name in names:
                counts = self._server.hvals(name)
                found[name.rpartition("c:")[2]] = sum(map(int, counts))
        true = {client: count for client, count in self.truth.by_client.items() if count}
        return sum(
            abs(found.get(each, 0) - true.get(each, 0)) for each in found.keys() | true.keys()
        )


class SimulatedNode:
    """A node: its gate, and the operations of its event loop."""

    def __init__(self, simulation: Simulation, shard: int, name: str) -> None:
        self._simulation = simulation
        self._under_way = self._asleep = False
        self._up = True
        self._generation = 0
        self.gate = Gate(limit_connections=100_000, clock=simulation.clock, **LIMITS)  # type: ignore[arg-type]  # names of settings
        self._share = FleetShare(self.gate.lock, simulation.connections_of_a_shard())
        self._share.wake = self._woken
        self.gate.join(self._share)
        self._node = Node(name, self._share, LEASE)
        self.keys = Keys(f"shard{shard}")
        self._wait = BACKOFF_SECONDS[0]
        simulation.at(simulation.stay() / STAY, self._exchange)

    def arrive(self, client: str) -> None:
        """Check a client as the listener does: with the gate, then with the fleet."""
        simulation = self._simulation
        ticket = self.gate.admit(client)
        if not isinstance(ticket, Ticket):
            simulation.outcome.refused += 1
            if not isinstance(ticket, Refusal):
                self._share.client_refused(simulation.now)
            return
        checks = ticket.client.fleet_checks
        if not self._up or not checks:
            simulation.outcome.without_redis += 1
            self._enter(client, ticket)
            return
        asked = simulation.now

        def answered(refusal: Refusal | None) -> None:
            simulation.outcome.waited = max(simulation.outcome.waited, simulation.now - asked)
            if refusal is None:
                self._enter(client, ticket)
            else:
                simulation.outcome.refused += 1
                self.gate.take_back(ticket)
                ticket.release()

        self._node.ask(Question(checks, answered, asked))
        self._woken(urgent=True)

    def _enter(self, client: str, ticket: Ticket) -> None:
        self._simulation.entered(client)

        def leave() -> None:
            self._simulation.truth.count(client, -1)
            ticket.release()

        self._simulation.at(self._simulation.stay(), leave)

    # -- messages --------------------------------------------------------------------------------

    def _woken(self, urgent: bool) -> None:
        if urgent:
            self._simulation.at(0, self._wake)
        elif not self._asleep:
            self._asleep = True
            self._simulation.at(TELL, self._wake)

    def _wake(self) -> None:
        self._asleep = False
        if not self._under_way and self._node.has_unsent():
            self._exchange()

    def _heartbeat(self, generation: int) -> None:
        if generation == self._generation and not self._under_way:
            self._exchange()

    def _exchange(self) -> None:
        """Send a message; it reaches Redis, and the answer reaches the node, after a delay."""
        simulation = self._simulation
        if self._under_way or not self._up:
            return
        self._generation += 1
        generation = self._generation
        waits = simulation.now < self._share.waits_until
        with self.gate.lock:
            message = self._node.message(simulation.now, self.gate.count, 0, waits=waits)
        self._under_way = True

        def reach_redis() -> None:
            if generation != self._generation:
                return
            sync = msgspec.structs.replace(message.sync, keep=SLOWER * message.sync.keep)
            answer = simulation.sync(self.keys, message.keys, encode(sync), len(message.questions))
            simulation.at(ONE_WAY, lambda: self._answered(answer, generation))

        simulation.at(ONE_WAY, reach_redis)

    def _answered(self, answer: object, generation: int) -> None:
        if generation != self._generation:
            return
        self._under_way = False
        with self.gate.lock:
            decided = self._node.answer(answer)  # type: ignore[arg-type]  # of sync()
            self._share.local_slots = None
        for question, refusal in decided:
            question.answered(refusal)
        if self._node.has_unsent():
            self._woken(urgent=True)
        self._simulation.at(LEASE / 3, lambda: self._heartbeat(generation))

    # -- the outage ------------------------------------------------------------------------------

    def lost(self) -> None:
        """Apply the limits of this node alone, and try repeatedly to reach Redis."""
        self._up = self._under_way = False
        self._generation += 1
        nodes = self._node.nodes
        self._share.local_slots = max(self.gate.count, -(-self._share.connections // nodes))
        for question in self._node.end_all_questions():
            question.answered(None)
        self._node.connection_lost()
        self._wait = BACKOFF_SECONDS[0]
        self._retry()

    def _retry(self) -> None:
        def attempt() -> None:
            if self._simulation.up:
                self._up = True
                self._node.connection_lost()
                self._exchange()
            else:
                self._wait = min(2 * self._wait, BACKOFF_SECONDS[1])
                self._retry()

        self._simulation.at(self._simulation.draw(self._wait), attempt)


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _phase(simulation: Simulation, name: str, until: Callable[[], bool]) -> None:
    """Run one phase, and print its measurements."""
    begun, outcome = simulation.now, Outcome()
    simulation.outcome = outcome
    messages, sent, received = simulation.messages, simulation.sent, simulation.received
    simulation.run(until)
    seconds = max(simulation.now - begun, 1e-9)
    messages = simulation.messages - messages
    kilobytes = (simulation.sent - sent + simulation.received - received) / 1000
    _print(
        f"{name}: {seconds:.1f} s; clients {outcome.arrivals:,}, admitted {outcome.admitted:,}, "
        f"refused {outcome.refused:,}, by the node alone {outcome.without_redis:,}\n"
        f"  most over the limit: client {outcome.most_over_client}, fleet "
        f"{outcome.most_over_fleet}; longest wait {outcome.waited * 1000:.2f} ms\n"
        f"  messages {messages / seconds:,.0f}/s, {kilobytes / seconds:,.0f} kB/s"
    )


def main() -> None:
    """Run the simulation that the arguments describe."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--clients", type=int, default=1_000_000)
    parser.add_argument("--rate", type=float, default=5000.0, help="clients a second")
    parser.add_argument("--connections", type=int, default=45_000)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--outage", type=float, default=3.0, help="seconds")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if missing := RedisServer.missing():
        raise SystemExit(missing)
    with RedisServer() as running, redis.Redis(unix_socket_path=str(running.path)) as server:
        simulation = Simulation(
            server,
            arguments.nodes,
            arguments.rate,
            arguments.connections,
            arguments.shards,
            random.Random(arguments.seed),  # noqa: S311 - the random numbers are not secrets
        )
        simulation.run(lambda: simulation.now >= BEGINNING + JOIN_SECONDS)
        simulation.begin_arrivals()
        half = arguments.clients / 2 / arguments.rate
        before = simulation.now
        server.config_resetstat()
        _phase(simulation, "with Redis", lambda: simulation.now >= before + half)
        _print_redis(server, simulation)
        at = simulation.now
        simulation.lose()
        _phase(simulation, "Redis is lost", lambda: simulation.now >= at + arguments.outage)
        simulation.up = True
        at = simulation.now
        wrong: list[int] = []

        def right_again() -> bool:
            if simulation.now >= at + 0.25 * (len(wrong) + 1):
                wrong.append(simulation.uncounted())
            return bool(wrong) and (wrong[-1] <= arguments.rate * 0.05 or len(wrong) > LOOKS)

        _phase(simulation, "an empty Redis comes", right_again)
        _print(f"  uncounted sessions, each quarter of a second: {wrong}")
        at = simulation.now
        _phase(simulation, "afterwards", lambda: simulation.now >= at + half)


def _print_redis(server: redis.Redis, simulation: Simulation) -> None:
    statistics = server.info("commandstats")["cmdstat_evalsha"]
    memory = server.info("memory")["used_memory_dataset"]
    clients = simulation.outcome.arrivals - simulation.outcome.refused
    _print(
        f"  Redis: {statistics['usec_per_call']:.0f} us a message, "
        f"{statistics['usec'] / max(1, clients):.0f} us an admitted client, "
        f"{server.dbsize():,} keys, {memory / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main()
