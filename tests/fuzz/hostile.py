"""Hostile sessions against the daemon. Invariant: the memory of a session is freed at its end.

The clients send garbage, half handshakes, and messages, chunks and AUTH that break off, and large
envelopes; their connections are closed, half-closed, reset or abandoned. Some send before the
greeting, some are denied, some are delayed by the tarpit, some guess passwords, and some come
through a trusted host that names them with XCLIENT. If the daemon's resident memory grows between a
tenth of the sessions and the end, the exit status is 1.

    python tests/fuzz/hostile.py --sessions 100000 [--tls] [--seed N] [--loop asyncio]
"""

from __future__ import annotations

import argparse
import random
import socket
import struct
import sys
import tempfile
import time
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

# Needed if the file runs as a script, and in the daemon, which loads Takes.
sys.path.insert(0, str(Path(__file__).parents[1]))

from aiosmtpd.smtp import MISSING, AuthResult
from support.daemon import PATIENCE, Daemon
from support.peers import proc
from support.tls import Certificates

from smtpd_fork.sinks import Discard

AT_ONCE = 32
"""Number of concurrent clients."""

ADDRESSES = 1000
"""Loopback addresses of the clients: the gate knows all of them after a tenth of the sessions."""

TOLERANCE = 20 << 20
"""Bytes by which resident memory may grow between the first tenth and the end, for the allocator.
250 bytes for each of 90,000 sessions are more; so was a reference cycle of each TLS session.
"""

LARGEST = 300_000
"""Size of the largest part of a message, bytes."""

TRUSTED = "127.9.9.9"
"""The host that names its clients with XCLIENT."""

TARPIT = 0.1
"""Seconds that a reply is delayed."""

SETTINGS = [
    *("--greet-pause", "20ms", "--greet-pause-deny", "1s", "--tarpit", f"{TARPIT}s"),
    *("--xclient-trust", TRUSTED, "--xforward-trust", TRUSTED, "--deny", "127.4.200.0/21"),
    *("--handler", "auth:authenticator=fuzz.hostile:check,require-tls=never,max-failures=3"),
    *("--handler", "fuzz.hostile:Takes", "--max-from-ip", "0"),
    *("--timeout", "2s", "--data-timeout", "2s", "--tls-handshake-timeout", "2s"),
]

HELLO, MAIL, RCPT = b"EHLO x\r\n", b"MAIL FROM:<a@b.example>\r\n", b"RCPT TO:<c@d.example>\r\n"
ENVELOPE = (HELLO, MAIL, RCPT)


class Takes(Discard):
    """The daemon's handler: it accepts messages, and has an AUTH mechanism with challenges."""

    async def auth_SLOW(self, server: Any, args: list[str]) -> None:
        """A mechanism that needs no authenticator; it sends two challenges, and refuses."""
        for _ in range(2):
            await server.challenge_auth("more")

    async def handle_VRFY(self, server: Any, session: Any, envelope: Any, address: str) -> Any:
        """Delay replies, and deny another client for a moment."""
        session.tarpit = TARPIT
        server.deny(address.partition("@")[0], seconds=0.5)
        return MISSING


