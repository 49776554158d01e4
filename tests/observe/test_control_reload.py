"""``smtpd-fork reload``: prints a line for each change, or the reason of a failure."""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.control import CONTROL, ask, command, connect, line, says
from support.daemon import COMMAND, Daemon, clean_environment, on_both_loops, run
from support.peers import needs_root, peer
from support.place import only_line

if TYPE_CHECKING:
    from pathlib import Path

BASE = 'listen-address = "127.0.0.1:0"\nhandler = "discard"\n'
FILE = "c.toml"
FAILED = "reload failed, previous settings stay in force: "


def started(place: Path, text: str = "", *options: str) -> Daemon:
    (place / FILE).write_text(BASE + text)
    return Daemon("--config", FILE, *CONTROL, *options, cwd=place)


@on_both_loops
def test_it_prints_and_logs_a_line_for_each_change(tmp_path: Path, loop: str) -> None:
    text = '[gate]\nmax-from-ip = 2\ndeny = ["192.0.2.1", "192.0.2.2"]\n'
    with started(tmp_path, text, "--loop", loop) as daemon:
        assert says(tmp_path, "reload") == "nothing changed\n"
        daemon.wait_for(r"configuration reloaded \(nothing changed\)$")
        (tmp_path / FILE).write_text(
            f'timeout = "1m"\nuser = "root"\n{BASE}'
            '[gate]\nmax-from-ip = 3\nfair-share = true\nrate = "9/m"\n'
            'deny = ["192.0.2.2", "192.0.2.3"]\n'
            'exempt = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]\n'
        )
        assert sorted(says(tmp_path, "reload").splitlines()) == [
            "deny +192.0.2.3 -192.0.2.1",
            "exempt 4 added, 0 removed",
            "fair_share no -> yes",
            "max_from_ip 2 -> 3",
            "rate +9/m",
            "timeout 300 -> 60",
            "user none -> root needs a restart",
        ]
        daemon.wait_for(r"control: uid \d+, pid \d+: reloading the configuration$")
        daemon.wait_for(r"configuration reloaded \(.*max_from_ip 2 -> 3.*\)$")
        daemon.wait_for("WARNING user none -> root needs a restart$")
        printed = json.loads(says(tmp_path, "reload", "--json"))
        assert (printed["changes"], printed["restart"]) == ([], [])


LISTS = ("allow", "deny", "exempt", "proxy-trust", "probe-from")


def test_changes_in_the_files_of_a_list_are_counted(tmp_path: Path) -> None:
    listed = tmp_path / "some.list"
    listed.write_text("192.0.2.1\n192.0.2.2 text\n192.0.2.4\n")
    options = [word for name in LISTS for word in (f"--{name}", "./some.list")]
    with started(tmp_path, "", *options) as daemon:
        listed.write_text("192.0.2.2 text\n192.0.2.3\n")
        assert sorted(says(tmp_path, "reload").splitlines()) == sorted(
            f"{name.replace('-', '_')} +1 -2 networks" for name in LISTS
        )
        daemon.wait_for(r"configuration reloaded \(.*probe_from \+1 -2 networks.*\)$")
        assert says(tmp_path, "reload") == "nothing changed\n"


def test_settings_that_were_changed_at_run_time_are_listed_when_they_are_reset(
    tmp_path: Path,
) -> None:
    with started(tmp_path):
        says(tmp_path, "limits", "max_from_ip=7", "rate=9/m")
        assert sorted(says(tmp_path, "reload").splitlines()) == [
            "max_from_ip 7 -> 50",
            "rate set at run time -> none",
        ]


def test_arguments_of_handlers_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "class Fine:\n"
        "    @classmethod\n"
        "    def from_cli(cls, parser, *args):\n"
        "        return cls()\n"
        "    async def handle_DATA(self, server, session, envelope):\n"
        "        return '250 Ok'\n"
    )
    with started(tmp_path) as daemon:
        for secret, shown in (
            ("sesame1", "handler discard -> mine:Fine:***"),
            ("sesame2", "handler arguments changed"),
        ):
            text = BASE.replace('"discard"', f'"mine:Fine:{secret}"')
            (tmp_path / FILE).write_text(text)
            assert says(tmp_path, "reload") == f"{shown}\n"
        assert "sesame" not in daemon.log


