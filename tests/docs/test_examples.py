"""The unchanged examples run."""

from __future__ import annotations

import smtplib
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support.daemon import PATIENCE, Daemon, clean_environment, messages
from support.installation import ROOT
from support.ports import free_port

if TYPE_CHECKING:
    from pathlib import Path


def test_the_embedded_server_gets_its_own_message() -> None:
    result = subprocess.run(
        [sys.executable, "examples/embedded.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert result.stdout == "Subject: hello\n"


def test_the_gated_controller_refuses_a_third_client_of_one_address() -> None:
    # aiosmtpd's Controller does not report the port that it got for port 0.
    port = free_port("127.0.0.1")
    process = subprocess.Popen(
        [sys.executable, "examples/gated_controller.py", str(port)],
        cwd=ROOT,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert f"port {port}, " in process.stdout.readline()
        with smtplib.SMTP("127.0.0.1", port), smtplib.SMTP("127.0.0.1", port):
            with pytest.raises(smtplib.SMTPConnectError, match="Too many connections"):
                smtplib.SMTP("127.0.0.1", port)
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 0


def test_the_handler_of_the_command_line_refuses_other_domains(tmp_path: Path) -> None:
    handler = "examples.only_here:OnlyHere:example.com,example.org"
    environment = {"PYTHONPATH": str(ROOT)}
    options = ["-l", "127.0.0.1:0", "--handler", handler, "--handler", "maildir:M"]
    with Daemon(*options, cwd=tmp_path, environment=environment) as daemon:
        with daemon.smtp() as client:
            refused = client.sendmail(
                "a@example.net", ["b@example.com", "c@elsewhere.example"], "Subject: x\r\n\r\nx"
            )
        assert refused == {"c@elsewhere.example": (550, b"5.7.1 We do not relay")}
        daemon.wait_for("disconnected")
    (text,) = messages(tmp_path / "M")
    assert "Delivered-To: b@example.com\n" in text
