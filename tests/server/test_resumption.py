"""TLS sessions are resumed, but not if a full handshake would fail."""

from __future__ import annotations

import ssl
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from support.authority import Authority, Issued, copy
from support.client import Client
from support.daemon import LOCAL, Daemon
from support.handlers import Collect
from support.openssl import s_client
from support.server import serve

if TYPE_CHECKING:
    from pathlib import Path

TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3

VERSIONS = pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def issued(authority: Authority) -> Issued:
    return authority.issue("server", "localhost", "127.0.0.1")


def settings(issued: Issued, authority: Authority | None = None) -> dict[str, Any]:
    client_ca = {} if authority is None else {"tls_client_ca": str(authority.ca)}
    files = {"tls_cert": str(issued.cert), "tls_key": str(issued.key)}
    return {"listen": ["smtps:127.0.0.1:0"], **files, **client_ca}


class ResumingClient:
    """A client with one version of TLS that offers its last session again.

    :param context: has its certificate, and the CA that it trusts
    """

    def __init__(self, context: ssl.SSLContext, version: ssl.TLSVersion) -> None:
        context.minimum_version = context.maximum_version = version
        wrap = context.wrap_bio
        context.wrap_bio = lambda *args, **options: wrap(  # type: ignore[method-assign, misc]
            *args, session=self.last, **options
        )
        self.context = context
        self.last: ssl.SSLSession | None = None

    async def deliver(self, address: Any) -> bool:
        """Deliver a message; return whether the session was resumed.

        :raises OSError: the handshake failed; AssertionError: the session had no answer
        """
        async with await Client.to(address, tls=self.context) as client:
            assert (await client.greet()).code == 250
            assert (await client.deliver()).code == 250
            shaken: ssl.SSLObject = client.writer.get_extra_info("ssl_object")
            self.last = shaken.session
            return bool(shaken.session_reused)


@pytest.mark.parametrize("starttls", [False, True], ids=["smtps", "starttls"])
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_resumes_a_session_but_not_after_a_renewal(
    version: str, starttls: bool, tmp_path: Path, authority: Authority, issued: Issued
) -> None:
    listen = LOCAL[:2] if starttls else ("-l", "smtps:127.0.0.1:0")
    out, given = (version, "-sess_out", tmp_path / "s"), (version, "-sess_in", tmp_path / "s")
    with Daemon(*listen, *issued.options, "--handler", "discard", cwd=tmp_path) as daemon:
        first = s_client(daemon.port, authority, *out, starttls=starttls)
        assert "New, TLS" in first.text
        again = s_client(daemon.port, authority, *given, starttls=starttls)
        assert "Reused, TLS" in again.text
        assert (first.status, again.status) == (0, 0)
        copy(authority.issue("renewed", "localhost", "127.0.0.1"), issued)
        daemon.wait_for("certificates reloaded")
        renewed = s_client(daemon.port, authority, *given, starttls=starttls)
        assert "New, TLS" in renewed.text
        assert renewed.serial == issued.serial


def test_tls_1_3_sends_one_ticket(tmp_path: Path, authority: Authority, issued: Issued) -> None:
    smtps = ("-l", "smtps:127.0.0.1:0", "--handler", "discard")
    with Daemon(*smtps, *issued.options, cwd=tmp_path) as daemon:
        shaken = s_client(daemon.port, authority, "-tls1_3")
    assert shaken.text.count("New Session Ticket arrived") == 1


@VERSIONS
async def test_a_client_without_a_certificate_resumes_its_session(
    version: ssl.TLSVersion, authority: Authority, issued: Issued
) -> None:
    client = ResumingClient(authority.client(), version)
    async with serve(Collect(), **settings(issued)) as server:
        resumed = [await client.deliver(server.addresses[0]) for _ in range(3)]
    assert resumed == [False, True, True]


# -- client certificates ------------------------------------------------------------------------


@VERSIONS
async def test_with_client_certificates_only_tls_1_2_resumes(
    version: ssl.TLSVersion, authority: Authority, issued: Issued
) -> None:
    """TLS 1.3 could resume without limit, and the certificate would not be verified again."""
    known = authority.issue("known", "client.example", common_name="relay")
    client = ResumingClient(authority.client(known), version)
    handler = Look()
    async with serve(handler, **settings(issued, authority)) as server:
        resumed = [await client.deliver(server.addresses[0]) for _ in range(2)]
    assert resumed == [False, version == TLS_1_2]
    assert len(handler.fingerprints) == 2
    assert len(set(handler.fingerprints)) == 1
    assert handler.fingerprints[0] is not None


@VERSIONS
async def test_a_session_without_a_certificate_is_resumed_without_one(
    version: ssl.TLSVersion, authority: Authority, issued: Issued
) -> None:
    client = ResumingClient(authority.client(), version)
    known = authority.issue("known", "client.example")
    handler = Look()
    async with serve(handler, **settings(issued, authority)) as server:
        assert not await client.deliver(server.addresses[0])
        client.context.load_cert_chain(known.cert, known.key)
        resumed = await client.deliver(server.addresses[0])
    assert handler.fingerprints[0] is None
    assert (handler.fingerprints[1] is None) == resumed == (version == TLS_1_2)


@VERSIONS
async def test_no_session_is_resumed_after_a_change_of_the_ca(
    version: ssl.TLSVersion, tmp_path: Path, authority: Authority, issued: Issued
) -> None:
    known = authority.issue("known", "client.example")
    client = ResumingClient(authority.client(known), version)
    accepted = Authority(tmp_path, "accepted")
    accepted.ca.write_bytes(authority.ca.read_bytes())
    async with serve(Collect(), **settings(issued, accepted)) as server:
        await client.deliver(server.addresses[0])
        accepted.authority.cert_pem.write_to_path(str(accepted.ca))
        await server.reload()
        with pytest.raises((OSError, AssertionError)):
            await client.deliver(server.addresses[0])


async def test_a_session_is_not_resumed_after_its_certificate_has_expired(
    authority: Authority, issued: Issued, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    caplog.set_level("INFO")
    known = authority.issue("known", "client.example", ends=timedelta(hours=1))
    client = ResumingClient(authority.client(known), TLS_1_2)
    async with serve(Collect(), **settings(issued, authority)) as server:
        assert [await client.deliver(server.addresses[0]) for _ in range(2)] == [False, True]
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 3700)
        with pytest.raises((OSError, AssertionError)):
            await client.deliver(server.addresses[0])
    assert "the client certificate of the session has expired" in caplog.text


class Look(Collect):
    """Keeps the fingerprints of client certificates."""

    def __init__(self) -> None:
        super().__init__()
        self.fingerprints: list[str | None] = []

    async def handle_MAIL(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        self.fingerprints.append(session.peer_fingerprint)
        envelope.mail_from = address
        return "250 ok"
