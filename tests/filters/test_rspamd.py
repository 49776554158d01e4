"""The filter rspamd in sessions: the requests to rspamd, and its answers."""

from __future__ import annotations

import asyncio
import base64
import logging
import smtplib
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.controller import Controller
from support.client import Client, code_and_enhanced
from support.handlers import Collect, check_password
from support.ports import free_port
from support.rspamd import MESSAGE, TestRspamd, door, outcome, rspamd_server, send
from support.server import serve

from smtpd_fork.errors import HandlerError, MissingLibraryError
from smtpd_fork.filters import Rspamd
from smtpd_fork.filters.greylist import DELAY_SECONDS, SECONDS, Greylist
from smtpd_fork.handlers import Chain, load_handlers
from smtpd_fork.handlers.route import Route
from smtpd_fork.hops import http
from smtpd_fork.sanitizer import shown_handler
from smtpd_fork.setting_types import SettingError
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from support.tls import Certificates


async def test_rspamd_gets_client_and_message_and_the_message_is_unchanged() -> None:
    rspamd = TestRspamd()
    async with door(rspamd) as (client, kept):
        reply = await send(client, "b@example.com", "c@example.com")
        assert reply.code == 250
        await send(client)
    ((headers, body), _) = rspamd.messages
    assert body == MESSAGE.encode()
    assert kept.messages == [body] * 2
    assert headers.getall("Rcpt") == ["b@example.com", "c@example.com"]
    assert headers["From"] == "a@example.org"
    assert headers["IP"] == "127.0.0.1"
    assert headers["Helo"] == "client.example"
    assert headers["MTA-Name"] == "mx.example.com"
    assert headers["Queue-Id"] == kept.envelopes[0].queue_id
    assert "User" not in headers
    assert headers["Accept-Encoding"] == "identity"
    assert "Password" not in headers
    assert rspamd.paths[-2:] == ["/checkv2"] * 2
    assert len(rspamd.connections) == 2  # one for both messages, and one before the start


REPLIES = [
    ({"action": "no action"}, "250"),
    ({"action": "greylist"}, "451 4.7.1 Try again later"),
    ({"action": "soft reject"}, "451 4.7.1 Try again later"),
    ({"action": "soft reject", "messages": {"smtp_message": "Slower"}}, "451 4.7.1 Slower"),
    ({"action": "reject"}, "554 5.7.1 Spam message rejected"),
    ({"action": "reject", "messages": {"smtp_message": "GTUBE"}}, "554 5.7.1 GTUBE"),
    ({"action": "reject", "messages": {"smtp_message": "5.6.0 No"}}, "554 5.6.0 No"),
    ({"action": "reject", "messages": {"smtp_message": "4.6.0 No"}}, "554 5.0.0 No"),
    (
        {"action": "reject", "messages": {"smtp_message": "a\r\n250 b\x00" + "x" * 999}},
        "554 5.7.1 a 250 b?" + "x" * 391,
    ),
    ({"action": "reject", "messages": {"smtp_message": 5}}, "554 5.7.1 Spam message rejected"),
    ({"action": "reject", "is_skipped": True}, "554"),  # as of GTUBE
    ({"action": "reject", "milter": {"no_action": True}}, "250"),
    ({"action": "reject", "milter": {"reject": "discard"}}, "250 2.0.0 Ok: discarded"),
    ({"action": "reject", "milter": {"reject": "quarantine"}}, "451 4.7.1"),
    ({"action": "discard"}, "250 2.0.0 Ok: discarded"),
    ({"action": "quarantine"}, "451 4.7.1"),
    ({"action": "add header"}, "250"),
    ({"action": "rewrite subject", "subject": "y"}, "250"),
    ({"action": "something new"}, "250"),
]


@pytest.mark.parametrize(("answer", "reply"), REPLIES)
async def test_each_action_has_its_reply(answer: dict[str, Any], reply: str) -> None:
    said, stored = await outcome(answer)
    assert said.startswith(reply)
    assert len(stored) == (said.startswith("250") and "discarded" not in said)


@pytest.mark.parametrize(
    ("reject", "reply"),
    [("refuse", "554 5.7.1"), ("discard", "250 2.0.0 Ok: discarded"), ("quarantine", "451 4.7.1")],
)
async def test_the_settings_decide_about_spam(reject: str, reply: str) -> None:
    said, stored = await outcome({"action": "reject"}, reject=reject)
    assert said.startswith(reply)
    assert stored == []


async def test_the_changed_message_is_stored() -> None:
    added = {"milter": {"add_headers": {"X-Spamd-Bar": "++"}, "remove_headers": {"From": 1}}}
    said, (stored,) = await outcome({"action": "add header", **added})
    assert said.startswith("250")
    assert stored == b"Subject: x\r\nX-Spamd-Bar: ++\r\nX-Spam: Yes\r\n\r\nhello\r\n"


