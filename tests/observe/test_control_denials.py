"""``smtpd-fork deny`` and ``undeny``: networks are denied while the daemon runs."""

from __future__ import annotations

import json
import os
import re
import signal
import smtplib
from typing import TYPE_CHECKING

import pytest
from support.control import CONTROL, ask, command, says
from support.daemon import LOCAL, Daemon, on_both_loops, run, until
from support.peers import needs_root, peer
from support.place import only_line
from support.upgrades import Successors

if TYPE_CHECKING:
    from pathlib import Path


def reply(daemon: Daemon, source: str) -> str:
    """Return the greeting of a client, or its refusal."""
    try:
        with daemon.smtp(source=source):
            return "220"
    except smtplib.SMTPConnectError as error:
        return f"{error.smtp_code} {bytes(error.smtp_error).decode()}"  # type: ignore[arg-type]


def test_a_network_is_denied_listed_explained_and_admitted_again(
    daemon: Daemon, tmp_path: Path
) -> None:
    with daemon.smtp(source="127.0.0.2") as inside:
        assert says(tmp_path, "deny", "127.0.0.2/31", "Spam", "since noon", "--for", "1h") == (
            "127.0.0.2/31 denied for 1h 0m\n"
        )
        refused = reply(daemon, "127.0.0.2")
        assert re.fullmatch(r"554 5\.7\.1 \S+ Spam since noon \[\S+\]", refused)
        assert reply(daemon, "127.0.0.1") == "220"
        assert inside.noop()[0] == 250, "sessions go on"
    header, line = says(tmp_path, "deny").splitlines()
    assert header.split() == ["NETWORK", "LEFT", "SINCE", "(UTC)", "BY", "TEXT"]
    assert re.fullmatch(r"127\.0\.0\.2/31 +59m \d+s .* uid \d+, pid \d+ +Spam since noon", line)
    (listed,) = (json.loads(each) for each in says(tmp_path, "deny", "--json").splitlines())
    assert 3500 < listed["seconds"] <= 3600
    assert "denied     1 networks" in says(tmp_path, "status")
    name = refused.rpartition("[")[2].rstrip("]")
    explained = says(tmp_path, "explain", name)
    assert re.search(
        rf"^origin   denied at run time by uid {os.getuid()}, pid \d+ at \S+ \S+ UTC$",
        explained, re.MULTILINE,
    )  # fmt: skip
    assert "advice   smtpd-fork undeny 127.0.0.2/31\n" in explained
    assert says(tmp_path, "undeny", "127.0.0.2/31") == "127.0.0.2/31 is no longer denied\n"
    assert reply(daemon, "127.0.0.2") == "220"
    daemon.wait_for(r"control: uid \d+, pid \d+: deny 127.0.0.2/31 for 3600 s: Spam since noon$")
    daemon.wait_for(r"control: uid \d+, pid \d+: undeny 127.0.0.2/31$")


def test_the_lists_of_deny_stay_in_force_and_refusals_name_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "bad.list").write_text("# bad\n127.0.0.3 Listed\n")
    with Daemon(*LOCAL, *CONTROL, "--deny", "./bad.list", cwd=tmp_path) as daemon:
        says(tmp_path, "deny", "127.0.0.2")
        assert reply(daemon, "127.0.0.2").startswith("554")
        refused = reply(daemon, "127.0.0.3")
        name = refused.rpartition("[")[2].rstrip("]")
        assert re.search(
            r"^origin +\S*bad\.list, line 2$", says(tmp_path, "explain", name), re.MULTILINE
        )
        ended = command(tmp_path, "undeny", "127.0.0.3")
        assert ended.returncode == os.EX_DATAERR
        assert "127.0.0.3 was not denied at run time" in only_line(ended)


@on_both_loops
def test_denials_are_kept_over_reloads_and_upgrades(tmp_path: Path, loop: str) -> None:
    options = (*LOCAL, *CONTROL, "--loop", loop)
    with Daemon(*options, cwd=tmp_path) as daemon, Successors(daemon) as successors:
        says(tmp_path, "deny", "127.0.0.2", "Kept", "--for", "1h")
        says(tmp_path, "deny", "127.0.0.3")
        before = ask(tmp_path, "denials")["denials"]
        before[0].pop("seconds")
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("configuration reloaded")
        assert reply(daemon, "127.0.0.2").startswith("554")
        for _ in range(2):
            successors.upgrade()
            assert re.match(r"554 .* Kept \[", reply(daemon, "127.0.0.2"))
            after = ask(tmp_path, "denials")["denials"]
            assert 3400 < after[0].pop("seconds") <= 3600
            assert after == before
        assert reply(daemon, "127.0.0.4") == "220"


