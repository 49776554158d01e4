"""Certificate rotation in a daemon: SIGHUP, paths, a key that the user cannot read, and load."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING

from support.authority import KEPT, RENEWED, Authority, Issued, Volume, copy
from support.daemon import LOCAL, Daemon, Detached, messages
from support.daemon import until as until_now
from support.openssl import Load, s_client, swaks
from support.peers import needs_root, peers

if TYPE_CHECKING:
    from pathlib import Path


DAEMON = ("-l", "127.0.0.1:0", "-l", "smtps:127.0.0.1:0", "--handler", "discard")


def ports(daemon: Daemon) -> list[int]:
    return [int(place.rpartition(":")[2]) for place in daemon.places]


def daemon_shows(daemon: Daemon, authority: Authority) -> set[str]:
    plain, tls = ports(daemon)
    shaken = [s_client(plain, authority, starttls=True), s_client(tls, authority)]
    assert [one.status for one in shaken] == [0, 0]
    return {one.serial for one in shaken}


def test_sighup_reloads_the_certificates(
    tmp_path: Path, authority: Authority, old: Issued, new: Issued
) -> None:
    was = old.serial
    with Daemon(*DAEMON, *old.options, cwd=tmp_path) as daemon:
        assert daemon_shows(daemon, authority) == {was}
        copy(new, old)
        daemon.signal(signal.SIGHUP)
        daemon.wait_for(RENEWED)
        assert daemon_shows(daemon, authority) == {new.serial}


def test_an_unusable_key_does_not_prevent_the_reload_of_lists(
    tmp_path: Path, authority: Authority, old: Issued, new: Issued
) -> None:
    denied, was = tmp_path / "denied", old.serial
    denied.write_text("")
    with Daemon(*DAEMON, *old.options, "--deny", str(denied), cwd=tmp_path) as daemon:
        old.key.write_bytes(new.key.read_bytes())
        denied.write_text("127.0.0.9\n")
        daemon.signal(signal.SIGHUP)
        daemon.wait_for(KEPT + ".*is not the key of")
        daemon.wait_for("configuration reloaded")
        assert daemon_shows(daemon, authority) == {was}


def test_a_detached_daemon_finds_its_files_by_relative_paths(
    tmp_path: Path, authority: Authority, old: Issued, new: Issued
) -> None:
    options = (*LOCAL, "--tls-cert", "old.pem", "--tls-key", "old.key")
    with Detached(*options, cwd=tmp_path) as daemon:
        copy(new, old)
        until_now(lambda: RENEWED in daemon.text, "the renewal")
        shaken = s_client(daemon.port, authority, starttls=True)
        assert (shaken.status, shaken.serial) == (0, new.serial)


def test_a_key_that_the_user_cannot_read_is_logged_at_start_and_renewal(
    public: Path, command_for_nobody: list[str]
) -> None:
    needs_root()
    authority = Authority(public)
    old = authority.issue("old", "localhost")
    new, was = authority.issue("new", "localhost"), old.serial
    old.key.chmod(0o600)
    options = ("-u", "nobody", *DAEMON, *old.options)
    with Daemon(*options, cwd=public, command=command_for_nobody) as daemon:
        denied = rf"{old.key}: Permission denied \(for the user nobody\)"
        daemon.wait_for(f"a renewed certificate will need a restart: cannot read {denied}")
        copy(new, old)
        daemon.wait_for(f"{KEPT}.*{denied}")
        assert daemon_shows(daemon, authority) == {was}
        old.key.chmod(0o644)
        daemon.wait_for(RENEWED)
        assert daemon_shows(daemon, authority) == {new.serial}
        assert len([line for line in daemon.log.splitlines() if KEPT in line]) == 1


def test_certificates_are_renewed_under_load_without_failed_handshakes(
    tmp_path: Path, authority: Authority, old: Issued
) -> None:
    """The clients are openssl with both kinds of TLS, swaks, and one long session."""
    peers("openssl", "swaks")
    volume = Volume(tmp_path / "volume", old)
    options = (*DAEMON[:4], *volume.options, "--hostname", "mx.example.com")
    with Daemon(*options, cwd=tmp_path) as daemon, ExitStack() as stack:
        plain, tls = ports(daemon)
        lasting = stack.enter_context(daemon.smtp("localhost"))
        lasting.starttls(context=authority.client())
        shakers = [
            Load(lambda: s_client(plain, authority, starttls=True)),
            Load(lambda: s_client(tls, authority)),
            Load(lambda: s_client(tls, authority, "-tls1_2")),
        ]
        senders = [
            Load(lambda: swaks(plain, authority, "--tls")),
            Load(lambda: swaks(tls, authority, "--tls-on-connect")),
        ]
        clients = [*shakers, *senders]
        for client in clients:
            stack.enter_context(client)
        now = old
        for round_, hangup in enumerate([False, True, True, False, True], start=1):
            now = authority.issue(f"round{round_}", "localhost", "127.0.0.1")
            volume.put(now)
            if hangup:
                daemon.signal(signal.SIGHUP)
            until_now(lambda: daemon.log.count(RENEWED) == round_, "the renewal")  # noqa: B023
            lasting.sendmail("lasting@example.com", "b@example.com", "Subject: x\r\n\r\nx\r\n")
            for client in clients:
                came = client.wait_for_next()
                assert came.status == 0, came.text
                if client in shakers:
                    assert came.serial == now.serial
        for client in clients:
            client.__exit__()
            assert client.failed == []
        lasting.quit()
        assert "handshake failed" not in daemon.log
        assert "no session" not in daemon.log
    sent = sum(client.count for client in senders)
    assert len(messages(tmp_path / "Maildir")) == sent + 5
