"""``smtpd-fork limits``: limits are shown, changed at run time, and reset by a reload."""

from __future__ import annotations

import json
import os
import re
import signal
import smtplib
from typing import TYPE_CHECKING

import pytest
from support.control import CONTROL, ask, command, says
from support.daemon import COMMAND, LOCAL, Daemon
from support.place import only_line

if TYPE_CHECKING:
    from pathlib import Path


def test_limits_are_shown_changed_and_reset_by_a_reload(daemon: Daemon, tmp_path: Path) -> None:
    assert re.search(r"^max_from_ip +50$", says(tmp_path, "limits"), re.MULTILINE)
    text = says(
        tmp_path, "limits", "limit_connections=200", "max-from-ip=1", "rate=9/m", "rate=99/h"
    )
    assert re.search(r"^limit_connections +200  \(changed\)$", text, re.MULTILINE)
    assert re.search(r"^rate +9/m 99/h  \(changed\)$", text, re.MULTILINE)
    assert text.endswith("changes last until the next reload or restart\n")
    for word, said in {"yes": "yes", "0": "no", "true": "yes", "no": "no"}.items():
        assert re.search(
            rf"^fair_share +{said}\b", says(tmp_path, "limits", f"fair-share={word}"), re.MULTILINE
        )
    with daemon.smtp():
        with pytest.raises(smtplib.SMTPConnectError, match="421"):
            daemon.smtp()
    assert re.search(r"^rate +-$", says(tmp_path, "limits", "rate="), re.MULTILINE)
    shown = json.loads(says(tmp_path, "limits", "--json"))
    assert shown["changed"] == ["limit_connections", "max_from_ip"]
    assert ask(tmp_path, "status")["limits_changed"] == shown["changed"]
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("configuration reloaded")
    shown = json.loads(says(tmp_path, "limits", "--json"))
    assert (shown["changed"], shown["until"], shown["limits"]["max_from_ip"]) == ([], None, 50)


def test_a_failed_reload_keeps_the_changes(tmp_path: Path) -> None:
    (tmp_path / "bad.list").write_text("192.0.2.1\n")
    with Daemon(*LOCAL, *CONTROL, "--deny", "./bad.list", cwd=tmp_path) as daemon:
        says(tmp_path, "limits", "max_from_ip=7")
        (tmp_path / "bad.list").write_text("nonsense\n")
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("reload failed, previous settings stay in force")
        shown = ask(tmp_path, "limits")
        assert (shown["changed"], shown["limits"]["max_from_ip"]) == (["max_from_ip"], 7)
        # The invalid list does not prevent a change of other limits either.
        assert ask(tmp_path, "limits", set={"max_from_ip": ["8"]})["ok"]
        assert ask(tmp_path, "limits", set={"allow": ["192.0.2.7"]})["ok"]
        assert not ask(tmp_path, "limits", set={"exempt": ["./bad.list"]})["ok"]
        assert ask(tmp_path, "limits")["limits"]["max_from_ip"] == 8


def test_a_network_can_be_denied_at_run_time_and_rates_keep_their_state(tmp_path: Path) -> None:
    with Daemon(*LOCAL, *CONTROL, "--rate", "1/h", cwd=tmp_path) as daemon:
        daemon.smtp().close()
        says(tmp_path, "limits", "max_from_ip=9")
        says(tmp_path, "deny", "127.0.0.2/32")
        with pytest.raises(smtplib.SMTPConnectError, match="554"):
            daemon.smtp(source="127.0.0.2")
        with pytest.raises(smtplib.SMTPConnectError, match="421"):
            daemon.smtp()  # it had used its one session per hour before


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("max_from_ip=-1",), "max_from_ip '-1': expected"),
        (("max_from_ip=1", "max_from_ip=2"), "one value is expected"),
        (("max_from_ip=",), "one value is expected"),
        (("fair_share=perhaps",), "fair_share 'perhaps': expected true or false"),
        (("hostname=x",), "not a limit that can be changed"),
        (("max_loop_lag=1s",), "not a limit that can be changed"),
        (("rate=9/x",), "rate '9/x'"),
        (("allow=/none/list",), "allow '/none/list'"),
        (("deny=192.0.2.1",), "deny '192.0.2.1': this would replace all lists of deny"),
        (("reserve=1000", "exempt=192.0.2.1"), "must be less than limit_connections"),
        (("reserve=1",), "needs --exempt"),
        (("max_from_ip",), "write NAME=VALUE"),
        (("=1",), "write NAME=VALUE"),
    ],
)
def test_an_invalid_limit_changes_nothing(
    place_with_daemon: Path, words: tuple[str, ...], reason: str
) -> None:
    ended = command(place_with_daemon, "limits", "limit_connections=7", *words)
    assert ended.returncode == os.EX_USAGE
    assert reason in only_line(ended)
    shown = ask(place_with_daemon, "limits")
    assert (shown["changed"], shown["limits"]["limit_connections"]) == ([], 1000)


def test_a_lack_of_file_descriptors_is_a_warning(tmp_path: Path) -> None:
    few = ["sh", "-c", 'ulimit -n 500; exec "$0" "$@"', *COMMAND]
    with Daemon(*LOCAL, *CONTROL, cwd=tmp_path, command=few):
        assert "(RLIMIT_NOFILE)" in says(tmp_path, "limits", "limit_connections=5000")