def test_denials_during_an_upgrade_are_handed_over(tmp_path: Path) -> None:
    with Daemon(*LOCAL, *CONTROL, cwd=tmp_path) as daemon, Successors(daemon) as successors:
        says(tmp_path, "deny", "127.0.0.2")
        daemon.signal(signal.SIGUSR2)
        daemon.wait_for("SIGUSR2")
        assert ask(tmp_path, "deny", network="127.0.0.3")["ok"]
        assert ask(tmp_path, "undeny", network="127.0.0.2")["ok"]
        taken = daemon.wait_for(r"process (\d+) has inherited the sockets")
        successors.pids.append(int(taken[1]))
        daemon.wait_for(f"serving, pid {taken[1]}$")
        assert reply(daemon, "127.0.0.3").startswith("554")
        assert reply(daemon, "127.0.0.2") == "220"


def test_a_denial_expires(tmp_path: Path) -> None:
    with Daemon(*LOCAL, *CONTROL, cwd=tmp_path) as daemon:
        assert ask(tmp_path, "deny", network="127.0.0.2", seconds=2)["ok"]
        assert reply(daemon, "127.0.0.2").startswith("554")
        until(lambda: reply(daemon, "127.0.0.2") == "220", "the denial ends")
        assert ask(tmp_path, "denials")["denials"] == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("deny", "nonsense"), "deny 'nonsense': not a network; write 192.0.2.0/24"),
        (("deny", "192.0.2.7/24"), "within 192.0.2.0/24, not a network: it has host bits set"),
        (("deny", "192.0.2.7", "x" * 201), "the text has 201 characters, at most 200 are allowed"),
        (("deny", "192.0.2.7", "--for", "0"), "--for '0': must be more than 0"),
        (("deny", "192.0.2.7", "--for", "soon"), "--for 'soon': not a duration"),
        (("deny", "192.0.2.7", "--for", "9999h"), "at most 31622400 s"),
        (("deny", "--for", "1h"), "--for: name a network to deny"),
        (("undeny",), "Missing argument 'NET'"),
        (("undeny", "nonsense"), "not a network"),
    ],
)
def test_bad_input_is_one_line_with_status_64_and_denies_nothing(
    place_with_daemon: Path, words: tuple[str, ...], reason: str
) -> None:
    ended = command(place_with_daemon, *words)
    assert ended.returncode == os.EX_USAGE
    assert reason in only_line(ended)
    assert ask(place_with_daemon, "denials")["denials"] == []


def test_the_text_of_a_denial_is_one_line_of_a_reply(tmp_path: Path) -> None:
    with Daemon(*LOCAL, *CONTROL, cwd=tmp_path) as daemon:
        text = "a\r\n250 b\x1b[2J\xe9"
        assert ask(tmp_path, "deny", network="127.0.0.2", text=text)["text"] == "a??250 b?[2J?"
        assert " a??250 b?[2J? [" in reply(daemon, "127.0.0.2")


def test_many_denials_are_listed_page_by_page(tmp_path: Path) -> None:
    with Daemon(*LOCAL, *CONTROL, cwd=tmp_path):
        for number in range(250):
            assert ask(tmp_path, "deny", network=f"192.0.2.{number}")["ok"]
        listed = [line.split()[0] for line in says(tmp_path, "deny").splitlines()[1:]]
        assert listed == [f"192.0.2.{number}" for number in range(250)]


def test_another_user_cannot_deny(public: Path, command_for_nobody: list[str]) -> None:
    needs_root()
    nobody = [peer("setpriv"), "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    with Daemon(*LOCAL, *CONTROL, cwd=public, command=command_for_nobody):
        (public / "control.sock").chmod(0o666)
        ended = run(
            "deny", "192.0.2.1", *CONTROL, cwd=public, command=[*nobody, *command_for_nobody]
        )
        assert ended.returncode == os.EX_NOPERM
        (public / "control.sock").chmod(0o600)
        assert ask(public, "denials")["denials"] == []
