"""The settings: valid values, invalid values, and the errors."""

from __future__ import annotations

import resource
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtpd_fork.config import (
    LIMIT_CONNECTIONS,
    Config,
    DaemonConfig,
    SettingError,
    WhenFull,
    default_limit_connections,
)
from smtpd_fork.errors import ExitStatus
from smtpd_fork.units import format_size, parse_boolean, parse_duration, parse_mode, parse_size

LOOKALIKES = "\N{KELVIN SIGN}\N{LATIN SMALL LETTER LONG S}\N{LATIN SMALL LETTER DOTLESS I}"
"""Letters that are K, S and I to a regular expression that ignores case."""

NAMES = sorted(field.name for field in msgspec.structs.fields(DaemonConfig))


# -- building ----------------------------------------------------------------------------------


def test_without_settings_every_default_applies() -> None:
    config = DaemonConfig.build({})
    assert (config.port, config.max_from_ip, config.backlog) == ((2525,), 50, 1024)
    assert (config.handler, config.loop, config.user) == (("maildir:./Maildir",), "uvloop", None)


def test_none_means_the_default() -> None:
    assert DaemonConfig.build(dict.fromkeys(NAMES)) == DaemonConfig.build({})


@pytest.mark.parametrize(
    ("name", "given_value", "value"),
    [
        ("port", 25, (25,)),
        ("port", "25", (25,)),
        ("port", ["25", 0], (25, 0)),
        ("listen", "[::1]:25", ("[::1]:25",)),
        ("listen", ("a", "b"), ("a", "b")),
        ("handler", "debug", ("debug",)),
        ("backlog", "-5", -5),
        ("socket_mode", "0666", 0o666),
        ("socket_mode", 0o600, 0o600),
        ("limit_connections", "3", 3),
        ("max_from_ip", "0", 0),
        ("when_full", "refuse", WhenFull(refuse=True)),
        ("when_full", WhenFull(wait=2), WhenFull(wait=2)),
        ("hostname", "mx.example.com", "mx.example.com"),
        ("max_message_size", "25M", 25 << 20),
        ("max_message_size", 0, 0),
        ("timeout", "5m", 300.0),
        ("timeout", 7, 7.0),
        ("tls_handshake_timeout", "500ms", 0.5),
        ("data_timeout", "3m", 180.0),
        ("min_data_rate", "1000", 1000),
        ("min_data_rate", 0, 0),
        ("handler_timeout", "90s", 90.0),
        ("session_timeout", "168h", 604800.0),
        ("max_errors", "5", 5),
        ("max_errors", 0, 0),
        ("max_recipients", "1", 1),
        ("max_rejects", "0", 0),
        ("max_rejects", 1_000_000, 1_000_000),
        ("tarpit", "1m", 60.0),
        ("strict_paths", True, True),
        ("max_buffered", "1G", 1 << 30),
        ("max_buffered", 0, 0),
        ("bare_newline", "reject", "reject"),
        ("max_line_length", "1k", 1024),
        ("max_line_length", 0, 0),
        ("shutdown_timeout", "0", 0.0),
        ("detach", True, True),
        ("log_level", "debug", "debug"),
        ("loop", "asyncio", "asyncio"),
    ],
)
def test_a_setting_may_be_written_as_people_and_programs_write_it(
    name: str, given_value: object, value: object
) -> None:
    assert getattr(DaemonConfig.build({name: given_value}), name) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 65536),
        ("port", -1),
        ("port", "smtp"),
        ("port", True),
        ("port", ["25", "65536"]),
        ("backlog", "many"),
        ("socket_mode", "0888"),
        ("socket_mode", "1777"),
        ("socket_mode", 0o1777),
        ("limit_connections", 0),
        ("limit_connections", "-1"),
        ("limit_connections", "abc"),
        ("limit_connections", 1_000_001),
        ("max_from_ip", "-1"),
        ("when_full", "wait"),
        ("when_full", "defer:"),
        ("when_full", "defer:0"),
        ("when_full", "refuse:5"),
        ("when_full", 5),
        ("hostname", ""),
        ("hostname", "two words"),
        ("hostname", "line\nbreak"),
        ("hostname", "caf\u00e9.example"),
        ("hostname", "x" * 256),
        ("max_message_size", "-1"),
        ("max_message_size", -1),
        ("max_message_size", "25T"),
        ("timeout", "0"),
        ("timeout", "soon"),
        ("timeout", "8888h"),
        ("tls_handshake_timeout", -1),
        ("data_timeout", "0"),
        ("data_timeout", "a while"),
        ("min_data_rate", "-1"),
        ("min_data_rate", "fast"),
        ("handler_timeout", 0),
        ("handler_timeout", float("nan")),
        ("session_timeout", "0"),
        ("session_timeout", "169h"),
        ("max_errors", "-1"),
        ("max_errors", 1_000_001),
        ("max_recipients", 0),
        ("max_rejects", "-1"),
        ("max_rejects", 1_000_001),
        ("tarpit", "61s"),
        ("strict_paths", "maybe"),
        ("max_recipients", "all"),
        ("max_buffered", "-1"),
        ("max_buffered", -1),
        ("max_buffered", "1T"),
        ("bare_newline", "Reject"),
        ("bare_newline", True),
        ("max_line_length", "-1"),
        ("max_line_length", "long"),
        ("shutdown_timeout", "-1"),
        ("shutdown_timeout", float("nan")),
        ("shutdown_timeout", float("inf")),
        ("log_level", "INFO"),
        ("loop", "trio"),
        ("handler", []),
        ("tls_cert", ""),
        ("tls_key", "key.pem"),
        ("tls_min_version", "1.1"),
        ("tls_min_version", 1.2),
        ("tls_client_ca", "ca.pem"),
        ("tls_client_verify", "require"),
        ("tls_client_verify", "maybe"),
        ("require_starttls", True),
    ],
)
def test_a_value_out_of_range_is_an_error_with_name_and_value(name: str, value: object) -> None:
    with pytest.raises(SettingError) as caught:
        DaemonConfig.build({name: value})
    error = caught.value
    assert error.setting == name
    assert error.value in (value, *(value if isinstance(value, list) else ()), "")
    assert error.exit_status == ExitStatus.USAGE
    assert str(error) == f"{name} {error.value!r}: {error.reason}"
    assert "\n" not in str(error)


