"""Milters in wide use, each a process with its own configuration."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.client import Client
from support.handlers import Collect
from support.peers import needs_root, peer, peers
from support.ports import free_ports
from support.server import serve

from smtpd_fork.filters import Milter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

PATIENCE = 100.0

EICAR = r"X5O!P%@AP[4\PZX54(P^)7CC)7}$EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"
GTUBE = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"

HAM = (
    "From: bob@example.com\r\nTo: carol@example.org\r\nSubject:  two\r\n\tlines\r\n"
    "Date: Fri, 27 Nov 2026 12:00:00 +0000\r\nMessage-ID: <1@example.com>\r\n\r\nhello\r\n"
)


@contextmanager
def folder_of_all() -> Iterator[Path]:
    """Yield a directory that other users may enter, with a short path."""
    needs_root()
    made = Path(tempfile.mkdtemp(prefix="milter-", dir="/tmp"))
    made.chmod(0o777)
    yield made
    shutil.rmtree(made, ignore_errors=True)


END_SECONDS = 10.0
"""Seconds to wait for the end of a program; then it is killed."""


@contextmanager
def running(folder: Path, address: str, command: list[str]) -> Iterator[None]:
    """Run a program in the foreground until it listens; end it afterwards."""
    with (folder / f"{Path(command[0]).name}.log").open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder
        )
    try:
        end = time.monotonic() + PATIENCE
        while not _listens(address):
            said = (folder / f"{Path(command[0]).name}.log").read_text(errors="replace")
            assert process.poll() is None, said[-2000:]
            assert time.monotonic() < end, said[-2000:]
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:  # Perl's Net::Server sometimes misses the signal
            process.kill()
            process.wait()


def _listens(address: str) -> bool:
    unix = address.startswith("unix:")
    with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as sock:
        with suppress(OSError):
            host, _, port = address.rpartition(":")
            sock.connect(address.removeprefix("unix:") if unix else (host, int(port)))
            return True
    return False


def answer(reply: Any) -> tuple[int, str]:
    return reply.code, reply.text


async def send(
    port: int, *texts: str | bytes, sender: str = "bob@example.com"
) -> list[tuple[int, str]]:
    """Send messages in one session; return the code and the text of each reply."""
    replies = []
    async with await Client.to(("127.0.0.1", port)) as client:
        await client.greet()
        for text in texts:
            begun = (f"MAIL FROM:<{sender}> BODY=8BITMIME", "RCPT TO:<carol@example.org>")
            assert (await client.say(*begun, "DATA")).code == 354
            client.writer.write(_dotted(text) + b".\r\n")
            replies.append(answer(await client.reply()))
    return replies


def _dotted(text: str | bytes) -> bytes:
    content = text.encode() if isinstance(text, str) else text
    if content and not content.endswith(b"\r\n"):
        content += b"\r\n"
    lines = content.split(b"\r\n")
    return b"\r\n".join(b"." + line if line.startswith(b".") else line for line in lines)


async def through(milters: list[str], *texts: str | bytes, **keys: Any) -> tuple[Any, list[Any]]:
    """Send messages through milters; return the replies, and the stored messages."""
    kept = Collect()
    chain = [*(Milter(each, **keys) for each in milters), kept]
    async with serve(chain) as server:
        replies = await send(server.port, *texts)
    return replies, kept.messages


@contextmanager
def opendkim(folder: Path, mode: str, address: str, settings: str = "") -> Iterator[str]:
    """Run OpenDKIM.

    :param mode: ``s``, it signs, or ``v``, it verifies
    :param settings: lines of its configuration; default: the file with the keys to verify with
    """
    key = folder / "k.private"
    if not key.exists():
        command = [peer("openssl"), "genrsa", "-out", str(key), "1024"]
        subprocess.run(command, check=True, capture_output=True)
        ended = subprocess.run(
            [peer("openssl"), "rsa", "-in", str(key), "-pubout", "-outform", "PEM"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        public = "".join(ended.stdout.splitlines()[1:-1])
        (folder / "keys").write_text(f"k._domainkey.example.com v=DKIM1; k=rsa; p={public}\n")
    written = address.removeprefix("unix:")
    where = f"local:{written}" if "/" in written else "inet:{1}@{0}".format(*written.split(":"))
    conf = folder / f"opendkim-{mode}.conf"
    conf.write_text(
        f"Mode {mode}\nDomain example.com\nSelector k\nKeyFile {key}\nSocket {where}\n"
        f"Canonicalization simple/simple\nInternalHosts 127.0.0.1\nRequireSafeKeys no\n"
        f"{settings or f'TestPublicKeys {folder}/keys'}\nSyslog no\nUMask 0\n"
        f"PidFile {folder}/{mode}.pid\nAuthservID mx.example.com\n"
        + ("InternalHosts 192.0.2.1\n" if mode == "v" else "")
    )
    with running(folder, address, [peer("opendkim"), "-f", "-x", str(conf)]):
        yield address


@contextmanager
def clamav(folder: Path, address: str) -> Iterator[str]:
    clamd, milter = peers("clamd", "clamav-milter")
    (folder / "db").mkdir()
    virus = EICAR.encode().hex()
    (folder / "db" / "test.ndb").write_text(f"Eicar-Test:0:*:{virus}\n")
    (folder / "clamd.conf").write_text(
        f"LocalSocket {folder}/clamd\nDatabaseDirectory {folder}/db\nForeground yes\n"
        f"MaxThreads 2\nTemporaryDirectory {folder}\n"
    )
    (folder / "milter.conf").write_text(
        f"MilterSocket {_of_sendmail(address)}\nClamdSocket unix:{folder}/clamd\n"
        f"OnInfected Reject\nRejectMsg infected: %v\nAddHeader Replace\n"
        f"TemporaryDirectory {folder}\nForeground yes\n"
    )
    with (
        running(folder, f"unix:{folder}/clamd", [clamd, "-c", f"{folder}/clamd.conf"]),
        running(folder, address, [milter, "-c", f"{folder}/milter.conf"]),
    ):
        yield address


@contextmanager
def spamassassin(folder: Path, address: str) -> Iterator[str]:
    spamd, milter, _ = peers("spamd", "spamass-milter", "spamc")
    path = f"{folder}/spamd"
    (folder / "rules").mkdir()
    (folder / "rules" / "x.cf").write_text(
        "loadplugin Mail::SpamAssassin::Plugin::Check\n"
        f"body GTUBE /{GTUBE[:20].replace('*', '[*]')}/\nscore GTUBE 1000\nrequired_score 5\n"
        "body MARK /unwanted words/\nscore MARK 6\nadd_header all Flag _YESNOCAPS_\n"
        "add_header all Status _YESNO_, score=_SCORE_ required=_REQD_\n"
    )
    server = [spamd, "-L", "-x", f"--socketpath={path}", "--socketmode=666", "-m", "1"]
    server += ["-C", f"{folder}/rules", f"--siteconfigpath={folder}/rules", "-H", str(folder)]
    where = address.removeprefix("unix:") if "/" in address else _of_sendmail(address)
    with (
        running(folder, f"unix:{path}", server),
        running(folder, address, [milter, "-p", where, "-r", "15", "--", "-U", path]),
    ):
        yield address


def _of_sendmail(address: str) -> str:
    """Return an address in the notation of Sendmail's library."""
    if "/" in address:
        return address
    host, _, port = address.rpartition(":")
    return f"inet:{port}@{host}"


