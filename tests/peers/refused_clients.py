"""Ten clients that Postfix and smtpd-fork refuse: a program that prints both logs' lines as JSON.

It runs in its own network namespace and with its own /etc/resolv.conf, so its ports are free and it
is the resolver: ``refused_clients.py DIRECTORY`` (see test_refused_clients.py).
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import sys
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import trustme
from support.daemon import Daemon, until
from support.nameserver import NameServer

from peers.postfix import instance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PLAIN, COUNT, RATE, DNSBL = 2525, 2526, 2527, 2528
"""Ports of smtpd-fork; those of Postfix are 1000 higher."""

_SETTINGS = """\
myhostname = mx.example.com
relay_domains = example.com
relay_transport = discard:
relay_recipient_maps = inline:{{b@example.com=OK}}
smtpd_relay_restrictions = reject_unauth_destination
smtpd_client_restrictions = check_client_access inline:{{127.0.0.4=REJECT}}
smtpd_helo_required = yes
smtpd_helo_restrictions = reject_invalid_helo_hostname
message_size_limit = 1000
smtpd_sasl_auth_enable = yes
cyrus_sasl_config_path = {folder}
smtpd_tls_chain_files = {chain}
smtpd_tls_security_level = may
smtpd_error_sleep_time = 0
"""

_SERVICES = f"""\
tlsmgr unix - - n 1000? 1 tlsmgr
127.0.0.1:{PLAIN + 1000} inet n - n - - smtpd
127.0.0.1:{COUNT + 1000} inet n - n - - smtpd -o smtpd_client_connection_count_limit=1
127.0.0.1:{RATE + 1000} inet n - n - - smtpd -o smtpd_client_connection_rate_limit=1
127.0.0.1:{DNSBL + 1000} inet n - n - - smtpd
  -o {{{{smtpd_client_restrictions=reject_rbl_client dnsbl.example}}}}
"""

_HANDLER = """\
from aiosmtpd.smtp import AuthResult


class Recipients:
    async def auth_PLAIN(self, server, args):
        return AuthResult(success=False, handled=False)

    async def handle_RCPT(self, server, session, envelope, address, options):
        if not address.endswith("@example.com"):
            return f"550 5.7.1 <{address}>: Relay access denied"
        if address != "b@example.com":
            return f"550 5.1.1 <{address}>: User unknown"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

"""

TLS = "(a TLS handshake)"
HELLO, MAIL = "EHLO client.example", "MAIL FROM:<a@example.org>"

CLIENTS: dict[str, tuple[int, tuple[str, ...], str]] = {
    "connection limit": (COUNT, (), "Connection concurrency|max_from_ip"),
    "connection rate": (RATE, (), "Connection rate|: rate "),
    "denylist": (PLAIN, (HELLO, MAIL, "RCPT TO:<b@example.com>"), "reject: RCPT|deny"),
    "DNS blocklist": (DNSBL, (HELLO, MAIL, "RCPT TO:<b@example.com>"), "reject: RCPT|dnsbl"),
    "HELO syntax": (PLAIN, ("HELO",), "disconnect from|rejected HELO"),
    "relay denied": (PLAIN, (HELLO, MAIL, "RCPT TO:<c@example.net>"), "reject: RCPT|rejected RCPT"),
    "unknown recipient": (
        PLAIN,
        (HELLO, MAIL, "RCPT TO:<nobody@example.com>"),
        "reject: RCPT|rejected RCPT",
    ),
    "message too large": (
        PLAIN,
        (HELLO, "MAIL FROM:<a@example.org> SIZE=5000"),
        "reject: MAIL|rejected MAIL",
    ),
    "failed AUTH": (
        PLAIN,
        (HELLO, "STARTTLS", TLS, HELLO, "AUTH PLAIN AGEAYg=="),
        "authentication failed|rejected AUTH",
    ),
    "failed TLS handshake": (
        PLAIN,
        (HELLO, "STARTTLS", "this is no handshake"),
        "SSL_accept error|TLS handshake failed",
    ),
}
"""By the name of a refusal: the port, the client's commands, and a pattern of the log line."""


