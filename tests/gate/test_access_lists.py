"""allow and deny: the lists of networks, their texts, and their files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from support.gates import new_gate

from smtpd_fork import Config, Refusal, SmtpdForkError, Ticket
from smtpd_fork.gate import limits_of

if TYPE_CHECKING:
    from pathlib import Path


def test_the_smallest_network_decides_and_the_reply_has_the_text_of_the_list(
    tmp_path: Path,
) -> None:
    listed = tmp_path / "deny.list"
    listed.write_text("# bad ones\n192.0.2.0/24 Go away, {key}  # whole\n\n2001:db8::/32\n")
    gate = new_gate(deny=[str(listed), "198.51.100.7"], allow="192.0.2.128/25")
    verdict = gate.admit("192.0.2.1")
    assert isinstance(verdict, Refusal)
    assert verdict.reply("mx") == b"554 5.7.1 mx Go away, 192.0.2.0/24\r\n"
    assert isinstance(gate.admit("192.0.2.129"), Ticket)
    for host in ("2001:db8:5::1", "198.51.100.7"):
        verdict = gate.admit(host)
        assert isinstance(verdict, Refusal)
        assert verdict.reply("mx") == b"554 5.7.1 mx Access denied\r\n"
    assert isinstance(gate.admit("198.51.100.8"), Ticket)
    assert isinstance(gate.admit(""), Ticket)


def test_an_error_names_the_line_of_a_file_with_its_number(tmp_path: Path) -> None:
    listed = tmp_path / "deny.list"
    listed.write_text("192.0.2.0/24 fine\n\n192.0.2.0/33 not so\n")
    with pytest.raises(SmtpdForkError, match=r"deny .*deny\.list, line 3: .*192\.0\.2\.0/33"):
        limits_of(Config.build({"deny": str(listed)}))


def test_a_list_that_is_not_a_regular_file_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(SmtpdForkError, match=r"deny .* is not a regular file"):
            limits_of(Config.build({"deny": f"{tmp_path}/{name}"}))
