"""The protocol of the control socket: requests, errors, and garbage between them."""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING

import pytest
from support.control import STATUS, ask, connect, line, raw
from support.page import read

from smtpd_fork.control_protocol import MAX_REQUEST, Fault, Request

if TYPE_CHECKING:
    from pathlib import Path

NOBODY = 65534

GARBAGE = {
    "nothing": b"\n",
    "no JSON": b"status\n",
    "no object": b"[1]\n",
    "no version": b'{"command":"status"}\n',
    "no command": b'{"v":1}\n',
    "unknown command": b'{"v":1,"command":"dance"}\n',
    "unknown field": b'{"v":1,"command":"status","x":1}\n',
    "a field of another type": b'{"v":1,"command":"kick","id":1}\n',
    "neither id nor client": b'{"v":1,"command":"kick"}\n',
    "a page that is too large": b'{"v":1,"command":"sessions","limit":100000}\n',
    "no cursor": b'{"v":1,"command":"sessions","after":["x"]}\n',
    "time that runs backwards": b'{"v":1,"command":"drain","seconds":-1}\n',
    "a year": b'{"v":1,"command":"drain","seconds":1e9}\n',
    "no number": b'{"v":1,"command":"drain","seconds":NaN}\n',
    "no UTF-8": b'{"v":1,"command":"explain","id":"\xff"}\n',
    "a deep nest": b'{"v":1,"command":' + b"[" * 9000 + b"]" * 5000 + b"}\n",
    "NUL": b"\0" * 100 + b"\n",
    "HTTP": b"GET / HTTP/1.1\r\n",
    "escapes": b"\x1b[2J\x9b\n",
    "a long id": b'{"v":1,"command":"explain","id":"' + b"x" * 65 + b'"}\n',
}


@pytest.mark.parametrize("request_", GARBAGE.values(), ids=GARBAGE)
def test_garbage_gets_an_error_and_the_next_request_is_answered(
    place_with_daemon: Path, request_: bytes
) -> None:
    with connect(place_with_daemon) as sock:
        sock.sendall(request_ + STATUS)
        fault, status = line(sock), line(sock)
    assert (fault["ok"], fault["fault"]) == (False, "request")
    assert fault["text"].isprintable()
    assert (status["ok"], status["state"]) == (True, "serving")


def test_a_request_without_an_end_is_cut_at_its_limit(place_with_daemon: Path) -> None:
    with connect(place_with_daemon) as sock:
        sock.sendall(b"x" * (MAX_REQUEST * 3))
        assert line(sock)["fault"] == "request"
        assert line(sock) == {}


def test_another_protocol_version_is_detected(place_with_daemon: Path) -> None:
    reply = raw(place_with_daemon, b'{"v":2,"command":"status","new":1}\n')
    assert (reply["v"], reply["fault"]) == (1, "version")
    assert "version 1" in reply["text"]


def test_an_incomplete_line_is_not_carried_out(place_with_daemon: Path) -> None:
    with connect(place_with_daemon) as sock:
        sock.sendall(b'{"v":1,"command":"pause"}')
        sock.shutdown(socket.SHUT_WR)
        assert line(sock) == {}
    assert ask(place_with_daemon, "status")["state"] == "serving"


def test_pipelined_requests_are_answered_in_order(place_with_daemon: Path) -> None:
    with connect(place_with_daemon) as sock:
        sock.sendall((STATUS + b'{"v":1,"command":"explain","id":"x"}\n') * 10)
        assert [line(sock)["ok"] for _ in range(20)] == [True, False] * 10


def test_every_request_and_every_error_is_documented() -> None:
    page = read("docs/control.md")
    tables = page.partition("## The protocol")[2]
    rows = re.findall(r"^\| (`[^|]+) \|", tables, re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    commands = {each.__struct_config__.tag for each in Request.__args__}
    assert documented == commands | set(Fault)
