"""Client certificates: when they are requested and verified, and what handlers see of them."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from support.authority import Authority, Issued
from support.client import Client
from support.daemon import LOCAL, PATIENCE, Daemon, messages
from support.handlers import Collect
from support.installation import ROOT
from support.openssl import s_client, swaks
from support.peers import peer
from support.server import serve

if TYPE_CHECKING:
    from pathlib import Path

SMTPS = ("-l", "smtps:127.0.0.1:0", "--handler", "discard")


class Place:
    """A server certificate, and two client certificates: of the same CA, and of another one."""

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
def test_openssl_connects_with_the_required_certificate(
    tmp_path: Path, here: Place, how: str, version: str, name: str
) -> None:
    options = here.options("--tls-client-verify", how)
    with Daemon(*SMTPS, *options, cwd=tmp_path) as daemon:
        for issued, good in [(None, how == "optional"), (here.known, True), (here.unknown, False)]:
            more = (version, *shows(issued))
            shaken = s_client(daemon.port, here.authority, *more, name=name)
            assert (shaken.status == 0) == good, shaken.text
        daemon.wait_for("TLS handshake failed: .*CERTIFICATE_VERIFY_FAILED")
        if how == "require":
            daemon.wait_for("TLS handshake failed: .*PEER_DID_NOT_RETURN_A_CERTIFICATE")
        assert "Traceback" not in daemon.log


def test_without_a_client_ca_no_client_certificate_is_requested(
    tmp_path: Path, here: Place
) -> None:
    with Daemon(*SMTPS, *here.server.options, cwd=tmp_path) as daemon:
        shaken = s_client(daemon.port, here.authority, *shows(here.unknown))
        assert shaken.status == 0
        assert "Requested Signature Algorithms" not in shaken.text  # part of a CertificateRequest


def fingerprint(issued: Issued) -> str:
    """Return the fingerprint as openssl prints it."""
    ended = subprocess.run(
        [peer("openssl"), "x509", "-in", issued.cert, "-noout", "-fingerprint", "-sha256"],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    return ended.stdout.strip().partition("=")[2]


class Look(Collect):
    """Keeps what a handler sees of certificates."""

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
    ((certificate, subject, digest),) = handler.seen
    assert certificate["subjectAltName"] == (("DNS", "client.example"),)
    assert subject.startswith("CN=relay,OU=Testing cert")
    assert digest == fingerprint(here.known).replace(":", "").lower()


async def test_a_handler_sees_that_there_is_no_certificate(here: Place) -> None:
    handler = Look()
    listen = ["smtps:127.0.0.1:0"]
    async with serve(handler, listen=listen, **here.settings) as server:
        context = here.authority.client()
        async with await Client.to(server.addresses[0], tls=context) as client:
            await client.greet()
            assert (await client.deliver()).code == 250
    assert handler.seen == [(None, None, None)]


async def test_a_subject_cannot_break_a_log_line(here: Place) -> None:
    handler = Look()
    evil = here.authority.issue("evil", "x.example", common_name="a, b\r\n250 ok\x7f")
    async with serve(handler, listen=["smtps:127.0.0.1:0"], **here.settings) as server:
        context = here.authority.client(evil)
        async with await Client.to(server.addresses[0], tls=context) as client:
            await client.greet()
            assert (await client.deliver()).code == 250
    ((_, subject, _),) = handler.seen
    assert subject.startswith("CN=a\\, b\\0D\\0A250 ok\\7F,OU=")


@pytest.mark.parametrize("form", ["--tls", "--tls-on-connect"])
def test_swaks_is_identified_by_its_certificate(tmp_path: Path, here: Place, form: str) -> None:
    where = LOCAL[:2] if form == "--tls" else SMTPS[:2]
    known = fingerprint(here.known).replace(":", "")
    handlers = (
        *("--handler", f"examples.known_clients:KnownClients:{known}"),
        *("--handler", "maildir:Maildir"),
    )
    options = (*where, *here.options(), *handlers)
    with Daemon(*options, cwd=tmp_path, environment={"PYTHONPATH": str(ROOT)}) as daemon:
        for issued, code in [(here.known, 0), (here.second, 23), (None, 23), (here.unknown, 29)]:
            ended = swaks(
                *(daemon.port, here.authority, form),
                *(() if issued is None else ("--tls-cert", issued.cert)),
                *(() if issued is None else ("--tls-key", issued.key)),
            )
            assert (ended.status == 0) == (code == 0), ended.text
            if code == 23:  # the exit status of swaks for a refused MAIL
                assert ended.status == code
                assert "550 5.7.1 We do not know " in ended.text
        daemon.wait_for("CERTIFICATE_VERIFY_FAILED")
    assert len(messages(tmp_path / "Maildir")) == 1
