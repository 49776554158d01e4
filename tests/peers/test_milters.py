"""The filter milter with milters that people use, each a process with its own configuration."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client, code_and_enhanced
from support.handlers import Collect
from support.milter import TestMilter, changed, frame, milter_server
from support.peers import needs_root, peer, peers
from support.ports import free_port, free_ports
from support.server import serve, until

from peers.postfix import instance
from peers.test_accept_beside_postfix import until_open
from smtpd_fork.filters import Milter
from smtpd_fork.message import fields
from smtpd_fork.testing import MESSAGES

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.peers

PATIENCE = 60.0

EICAR = r"X5O!P%@AP[4\PZX54(P^)7CC)7}$EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"
GTUBE = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"

HAM = (
    "From: bob@example.com\r\nTo: carol@example.org\r\nSubject:  two\r\n\tlines\r\n"
    "Date: Fri, 27 Nov 2026 12:00:00 +0000\r\nMessage-ID: <1@example.com>\r\n\r\nhello\r\n"
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a directory that other users may enter, with a short path."""
    needs_root()
    made = Path(tempfile.mkdtemp(prefix="milter-", dir="/tmp"))
    made.chmod(0o777)
    yield made
    shutil.rmtree(made, ignore_errors=True)


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
        process.wait(PATIENCE)


def _listens(address: str) -> bool:
    unix = address.startswith("unix:")
    with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as sock:
        with suppress(OSError):
            host, _, port = address.rpartition(":")
            sock.connect(address.removeprefix("unix:") if unix else (host, int(port)))
            return True
    return False


async def send(port: int, text: str | bytes) -> tuple[int, str]:
    content = text.encode() if isinstance(text, str) else text
    if content and not content.endswith(b"\r\n"):
        content += b"\r\n"
    content = b"\r\n".join(
        b"." + line if line.startswith(b".") else line for line in content.split(b"\r\n")
    )
    async with await Client.to(("127.0.0.1", port)) as client:
        await client.greet()
        begun = ("MAIL FROM:<bob@example.com> BODY=8BITMIME", "RCPT TO:<carol@example.org>")
        assert (await client.say(*begun, "DATA")).code == 354
        client.writer.write(content + b".\r\n")
        return code_and_enhanced(await client.reply())


async def through(milters: list[str], *texts: str | bytes, **keys: Any) -> tuple[Any, list[Any]]:
    """Send messages through milters; return the replies, and the messages that were stored."""
    kept = Collect()
    chain = [*(Milter(each, **keys) for each in milters), kept]
    async with serve(chain) as server:
        replies = [await send(server.port, text) for text in texts]
    return replies, kept.messages


# -- OpenDKIM --------------------------------------------------------------------------------------


@contextmanager
def opendkim(folder: Path, mode: str, address: str) -> Iterator[str]:
    key = folder / "k.private"
    if not key.exists():
        command = [peer("openssl"), "genrsa", "-out", str(key), "2048"]
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
        f"TestPublicKeys {folder}/keys\nSyslog no\nUMask 0\n"
        f"PidFile {folder}/{mode}.pid\nAuthservID mx.example.com\n"
        + ("InternalHosts 192.0.2.1\n" if mode == "v" else "")
    )
    with running(folder, address, [peer("opendkim"), "-f", "-x", str(conf)]):
        yield address


async def test_what_opendkim_signs_it_verifies_behind_it(folder: Path) -> None:
    peers("opendkim", "openssl")
    signer, verifier = f"unix:{folder}/s", f"127.0.0.1:{free_port('127.0.0.1')}"
    letters = [
        HAM.encode(),
        *(
            each.replace(b"a@example.org", b"bob@example.com")
            for each in MESSAGES.values()
            if each.startswith(b"From: ") and each.endswith(b"\n") and len(each) < 50_000
        ),
    ]
    with opendkim(folder, "s", signer), opendkim(folder, "v", verifier):
        replies, stored = await through([signer, verifier], *letters)
    assert {code for code, _ in replies} == {250}
    for letter, message in zip(letters, stored, strict=True):
        (result,) = [f.value for f in fields(message) if f.name == b"Authentication-Results"]
        assert b"dkim=pass" in result, message
        assert letter in message


