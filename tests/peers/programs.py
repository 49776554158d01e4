"""The senders: how each is started, and the changes that it makes to a message."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from support.daemon import until
from support.peers import namespaces, npm_package, peer, unpacked

from peers.letters import RECIPIENT
from peers.postfix import instance

if TYPE_CHECKING:
    from collections.abc import Callable

    from peers.letters import Letter

HERE = Path(__file__).parent
SECONDS = 60

HOST = "sender.example.com"

_EXIM = """
exim_path = {program}
spool_directory = /var/spool/exim
log_file_path = /var/spool/exim/%slog
primary_hostname = {host}
exim_user = mail
exim_group = mail
trusted_users = root
begin routers
all:
  driver = manualroute
  route_list = * 127.0.0.1::{port} byname
  self = send
  transport = out
begin transports
out:
  driver = smtp
  allow_localhost
  message_linelength_limit = 1000000
"""

_SENDMAIL = """
V10/Berkeley
Dj{host}
DnMAILER-DAEMON
O QueueDirectory=/var/spool/sendmail
O DeliveryMode=i
O DontProbeInterfaces=True
O EightBitMode=pass8
O LogLevel=0
O QueueLA=100000
Troot
H?P?Return-Path: <$g>
HReceived: from $s by $j id $i; $b
H?D?Date: $a
H?F?From: <$f>
H?M?Message-Id: <$t.$i@$j>
Scanonify=3
R$* < $+ > $*		$@ $2
Sparse=0
R$*			$#esmtp $@ [127.0.0.1] $: $1
Mesmtp,		P=[IPC], F=mDFMuXa, E=\\r\\n, L=990, T=DNS/RFC822/SMTP, A=TCP $h {port}
Mlocal,		P=/bin/false, F=l, A=false
Mprog,		P=/bin/false, F=l, A=false
"""


class SenderError(Exception):
    """A sender ended with an error."""


class Place:
    """The environment of senders: a port to send to, and a private /etc and /var/spool.

    :param folder: for their files; an empty directory
    :param port: of the server on 127.0.0.1
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.running = ExitStack()
        """Programs that also serve later messages; the creator of the place ends them."""

    def run(self, *words: object, given: bytes = b"", **options: object) -> None:
        """Run a program until it ends, which has to be without an error."""
        ended = subprocess.run(  # type: ignore[call-overload]  # the options of subprocess.run()
            [str(word) for word in words],
            input=given,
            capture_output=True,
            timeout=SECONDS,
            check=False,
            **options,
        )
        if ended.returncode:
            said = (ended.stdout + ended.stderr)[-2000:].decode("utf-8", "replace")
            raise SenderError(f"{words[0]}: {said}")

    def privately(self, *words: object) -> list[str]:
        """Return the command of a mail program, with a private /etc and /var/spool."""
        peer("mount")
        if not (self.folder / "etc").exists():
            self._furnish()
        script = 'mount --bind "$0/etc" /etc && mount --bind "$0/spool" /var/spool && exec "$@"'
        command = [*namespaces("--mount"), "sh", "-c", script, self.folder, *words]
        return [str(word) for word in command]

    def _furnish(self) -> None:
        etc, spool = self.folder / "etc", self.folder / "spool"
        files = {
            "passwd": Path("/etc/passwd").read_text() + "Debian-exim:x:990:990::/:/bin/false\n",
            "group": Path("/etc/group").read_text() + "Debian-exim:x:990:\n",
            # No name is looked up: no query leaves this machine.
            "hosts": f"127.0.0.1 {HOST} {socket.gethostname()} localhost\n",
            "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
            "resolv.conf": "nameserver 127.0.0.1\n",
            "services": "smtp 25/tcp\n",
            "mail/service.switch": "hosts files\naliases files\n",
            "mailname": f"{HOST}\n",
            "dma/dma.conf": f"SMARTHOST 127.0.0.1\nPORT {self.port}\nMAILNAME {HOST}\n",
            "nullmailer/adminaddr": "",
        }
        for name, text in files.items():
            path = etc / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for name in ("exim", "sendmail", "dma"):
            (spool / name).mkdir(parents=True)
            if name != "sendmail":  # sendmail's queue belongs to root.
                shutil.chown(spool / name, "mail", "mail")

    def write(self, name: str, text: str) -> None:
        """Write a file of the private /etc."""
        self.privately()
        (self.folder / "etc" / name).write_text(text)


# -- programs that read Unix text --------------------------------------------------------------


def exim(place: Place, letter: Letter) -> None:
    program = unpacked("usr/sbin/exim4", package="exim4-daemon-light")
    place.write("exim.conf", _EXIM.format(program=program, host=HOST, port=place.port))
    arguments = ("-C", "/etc/exim.conf", "-odi", "-i", "-f", letter.sender, RECIPIENT)
    place.run(*place.privately(program, *arguments), given=letter.unix())


def sendmail(place: Place, letter: Letter) -> None:
    program = unpacked("usr/libexec/sendmail/sendmail", package="sendmail-bin")
    place.write("sendmail.cf", _SENDMAIL.format(host=HOST, port=place.port).lstrip())
    arguments = ("-C", "/etc/sendmail.cf", "-odi", "-i", "-f", letter.sender, RECIPIENT)
    place.run(*place.privately(program, *arguments), given=letter.unix())


