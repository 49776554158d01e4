"""The errors of invalid settings: they have the value, and the right one."""

from __future__ import annotations

import inspect
from typing import Any

import aiosmtpd.controller
import aiosmtpd.smtp
import pytest

from smtpd_fork import Config, SettingError


def fault(**settings: Any) -> str:
    with pytest.raises(SettingError) as raised:
        Config.build(settings)
    return str(raised.value)


def test_the_error_of_a_misspelt_setting_has_the_right_name() -> None:
    expected = "max_from_ipp 3: unknown setting; did you mean max_from_ip?"
    assert fault(max_from_ipp=3) == expected


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("listen_address", "listen"),
        ("data_size_limit", "max_message_size"),
        ("server_hostname", "hostname"),
        ("unix_socket", "listen='unix:PATH'"),
        ("ssl_context", "tls_context"),
        ("proxy_protocol_timeout", "proxy_timeout"),
        ("authenticator", "session_options={'authenticator': ...}"),
    ],
)
def test_the_error_of_a_name_of_aiosmtpd_has_the_right_name(name: str, right: str) -> None:
    assert f"unknown setting: use {right}" in fault(**{name: "x"})


def test_every_keyword_of_a_controller_is_a_setting_or_gets_a_hint() -> None:
    classes = [
        *(aiosmtpd.controller.Controller, aiosmtpd.controller.BaseController),
        *(aiosmtpd.controller.UnixSocketController, aiosmtpd.smtp.SMTP),
    ]
    names = {name for each in classes for name in inspect.signature(each).parameters}
    names -= {"self", "handler", "tls_context", "args", "kwargs", "SMTP_parameters"}
    known = Config.__struct_fields__
    assert len(names - set(known)) > 10
    for name in names.difference(known):
        assert "unknown setting: " in fault(**{name: 1}), name


@pytest.mark.parametrize(
    "listen", [[("127.0.0.1", 25)], ("127.0.0.1", 25), ["[::1]:0", ("::1", 25)]]
)
def test_the_error_of_a_socket_address_says_how_to_write_it(listen: Any) -> None:
    said = fault(listen=listen)
    assert "expected a string or a list of strings, not " in said
    assert said.endswith((": write '127.0.0.1:25'", ": write '[::1]:25'"))


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_an_address_is_not_a_hostname(address: str) -> None:
    assert "the address to listen on belongs in listen" in fault(hostname=address)
    assert Config.build({"hostname": f"[{address}]"}).hostname == f"[{address}]"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rate": 3}, "rate 3: expected a string or a list of strings, not int"),
        ({"port": [None]}, "port None: expected a whole number, not NoneType"),
        ({"port": {}}, "port {}: expected a whole number, not dict"),
        ({"port": "x"}, "port 'x': expected a whole number"),
        ({"max_from_ip": 2.5}, "max_from_ip 2.5: expected a whole number, not float"),
        ({"timeout": [1]}, "timeout [1]: expected a number, not list"),
        ({"port": 2.5}, "port 2.5: expected a whole number, not float"),
        ({"rdns": 1}, "rdns 1: expected true or false, not int"),
        ({"rdns": "true"}, "rdns 'true': expected true or false"),
        ({"when_full": 1}, "when_full 1: expected a string, not int"),
        ({"when_full": {}}, "when_full {}: expected a string, not dict"),
        ({"dns_server": ""}, "dns_server '': expected a string that is not empty"),
    ],
)
def test_a_value_of_another_type_is_named_as_python_names_it(
    settings: dict[str, Any], said: str
) -> None:
    assert fault(**settings) == said
