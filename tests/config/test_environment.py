"""The environment: every option as a variable, and the origin of invalid values."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec
import pytest
from click.core import ParameterSource
from support.daemon import LOCAL, Daemon, run
from support.dialogue import connect, ehlo, first_line
from support.place import Place, only_line
from support.ports import free_ports

from smtpd_fork.cli.command import command
from smtpd_fork.cli.options import OPTIONS
from smtpd_fork.config import DaemonConfig

if TYPE_CHECKING:
    from pathlib import Path

    from smtpd_fork.cli.setting_option import SettingOption

WORDS: dict[str, tuple[str, object]] = {
    "port": ("25 587", ("25", "587")),
    "listen": ("127.0.0.1 [::1]:25", ("127.0.0.1", "[::1]:25")),
    "backlog": ("7", "7"),
    "socket_mode": ("0600", "0600"),
    "limit_connections": ("3", "3"),
    "max_from_ip": ("4", "4"),
    "proxy_trust": ("192.0.2.1 ::1", ("192.0.2.1", "::1")),
    "proxy_timeout": ("2s", "2s"),
    "probe_from": ("192.0.2.0/24 ::1", ("192.0.2.0/24", "::1")),
    "xclient_trust": ("192.0.2.1 unix", ("192.0.2.1", "unix")),
    "xforward_trust": ("unix ::1", ("unix", "::1")),
    "ipv6_prefix": ("56", "56"),
    "max_from_net": ("9/24 9/48", ("9/24", "9/48")),
    "rate": ("9/m 99/h", ("9/m", "99/h")),
    "rate_net": ("9/m/24", ("9/m/24",)),
    "fleet": ("redis://127.0.0.1", "redis://127.0.0.1"),
    "fleet_secret": ("password", "password"),
    "fleet_tls_ca": ("ca.pem", "ca.pem"),
    "fleet_prefix": ("mx", "mx"),
    "fleet_connections": ("5000", "5000"),
    "fleet_node": ("mx1", "mx1"),
    "fleet_timeout": ("100ms", "100ms"),
    "fleet_lease": ("10s", "10s"),
    "when_fleet_down": ("refuse", "refuse"),
    "fair_share": ("1", True),
    "greet_pause": ("2s", "2s"),
    "greet_pause_deny": ("1h", "1h"),
    "reserve": ("2", "2"),
    "max_loop_lag": ("250ms", "250ms"),
    "allow": ("192.0.2.1", ("192.0.2.1",)),
    "deny": ("192.0.2.0/24 ::/0", ("192.0.2.0/24", "::/0")),
    "exempt": ("192.0.2.1", ("192.0.2.1",)),
    "dnsbl": ("a.example b.example=2", ("a.example", "b.example=2")),
    "dnsbl_threshold": ("3", "3"),
    "rdns": ("true", True),
    "dns_timeout": ("3s", "3s"),
    "dns_server": ("192.0.2.53", "192.0.2.53"),
    "refuse_first": ("1", "1"),
    "refuse_every": ("10", "10"),
    "when_full": ("refuse", "refuse"),
    "timeout": ("5m", "5m"),
    "stress_timeout": ("5s", "5s"),
    "tls_handshake_timeout": ("6s", "6s"),
    "tls_failure_rate": ("9/m", "9/m"),
    "data_timeout": ("3m", "3m"),
    "min_data_rate": ("50", "50"),
    "handler_timeout": ("90s", "90s"),
    "session_timeout": ("1h", "1h"),
    "max_errors": ("9", "9"),
    "max_rejects": ("90", "90"),
    "tarpit": ("5s", "5s"),
    "strict_paths": ("1", True),
    "max_recipients": ("200", "200"),
    "max_hops": ("20", "20"),
    "max_buffered": ("1G", "1G"),
    "bare_newline": ("reject", "reject"),
    "max_buffered_from_ip": ("64M", "64M"),
    "max_line_length": ("1K", "1K"),
    "max_message_size": ("25M", "25M"),
    "handler": ("debug discard", ("debug", "discard")),
    "hostname": ("mx.example.com", "mx.example.com"),
    "authserv_id": ("example.com other.example", ("example.com", "other.example")),
    "tls_cert": ("cert.pem other.pem", ("cert.pem", "other.pem")),
    "tls_key": ("key.pem", ("key.pem",)),
    "tls_min_version": ("1.3", "1.3"),
    "tls_client_ca": ("ca.pem", "ca.pem"),
    "tls_client_verify": ("require", "require"),
    "require_starttls": ("1", True),
    "user": ("nobody", "nobody"),
    "control": ("control.sock", "control.sock"),
    "reload_handlers": ("true", True),
    "detach": ("true", True),
    "pid_file": ("daemon.pid", "daemon.pid"),
    "processes": ("4", "4"),
    "shutdown_timeout": ("8s", "8s"),
    "loop": ("asyncio", "asyncio"),
    "metrics": ("127.0.0.1:9125", "127.0.0.1:9125"),
    "log_level": ("error", "error"),
    "log_to": ("stdout", "stdout"),
    "log_format": ("json", "json"),
}
"""Values of each option in the environment, and their meaning."""

by_name = pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Remove the options of the user who runs the tests from the environment."""
    for name in os.environ:
        if name.startswith("SMTPD_FORK_"):
            monkeypatch.delenv(name)
    return monkeypatch


