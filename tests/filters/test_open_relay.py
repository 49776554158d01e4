"""An open relay: a warning at the start, and an error of check."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.daemon import Daemon, run

from smtpd_fork.filters import Accept
from smtpd_fork.handlers import Chain
from smtpd_fork.handlers.route import Route
from smtpd_fork.sinks import Discard
from smtpd_fork.sinks.relay import Relay

if TYPE_CHECKING:
    from pathlib import Path

OURS = """
from aiosmtpd.smtp import MISSING
from smtpd_fork.filters import Accept
from smtpd_fork.sinks.relay import Relay

relay = Relay("127.0.0.1:9", verify=False)
accept = Accept(["example.com"])

class Own:
    controls_relaying = True

    async def handle_RCPT(self, server, session, envelope, address, options):
        return MISSING if address.endswith("@example.com") else "550 5.7.1 Relaying denied"
"""

OPEN = "open relay: any client of 0.0.0.0:0 can send mail to any destination; put the handler"


def arguments(listen: str, *handlers: str) -> list[str]:
    words = ["-l", listen]
    for handler in handlers:
        words += ["--handler", f"ours:{handler}"]
    return words


@pytest.mark.parametrize(
    ("listen", "handlers", "is_open"),
    [
        ("0.0.0.0:0", ["relay"], True),
        ("0.0.0.0:0", ["relay", "accept"], False),
        ("0.0.0.0:0", ["accept", "relay"], False),
        ("0.0.0.0:0", ["Own", "relay"], False),
        ("127.0.0.1:0", ["relay"], False),
        ("unix:smtp.sock", ["relay"], False),
    ],
)
def test_check_finds_an_open_relay(
    tmp_path: Path, listen: str, handlers: list[str], is_open: bool
) -> None:
    (tmp_path / "ours.py").write_text(OURS)
    ended = run("check", *arguments(listen, *handlers), cwd=tmp_path)
    assert ended.returncode == (78 if is_open else 0), ended
    assert (OPEN in ended.stderr) is is_open


def test_an_open_relay_causes_a_warning_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "ours.py").write_text(OURS)
    with Daemon(*arguments("0.0.0.0:0", "relay"), cwd=tmp_path) as daemon:
        daemon.wait_for(f"WARNING {OPEN}")


@pytest.mark.parametrize(
    ("relay", "accept", "is_open"),
    [
        ({}, {"when": {"authenticated": False}}, False),
        ({}, {"when": {"client": ["192.0.2.0/24"]}}, True),
        ({"when": {"authenticated": True}}, None, False),
        ({"when": {"client": ["10.0.0.0/8"]}}, None, False),
        ({"when": {"tls": True}}, None, True),
        ({"recipients": ["example.com"]}, None, False),
    ],
)
def test_conditions_of_handlers_decide_whether_a_relay_is_open(
    relay: dict[str, Any], accept: dict[str, Any] | None, is_open: bool
) -> None:
    handlers: list[Any] = [Route(Relay("127.0.0.1:9"), **relay), Discard()]
    if accept is not None:
        handlers.insert(0, Route(Accept(["example.com"]), **accept))
    assert Chain(handlers).is_open_relay is is_open
