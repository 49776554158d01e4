"""Errors name the line of a key in the file of --config, if it is unambiguous."""

from __future__ import annotations

import signal
import tomllib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.daemon import Daemon, run

from smtpd_fork.cli.config_lines import lines_of_keys

if TYPE_CHECKING:
    from pathlib import Path

TRICKY = '''\
# port = 1
port = [
  2525,  # [gate]
  2526,
]

hostname = """
rate = "1/m"
[gate]
mx"""
"socket_mode" = "0600"
tls.cert = 'a'

[[listener]]
address = "*"
[[listener]]

path = "x"
[ gate ]  # port
rate = ["1/m",
  "2/m"]
deny = \'\'\'
rate = 5\'\'\'
'''


def test_a_key_has_the_line_where_its_statement_begins() -> None:
    assert lines_of_keys(TRICKY) == {
        "port": 2, "hostname": 7, "socket_mode": 11, "tls": 12, "tls.cert": 12,
        "listener": 14, "listener 1": 14, "listener 1: address": 15, "listener 2": 16,
        "listener 2: path": 18, "gate": 19, "gate.rate": 20, "gate.deny": 22,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("gate = { rate = '1/m' }", {"gate": 1, "gate.rate": 1}),
        ("\nlistener = [{ path = 'x' }, { path = 'y' }]\r\n", {
            "listener": 2, "listener 1": 2, "listener 1: path": 2, "listener 2": 2,
            "listener 2: path": 2,
        }),
        ("gate.rate = 1\ngate.deny = 2", {"gate.rate": 1, "gate.deny": 2}),
        ("'gate.rate' = 1\n[gate]\nrate = 2", {"gate": 2}),
        ("", {}),
    ],
)  # fmt: skip
def test_an_ambiguous_key_has_no_line(text: str, keys: dict[str, int]) -> None:
    assert lines_of_keys(text) == keys


VALUES = st.sampled_from(
    ["1", "'[gate]'", '"""\na = 1\n[b]\n"""', "[\n1,\n'a = 1',\n]", "{ c = [1,\n2] }"]
)
TABLES = st.lists(st.tuples(st.sampled_from("abcd"), VALUES, st.integers(0, 2)), max_size=6)


@given(TABLES, TABLES)
def test_the_statement_on_that_line_gives_the_key(
    top: list[tuple[str, str, int]], table: list[tuple[str, str, int]]
) -> None:
    text = ""
    expected: dict[str, int] = {}
    for front, rows in (("", top), ("gate.", table)):
        if front:
            expected["gate"] = text.count("\n") + 1
            text += "[gate]\n"
        for key, (_, value, blanks) in {row[0]: row for row in rows}.items():
            text += "\n" * blanks
            expected[front + key] = text.count("\n") + 1
            text += f"{key} = {value}\n"
    tomllib.loads(text)
    found = lines_of_keys(text)
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max-from-ip = 'lots'", "line 4: gate.max-from-ip 'lots': expected a whole number"),
        ("max-from-ip = lots", "line 4: max-from-ip: expects a number, e.g. 5 (Invalid value, c"),
        ("deny = /bad.list", "line 4: deny: put the value in quotes (Invalid value, column 8)"),
        ("deny 5", "line 4: Expected '=' after a key"),
        ("max-from-ip = -5", "line 4: gate.max-from-ip -5: expected a whole number >= 0"),
        ("rate = '5'", "line 4: gate.rate '5': "),
        ("rate = [\n'5/m',\n'x',\n]", "line 4: gate.rate 'x': "),
        ("deny = 'nonsense'", "line 4: gate.deny 'nonsense': "),
        ("deny = './bad.list'", "bad.list, line 2: 'nonsense'"),
        ("max-from-ipp = 5", "line 4: gate.max-from-ipp 5: unknown setting"),
        ("[tls]\ncert = './none.pem'", "line 5: tls.cert"),
        ("[[listener]]\naddress = '*'\nport = '25'", "line 6: listener 1: port '25': expected"),
    ],
)
def test_start_check_and_reload_name_the_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "bad.list").write_text("192.0.2.1\nnonsense\n")
    path = tmp_path / "front.toml"
    good = "port = 0\nhandler = 'discard'\n[gate]\n"
    path.write_text(good)
    with Daemon("--config", str(path), cwd=tmp_path) as daemon:
        path.write_text(f"{good}{text}\n")
        daemon.signal(signal.SIGHUP)
        (line,) = daemon.wait_for("ERROR reload failed, (.*)$").groups()
        assert says in line
        assert "front.toml, line " in line
        assert daemon.stop() == 0
    for command in ((), ("check",)):
        assert says in run(*command, "--config", str(path), cwd=tmp_path).stderr