def test_the_error_names_the_wrong_one_of_several_values() -> None:
    with pytest.raises(SettingError) as caught:
        Config.build({"port": ["25", "70000", "26"]})
    assert caught.value.value == "70000"


def test_the_error_of_a_wrong_choice_lists_the_right_ones() -> None:
    with pytest.raises(SettingError, match="expected one of debug, info, warning, error"):
        DaemonConfig.build({"log_level": "loud"})


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(SettingError, match="unknown setting") as caught:
        Config.build({"limit": 5})
    assert (caught.value.setting, caught.value.value) == ("limit", 5)


def test_the_settings_of_a_server_do_not_include_those_of_the_process() -> None:
    with pytest.raises(SettingError, match="unknown setting"):
        Config.build({"detach": True})


def test_a_config_cannot_be_changed() -> None:
    config: Any = Config.build({})
    with pytest.raises(AttributeError):
        config.port = (25,)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.text(alphabet="0123456789.:-KMGkmghisdefr " + LOOKALIKES, max_size=8)
    | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["refuse", "wait", "x"]), inner, max_size=2)
    ),
    max_leaves=5,
)


@given(written=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3))
@example(written={"max_message_size": "5\N{KELVIN SIGN}"})
@example(written={"timeout": "5\N{LATIN SMALL LETTER LONG S}"})
@example(written={"when_full": {"refuse": "x"}})
@example(written={"port": [None]})
def test_any_value_is_accepted_or_a_setting_error(written: dict[str, Any]) -> None:
    try:
        config = DaemonConfig.build(written)
    except SettingError as error:
        assert error.setting in written  # noqa: PT017 - either outcome is one
    else:
        assert all(0 <= port <= 65535 for port in config.port)


# -- when_full ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("refuse", WhenFull(refuse=True)),
        ("defer", WhenFull()),
        ("defer:1", WhenFull(wait=1.0)),
        ("defer:500ms", WhenFull(wait=0.5)),
        ("defer:2m", WhenFull(wait=120.0)),
    ],
)
def test_when_full_is_parsed(text: str, meaning: WhenFull) -> None:
    assert WhenFull.parse(text) == meaning


@given(st.sampled_from(["refuse", "defer"]) | st.integers(1, 86400).map("defer:{}".format))
def test_when_full_is_printed_as_it_was_written(text: str) -> None:
    assert str(WhenFull.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "Refuse", "defer ", "defer:x", "defer:-1", "defer:0", "defer:9999h", "refuse:1"]
)
def test_an_invalid_when_full_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"defer|duration"):
        WhenFull.parse(text)


# -- units -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1000", 1000),
        ("25M", 25 << 20),
        ("1k", 1024),
        ("2 GiB", 2 << 30),
        ("3MB", 3 << 20),
    ],
)
def test_a_size_is_parsed(text: str, size: int) -> None:
    assert parse_size(text) == size


@given(st.integers(0, 1 << 60))
def test_a_size_survives_being_printed(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30.0), ("30s", 30.0), ("500ms", 0.5), ("5m", 300.0), ("1h", 3600.0), ("1.5 h", 5400.0)],
)
def test_a_duration_is_parsed(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(("text", "mode"), [("0660", 0o660), ("660", 0o660), ("0o600", 0o600)])
def test_a_mode_is_parsed_as_octal(text: str, mode: int) -> None:
    assert parse_mode(text) == mode


@pytest.mark.parametrize(
    ("value", "meant"),
    [("true", True), ("Yes", True), ("1", True), ("FALSE", False), ("no", False), ("0", False)],
)
def test_a_boolean_may_be_written_as_a_word(value: str, meant: bool) -> None:
    assert parse_boolean(value) is parse_boolean(meant) is meant


@pytest.mark.parametrize("value", ["", "2", "on ", "maybe", 1, 0, None, [True]])
def test_any_other_value_is_not_a_boolean(value: object) -> None:
    with pytest.raises(ValueError, match="expected true or false"):
        parse_boolean(value)


@pytest.mark.parametrize("reader", [parse_size, parse_duration, parse_mode])
@given(text=st.text() | st.text(alphabet="0123456789.KMGkmghisB " + LOOKALIKES, max_size=25))
@example(text="5\N{KELVIN SIGN}")
@example(text="5\N{LATIN SMALL LETTER LONG S}")
def test_any_text_with_a_unit_is_parsed_or_a_value_error(reader: Any, text: str) -> None:
    try:
        figure = reader(text)
    except ValueError as error:
        assert str(error).startswith("not a ")  # noqa: PT017 - either outcome is one
    else:
        assert figure >= 0


# -- the default limit -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("soft", "limit"),
    [
        (resource.RLIM_INFINITY, LIMIT_CONNECTIONS),
        (1_000_000, LIMIT_CONNECTIONS),
        (1024, 960),
        (256, 192),
        (100, 50),
        (1, 1),
    ],
)
def test_the_default_limit_leaves_descriptors_for_the_rest(
    soft: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))
    assert default_limit_connections() == limit