# -- ClamAV ----------------------------------------------------------------------------------------


async def test_clamav_milter_refuses_a_virus(folder: Path) -> None:
    clamd, milter = peers("clamd", "clamav-milter")
    (folder / "db").mkdir()
    virus = EICAR.encode().hex()
    (folder / "db" / "test.ndb").write_text(f"Eicar-Test:0:*:{virus}\n")
    (folder / "clamd.conf").write_text(
        f"LocalSocket {folder}/clamd\nDatabaseDirectory {folder}/db\nForeground yes\n"
        f"MaxThreads 2\nTemporaryDirectory {folder}\n"
    )
    (folder / "milter.conf").write_text(
        f"MilterSocket unix:{folder}/m\nClamdSocket unix:{folder}/clamd\nOnInfected Reject\n"
        f"RejectMsg infected: %v\nAddHeader Replace\nTemporaryDirectory {folder}\n"
        "Foreground yes\n"
    )
    address = f"unix:{folder}/m"
    with (
        running(folder, f"unix:{folder}/clamd", [clamd, "-c", f"{folder}/clamd.conf"]),
        running(folder, address, [milter, "-c", f"{folder}/milter.conf"]),
    ):
        replies, stored = await through([address], HAM, f"{HAM}{EICAR}\r\n")
    assert replies[0][0] == 250
    assert replies[1] == (550, "5.7.1")
    (message,) = stored
    assert b"X-Virus-Status: Clean" in message


# -- SpamAssassin ----------------------------------------------------------------------------------


async def test_spamass_milter_marks_and_refuses_spam(folder: Path) -> None:
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
    address = f"unix:{folder}/m"
    with (
        running(folder, f"unix:{path}", server),
        running(folder, address, [milter, "-p", f"{folder}/m", "-r", "15", "--", "-U", path]),
    ):
        letters = HAM, f"{HAM}{GTUBE}\r\n", f"{HAM}unwanted words\r\n"
        replies, stored = await through([address], *letters)
    assert [code for code, _ in replies] == [250, 550, 250]
    ham, spam = stored
    assert b"X-Spam-Flag: NO" in ham
    assert ham.endswith(b"\r\n\r\nhello\r\n")
    assert b"X-Spam-Flag: YES" in spam
    assert b"multipart/mixed" in spam


# -- OpenDMARC -------------------------------------------------------------------------------------


async def test_opendmarc_accepts_at_connect_and_is_asked_nothing_more(folder: Path) -> None:
    (program,) = peers("opendmarc")
    address = f"unix:{folder}/m"
    (folder / "conf").write_text(
        f"Socket local:{folder}/m\nAuthservID mx.example.com\nRejectFailures true\n"
        f"Syslog false\nPublicSuffixList /dev/null\nUMask 0\n"
    )
    with running(folder, address, [program, "-f", "-c", f"{folder}/conf"]):
        replies, stored = await through([address], HAM, HAM)
    assert [code for code, _ in replies] == [250, 250]
    assert stored == [HAM.encode()] * 2


# -- rspamd ----------------------------------------------------------------------------------------

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


@pytest.mark.timeout(120)
async def test_rspamd_refuses_spam_and_takes_the_rest(folder: Path) -> None:
    (program,) = peers("rspamd")
    normal, proxy, dns = free_ports(3)
    (folder / "conf").write_text(RSPAMD.format(folder=folder, normal=normal, proxy=proxy, dns=dns))
    address = f"127.0.0.1:{proxy}"
    command = [program, "-f", "-i", "-c", f"{folder}/conf", f"--var=DBDIR={folder}"]
    with running(folder, address, command):
        await _until_port(normal)
        replies, stored = await through([address], HAM, f"{HAM}{GTUBE}\r\n")
    assert replies[0][0] == 250, (folder / "rspamd.log").read_text()[-3000:]
    assert replies[1][0] in {550, 554}
    assert len(stored) == 1


