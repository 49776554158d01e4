"""The file of ``--config``: its contents, the precedence, and the errors."""

from __future__ import annotations

import os
import re
import smtplib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.daemon import Daemon, run

from smtpd_fork.cli.config_file import ConfigFile, _Reader, read_config_file
from smtpd_fork.cli.options import OPTIONS
from smtpd_fork.cli.setting_option import DEFAULTS, SettingOption
from smtpd_fork.cli.setting_sources import SettingSources
from smtpd_fork.config import DaemonConfig
from smtpd_fork.errors import SmtpdForkError

if TYPE_CHECKING:
    from collections.abc import Callable

WHOLE = """
hostname = "mx.example.com"
socket_mode = "0600"  # with _ as well

[[listener]]
address = "127.0.0.1"
port = 0

[[listener]]
path = "smtp.sock"
protocol = "lmtp"
proxy = true

[[handler]]
use = "debug"

[[handler]]
use = "maildir"
argument = "here"

[gate]
max-from-ip = 3
rate = "30/m"
rate-net = ["100/m/24", "100/m/48"]
fair-share = true
when-full = "defer:5"

[tls]
require-starttls = false
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "smtpd-fork.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_table_is_equivalent_to_settings(tmp_path: Path) -> None:
    file = read_config_file(write(tmp_path, WHOLE))
    config = DaemonConfig.build(file.values)
    assert file.keys["max_from_ip"] == "gate.max-from-ip"
    assert file.keys["listen"] == "listener"
    assert config.listen == ("smtp:127.0.0.1:0", "lmtp+proxy:unix:smtp.sock")
    assert config.handler == ("debug", "maildir:here")
    assert (config.max_from_ip, config.rate) == (3, ("30/m",))
    assert (config.rate_net, config.fair_share) == (("100/m/24", "100/m/48"), True)
    assert (str(config.when_full), config.socket_mode) == ("defer:5", 0o600)


@pytest.mark.parametrize(
    ("listener", "address"),
    [
        ('address = "192.0.2.1"', "smtp:192.0.2.1"),
        ('address = "2001:db8::1"\nport = 25', "smtp:[2001:db8::1]:25"),
        ('address = "[::]:25"', "smtp:[::]:25"),
        ('address = "*"\nport = 465\ntls = "implicit"', "smtps:*:465"),
        ('path = "/run/lmtp"\nprotocol = "lmtp"', "lmtp:unix:/run/lmtp"),
        ('address = "*"\ntls = "implicit"\nproxy = true', "smtps+proxy:*"),
    ],
)
def test_a_listener_table_is_equivalent_to_an_address(
    tmp_path: Path, listener: str, address: str
) -> None:
    file = read_config_file(write(tmp_path, f"[[listener]]\n{listener}\n"))
    assert file.values == {"listen": [address]}


def test_arguments_of_a_handler_are_joined(tmp_path: Path) -> None:
    text = '[[handler]]\nuse = "shop:Orders"\narguments = ["one", "two"]\n'
    assert read_config_file(write(tmp_path, text)).values == {"handler": ["shop:Orders:one,two"]}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("max-from-ipp = 3", "max-from-ipp 3: unknown setting"),
        ("[gate]\nmax_from_ipp = 3", "unknown setting; did you mean max-from-ip?"),
        ("[gate]\nhostname = 'x'", "gate.hostname 'x': hostname belongs at the top level, "),
        ("[tls]\ncertt = 'x'", "tls.certt 'x': unknown setting; did you mean cert?"),
        ("gate = 5", "gate 5: expected a table, [gate]"),
        ("tls = []", "tls []: expected a table, [tls]"),
        ("max-from-ip = 3\n[gate]\nmax_from_ip = 4", "max_from_ip 4: already set by max-from-ip"),
        ("listen = '*'\n[[listener]]\naddress = '*'", "already set by listen"),
        ("[[listener]]", "listener 1: address: expected either address or path"),
        ("[[listener]]\naddress = 5", "listener 1: address 5: expected a string"),
        ("[[listener]]\naddress = '*'\nport = '25'", "port '25': expected a whole number"),
        ("[[listener]]\naddress = '*'\nport = true", "port True: expected a whole number"),
        ("[[listener]]\npath = 'x'\n[[listener]]\npath = 'y'\ntls = 'yes'", "listener 2: tls"),
        ("[[listener]]\naddress = '*'\nname = 'x'", "listener 1: name 'x': unknown key"),
        ("[[listener]]\npath = 'x'\nport = 5", "listener 1: port 5: a unix socket has no port"),
        ("[[listener]]\npath = 'x'\nprotocol = 'x'", "protocol 'x': expected one of smtp, lmtp"),
        ("[[listener]]\npath = 'x'\nprotocol = 'lmtp'\ntls = 'implicit'", "LMTP has no port"),
        ("[[handler]]\nargument = 'x'", "handler 1: use: the key is missing; expected maildir"),
        ("[[handler]]\nuse = 'x:y'\narguments = ['a,b']", "'***': expected strings without commas"),
        ("[[handler]]\nuse = 'x:y'\narguments = ['a']\nargument = 'b'", "either argument or"),
        ("a = = b", "(Invalid value, column 5)"),
        ("a = 1\na = 2", "overwrite a value"),
        (b"\xff", "not UTF-8"),
        ("x = " + "[" * 100_000, "nested too deeply"),
        ("#" * (1 << 20) + "\n", "larger than"),
    ],
)  # fmt: skip
def test_an_unreadable_entry_is_an_error_with_file_key_and_value(
    tmp_path: Path, text: str | bytes, told: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SmtpdForkError) as caught:
        read_config_file(path)
    assert re.match(rf"{path}(, line \d+)?: ", str(caught.value))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[gate]\nmax-from-ip = 'many'", "gate.max-from-ip 'many': expected a whole number"),
        ("[gate]\nmax-from-ip = -1", "gate.max-from-ip -1: expected a whole number >= 0"),
        ("[gate]\nrate = ['5/m', 'x']", "gate.rate 'x': write N/PERIOD"),
        ("max-message-size = '1X'", "max-message-size '1X': not a size"),
        ("[tls]\ncert = ['a', 5]", "tls.cert"),
        ("hostname = 1979-05-27", "hostname datetime.date(1979, 5, 27): expected"),
        ("[[listener]]\naddress = 'a:b:c'", "'smtp:a:b:c': 'a:b:c' is not an IPv6 address"),
        ("[gate]\nfair-share = 'y'", "gate.fair-share 'y': expected true or false"),
        ("log-to = 3", "log-to 3: expected a string, not int"),
        ("user = ''", "user '': expected a string that is not empty"),
        ("timeout = nan", "timeout nan"),
        ("detach = 1", "detach 1: expected true or false, not int"),
        ("detach = 'true'", "detach 'true': expected true or false"),
        ("[gate]\nwhen-full = {refuse = true}", "gate.when-full {'refuse': True}: expected a "),
    ],
)  # fmt: skip
def test_an_invalid_value_is_an_error_with_file_key_and_value(
    tmp_path: Path, text: str, told: str
) -> None:
    path = write(tmp_path, text)
    ended = run("--config", str(path), "--handler", "discard", cwd=tmp_path)
    assert ended.returncode == os.EX_CONFIG, ended.stderr
    assert re.match(rf"smtpd-fork: {path}, line \d: ", ended.stderr), ended.stderr
    assert told in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def wrong_values(option: SettingOption) -> list[str]:
    """Return values in TOML whose type is not that of the setting."""
    default = DEFAULTS[option.setting]
    numbers = {"port", "limit_connections", "max_buffered_from_ip"}
    if default is True or default is False:
        return ["1", "0", "'true'", "'yes'", "[true]"]
    if isinstance(default, (int, float)) or option.setting in numbers:
        return ["true", "[true]", "'x'"]
    return ["1", "true", "[1]"]


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.long_name)
def test_a_value_of_another_type_is_an_error_that_names_file_and_key(
    option: SettingOption, tmp_path: Path
) -> None:
    for value in [*wrong_values(option), "1979-05-27", "{x = 1}"]:
        line = f"{option.key} = {value}"
        path = write(tmp_path, f"[{option.table}]\n{line}" if option.table else line)
        sources = SettingSources({}, {}, None)
        with pytest.raises(SmtpdForkError) as caught:
            sources = SettingSources({}, {}, read_config_file(path))
            sources.build()
        key = f"{option.table}.{option.key}".removeprefix(".")
        number = 2 if option.table else 1
        assert sources.explain(caught.value).startswith(f"{path}, line {number}: {key} "), value


@pytest.mark.parametrize("kind", ["nothing", "folder", "pipe", "unreadable"])
def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.toml"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "unreadable":
        path.symlink_to(path)
    ended = run("--config", str(path), cwd=tmp_path)
    assert ended.returncode == os.EX_CONFIG
    assert ended.stderr.count(str(path)) == 1


def test_precedence_is_flags_environment_file_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "max-errors = 1\nmax-recipients = 2\nbacklog = 3\nhostname = 'file'\n")
    ended = run(
        *("config", "--config", str(path), "--max-errors", "11"),
        cwd=tmp_path,
        environment={"SMTPD_FORK_MAX_ERRORS": "21", "SMTPD_FORK_MAX_RECIPIENTS": "22"},
    )
    assert ended.returncode == 0
    told = dict(re.findall(r"^([a-z-]+ = \S+)  # (.*)$", ended.stdout, re.MULTILINE))
    assert told["max-errors = 11"] == "--max-errors"
    assert told["max-recipients = 22"] == "SMTPD_FORK_MAX_RECIPIENTS"
    assert told["backlog = 3"] == f"{path}, line 3: backlog"
    assert told['hostname = "file"'] == f"{path}, line 4: hostname"
    assert told['timeout = "300s"'] == "default"


def test_a_daemon_takes_its_settings_from_the_file_of_the_environment(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'hostname = "mx.example.com"\n[[listener]]\naddress = "127.0.0.1"\nport = 0\n'
        '[[handler]]\nuse = "discard"\n[gate]\nmax-from-ip = 1\n',
    )
    variables = {"SMTPD_FORK_CONFIG": str(path)}
    with Daemon(cwd=tmp_path, environment=variables) as daemon, daemon.smtp() as first:
        assert first.noop()[0] == 250
        with pytest.raises(smtplib.SMTPConnectError, match="421"):
            daemon.smtp()


def test_every_setting_has_one_place_in_a_file() -> None:
    places = [(option.table, option.key) for option in OPTIONS]
    assert len(set(places)) == len(OPTIONS)
    assert {table for table, _ in places} == {"", "gate", "tls"}


def fault_of(read: Callable[[], ConfigFile]) -> str:
    """Return the error of a file, or of the settings in it; empty without one."""
    try:
        DaemonConfig.build(read().values)
    except SmtpdForkError as error:
        return str(error)
    return ""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.text(max_size=60) | st.binary(max_size=60))
@example("0\x850=0")
def test_any_file_is_settings_or_an_error_of_one_line(tmp_path: Path, text: str | bytes) -> None:
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    path = write(tmp_path, data)
    assert len(fault_of(lambda: read_config_file(path)).splitlines()) <= 1


KEYS = st.sampled_from([*(str(option.name) for option in OPTIONS), "listener", "gate", "tls", "x"])
VALUES = st.recursive(
    st.integers() | st.floats() | st.booleans() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(KEYS | st.sampled_from(["address", "port", "use"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=300)
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_value_of_a_key_is_a_setting_or_an_error_of_one_line(
    document: dict[str, object],
) -> None:
    assert len(fault_of(lambda: _Reader(Path("/x")).read(document)).splitlines()) <= 1