async def test_rspamd_can_change_the_envelope() -> None:
    block = {"add_rcpt": ["c@example.com"], "del_rcpt": ["b@example.com"], "change_from": "d@x"}
    async with door(TestRspamd({"action": "no action", "milter": block})) as (client, kept):
        assert (await send(client)).code == 250
    (envelope,) = kept.envelopes
    assert (envelope.mail_from, envelope.rcpt_tos) == ("d@x", ["c@example.com"])
    said, stored = await outcome({"action": "x", "milter": {"del_rcpt": ["b@example.com"]}})
    assert (said, stored) == ("250 2.0.0 Ok: discarded", [])


async def test_a_message_that_becomes_too_large_is_refused() -> None:
    block = {"add_headers": {"X": "y" * 1_000_000}}
    rspamd = TestRspamd({"action": "no action", "milter": block})
    async with door(rspamd, options={"max_message_size": 1000}) as (client, kept):
        assert (await send(client)).code == 250
        rspamd.answer = {"action": "no action", "milter": {"add_headers": {"X": ["y" * 498] * 999}}}
        assert (await send(client)).code == 250
    assert len(kept.messages) == 2
    fields = "X: y\r\n" * 10_001
    said = TestRspamd({"action": "add header"})
    async with door(said) as (client, _):
        assert code_and_enhanced(await send(client, text=f"{fields}\r\n")) == (552, "5.3.4")


async def test_an_unknown_action_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    rspamd = TestRspamd({"action": "some\x1b thing"})
    async with door(rspamd) as (client, kept):
        await send(client)
        await send(client)
    assert len(kept.messages) == 2
    lines = [each for each in caplog.messages if "not known" in each]
    assert lines == [
        (
            f"rspamd {rspamd.url}: the action some\\x1b thing is not known; "
            "messages with it are accepted"
        )
    ]


# -- greylisting -------------------------------------------------------------------------------


def test_a_greylisted_message_is_accepted_when_it_is_sent_again_after_minutes() -> None:
    greylist = Greylist()
    assert greylist.delays("a", 1000.0)
    assert greylist.delays("a", 1000.0 + DELAY_SECONDS - 1)
    assert greylist.delays("b", 1000.0 + DELAY_SECONDS - 1)
    assert not greylist.delays("a", 1000.0 + DELAY_SECONDS)
    assert greylist.delays("c", 1000.0 + SECONDS + 1)
    assert len(greylist) == 2
    assert greylist.delays("a", 1000.0 + SECONDS + 1)


def test_the_greylist_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtpd_fork.filters.greylist.MESSAGES", 3)
    greylist = Greylist()
    for number in range(9):
        greylist.delays(str(number), 0.0)
    assert len(greylist) == 3


async def test_the_action_greylist_loses_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtpd_fork.filters.greylist.DELAY_SECONDS", 0.01)
    async with door(TestRspamd({"action": "greylist"})) as (client, kept):
        assert (await send(client)).code == 451
        await asyncio.sleep(0.02)
        assert (await send(client)).code == 250
        assert (await send(client, text=MESSAGE + "another\r\n")).code == 451
    assert kept.messages == [MESSAGE.encode()]


# -- skipped clients ---------------------------------------------------------------------------

LOGIN = base64.b64encode(b"\0bob\0pass").decode()


@pytest.mark.parametrize("skip", [True, False])
async def test_an_authenticated_client_is_skipped_by_default(skip: bool) -> None:
    options = {
        "session_options": {"authenticator": check_password, "auth_require_tls": False},
    }
    rspamd = TestRspamd({"action": "reject"})
    keys = {} if skip else {"skip_authenticated": False}
    async with door(rspamd, options=options, **keys) as (client, _):
        assert (await client.say(f"AUTH PLAIN {LOGIN}")).code == 235
        assert (await send(client)).code == (250 if skip else 554)
    assert [headers["User"] for headers, _ in rspamd.messages] == ([] if skip else ["bob"])


@pytest.mark.parametrize("skip", [True, False])
async def test_an_exempt_client_is_skipped_by_default(skip: bool) -> None:
    rspamd = TestRspamd({"action": "reject"})
    keys = {} if skip else {"skip_exempt": False}
    async with door(rspamd, options={"exempt": ["127.0.0.1"]}, **keys) as (client, _):
        assert (await send(client)).code == (250 if skip else 554)


# -- settings ----------------------------------------------------------------------------------


def loaded(text: str) -> Rspamd:
    handler = load_handlers([text, "discard"]).handlers[0]
    assert isinstance(handler, Rspamd)
    return handler


