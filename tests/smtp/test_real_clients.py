"""Real clients: messages of swaks, curl and Postfix's smtp-source arrive unchanged."""

from __future__ import annotations

import subprocess
from email import message_from_string
from typing import TYPE_CHECKING

import pytest
from support.daemon import PATIENCE, Daemon, messages, on_both_loops
from support.peers import peer

if TYPE_CHECKING:
    from email.message import Message
    from pathlib import Path

    from support.tls import Certificates

BODY = "First line\n.\n..two dots\n\nFrom here\n" + "caf\u00e9 " * 30 + "\nlast line\n"
"""A message with parts that servers may change: single dots, an empty line, "From", 8 bits."""


def call(*words: object, given: str | None = None) -> str:
    """Run a client, which must succeed; return its output."""
    ended = subprocess.run(
        [str(word) for word in words],
        input=given,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def only_message(maildir: Path) -> Message:
    """Return the only message, after a check of its trace fields."""
    (text,) = messages(maildir)
    message = message_from_string(text)
    assert message.keys()[:3] == ["Return-Path", "Delivered-To", "Received"]
    assert message["Return-Path"] == "<a@example.com>"
    assert message["Delivered-To"] == "b@example.com"
    assert "\tby mx.example.com (smtpd-fork) with " in message["Received"]
    assert "\tfor <b@example.com>;" in message["Received"]
    assert list((maildir / "tmp").iterdir()) == []
    return message


def start(folder: Path, *options: str) -> Daemon:
    return Daemon(*(options or ("-l", "127.0.0.1:0")), "--hostname", "mx.example.com", cwd=folder)


def tls_options(certificates: Certificates) -> tuple[str, ...]:
    return ("--tls-cert", str(certificates.cert), "--tls-key", str(certificates.key))


# -- swaks -------------------------------------------------------------------------------------


def swaks(daemon: Daemon, *more: object, host: str = "127.0.0.1") -> str:
    return call(
        *(peer("swaks"), "--server", host, "--port", daemon.port, "--helo", "client.example"),
        *("--from", "a@example.com", "--to", "b@example.com"),
        *("--header", "Subject: by swaks", "--body", BODY, *more),
    )


def test_swaks_delivers_a_message(tmp_path: Path) -> None:
    with start(tmp_path) as daemon:
        said = swaks(daemon)
        assert "<-  220 mx.example.com ESMTP smtpd-fork" in said
        assert "<-  221 2.0.0 Bye" in said
    message = only_message(tmp_path / "Maildir")
    assert message["Subject"] == "by swaks"
    assert message["Received"].startswith("from client.example ([127.0.0.1])\n")
    assert " with ESMTP id " in message["Received"]
    payload = message.get_payload()
    assert isinstance(payload, str)
    assert payload.rstrip("\n") == BODY.rstrip("\n")


def test_swaks_delivers_over_starttls(tmp_path: Path, certificates: Certificates) -> None:
    with start(tmp_path, "-l", "127.0.0.1:0", *tls_options(certificates)) as daemon:
        said = swaks(daemon, "--tls", "--tls-verify", "--tls-ca-path", certificates.ca)
        assert "=== TLS started with cipher TLSv1.3" in said
    message = only_message(tmp_path / "Maildir")
    assert " with ESMTPS id " in message["Received"]
    assert "\n\t(TLSv1.3 cipher " in message["Received"]


def test_swaks_delivers_over_implicit_tls(tmp_path: Path, certificates: Certificates) -> None:
    with start(tmp_path, "-l", "smtps:127.0.0.1:0", *tls_options(certificates)) as daemon:
        swaks(daemon, "--tls-on-connect", "--tls-verify", "--tls-ca-path", certificates.ca)
    assert " with ESMTPS id " in only_message(tmp_path / "Maildir")["Received"]


def test_swaks_delivers_over_ipv6(tmp_path: Path) -> None:
    with start(tmp_path, "-l", "[::1]:0") as daemon:
        swaks(daemon, "-6", host="::1")
    received = only_message(tmp_path / "Maildir")["Received"]
    assert received.startswith("from client.example ([IPv6:::1])\n")


def test_swaks_delivers_by_ipv4_to_the_default_listener(tmp_path: Path) -> None:
    """The socket is an IPv6 socket; the header has the client's IPv4 address."""
    with start(tmp_path, "-p", "0") as daemon:
        swaks(daemon)
    received = only_message(tmp_path / "Maildir")["Received"]
    assert received.startswith("from client.example ([127.0.0.1])\n")


def test_swaks_delivers_by_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "smtp.sock"
    with start(tmp_path, "-l", f"unix:{path}"):
        call(
            *(peer("swaks"), "--socket", path, "--helo", "client.example"),
            *("--from", "a@example.com", "--to", "b@example.com"),
        )
    received = only_message(tmp_path / "Maildir")["Received"]
    assert received.startswith("from client.example (local socket)\n")


def test_swaks_delivers_after_helo(tmp_path: Path) -> None:
    with start(tmp_path) as daemon:
        swaks(daemon, "--protocol", "SMTP")
    assert " with SMTP id " in only_message(tmp_path / "Maildir")["Received"]


def test_swaks_is_rejected_without_the_required_tls(
    tmp_path: Path, certificates: Certificates
) -> None:
    options = ("-l", "127.0.0.1:0", *tls_options(certificates), "--require-starttls")
    with start(tmp_path, *options) as daemon:
        with pytest.raises(AssertionError, match=r"<\*\* 530 "):
            swaks(daemon)
        swaks(daemon, "--tls")
    only_message(tmp_path / "Maildir")


# -- curl --------------------------------------------------------------------------------------


@pytest.fixture
def letter(tmp_path: Path) -> Path:
    path = tmp_path / "letter"
    path.write_text("Subject: by curl\r\n\r\n" + BODY.replace("\n", "\r\n"), newline="")
    return path


def curl(url: str, letter: Path, *more: object) -> str:
    return call(
        *(peer("curl"), "--silent", "--show-error", "--noproxy", "*", "--url", url, *more),
        *("--mail-from", "a@example.com", "--mail-rcpt", "b@example.com"),
        *("--upload-file", letter),
    )


def test_curl_delivers_a_message(tmp_path: Path, letter: Path) -> None:
    with start(tmp_path) as daemon:
        curl(f"smtp://127.0.0.1:{daemon.port}/client.example", letter)
    message = only_message(tmp_path / "Maildir")
    assert message["Subject"] == "by curl"
    assert message["Received"].startswith("from client.example ([127.0.0.1])\n")
    assert message.get_payload() == BODY


def test_curl_delivers_over_starttls(
    tmp_path: Path, letter: Path, certificates: Certificates
) -> None:
    with start(tmp_path, "-l", "127.0.0.1:0", *tls_options(certificates)) as daemon:
        url = f"smtp://127.0.0.1:{daemon.port}"
        curl(url, letter, "--ssl-reqd", "--cacert", certificates.ca)
    message = only_message(tmp_path / "Maildir")
    assert " with ESMTPS id " in message["Received"]
    assert message.get_payload() == BODY


def test_curl_delivers_over_smtps(tmp_path: Path, letter: Path, certificates: Certificates) -> None:
    with start(tmp_path, "-l", "smtps:[::1]:0", *tls_options(certificates)) as daemon:
        curl(f"smtps://[::1]:{daemon.port}", letter, "--cacert", certificates.ca)
    assert " with ESMTPS id " in only_message(tmp_path / "Maildir")["Received"]


def test_curl_delivers_a_large_message(tmp_path: Path, letter: Path) -> None:
    line = "x" * 76 + "\r\n"
    letter.write_text("Subject: large\r\n\r\n" + line * 100_000, newline="")
    with start(tmp_path) as daemon:
        curl(f"smtp://127.0.0.1:{daemon.port}", letter)
    assert only_message(tmp_path / "Maildir").get_payload() == line.replace("\r", "") * 100_000


# -- smtp-source -------------------------------------------------------------------------------


def smtp_source(daemon: Daemon, *more: object) -> None:
    call(
        *(peer("smtp-source"), "-s", 10, "-m", 200, "-l", 2000, *more),
        *("-f", "a@example.com", "-t", "b@example.com", f"inet:127.0.0.1:{daemon.port}"),
    )


def test_smtp_source_stores_complete_messages_in_a_maildir(tmp_path: Path) -> None:
    with start(tmp_path) as daemon:
        smtp_source(daemon)
        assert daemon.stop() == 0
        assert daemon.log.count(" queued: ") == 200
    texts = messages(tmp_path / "Maildir")
    assert len(texts) == 200
    assert list((tmp_path / "Maildir" / "tmp").iterdir()) == []
    ids = set()
    for text in texts:
        message = message_from_string(text)
        assert message["Return-Path"] == "<a@example.com>"
        assert message["Delivered-To"] == "b@example.com"
        ids.add(message["Received"].partition(" id ")[2].split()[0])
        assert 1900 < len(message.get_payload()) <= 2000
        assert text.endswith("X\n")
    assert len(ids) == 200


@on_both_loops
def test_smtp_source_is_served_by_either_loop(tmp_path: Path, loop: str) -> None:
    options = ("-l", "127.0.0.1:0", "--handler", "discard", "--loop", loop)
    with start(tmp_path, *options) as daemon:
        smtp_source(daemon)
        smtp_source(daemon, "-d")  # several messages a connection
        assert daemon.stop() == 0
        assert "ERROR" not in daemon.log


def test_clients_of_smtp_source_wait_for_connection_slots(tmp_path: Path) -> None:
    """Ten clients, two connection slots, no refusal: eight clients wait in the backlog."""
    options = ("-l", "127.0.0.1:0", "--handler", "discard", "-c", "2")
    with start(tmp_path, *options) as daemon:
        smtp_source(daemon)
        assert daemon.stop() == 0
        assert "WARNING refused" not in daemon.log