class Talk:
    """A connection of one client, which reads a reply to each command."""

    def __init__(self, port: int, source: str) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), 30, (source, 0))
        self._file = self._sock.makefile("rb")
        self._reply()

    def _reply(self) -> None:
        with suppress(OSError):
            while (line := self._file.readline())[3:4] == b"-":
                pass
            del line

    def say(self, command: str) -> None:
        if command == TLS:
            self._start_tls()
            return
        with suppress(OSError):
            self._sock.sendall(command.encode() + b"\r\n")
        self._reply()

    def _start_tls(self) -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self._file.close()
        self._sock = context.wrap_socket(self._sock)
        self._file = self._sock.makefile("rb")

    def close(self) -> None:
        self._file.close()
        self._sock.close()


def drive(offset: int, log: Callable[[], str]) -> Iterator[str]:
    """Run the ten clients one after another; yield the line that each causes."""
    for number, (port, said, pattern) in enumerate(CLIENTS.values(), 2):
        source = f"127.0.0.{number}"
        talks = [Talk(port + offset, source)]
        if port in {COUNT, RATE}:
            talks.append(Talk(port + offset, source))
        for command in said:
            talks[-1].say(command)
        for talk in talks:
            talk.close()
        address = re.compile(rf"\b{re.escape(source)}\b")
        yield line_of(log, address, re.compile(pattern))


def line_of(log: Callable[[], str], *patterns: re.Pattern[str]) -> str:
    """Wait for a line with all *patterns*; return it."""
    found: list[str] = []

    def has_come() -> bool:
        found[:] = [
            line for line in log().splitlines() if all(pattern.search(line) for pattern in patterns)
        ]
        return bool(found)

    until(has_come, f"a line with {[pattern.pattern for pattern in patterns]}")
    return found[0]


def start_name_server() -> None:
    """Run the resolver, for which 127.0.0.5 is on a blocklist."""

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        _, server = await loop.create_datagram_endpoint(NameServer, local_addr=("127.0.0.1", 53))
        server.records["5.0.0.127.dnsbl.example", "A"] = "127.0.0.2"
        await asyncio.Event().wait()

    threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()


def main(folder: Path) -> None:
    """Print the lines of both servers, by the name of the refusal."""
    folder.chmod(0o755)
    start_name_server()
    authority = trustme.CA()
    chain = folder / "chain.pem"
    authority.issue_cert("mx.example.com").private_key_and_cert_chain_pem.write_to_path(chain)
    (folder / "smtpd.conf").write_text("pwcheck_method: auxprop\nmech_list: PLAIN\n")
    (folder / "recipients.py").write_text(_HANDLER)
    postfix = folder / "postfix"
    postfix.mkdir()
    settings = _SETTINGS.format(folder=folder, chain=chain)
    with instance(postfix, settings, _SERVICES.format()):
        theirs = list(drive(1000, (postfix / "log").read_text))
    common = ("--hostname", "mx.example.com", "--handler", "recipients:Recipients")
    daemons = {
        PLAIN: ("--deny", "127.0.0.4", "--max-message-size", "1000", "--tls-cert", str(chain)),
        COUNT: ("-m", "1"),
        RATE: ("--rate", "1/h"),
        DNSBL: ("--dnsbl", "dnsbl.example"),
    }
    with ExitStack() as stack:
        ours = [
            stack.enter_context(Daemon("-l", f"127.0.0.1:{port}", *common, *options, cwd=folder))
            for port, options in daemons.items()
        ]
        lines = list(drive(0, lambda: "\n".join(daemon.log for daemon in ours)))
    print(json.dumps(dict(zip(CLIENTS, zip(theirs, lines, strict=True), strict=True))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
