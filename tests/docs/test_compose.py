"""The files for the container, compose.yaml, haproxy.cfg and the Dockerfile, match the program."""

from __future__ import annotations

import re
import subprocess
import tomllib
from typing import Any

import pytest
import yaml
from support.installation import ROOT
from support.peers import peer

from smtpd_fork import __version__
from smtpd_fork.cli import health
from smtpd_fork.cli.command import command
from smtpd_fork.cli.names import ENVIRONMENT_PREFIX
from smtpd_fork.cli.options import OPTIONS
from smtpd_fork.config import DaemonConfig
from smtpd_fork.units import parse_duration

COMPOSE = ROOT / "examples/compose.yaml"

DOCKER_STOP_SECONDS = 10
"""Seconds that `docker stop` waits before it kills the container."""


def services() -> dict[str, dict[str, Any]]:
    found = yaml.safe_load(COMPOSE.read_text())["services"]
    assert isinstance(found, dict)
    return found


OURS = [name for name, service in services().items() if service["image"] == "smtpd-fork"]


@pytest.mark.parametrize("name", OURS)
def test_the_settings_are_valid_and_leave_time_to_stop(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = services()[name]
    variables = {str(option.envvar) for option in OPTIONS}
    for variable, value in service["environment"].items():
        assert variable in variables
        monkeypatch.setenv(variable, value)
    params = command.make_context("smtpd-fork", []).params
    config = DaemonConfig.build({k: v for k, v in params.items() if v not in (None, ())})
    assert config.shutdown_timeout < parse_duration(service["stop_grace_period"])
    address = health._address([])
    assert address.port in {25, 2526}
    assert "ports" not in service, "it would hide the clients' addresses"


def test_one_service_is_for_clients_and_one_for_proxies() -> None:
    proxied = [
        "+proxy" in services()[name]["environment"].get("SMTPD_FORK_LISTEN_ADDRESS", "")
        for name in OURS
    ]
    assert sorted(proxied) == [False, True]


def test_haproxy_accepts_its_file_and_connects_to_a_listener() -> None:
    config = ROOT / "examples/haproxy.cfg"
    ended = subprocess.run(
        [peer("haproxy"), "-c", "-q", "-f", str(config)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    (server,) = re.findall(r"^ *server \S+ (\S+) send-proxy-v2", config.read_text(), re.MULTILINE)
    listen = [
        s["environment"].get("SMTPD_FORK_LISTEN_ADDRESS") for s in map(services().get, OURS) if s
    ]
    assert f"smtp+proxy:{server}" in listen
    (volume,) = services()["haproxy"]["volumes"]
    assert (COMPOSE.parent / volume.partition(":")[0]).is_file()


def test_the_labels_of_the_image_are_those_of_the_project() -> None:
    text = (ROOT / "Dockerfile").read_text()
    labels = dict(re.findall(r'org\.opencontainers\.image\.([\w.]+)="([^"]*)"', text))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    holder = re.search(r"^Copyright \(c\) \d+ (.+)$", (ROOT / "LICENSE").read_text(), re.MULTILINE)
    assert holder
    assert labels == {
        "title": project["name"],
        "description": project["description"],
        "licenses": project["license"],
        "vendor": holder[1],
        "url": project["urls"]["Homepage"],
        "documentation": project["urls"]["Documentation"],
        "source": project["urls"]["Source"],
        "base.name": re.findall(r"^FROM (\S+)$", text, re.MULTILINE)[-1],
        **{name: f"${name.upper()}" for name in ("version", "revision", "created")},
    }
    arguments = dict(re.findall(r"^ARG (\w+)=(.*)$", text, re.MULTILINE))
    assert arguments == {"VERSION": __version__, "REVISION": "", "CREATED": ""}


def test_the_image_stops_in_time_and_has_a_health_check() -> None:
    text = (ROOT / "Dockerfile").read_text()
    (seconds,) = re.findall(rf"{ENVIRONMENT_PREFIX}SHUTDOWN_TIMEOUT=(\d+)", text)
    assert float(seconds) + 1 < DOCKER_STOP_SECONDS  # Another second is for sessions that are cut.
    assert "STOPSIGNAL SIGTERM" in text
    assert re.search(r'^ENTRYPOINT \["smtpd-fork"\]$', text, re.MULTILINE), "no shell around it"
    (timeout,) = re.findall(r"^HEALTHCHECK .*--timeout=(\d+)s", text, re.MULTILINE)
    assert float(timeout) > health.SECONDS
    assert f'CMD ["python", "-m", "{health.__name__}"]' in text
