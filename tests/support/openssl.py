"""openssl s_client and swaks as TLS clients of the daemon, and a continuous load of them."""

from __future__ import annotations

import re
import subprocess
import threading
from typing import TYPE_CHECKING, NamedTuple, Self

from cryptography import x509

from support.daemon import PATIENCE
from support.peers import peer

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.authority import Authority

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


class HandshakeResult(NamedTuple):
    """The result of a handshake, and of the dialogue after it.

    :ivar status: of the program; 0: the connection was verified, used, and closed without an error
    :ivar text: its whole output
    """

    status: int
    text: str

    @property
    def serial(self) -> str:
        """The serial number of the server's certificate."""
        found = _PEM.search(self.text)
        assert found, self.text
        return f"{x509.load_pem_x509_certificate(found[0].encode()).serial_number:X}"


def s_client(
    port: int,
    authority: Authority,
    *more: object,
    starttls: bool = False,
    name: str | None = "localhost",
    say: str = "EHLO client.example\nQUIT\n",
) -> HandshakeResult:
    """Shake hands, verify the certificate, send the commands, wait for the server to close."""
    words = [
        *(peer("openssl"), "s_client", "-connect", f"127.0.0.1:{port}"),
        *("-CAfile", authority.ca, "-verify_return_error", "-crlf", "-ign_eof"),
        *(("-starttls", "smtp") if starttls else ()),
        *(("-servername", name) if name is not None else ("-noservername",)),
        *more,
    ]
    return _run(words, say)


def swaks(port: int, authority: Authority, *more: object) -> HandshakeResult:
    """Deliver a message over a connection with a verified certificate."""
    words = [
        *(peer("swaks"), "--server", "127.0.0.1", "--port", port, "--helo", "client.example"),
        *("--from", "a@example.com", "--to", "b@example.com"),
        *("--tls-verify", "--tls-ca-path", authority.ca, *more),
    ]
    return _run(words)


def _run(words: list[object], given: str | None = None) -> HandshakeResult:
    ended = subprocess.run(
        [str(word) for word in words],
        input=given,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=PATIENCE,
        check=False,
    )
    return HandshakeResult(ended.returncode, ended.stdout + ended.stderr)


class Load:
    """A client that connects repeatedly, in a thread; a context manager that ends it.

    :ivar count: number of connections
    :ivar last: result of the last connection
    :ivar failed: results of the failed connections
    """

    def __init__(self, come: Callable[[], HandshakeResult]) -> None:
        self.count = 0
        self.failed: list[HandshakeResult] = []
        self.last: HandshakeResult
        self._come = come
        self._enough = False
        self._came = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._enough:
            shaken = self._come()
            with self._came:
                self.last = shaken
                self.count += 1
                if shaken.status:
                    self.failed.append(shaken)
                self._came.notify_all()

    def wait_for_next(self) -> HandshakeResult:
        """Wait for a connection that begins from now on; return its result."""
        with self._came:
            wanted = self.count + 2
            assert self._came.wait_for(lambda: self.count >= wanted, PATIENCE)
            return self.last

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough = True
        self._thread.join(PATIENCE)