def postfix(place: Place, letter: Letter) -> None:
    queue = place.folder / "queue"
    if not queue.exists():
        settings = (
            f"myhostname = {HOST}\nrelayhost = [127.0.0.1]:{place.port}\n"
            "smtp_host_lookup = native\nsmtp_dns_support_level = disabled\n"
            "message_size_limit = 30000000\nmailbox_size_limit = 0\n"
        )
        place.running.enter_context(instance(place.folder, settings))
    program = peer("sendmail")
    command = (program, "-C", place.folder / "etc", "-i", "-f", letter.sender, RECIPIENT)
    place.run(*command, given=letter.unix())
    places = [queue / name for name in ("maildrop", "incoming", "active", "deferred")]

    def is_sent() -> bool:
        assert not any(path.is_file() for path in places[-1].rglob("*")), "it was deferred"
        return not any(path.is_file() for each in places for path in each.rglob("*"))

    until(is_sent, "Postfix has sent a message")


def dma(place: Place, letter: Letter) -> None:
    program = unpacked("usr/sbin/dma", package="dma")
    command = place.privately(program, "-D", "-i", "-f", letter.sender, RECIPIENT)
    place.run(*command, given=letter.unix())


def nullmailer(place: Place, letter: Letter) -> None:
    inject = unpacked("usr/bin/nullmailer-inject", package="nullmailer")
    smtp = unpacked("usr/lib/nullmailer/smtp", package="nullmailer")
    # nullmailer-queue does no more than write the envelope above the message.
    script = (
        'export HELOHOST="$6"; "$1" -n -f "$2" "$3" >/var/spool/message && '
        '{ printf "%s\\n%s\\n\\n" "$2" "$3"; cat /var/spool/message; } >/var/spool/queued && '
        'exec "$4" --host 127.0.0.1 --port "$5" 3</var/spool/queued'
    )
    arguments = (inject, letter.sender, RECIPIENT, smtp, place.port, HOST)
    place.run(*place.privately("sh", "-c", script, "sh", *arguments), given=letter.unix())


def msmtp(place: Place, letter: Letter) -> None:
    place.run(
        *(peer("msmtp"), "--host=127.0.0.1", f"--port={place.port}", f"--domain={HOST}"),
        *("--from", letter.sender, "--", RECIPIENT),
        given=letter.unix(),
    )


# -- programs and libraries that read CRLF text ------------------------------------------------


def curl(place: Place, letter: Letter) -> None:
    place.run(
        *(peer("curl"), "--silent", "--show-error", "--noproxy", "*"),
        *("--url", f"smtp://127.0.0.1:{place.port}/{HOST}", "--upload-file", "-"),
        *("--mail-from", letter.sender, "--mail-rcpt", RECIPIENT),
        given=letter.text,
    )


def swaks(place: Place, letter: Letter) -> None:
    place.run(
        *(peer("swaks"), "--server", f"127.0.0.1:{place.port}", "--helo", HOST),
        *("--from", letter.sender, "--to", RECIPIENT, "--data", "-", "--silent", "3"),
        given=letter.text,
    )


def _script(program: str, *words: object) -> Callable[[Place, Letter], None]:
    def send(place: Place, letter: Letter) -> None:
        place.run(peer(program), *words, place.port, letter.sender, RECIPIENT, given=letter.text)

    return send


def nodemailer(place: Place, letter: Letter) -> None:
    package = npm_package("nodemailer", "7.0.10")
    _script("node", HERE / "send.cjs", package)(place, letter)


def go(place: Place, letter: Letter) -> None:
    program = place.folder / "send-go"
    if not program.exists():
        cache = {"GOCACHE": str(place.folder / "go-cache"), "GO111MODULE": "off", "GOPROXY": "off"}
        environment = {**os.environ, **cache}
        place.run(peer("go"), "build", "-o", program, HERE / "send.go", env=environment)
    _script(str(program))(place, letter)


SENDERS: dict[str, Callable[[Place, Letter], None]] = {
    "Exim": exim,
    "Sendmail": sendmail,
    "Postfix": postfix,
    "dma": dma,
    "nullmailer": nullmailer,
    "msmtp": msmtp,
    "curl": curl,
    "swaks": swaks,
    "nodemailer": nodemailer,
    "Go net/smtp": go,
    "Perl Net::SMTP": _script("perl", HERE / "send.pl"),
    "Ruby Net::SMTP": _script("ruby", HERE / "send.rb"),
    "Python smtplib": _script(sys.executable, HERE / "send_smtplib.py"),
    "aiosmtplib": _script(sys.executable, HERE / "send_aiosmtplib.py"),
}
"""The function that sends a message with each program, which must end without an error."""

SMTPUTF8 = {"Exim", "Postfix", "curl", "nodemailer", "Go net/smtp", "Python smtplib", "aiosmtplib"}
"""Senders that request SMTPUTF8; the others cannot have a sender address that is not ASCII."""