async def check(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
    """Refuse all credentials."""
    return AuthResult(success=False, handled=False)


class Flood:
    """A number of hostile sessions.

    :param port: of the daemon
    :param client: the clients' context, if the port uses TLS
    """

    def __init__(self, port: int, client: ssl.SSLContext, *, tls: bool, seed: int) -> None:
        self._port = port
        self._client = client
        self._tls = tls
        self._chance = random.Random(seed)
        self.begun = 0
        self.harmed = 0
        """Number of sessions that did their harm before the daemon ended them."""

    def run(self, sessions: int) -> None:
        """Run *sessions* sessions, and wait for their ends."""
        with ThreadPoolExecutor(AT_ONCE) as threads:
            # Each session has a generator of its own, so that its actions depend on the seed alone.
            seeds = [self._chance.random() for _ in range(sessions)]
            for harmed in threads.map(self._one, seeds):
                self.begun += 1
                self.harmed += harmed

    def _one(self, seed: float) -> bool:
        """Run one session; return whether it did its harm."""
        chance = random.Random(seed)
        number = chance.randrange(ADDRESSES)
        source = (f"127.{number // 250 + 1}.{number % 250 + 1}.1", 0)
        trusted = chance.random() < 0.2
        if trusted:
            source = (TRUSTED, 0)
        harmed = False
        # OSError: the daemon may have closed the connection first.
        with suppress(OSError), ExitStack() as opened:
            sock = socket.create_connection(("127.0.0.1", self._port), PATIENCE, source)
            opened.enter_context(sock)
            sock = self._do_harm(sock, chance, opened, trusted=trusted)
            harmed = True
            self._leave(sock, chance)
        return harmed

    def _do_harm(
        self, sock: socket.socket, chance: random.Random, opened: ExitStack, *, trusted: bool
    ) -> socket.socket:
        harm: Callable[..., None] = chance.choice(HARMS)
        if self._tls:
            if chance.random() < 0.2:
                half_handshake(sock, chance)
                return sock
            sock = self._encrypted(sock, opened)
        elif chance.random() < 0.1:
            read_reply(sock)
            say(sock, HELLO, b"STARTTLS\r\n")
            if chance.random() < 0.5:
                half_handshake(sock, chance)
                return sock
            sock = self._encrypted(sock, opened)
            say(sock, HELLO)
            harm(sock, chance)
            return sock
        if chance.random() < 0.1:
            harm(sock, chance)  # before the greeting
            return sock
        read_reply(sock)
        for _ in range(chance.choice([0, 1, 1, 3]) if trusted else 0):
            name_a_client(sock, chance)
        harm(sock, chance)
        return sock

    def _encrypted(self, sock: socket.socket, opened: ExitStack) -> socket.socket:
        """Return the encrypted socket after the handshake."""
        return opened.enter_context(self._client.wrap_socket(sock, server_hostname="localhost"))

    @staticmethod
    def _leave(sock: socket.socket, chance: random.Random) -> None:
        way = chance.random()
        if way < 0.4:
            linger = struct.pack("ii", 1, 0)  # close(2) then sends a RST
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        elif way < 0.6:
            sock.shutdown(socket.SHUT_WR)
            read_all(sock)
        elif way < 0.61:
            read_all(sock)  # Stays open until the daemon's timeouts.


def read_reply(sock: socket.socket) -> bytes:
    text = b""
    while not text.endswith(b"\r\n") or text.splitlines()[-1][3:4] == b"-":
        some = sock.recv(4096)
        if not some:
            raise ConnectionError("the daemon closed the connection")
        text += some
    return text


def read_all(sock: socket.socket) -> None:
    while sock.recv(4096):
        pass


def say(sock: socket.socket, *commands: bytes) -> None:
    for command in commands:
        sock.sendall(command)
        read_reply(sock)


def half_handshake(sock: socket.socket, chance: random.Random) -> None:
    sock.sendall(chance.choice([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"hello\r\n" * 9]))


def name_a_client(sock: socket.socket, chance: random.Random) -> None:
    address = f"198.18.{chance.randrange(256)}.{chance.randrange(256)}"
    command = f"XCLIENT ADDR={address} HELO=x LOGIN={chance.choice(['bob', '[UNAVAILABLE]'])}\r\n"
    if chance.random() < 0.1:
        sock.sendall(command.encode()[: chance.randrange(len(command))])
    elif chance.random() < 0.1:
        sock.sendall(command.encode() * 3 + b"".join(ENVELOPE))
    else:
        say(sock, command.encode())


def nothing(_sock: socket.socket, _chance: random.Random) -> None: ...


def garbage(sock: socket.socket, chance: random.Random) -> None:
    sock.sendall(chance.randbytes(chance.randrange(5000)))


def nonsense(sock: socket.socket, _chance: random.Random) -> None:
    sock.sendall(b"NONSENSE\r\n" * 30)


def break_off_data(sock: socket.socket, chance: random.Random) -> None:
    say(sock, *ENVELOPE, b"DATA\r\n")
    sock.sendall(b"x" * chance.randrange(LARGEST))


def break_off_chunks(sock: socket.socket, chance: random.Random) -> None:
    say(sock, *ENVELOPE, b"BDAT 50000\r\n" + b"x" * 50_000)
    sock.sendall(b"BDAT %d\r\n" % LARGEST + b"x" * chance.randrange(LARGEST))


def break_off_auth(sock: socket.socket, chance: random.Random) -> None:
    say(sock, HELLO, b"AUTH SLOW\r\n")
    sock.sendall(b"YQ==" * chance.randrange(3000))


def many_recipients(sock: socket.socket, chance: random.Random) -> None:
    count = chance.randrange(200)
    sock.sendall(HELLO + MAIL + b"".join(b"RCPT TO:<%d@d.example>\r\n" % n for n in range(count)))


def unread_replies(sock: socket.socket, _chance: random.Random) -> None:
    sock.settimeout(0.1)
    sock.sendall(b"EHLO x\r\n" * 2000)


def be_slowed_down(sock: socket.socket, chance: random.Random) -> None:
    denied = f"198.18.{chance.randrange(256)}.{chance.randrange(256)}"
    say(sock, HELLO, f"VRFY {denied}\r\n".encode())
    for _ in range(chance.randrange(4)):
        sock.sendall(chance.choice([b"NOOP\r\n", b"NOOP\r\n" * 2000, b"STARTTLS\r\n", RCPT]))
        if chance.random() < 0.5:
            read_reply(sock)


def guess_passwords(sock: socket.socket, chance: random.Random) -> None:
    say(sock, HELLO)
    for _ in range(3):
        words = b"AUTH PLAIN " + b64encode(b"\0bob\0" + chance.randbytes(3).hex().encode())
        say(sock, words + b"\r\n")


def whole_message(sock: socket.socket, chance: random.Random) -> None:
    text = b"x" * chance.randrange(LARGEST // 10)
    say(sock, *ENVELOPE, b"DATA\r\n", b"Subject: x\r\n\r\n" + text + b"\r\n.\r\n", b"QUIT\r\n")


HARMS = [
    *(nothing, garbage, nonsense, break_off_data, break_off_chunks, break_off_auth),
    *(many_recipients, unread_replies, whole_message, be_slowed_down, guess_passwords),
]


def resident(pid: int) -> int:
    """Return the resident memory of a process, in bytes (proc(5))."""
    status = proc(pid, "status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) << 10


def sockets(pid: int) -> int:
    count = 0
    for each in proc(pid, "fd").iterdir():
        with suppress(FileNotFoundError):
            count += str(each.readlink()).startswith("socket:")
    return count


def settled(pid: int, listening: int) -> int:
    """Return the resident memory once the last session has ended."""
    deadline = time.monotonic() + PATIENCE
    while sockets(pid) > listening:
        if time.monotonic() > deadline:
            raise TimeoutError("the sessions do not end")
        time.sleep(0.05)
    return resident(pid)


def has_tarpit(port: int, client: ssl.SSLContext | None) -> bool:
    """Return whether a reply can still be delayed: the number of delayed replies is 0 again."""
    sock = socket.create_connection(("127.0.0.1", port), PATIENCE)
    with sock if client is None else client.wrap_socket(sock, server_hostname="localhost") as sock:
        read_reply(sock)
        say(sock, HELLO)
        begun = time.monotonic()
        say(sock, b"VRFY 198.18.0.1\r\n")
        return time.monotonic() - begun >= TARPIT / 2


def measure(sessions: int, *, tls: bool, seed: int, loop: str = "uvloop") -> list[int]:
    """Run hostile sessions; return the resident memory after 10, 50 and 100% of them, in bytes.

    :raises AssertionError: the daemon failed, or does not serve any more
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        certificates = Certificates(folder)
        options = [
            *("-l", "smtps:127.0.0.1:0" if tls else "127.0.0.1:0", "--loop", loop),
            *("--tls-cert", str(certificates.cert), "--tls-key", str(certificates.key)),
            *SETTINGS,
        ]
        path = str(Path(__file__).parents[1])
        with Daemon(*options, cwd=folder, environment={"PYTHONPATH": path}) as daemon:
            pid = daemon.process.pid
            listening = sockets(pid)
            flood = Flood(daemon.port, certificates.client, tls=tls, seed=seed)
            memory = []
            for part in (sessions // 10, sessions * 4 // 10, sessions // 2):
                flood.run(part)
                memory.append(settled(pid, listening))
                print(f"{flood.begun:7} sessions: {memory[-1] / 2**20:.1f} MiB", flush=True)
            assert has_tarpit(daemon.port, certificates.client if tls else None)
            assert daemon.stop() == 0, daemon.lines[-1]
            before, traceback, after = daemon.log.partition("Traceback")
            assert not traceback, f"{before[-200:]}{traceback}{after[:3000]}"
            assert flood.harmed > sessions // 2, f"{flood.harmed} sessions did harm"
            print(f"{flood.harmed} did harm")
    return memory


def is_flat(memory: list[int]) -> bool:
    return memory[-1] <= memory[0] + TOLERANCE


def main() -> int:
    """Run from the command line; the exit status is 1 if memory grows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--tls", action="store_true", help="TLS from the start, not STARTTLS")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="uvloop")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    memory = measure(options.sessions, tls=options.tls, seed=options.seed, loop=options.loop)
    if not is_flat(memory):
        print(f"not flat: more than {TOLERANCE >> 20} MiB were added after the first tenth")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