def test_settings_are_strings_and_the_password_is_never_shown() -> None:
    text = "rspamd:http://127.0.0.1:11333,password=hunter2,when-down=accept,skip-exempt=no"
    handler = loaded(text)
    assert repr(handler) == "<Rspamd http://127.0.0.1:11333>"
    assert "hunter2" not in str(shown_handler(text))
    assert "hunter2" not in str(
        shown_handler({"use": "rspamd", "url": ["http://x"], "password": "hunter2"})
    )


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://x:1/", "http://x:1"),
        ("http://x:1/checkv2", "http://x:1"),
        ("http://x:1/checkv2/", "http://x:1"),
        ("https://x/rspamd/", "https://x/rspamd"),
        ("http://[::1]:11333", "http://[::1]:11333"),
        ("unix:/run/rspamd/worker.sock", "unix:/run/rspamd/worker.sock"),
        ("unix:worker.sock", f"unix:{Path.cwd()}/worker.sock"),
    ],
)
def test_a_url_may_have_a_path(url: str, shown: str) -> None:
    assert repr(Rspamd([url])) == f"<Rspamd {shown}>"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"url": ["ftp://hunter2/"]}, r"url '\*\*\*': write http"),
        ({"url": []}, "write http"),
        ({"url": ["unix:"]}, "url 'unix:': "),
        ({"url": ["http://bob:hunter2@x/"]}, "the password as the key password"),
        ({"url": ["http://x/?password=hunter2"]}, "the password as the key password"),
        ({"password": "hunter2\n"}, r"password '\*\*\*': only printable ASCII"),
    ],
)
def test_a_bad_value_is_an_error_that_shows_no_secret(keys: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        Rspamd(**{"url": ["http://127.0.0.1:1"], **keys})
    assert "hunter2" not in str(caught.value)


def test_an_unknown_key_is_an_error() -> None:
    with pytest.raises((HandlerError, SettingError), match="when-dwon"):
        loaded("rspamd:http://127.0.0.1:1,when-dwon=accept")


def test_without_httptools_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "INSTALLED", False)
    with pytest.raises(MissingLibraryError, match=r"pip install 'smtpd-fork\[rspamd\]'"):
        Rspamd(["http://127.0.0.1:1"])


# -- check -------------------------------------------------------------------------------------


async def test_check_warns_about_a_server_that_is_down_and_succeeds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    down = f"http://127.0.0.1:{free_port('127.0.0.1')}"
    async with rspamd_server() as rspamd:
        await asyncio.to_thread(Rspamd([rspamd.url, down]).check)
    (line,) = caplog.messages
    assert line.startswith(f"rspamd {down}: ")
    assert line.endswith("; it is skipped until it answers")
    assert rspamd.paths == ["/ping"]


async def test_check_reports_a_wrong_password() -> None:
    async with rspamd_server(TestRspamd(password="right")) as rspamd:
        await asyncio.to_thread(Rspamd([rspamd.url], password="right").check)
        with pytest.raises(HandlerError, match=f"rspamd {rspamd.url} refuses the password"):
            await asyncio.to_thread(Rspamd([rspamd.url], password="hunter2").check)


async def test_tls_is_verified_with_the_configured_ca(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    async with rspamd_server(tls=certificates.server) as rspamd:
        await asyncio.to_thread(Rspamd([rspamd.url], ca_file=str(certificates.ca)).check)
        assert caplog.messages == []
        await asyncio.to_thread(Rspamd([rspamd.url]).check)
        assert "certificate verify failed" in caplog.text


async def test_rspamd_can_be_used_over_a_unix_socket(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, kept = tmp_path / "rspamd.sock", Collect()
    judge = loaded(f"rspamd:unix:{path}")
    async with serve([judge, kept]) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        assert (await send(client)).code == 451
        assert f"rspamd unix:{path} is down: No such file or directory" in caplog.text
        judge._servers._servers[0]._next_attempt = 0.0
        async with rspamd_server(TestRspamd({"action": "add header"}), path=str(path)) as rspamd:
            assert (await send(client)).code == 250
            await asyncio.to_thread(judge.check)
    assert rspamd.paths == ["/checkv2", "/ping"]
    assert b"X-Spam: Yes" in kept.messages[0]


# -- other environments ------------------------------------------------------------------------


async def test_conditions_select_the_messages_to_check() -> None:
    rspamd, kept = TestRspamd({"action": "reject"}), Collect()
    async with rspamd_server(rspamd):
        chain = [Route(Rspamd([rspamd.url]), when={"client": "192.0.2.0/24"}), kept]
        async with serve(chain) as server, await Client.to(server.addresses[0]) as client:
            await client.greet()
            assert (await send(client)).code == 250
    assert rspamd.messages == []


def test_it_runs_under_aiosmtpd(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "smtpd_fork")
    ready, end = threading.Event(), threading.Event()
    rspamd = TestRspamd({"action": "add header"})

    async def run() -> None:
        async with rspamd_server(rspamd):
            ready.set()
            await asyncio.to_thread(end.wait)

    thread = threading.Thread(target=asyncio.run, args=[run()])
    thread.start()
    assert ready.wait(20)
    kept = Collect()
    chain = Chain([Rspamd([rspamd.url]), kept, Discard()])
    controller = Controller(chain, "127.0.0.1", free_port("127.0.0.1"))
    controller.start()
    try:
        with smtplib.SMTP("127.0.0.1", controller.port, timeout=20) as client:
            client.sendmail("a@example.com", ["b@example.com"], MESSAGE)
            rspamd.answer = {"action": "reject"}
            with pytest.raises(smtplib.SMTPDataError) as refused:
                client.sendmail("a@example.com", ["b@example.com"], MESSAGE)
        assert refused.value.smtp_code == 554
        asyncio.run_coroutine_threadsafe(chain.close(), controller.loop).result(20)
    finally:
        controller.stop()
        end.set()
        thread.join()
    assert b"X-Spam: Yes\r\n" in kept.messages[0]