async def _until_port(port: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while not _listens(f"127.0.0.1:{port}"):
            await asyncio.sleep(0.05)


# -- beside Postfix --------------------------------------------------------------------------------

EDITS = [
    frame(b"i", changed(0, b"X-Top", b" first")),
    frame(b"i", changed(1, b"X-Second", b" second")),
    frame(b"h", b"X-Added\0 one\n\ttwo\0"),
    frame(b"m", changed(1, b"subject", b" changed")),
    frame(b"m", changed(2, b"Subject", b"")),
    frame(b"m", changed(7, b"X-Past", b" the end")),
    frame(b"m", changed(1, b"X-Gone", b"")),
    frame(b"i", changed(500, b"X-Bottom", b" last")),
    frame(b"+", b"<dave@example.org>\0"),
]

SETTINGS = """\
relay_domains = example.org
relay_transport = smtp:[127.0.0.1]:{port}
smtpd_milters = inet:{milter}
milter_protocol = 6
milter_default_action = tempfail
smtpd_recipient_restrictions = permit_auth_destination, reject
smtp_destination_recipient_limit = 100
local_header_rewrite_clients =
line_length_limit = 2048
"""

TRACE = {b"received", b"message-id", b"date", b"from", b"to", b"return-path"}
"""What Postfix writes itself, or completes."""


def made() -> list[bytes]:
    """Return messages with many kinds of headers, each of which says who it is."""
    found = []
    for number in range(40):
        lines = [
            b"From: a@example.com",
            b"To: b@example.org",
            b"Date: Fri, 27 Nov 2026 12:00 +0000",
        ]
        lines += [b"Message-ID: <%d@example.com>" % number]
        lines += [b"X-Gone: %d" % each for each in range(number % 4)]
        lines += [b"Subject:%b %d" % (b" " * (each % 3), each) for each in range(number % 5)]
        lines += [b"X-Folded: a\r\n b\r\n\tc"] * (number % 3)
        lines += [b"X-Past: %d" % each for each in range(number % 2)]
        rotated = lines[number % len(lines) :] + lines[: number % len(lines)]
        found.append(b"\r\n".join([*rotated, b"X-Number: %d" % number, b"", b"text", b""]))
    return found


def told(content: bytes) -> list[tuple[bytes, bytes]]:
    return [
        (each.name, each.value.replace(b"\r\n", b"\n"))
        for each in fields(content)
        if each.name.lower() not in TRACE
    ]


@pytest.mark.timeout(180)
async def test_a_milter_changes_a_header_as_behind_postfix(folder: Path) -> None:
    peers("postfix")
    folder.chmod(0o755)
    milter, ours, theirs = TestMilter(edits=EDITS, protocol=0x100000), Collect(), Collect()
    (port,) = free_ports(1)
    letters = made()
    letters += [
        b"X-Number: m%d\r\n%b" % (number, each)
        for number, each in enumerate(MESSAGES.values())
        if each.startswith(b"From: ") and len(each) < 50_000 and each.isascii()
    ][:10]
    async with (
        milter_server(milter, tcp=True),
        serve([Milter(milter.address), ours]) as server,
        serve(theirs) as sink,
    ):
        settings = SETTINGS.format(port=sink.port, milter=milter.address)
        with instance(folder, settings, f"127.0.0.1:{port} inet n - n - - smtpd\n"):
            await until_open(port)
            for letter in letters:
                assert (await send(port, letter))[0] == 250
                assert (await send(server.port, letter))[0] == 250
            await until(lambda: len(theirs.envelopes) == len(letters))
    there = {_number(each.content): each for each in theirs.envelopes}
    for each in ours.envelopes:
        other = there.pop(_number(each.content))
        assert told(each.content) == told(other.content)
        assert sorted(each.rcpt_tos) == sorted(other.rcpt_tos)
    assert there == {}


def _number(content: bytes) -> bytes:
    return content.partition(b"X-Number: ")[2].partition(b"\r\n")[0]
