"""Certificates of clients: who is asked, who gets in, and what a handler sees of them."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from support.authority import Authority, Issued
from support.client import Client
from support.daemon import LOCAL, PATIENCE, Daemon
from support.handlers import Collect
from support.openssl import s_client
from support.peers import peer
from support.server import serve

if TYPE_CHECKING:
    from pathlib import Path

SMTPS = ("-l", "smtps:127.0.0.1:0", "--handler", "discard")

RELAYS = """
class OnlyRelays:
    async def handle_MAIL(self, server, session, envelope, address, options):
        if not session.peer_subject.startswith("CN=relay,"):
            return "550 5.7.1 Who are you?"
        envelope.mail_from = address
        return "250 2.1.0 Hello " + session.peer_fingerprint
"""


class Place:
    """A server's certificate, and two clients': of the same authority, and of another."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder)
        self.server = self.authority.issue("server", "localhost", "127.0.0.1")
        self.second = self.authority.issue("second", "second.example")
        self.known = self.authority.issue("known", "client.example", common_name="relay")
        self.other_authority = Authority(folder, "other")
        self.unknown = self.other_authority.issue("unknown", "client.example")

    def options(self, *more: str) -> tuple[str, ...]:
        return (*self.server.options, *self.second.options, *self.client_ca, *more)

    @property
    def client_ca(self) -> tuple[str, ...]:
        return ("--tls-client-ca", str(self.authority.ca))

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "tls_cert": str(self.server.cert),
            "tls_key": str(self.server.key),
            "tls_client_ca": str(self.authority.ca),
        }


@pytest.fixture
def here(tmp_path: Path) -> Place:
    return Place(tmp_path)


def shows(issued: Issued | None) -> tuple[object, ...]:
    return () if issued is None else ("-cert", issued.cert, "-key", issued.key)


@pytest.mark.parametrize("name", ["localhost", "second.example"])
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@pytest.mark.parametrize("how", ["optional", "require"])
def test_openssl_gets_in_with_the_certificate_that_it_should_have(
    tmp_path: Path, here: Place, how: str, version: str, name: str
) -> None:
    options = here.options("--tls-client-verify", how)
    with Daemon(*SMTPS, *options, cwd=tmp_path) as daemon:
        for issued, good in [(None, how == "optional"), (here.known, True), (here.unknown, False)]:
            more = (version, *shows(issued))
            shaken = s_client(daemon.port, here.authority, *more, name=name)
            assert (shaken.status == 0) == good, shaken.text
        daemon.wait_for("no session: .*CERTIFICATE_VERIFY_FAILED")
        if how == "require":
            daemon.wait_for("no session: .*PEER_DID_NOT_RETURN_A_CERTIFICATE")
        assert "Traceback" not in daemon.log


def test_who_asks_for_no_certificates_gets_none(tmp_path: Path, here: Place) -> None:
    with Daemon(*SMTPS, *here.server.options, cwd=tmp_path) as daemon:
        shaken = s_client(daemon.port, here.authority, *shows(here.unknown))
        assert shaken.status == 0
        assert "Requested Signature Algorithms" not in shaken.text  # of a CertificateRequest


class Look(Collect):
    """Remembers what a handler is told of certificates."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    async def handle_MAIL(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        self.seen.append((session.peer_certificate, session.peer_subject, session.peer_fingerprint))
        envelope.mail_from = address
        return "250 ok"


@pytest.mark.parametrize("starttls", [False, True], ids=["smtps", "starttls"])
async def test_a_handler_sees_a_verified_certificate(here: Place, starttls: bool) -> None:
    handler = Look()
    listen = ["127.0.0.1:0" if starttls else "smtps:127.0.0.1:0"]
    context = here.authority.client(here.known)
    async with serve(handler, listen=listen, **here.settings) as server:
        async with await Client.to(
            server.addresses[0], tls=None if starttls else context
        ) as client:
            await client.greet()
            if starttls:
                assert (await client.deliver()).code == 250
                await client.start_tls(context)
                await client.say("EHLO x")
            assert (await client.deliver()).code == 250
    if starttls:
        assert handler.seen.pop(0) == (None, None, None)
    ((certificate, subject, fingerprint),) = handler.seen
    assert certificate["subjectAltName"] == (("DNS", "client.example"),)
    assert subject.startswith("CN=relay,OU=Testing cert")
    printed = subprocess.run(
        [peer("openssl"), "x509", "-in", here.known.cert, "-noout", "-fingerprint", "-sha256"],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    ).stdout
    assert fingerprint == printed.strip().partition("=")[2].replace(":", "").lower()


async def test_a_handler_sees_that_there_is_none(here: Place) -> None:
    handler = Look()
    listen = ["smtps:127.0.0.1:0"]
    async with serve(handler, listen=listen, **here.settings) as server:
        context = here.authority.client()
        async with await Client.to(server.addresses[0], tls=context) as client:
            await client.greet()
            assert (await client.deliver()).code == 250
    assert handler.seen == [(None, None, None)]


@pytest.mark.parametrize("form", ["--tls", "--tls-on-connect"])
def test_swaks_shows_its_certificate(tmp_path: Path, here: Place, form: str) -> None:
    (tmp_path / "relays.py").write_text(RELAYS)
    where = LOCAL[:2] if form == "--tls" else SMTPS[:2]
    handlers = ("--handler", "relays:OnlyRelays", "--handler", "maildir:Maildir")
    options = (*where, *here.options("--tls-client-verify", "require"), *handlers)
    environment = {"PYTHONPATH": str(tmp_path)}
    with Daemon(*options, cwd=tmp_path, environment=environment) as daemon:
        words = [
            *(peer("swaks"), "--server", "127.0.0.1", "--port", str(daemon.port), form),
            *("--tls-verify", "--tls-ca-path", str(here.authority.ca), "--to", "b@example.com"),
        ]
        own = ["--tls-cert", str(here.known.cert), "--tls-key", str(here.known.key)]
        for more, good in [(own, True), ([], False)]:
            ended = subprocess.run(
                [*words, *more], capture_output=True, text=True, timeout=PATIENCE, check=False
            )
            assert (ended.returncode == 0) == good, ended.stdout + ended.stderr
            assert bool(re.search(r"250 2\.1\.0 Hello [0-9a-f]{64}", ended.stdout)) == good
    assert len(list((tmp_path / "Maildir/new").iterdir())) == 1
