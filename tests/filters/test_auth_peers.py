"""The filter auth with real programs: Dovecot, and clients that authenticate."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import smtplib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from peers.milters import HAM, folder_of_all, opendkim
from support.auth import b64, hello, tls_client
from support.client import Client, code_and_enhanced
from support.daemon import is_alive
from support.dovecot import Dovecot, dovecot
from support.handlers import Collect
from support.http_app import App, running
from support.peers import peer
from support.server import serve, until

from smtpd_fork.filters import Accept, Auth, Milter
from smtpd_fork.hops.dovecot import service as dovecot_service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from support.tls import Certificates

    from smtpd_fork import Server

pytestmark = pytest.mark.peers

USER, PASSWORD = "b@example.com", "x"
PLAIN = f"AUTH PLAIN {b64(f'{chr(0)}{USER}{chr(0)}{PASSWORD}')}"

MORE = """
auth_mechanisms = scram-sha-256 scram-sha-1 plain login cram-md5 digest-md5 anonymous {more}
auth_failure_delay = 0
"""


@pytest.fixture(scope="module")
def a_dovecot() -> Iterator[Dovecot]:
    with dovecot(MORE.format(more="")) as running:
        yield running


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dovecot_service, "RETRY_SECONDS", 0.0)


@asynccontextmanager
async def submission(
    address: str, certificates: Certificates, **keys: Any
) -> AsyncIterator[tuple[Server, Collect]]:
    """Serve like a submission server, with implicit TLS and with STARTTLS."""
    kept = Collect()
    chain = [Auth(dovecot=address, required=True, **keys), Accept(["example.com"]), kept]
    listen = ["127.0.0.1:0", "smtps:127.0.0.1:0"]
    async with serve(chain, listen=listen, tls_context=certificates.server) as server:
        yield server, kept


async def run(*command: str, text: str = "") -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(text.encode()), 30)
    return process.returncode or 0, said.decode("utf-8", "replace")


@asynccontextmanager
async def client_of(server: Server, certificates: Certificates) -> AsyncIterator[Client]:
    async with await Client.to(server.addresses[1], tls=certificates.client) as client:
        await client.reply()
        yield client


@pytest.mark.parametrize(
    "mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-1", "PLAIN", "LOGIN", "CRAM-MD5", "DIGEST-MD5"]
)
async def test_gsasl_authenticates_by_all_mechanisms_of_dovecot(
    mechanism: str, a_dovecot: Dovecot, certificates: Certificates
) -> None:
    gsasl = peer("gsasl")
    async with submission(a_dovecot.auth, certificates) as (server, _):
        for password, reply in ((PASSWORD, "235 2.7.0"), ("wrong", "535 5.7.8")):
            status, said = await run(
                *(gsasl, "--smtp", f"--connect=127.0.0.1:{server.port}", "--starttls", "--no-cb"),
                *("-m", mechanism, "-a", USER, "-p", password, "--quality=qop-auth"),
                *("-r", "", f"--x509-ca-file={certificates.ca}", "--hostname=localhost"),
            )
            assert reply in said or (status and password == "wrong"), said


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
async def test_swaks_submits_a_message_to_any_domain(
    mechanism: str, a_dovecot: Dovecot, certificates: Certificates
) -> None:
    async with submission(a_dovecot.auth, certificates) as (server, kept):
        status, said = await run(
            *(peer("swaks"), "--server", f"127.0.0.1:{server.port}", "--tls"),
            *("--auth", mechanism, "--auth-user", USER, "--auth-password", PASSWORD),
            *("--from", USER, "--to", "x@example.net"),
        )
        assert status == 0, said
        assert len(kept.messages) == 1
        status, said = await run(
            *(peer("swaks"), "--server", f"127.0.0.1:{server.port}", "--tls"),
            *("--from", USER, "--to", USER),
        )
        assert "530 5.7.0 Authentication required" in said


async def test_curl_and_smtplib_submit(a_dovecot: Dovecot, certificates: Certificates) -> None:
    def by_smtplib(port: int) -> None:
        for mechanism in ("auth_cram_md5", "auth_plain", "auth_login"):
            with smtplib.SMTP("localhost", port) as client:
                client.starttls(context=certificates.client)
                client.ehlo()
                client.user, client.password = USER, PASSWORD
                name = mechanism[5:].replace("_", "-").upper()
                assert client.auth(name, getattr(client, mechanism))[0] == 235
                client.sendmail(USER, ["x@example.net"], "Subject: x\r\n\r\nx\r\n")

    async with submission(a_dovecot.auth, certificates) as (server, kept):
        port = server.addresses[1][1]
        status, said = await run(
            *(peer("curl"), "-v", f"smtps://localhost:{port}", "--cacert", str(certificates.ca)),
            *("--user", f"{USER}:{PASSWORD}", "--mail-from", USER, "--mail-rcpt", "x@example.net"),
            *("-T", "-"),
            text="Subject: x\r\n\r\nx\r\n",
        )
        assert status == 0, said
        assert "AUTH SCRAM-SHA" in said or "AUTH CRAM-MD5" in said or "AUTH" in said
        await asyncio.to_thread(by_smtplib, server.port)
        assert len(kept.messages) == 4


async def test_dovecot_verifies_oauth_tokens(certificates: Certificates, tmp_path: Path) -> None:
    app = App()
    async with running(app):
        settings = tmp_path / "oauth2.conf"
        settings.write_text(
            f"introspection_mode = auth\nintrospection_url = {app.url}\n"
            "username_attribute = email\nactive_attribute = active\nactive_value = true\n"
        )
        more = MORE.format(more="oauthbearer xoauth2") + (
            "passdb {\n  driver = oauth2\n  mechanisms = oauthbearer xoauth2\n"
            f"  args = {settings}\n}}\n"
        )
        app.text = json.dumps({"active": "true", "email": USER})
        xoauth2 = b64(f"user={USER}\x01auth=Bearer token\x01\x01")
        with dovecot(more) as with_oauth:
            async with submission(with_oauth.auth, certificates) as (server, kept):
                status, said = await run(
                    *(peer("curl"), "-v", f"smtps://localhost:{server.addresses[1][1]}"),
                    *("--cacert", str(certificates.ca), "--oauth2-bearer", "token" * 300),
                    *("--user", USER, "--mail-from", USER, "--mail-rcpt", "x@example.net"),
                    *("-T", "-"),
                    text="Subject: x\r\n\r\nx\r\n",
                )
                assert status == 0, said + with_oauth.log()
                assert "AUTH OAUTHBEARER" in said
                assert len(kept.messages) == 1
                for active, code in (("true", 235), ("false", 535)):
                    app.text = json.dumps({"active": active, "email": USER})
                    async with client_of(server, certificates) as client:
                        await hello(client)
                        reply = await client.say(f"AUTH XOAUTH2 {xoauth2}")
                        if reply.code == 334:  # the error, as JSON
                            reply = await client.say("")
                        assert reply.code == code


@pytest.mark.parametrize("how", ["killed", "stopped", "restarted"])
async def test_sessions_survive_a_restart_of_dovecot(
    how: str, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "restarted":
        monkeypatch.setattr(dovecot_service, "FRESH_SECONDS", 1.0)
    with dovecot(MORE.format(more="")) as running:
        async with submission(running.auth, certificates, timeout=1.0, connect_timeout=1.0) as (
            server,
            _,
        ):
            async with (
                client_of(server, certificates) as one,
                client_of(server, certificates) as two,
            ):
                for client in (one, two):
                    await hello(client)
                assert (await one.say("AUTH CRAM-MD5")).code == 334
                process = running.auth_process()
                if how == "killed":
                    os.kill(process, signal.SIGKILL)
                elif how == "stopped":
                    os.kill(process, signal.SIGSTOP)
                else:
                    await asyncio.to_thread(running.stop)
                reply = code_and_enhanced(await one.say(b64(f"{USER} 0123")))
                # After SIGTERM the process would run as long as there is a connection.
                assert reply == ((535, "5.7.8") if how == "restarted" else (454, "4.7.0"))
                if how == "stopped":
                    assert (await two.say(PLAIN)).code == 454
                    os.kill(process, signal.SIGCONT)
                elif how == "restarted":
                    await until(lambda: not is_alive(process))
                    assert (await two.say(PLAIN)).code == 454
                    await asyncio.to_thread(running.start)
                codes = []

                async def succeeded() -> bool:
                    async with client_of(server, certificates) as client:
                        await hello(client)
                        codes.append((await client.say(PLAIN)).code)
                    return codes[-1] == 235

                async with asyncio.timeout(20):
                    while not await succeeded():
                        await asyncio.sleep(0.05)
                assert set(codes) <= {235, 454}
            await until(lambda: server.sessions == 0)


async def test_a_long_response_does_not_close_the_shared_connection(
    a_dovecot: Dovecot, certificates: Certificates
) -> None:
    async with submission(a_dovecot.auth, certificates) as (server, _):
        async with (
            client_of(server, certificates) as one,
            client_of(server, certificates) as two,
        ):
            for client in (one, two):
                await hello(client)
            assert (await one.say("AUTH CRAM-MD5")).code == 334
            for size in (5900, 6000, 6100, 9000):
                code, _ = code_and_enhanced(await two.say(f"AUTH PLAIN {b64('x' * size)}"))
                assert code in {500, 535, 421}
                if code == 421:
                    break
            assert (await one.say(b64(f"{USER} 0123"))).code == 535


async def test_opendkim_signs_what_authenticated_clients_submit_and_nothing_else(
    a_dovecot: Dovecot, certificates: Certificates
) -> None:
    with folder_of_all() as folder:
        settings = f"TestPublicKeys {folder}/keys\nInternalHosts 192.0.2.1"
        with opendkim(folder, "s", f"unix:{folder}/s", settings) as address:
            kept = Collect()
            chain = [Auth(dovecot=a_dovecot.auth), Accept(["example.com"]), Milter(address), kept]
            async with serve(chain, tls_context=certificates.server) as server:
                for command, signed in ((PLAIN, True), ("NOOP", False)):
                    async with await tls_client(server.addresses[0], certificates) as client:
                        assert (await client.say(command)).code in {235, 250}
                        assert (await client.deliver(HAM)).code == 250
                        assert (b"DKIM-Signature:" in kept.messages[-1]) == signed