@pytest.mark.parametrize(
    ("text", "reason", "status"),
    [
        ("x = [", r"c.toml: ", os.EX_CONFIG),
        ("[gate]\nmax-from-ip = -5\n", r"c.toml, line \d+: gate.max-from-ip -5: ", os.EX_CONFIG),
        ('[gate]\ndeny = "./bad.list"\n', "bad.list, line 2: 'nonsense'", os.EX_CONFIG),
        ('pid-file = ""\n', "pid-file", os.EX_CONFIG),
    ],
)
def test_a_failed_reload_prints_one_line_with_its_status_and_changes_nothing(
    tmp_path: Path, text: str, reason: str, status: int
) -> None:
    (tmp_path / "bad.list").write_text("192.0.2.1\nnonsense\n")
    with started(tmp_path, "[gate]\nmax-from-ip = 2\n") as daemon:
        (tmp_path / FILE).write_text(BASE + text)
        ended = command(tmp_path, "reload")
        assert (ended.returncode, ended.stdout) == (status, "")
        said = only_line(ended)
        assert FAILED in said
        assert re.search(reason, said)
        daemon.wait_for(f"ERROR {FAILED}")
        assert ask(tmp_path, "limits")["limits"]["max_from_ip"] == 2
        (tmp_path / FILE).unlink()
        assert "cannot read" in only_line(command(tmp_path, "reload"))
        (tmp_path / FILE).write_text(f"{BASE}[gate]\nmax-from-ip = 4\n")
        assert says(tmp_path, "reload") == "max_from_ip 2 -> 4\n"


def test_a_reload_during_another_one_waits_and_reads_the_newest_file(tmp_path: Path) -> None:
    with started(tmp_path, "[gate]\nmax-from-ip = 2\n") as daemon:
        (tmp_path / FILE).write_text(f"{BASE}[gate]\nmax-from-ip = 3\n")
        clients = [
            subprocess.Popen(
                [*COMMAND, "reload", *CONTROL], cwd=tmp_path, env=clean_environment(),
                stdout=subprocess.PIPE, text=True,
            )
            for _ in range(4)
        ]  # fmt: skip
        outputs = [client.communicate()[0] for client in clients]
        assert {client.returncode for client in clients} == {0}
        assert "max_from_ip 2 -> 3\n" in outputs
        assert set(outputs) <= {"max_from_ip 2 -> 3\n", "nothing changed\n"}
        assert "Traceback" not in daemon.log


def test_other_requests_do_not_wait_for_a_reload_and_it_continues_without_its_client(
    tmp_path: Path,
) -> None:
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\n"
        "while not pathlib.Path('go').exists():\n"
        "    time.sleep(0.01)\n"
        "class Fine:\n"
        "    async def handle_DATA(self, server, session, envelope):\n"
        "        return '250 Ok'\n"
        "fine = Fine()\n"
    )
    with started(tmp_path) as daemon:
        (tmp_path / FILE).write_text(BASE.replace('"discard"', '"slow:fine"'))
        with connect(tmp_path) as one, connect(tmp_path) as other:
            for each in (one, other):
                each.sendall(b'{"v":1,"command":"reload"}\n')
            daemon.wait_for("reloading the configuration")
            assert ask(tmp_path, "status")["state"] == "serving"
            one.close()
            (tmp_path / "go").touch()
            assert line(other)["ok"]
        daemon.wait_for(r"configuration reloaded \(handler discard -> slow:fine\)")


def test_another_user_cannot_reload(public: Path, command_for_nobody: list[str]) -> None:
    needs_root()
    nobody = [peer("setpriv"), "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    (public / FILE).write_text(BASE)
    options = ("--config", FILE, *CONTROL)
    with Daemon(*options, cwd=public, command=command_for_nobody) as daemon:
        (public / "control.sock").chmod(0o666)
        ended = run("reload", *CONTROL, cwd=public, command=[*nobody, *command_for_nobody])
        assert ended.returncode == os.EX_NOPERM
        assert "reloading" not in daemon.log