def test_there_is_an_option_for_every_setting() -> None:
    fields = {field.name for field in msgspec.structs.fields(DaemonConfig)}
    assert {option.name for option in OPTIONS} == fields == WORDS.keys()


@by_name
def test_every_option_may_be_set_by_the_environment(
    option: SettingOption, environment: pytest.MonkeyPatch
) -> None:
    word, meaning = WORDS[str(option.name)]
    long = max(option.opts, key=len)
    variable = "SMTPD_FORK_" + long.removeprefix("--").replace("-", "_").upper()
    environment.setenv(variable, word)
    with command.make_context("smtpd-fork", []) as context:
        assert context.params[str(option.name)] == meaning
        assert context.get_parameter_source(str(option.name)) is ParameterSource.ENVIRONMENT


@by_name
def test_an_empty_variable_is_ignored(
    option: SettingOption, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv(str(option.envvar), "")
    with command.make_context("smtpd-fork", []) as context:
        assert context.params[str(option.name)] in {None, ()}


@by_name
def test_flags_override_the_environment(
    option: SettingOption, environment: pytest.MonkeyPatch
) -> None:
    word, _ = WORDS[str(option.name)]
    environment.setenv(str(option.envvar), "0" if option.is_flag else word)
    flag = max(option.opts, key=len)
    with command.make_context("smtpd-fork", [flag] if option.is_flag else [flag, "x"]) as context:
        wanted = True if option.is_flag else ("x",) if option.multiple else "x"
        assert context.params[str(option.name)] == wanted


def test_a_daemon_takes_its_options_from_the_environment(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    variables = {
        "SMTPD_FORK_LISTEN_ADDRESS": f"127.0.0.1:{port} unix:smtp.sock",
        "SMTPD_FORK_HANDLER": "discard",
        "SMTPD_FORK_HOSTNAME": "from.environment",
        "SMTPD_FORK_MAX_MESSAGE_SIZE": "5K",
        "SMTPD_FORK_PID_FILE": "daemon.pid",
    }
    options = ("--hostname", "from.flag")
    with Daemon(*options, cwd=tmp_path, environment=variables) as daemon:
        assert daemon.places == [f"127.0.0.1:{port}", f"unix:{tmp_path}/smtp.sock"]
        assert first_line(("127.0.0.1", port)).startswith("220 from.flag ")
        assert (tmp_path / "daemon.pid").read_text() == f"{daemon.process.pid}\n"
        with daemon.smtp() as client:
            assert ehlo(client)["size"] == "5120"


def test_a_flag_replaces_all_the_values_of_a_variable(tmp_path: Path) -> None:
    variables = {"SMTPD_FORK_LISTEN_ADDRESS": "127.0.0.2:0 127.0.0.3:0"}
    with Daemon(*LOCAL, cwd=tmp_path, environment=variables) as daemon:
        assert len(daemon.places) == 1
        with closing(connect(("127.0.0.1", daemon.port))) as client:
            assert client.recv(4) == b"220 "


def test_an_unknown_variable_is_a_warning(tmp_path: Path) -> None:
    environment = {"SMTPD_FORK_LIMIT_CONECTIONS": "3"}
    options = ("-l", "127.0.0.1:0", "--handler", "discard")
    with Daemon(*options, cwd=tmp_path, environment=environment) as daemon:
        assert "unknown variable SMTPD_FORK_LIMIT_CONECTIONS ignored; did you mean " in daemon.log


# -- the origin of errors ----------------------------------------------------------------------

BAD_WORDS = {
    "port": "65536",
    "listen": "127.0.0.1:x",
    "backlog": "all",
    "socket_mode": "0999",
    "limit_connections": "none",
    "max_from_ip": "-1",
    "proxy_trust": "192.0.2.0/33",
    "proxy_timeout": "0",
    "probe_from": "192.0.2.1/24",
    "xclient_trust": "192.0.2.0/33",
    "xforward_trust": "socket",
    "ipv6_prefix": "129",
    "max_from_net": "9",
    "rate": "9/x",
    "rate_net": "9/m",
    "fair_share": "perhaps",
    "greet_pause": "5h",
    "greet_pause_deny": "8d",
    "reserve": "2000000",
    "max_loop_lag": "slow",
    "allow": "192.0.2.1/24",
    "deny": "none/list",
    "exempt": "nobody",
    "dnsbl": "a.example=x",
    "dnsbl_threshold": "0",
    "rdns": "perhaps",
    "dns_timeout": "0",
    "dns_server": "nowhere",
    "refuse_first": "-1",
    "refuse_every": "some",
    "when_full": "hide",
    "timeout": "soon",
    "stress_timeout": "-1",
    "tls_handshake_timeout": "0",
    "tls_failure_rate": "9",
    "data_timeout": "0",
    "min_data_rate": "-1",
    "handler_timeout": "never",
    "session_timeout": "169h",
    "max_errors": "-1",
    "max_rejects": "-1",
    "tarpit": "61s",
    "strict_paths": "perhaps",
    "max_recipients": "0",
    "max_hops": "many",
    "max_buffered": "half",
    "max_buffered_from_ip": "half",
    "bare_newline": "keep",
    "max_line_length": "-1",
    "max_message_size": "big",
    "handler": "nosuch",
    "hostname": "two words",
    "authserv_id": "example.com;",
    "tls_cert": "no.pem",
    "tls_key": "no.pem",
    "tls_min_version": "1.1",
    "tls_client_ca": "no.pem",
    "tls_client_verify": "perhaps",
    "require_starttls": "perhaps",
    "user": "no-such-user",
    "control": "none/control.sock",
    "reload_handlers": "perhaps",
    "detach": "perhaps",
    "pid_file": "none/daemon.pid",
    "processes": "0",
    "shutdown_timeout": "-1",
    "loop": "trio",
    "metrics": "127.0.0.1",
    "log_level": "loud",
    "log_to": "none/log",
    "log_format": "xml",
    "fleet": "http://127.0.0.1",
    "fleet_secret": "password",
    "fleet_tls_ca": "ca.pem",
    "fleet_prefix": "a:b",
    "fleet_connections": "-1",
    "fleet_node": "mx1",
    "fleet_timeout": "1h",
    "fleet_lease": "1s",
    "when_fleet_down": "wait",
}


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_the_error_names_the_variable_that_caused_it(option: SettingOption, tmp_path: Path) -> None:
    word = BAD_WORDS[str(option.name)]
    harmless = {"SMTPD_FORK_LISTEN_ADDRESS": "127.0.0.1:0", "SMTPD_FORK_HANDLER": "discard"}
    ended = run(cwd=tmp_path, environment={**harmless, str(option.envvar): word})
    line = only_line(ended)
    assert ended.returncode in {os.EX_USAGE, os.EX_CONFIG, os.EX_NOUSER, os.EX_CANTCREAT}
    assert word in line or "needs --tls-cert" in line or "needs --fleet" in line
    assert str(option.envvar) in line


def test_the_error_names_the_flag_and_not_the_variable_that_it_overrides(
    place: Place,
) -> None:
    ended = place.start("-c", "abc", environment={"SMTPD_FORK_LIMIT_CONNECTIONS": "5"})
    assert "-c/--limit-connections" in only_line(ended)
    assert "SMTPD_FORK" not in ended.stderr


def test_the_error_says_if_a_default_caused_it(tmp_path: Path) -> None:
    (tmp_path / "Maildir").write_text("a file")
    ended = run("-l", "127.0.0.1:0", cwd=tmp_path)
    assert ended.returncode == os.EX_CANTCREAT
    assert f"{tmp_path}/Maildir" in only_line(ended)
    assert "by default" in ended.stderr


ONE_NETWORK = "one network, not several: repeat the option, or use spaces in a variable"


def test_a_value_with_spaces_is_quoted_in_a_variable(tmp_path: Path) -> None:
    environment = {"SMTPD_FORK_HANDLER": f'"maildir:{tmp_path}/my mail"'}
    with Daemon("-l", "127.0.0.1:0", cwd=tmp_path, environment=environment) as daemon:
        daemon.deliver()
    assert len(list((tmp_path / "my mail/new").iterdir())) == 1


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("SMTPD_FORK_HANDLER", "it's:Secret", "SMTPD_FORK_HANDLER: a quotation mark is not closed"),
        ("SMTPD_FORK_DENY", "192.0.2.1,::1", f"SMTPD_FORK_DENY '192.0.2.1,::1': {ONE_NETWORK}"),
    ],
)
def test_the_error_of_an_unreadable_list_in_a_variable_says_how_to_write_it(
    variable: str, value: str, says: str, tmp_path: Path
) -> None:
    ended = run("check", cwd=tmp_path, environment={variable: value})
    assert ended.returncode == os.EX_USAGE
    assert only_line(ended) == f"smtpd-fork: {says}\n"


def test_a_variable_of_a_flag_that_is_neither_true_nor_false_is_an_error(tmp_path: Path) -> None:
    ended = run("check", *LOCAL, cwd=tmp_path, environment={"SMTPD_FORK_FAIR_SHARE": "maybe"})
    assert ended.stderr == "smtpd-fork: SMTPD_FORK_FAIR_SHARE 'maybe': expected true or false\n"
    assert ended.returncode == os.EX_USAGE
