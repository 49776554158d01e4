"""The webhook: 250 means that the application has answered 2xx; all else gets 451."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import subprocess
import sys
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from blockbuster import BlockBuster
from hypothesis import HealthCheck, given, settings
from support.aiosmtpd_controller import client_of_aiosmtpd
from support.client import Client
from support.http_app import App, running
from support.mail import CONTENT, TRACE, contents, large, mail
from support.ports import free_port
from support.raw_server import raw_server
from support.server import serve
from support.sinks import DELIVERED, DOWN, NOT_TAKEN, closing

from smtpd_fork.errors import CannotCreateError, MissingLibraryError
from smtpd_fork.hops import http
from smtpd_fork.setting_types import SettingError
from smtpd_fork.sinks.webhook import Webhook

if TYPE_CHECKING:
    import asyncio
    from pathlib import Path

    from support.tls import Certificates

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
KEY = base64.b64decode(SECRET.removeprefix("whsec_"))

# -- requests ----------------------------------------------------------------------------------


async def test_an_application_gets_the_message_and_the_envelope_and_can_verify_both() -> None:
    async with running(App()) as app, closing(Webhook(f"{app.url}?x=1", secret=SECRET)) as sink:
        async with serve(sink) as server, await Client.to(server.addresses[0]) as client:
            await client.greet("client.example")
            await client.say("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>")
            await client.say("RCPT TO:<c@example.com>", "DATA")
            client.send("Subject: x\r\n\r\n..dot\r\n.\r\n")
            reply = await client.reply()
        assert reply.code == 250
    (request,) = app.requests
    headers = request.headers
    assert request.path == "/in?x=1"
    assert headers["Content-Type"] == "message/rfc822"
    assert reply.text == f"2.0.0 Ok: queued as {headers['X-Mail-Id']}"
    assert headers["X-Mail-From"] == "a@example.com"
    assert headers["X-Mail-To"] == "b@example.com, c@example.com"
    assert headers["X-Mail-Client"] == "127.0.0.1"
    assert headers["X-Mail-Helo"] == "client.example"
    assert request.body.startswith(b"Received: from client.example ([127.0.0.1])\r\n")
    assert request.body.endswith(b"\r\nSubject: x\r\n\r\n.dot\r\n")
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + request.body
    digest = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{digest}"


async def test_the_application_gets_the_origin_from_a_trusted_host() -> None:
    options = {"xforward_trust": ["127.0.0.1"]}
    async with running(App()) as app, closing(Webhook(app.url, format="json")) as sink:
        async with serve(sink, **options) as server:
            async with await Client.to(server.addresses[0]) as client:
                await client.greet("filter.example")
                await client.say("XFORWARD NAME=client.example ADDR=IPV6:2001:db8::7 PORT=25")
                assert (await client.deliver()).code == 250
                assert (await client.deliver()).code == 250
    named, other = (json.loads(request.body) for request in app.requests)
    assert named["client"]["address"] == "127.0.0.1"
    assert named["client"]["helo"] == "filter.example"
    assert named["origin"]["address"] == "2001:db8::7"
    assert (named["origin"]["name"], named["origin"]["port"]) == ("client.example", 25)
    assert other["origin"] is None


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=contents)
async def test_every_byte_arrives_raw_and_in_json(content: bytes) -> None:
    async with running(App()) as app:
        forms: list[Any] = ["raw", "json"]
        for form in forms:
            async with closing(Webhook(app.url, format=form)) as sink:
                assert await sink.deliver(mail(content)) == DELIVERED
    raw, coded = app.requests
    assert raw.body == b"".join(mail(content).relayed())
    assert base64.b64decode(json.loads(coded.body)["content"]) == raw.body
    assert coded.headers["Content-Type"] == "application/json"


async def test_a_message_that_is_sent_again_has_the_same_id() -> None:
    async with running(App()) as app, closing(Webhook(app.url)) as sink:
        first, second = mail(trace=b"Received: one\r\n"), mail(trace=b"Received: two\r\n")
        app.status = 500
        assert await sink.deliver(first) == NOT_TAKEN
        app.status = 204
        assert await sink.deliver(second) == DELIVERED
    assert {each.headers["webhook-id"] for each in app.requests} == {first.key}


async def test_a_user_name_and_a_token_are_sent_and_never_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "smtpd_fork")
    async with running(App()) as app:
        url = app.url.replace("://", "://bob:hunter2@") + "?key=hunter2"
        async with closing(Webhook(url)) as sink:
            await sink.deliver(mail())
            app.status = 401
            await sink.deliver(mail())
            shown = f"{sink!r} {sink.destination} {sink.status}"
        async with closing(Webhook(app.url, token="hunter2", secret=SECRET)) as other:
            await other.deliver(mail())
            shown += f"{other!r} {other.destination}"
    basic = base64.b64encode(b"bob:hunter2").decode()
    found = [each.headers["Authorization"] for each in app.requests]
    assert found == [f"Basic {basic}"] * 2 + ["Bearer hunter2"]
    assert "hunter2" not in shown + caplog.text
    assert SECRET not in shown + caplog.text


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with running(App()) as app, closing(Webhook(app.url)) as sink:
        assert await sink.deliver(mail()) == DELIVERED


# -- TLS ---------------------------------------------------------------------------------------


async def test_tls_is_verified_with_the_named_ca(certificates: Certificates) -> None:
    async with running(App(), tls=certificates.server) as app:
        async with closing(Webhook(app.url, ca_file=str(certificates.ca))) as sink:
            assert await sink.deliver(mail()) == DELIVERED
        async with closing(Webhook(app.url)) as sink:
            assert await sink.deliver(mail()) == DOWN
            assert "certificate verify failed" in sink.status.reason
        other = app.url.replace("127.0.0.1", "127.0.0.2")
        async with closing(Webhook(other, ca_file=str(certificates.ca))) as sink:
            assert await sink.deliver(mail()) == DOWN
    assert len(app.requests) == 1


async def test_an_unreadable_ca_file_loses_no_message(tmp_path: Path) -> None:
    async with closing(Webhook("https://127.0.0.1/", ca_file=str(tmp_path / "none"))) as sink:
        assert await sink.deliver(mail()) == DOWN
        assert "No such file" in sink.status.reason


def test_check_reports_an_unreadable_ca_file(tmp_path: Path) -> None:
    sink = Webhook("https://127.0.0.1/", ca_file=str(tmp_path / "none"))
    with pytest.raises(CannotCreateError, match=r"ca-file .*none: .*No such file"):
        sink.check()
    with pytest.raises(CannotCreateError):
        sink.prepare()


# -- recipients --------------------------------------------------------------------------------


async def test_recipients_that_do_not_fit_into_the_header_get_452_and_are_sent_next() -> None:
    names = [f"{'x' * 200}{number}@example.com" for number in range(60)]
    async with running(App()) as app, closing(Webhook(app.url)) as sink:
        async with serve(sink) as server, await Client.to(server.addresses[0]) as client:
            await client.greet()
            while names:
                await client.say("MAIL FROM:<a@example.com>")
                codes = {}
                for name in names:
                    codes[name] = (await client.say(f"RCPT TO:<{name}>")).code
                assert set(codes.values()) <= {250, 452}
                await client.say("DATA")
                client.send("Subject: x\r\n\r\n.\r\n")
                assert (await client.reply()).code == 250
                names = [name for name in names if codes[name] == 452]
    found = [each.headers["X-Mail-To"].split(", ") for each in app.requests]
    assert sum(map(len, found)) == 60
    assert len(found) == 3


async def test_with_json_all_recipients_fit() -> None:
    names = [f"{'x' * 60}{number}@example.com" for number in range(1000)]
    async with running(App()) as app, closing(Webhook(app.url, format="json")) as sink:
        assert await sink.deliver(mail(CONTENT, *names)) == DELIVERED
    assert json.loads(app.requests[0].body)["recipients"] == names


async def test_many_recipients_of_another_handler_are_not_lost() -> None:
    names = [f"{'x' * 60}{number}@example.com" for number in range(1000)]
    async with running(App()) as app, closing(Webhook(app.url)) as sink:
        assert await sink.deliver(mail(CONTENT, *names)) == NOT_TAKEN
    assert app.requests == []


# -- large messages ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["raw", "json"])
async def test_a_large_message_arrives_whole_without_blocking_the_event_loop(form: Any) -> None:
    content = large(25_000_000)
    digest = hashlib.sha256(TRACE + content).digest()
    async with running(App()) as app:
        async with closing(Webhook(app.url, format=form, secret=SECRET)) as sink:
            blockbuster = BlockBuster()
            blockbuster.activate()
            try:
                assert await sink.deliver(mail(content)) == DELIVERED
            finally:
                blockbuster.deactivate()
    body = app.requests[0].body
    if form == "json":
        body = base64.b64decode(json.loads(body)["content"])
    assert hashlib.sha256(body).digest() == digest


@pytest.mark.parametrize("form", ["raw", "json"])
async def test_a_large_message_is_in_memory_only_once(form: Any) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

    async def application(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        left = int(head.lower().partition(b"content-length: ")[2].split()[0])
        while left:
            left -= len(await reader.read(min(left, 1 << 16)))
        writer.write(answer)
        await writer.drain()

    each = mail(large(10_000_000))
    async with raw_server(application) as port:
        url = f"http://127.0.0.1:{port}/"
        async with closing(Webhook(url, format=form, secret=SECRET)) as sink:
            tracemalloc.start()
            try:
                assert await sink.deliver(each) == DELIVERED
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
    assert peak < 0.6 * len(each.content)  # in addition to the message itself


# -- settings, libraries, aiosmtpd -------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "ftp://bob:hunter2@x/"}, r"url '\*\*\*': write http"),
        ({"url": "http://"}, "write http"),
        ({"url": "http://hunter2..x/"}, "write http"),
        ({"url": "http://x:hunter2/"}, "write http"),
        ({"url": "http://x/\nhunter2"}, "write http"),
        ({"format": "xml"}, "format 'xml': expected raw or json"),
        ({"secret": "hunter2"}, r"secret '\*\*\*': write whsec_"),
        ({"token": "hunter2\r\nX: y"}, r"token '\*\*\*': only printable ASCII"),
        ({"url": "http://bob@x/", "token": "hunter2"}, "not with a user name in the URL"),
    ],
)
def test_a_bad_value_is_an_error_that_shows_no_secret(options: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        Webhook(**{"url": "http://127.0.0.1/", **options})
    assert "hunter2" not in str(caught.value)


def test_without_httptools_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "INSTALLED", False)
    with pytest.raises(MissingLibraryError, match=r"pip install 'smtpd-fork\[webhook\]'"):
        Webhook("http://127.0.0.1/")


APP = """
import sys
import tracemalloc
from aiohttp import web

async def handle(request):
    print(request.headers["X-Mail-To"], (await request.read()).decode(), flush=True)
    return web.Response()

app = web.Application()
app.router.add_post("/", handle)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None)
"""


def test_it_runs_under_aiosmtpd() -> None:
    port = free_port("127.0.0.1")
    command = [sys.executable, "-u", "-c", APP, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as app:
        assert app.stdout is not None
        app.stdout.readline()  # "Running on ..."
        app.stdout.readline()
        try:
            with client_of_aiosmtpd(Webhook(f"http://127.0.0.1:{port}/")) as client:
                client.sendmail("a@example.com", ["b@example.com"], "Subject: x\r\n\r\nhello")
            assert app.stdout.readline().startswith("b@example.com Received: from ")
        finally:
            app.terminate()