@contextmanager
def opendmarc(folder: Path, address: str, settings: str = "", resolver: str = "") -> Iterator[str]:
    """Run OpenDMARC.

    :param settings: lines of its configuration
    :param resolver: the address of its nameserver, whose port is 53; default: the machine's
    """
    (program,) = peers("opendmarc")
    where = f"local:{address.removeprefix('unix:')}" if "/" in address else _of_sendmail(address)
    (folder / "opendmarc.conf").write_text(
        f"Socket {where}\nAuthservID mx.example.com\nRejectFailures true\n"
        f"Syslog false\nPublicSuffixList /dev/null\nUMask 0\n{settings}"
    )
    command = [program, "-f", "-c", f"{folder}/opendmarc.conf"]
    with running(folder, address, with_resolver(folder, resolver, command)):
        yield address


def with_resolver(folder: Path, resolver: str, command: list[str]) -> list[str]:
    """Return a command that runs a program with a private resolv.conf."""
    if not resolver:
        return command
    unshare, _ = peers("unshare", "mount")
    path = folder / "resolv.conf"
    path.write_text(f"nameserver {resolver}\noptions timeout:2 attempts:1\n")
    script = f'mount --bind {path} /etc/resolv.conf && exec "$@"'
    return [unshare, "--mount", "sh", "-c", script, "sh", *command]


RSPAMD = """
.include "$CONFDIR/common.conf"
options {{
  pidfile = "{folder}/pid"; rundir = "{folder}"; tempdir = "{folder}"; hs_cache_dir = "{folder}/";
  dns {{ nameserver = ["127.0.0.1:{dns}"]; timeout = 0.1s; retransmits = 1; }}
  control_socket = "{folder}/control mode=0600"; gtube_patterns = "all";
}}
logging {{ type = "console"; level = "info"; }}
worker "normal" {{ bind_socket = "127.0.0.1:{normal}"; count = 1; }}
worker "rspamd_proxy" {{
  bind_socket = "127.0.0.1:{proxy}"; milter = yes; count = 1; timeout = 60s;
  upstream "local" {{ default = yes; hosts = "127.0.0.1:{normal}"; }}
}}
"""


@asynccontextmanager
async def rspamd(folder: Path, address: str) -> AsyncIterator[str]:
    (program,) = peers("rspamd")
    normal, dns = free_ports(2)
    proxy = int(address.rpartition(":")[2])
    (folder / "conf").write_text(RSPAMD.format(folder=folder, normal=normal, proxy=proxy, dns=dns))
    command = [program, "-f", "-i", "-c", f"{folder}/conf", f"--var=DBDIR={folder}"]
    with running(folder, address, command):
        await until_port(normal)
        yield address


async def until_port(port: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while not _listens(f"127.0.0.1:{port}"):
            await asyncio.sleep(0.05)
