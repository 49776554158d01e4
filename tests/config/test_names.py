"""A setting has one name: of its option, variable, key, and keyword of Server, Gate and Limits."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_fork import Config, Gate, Limits, Server, SettingError, Settings
from smtpd_fork.cli.config_file import read_config_file
from smtpd_fork.cli.options import OPTIONS
from smtpd_fork.cli.show_config import toml
from smtpd_fork.config import DaemonConfig
from smtpd_fork.gate import GATE_SETTINGS
from smtpd_fork.settings import GateSettings
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from pathlib import Path

    from smtpd_fork.cli.setting_option import SettingOption

OTHER = {"listen_address": "listen"}
"""The one setting whose option has another name; errors name the right one."""

each_option = pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.long_name)


def value_of(name: str) -> Any:
    """Return a value that every setting of this name accepts; mostly its default."""
    value = getattr(DaemonConfig(), name)
    return "x" if value is None else str(value) if name == "when_full" else value


@each_option
def test_option_variable_and_key_have_the_name_of_the_setting(
    option: SettingOption, tmp_path: Path
) -> None:
    name = option.long_name.replace("-", "_")
    assert option.setting == OTHER.get(name, name)
    assert option.envvar == f"SMTPD_FORK_{name.upper()}"
    path = tmp_path / "x.toml"
    prefix = "tls-" if option.table == "tls" else ""
    assert option.long_name in {option.key, prefix + option.key}
    for key in (option.key, option.key.replace("-", "_")):
        header = f"[{option.table}]\n" if option.table else ""
        path.write_text(f"{header}{key} = {toml(value_of(option.setting))}\n")
        assert list(read_config_file(path).values) == [option.setting]


def test_every_keyword_of_server_gate_and_limits_is_the_name_of_an_option() -> None:
    settings = {option.setting for option in OPTIONS}
    of_server = set(Config.__struct_fields__)
    of_gate = {field.name for field in fields(Limits)}
    assert set(DaemonConfig.__struct_fields__) == settings
    assert set(Settings.__annotations__) == of_server
    assert set(GateSettings.__annotations__) == of_gate == GATE_SETTINGS
    assert of_gate < of_server < settings


@each_option
def test_server_gate_and_limits_take_it_by_that_name_or_say_so(option: SettingOption) -> None:
    name = option.setting
    misspelt: Any = {f"{name}x": value_of(name)}
    given: Any = {name: value_of(name)}
    if name in Config.__struct_fields__:
        with pytest.raises(SettingError, match=f"did you mean {name}[?]"):
            Server(Discard(), **misspelt)
    if name in GATE_SETTINGS:
        assert Gate(**given).limits == Limits(**given)
        for make in (Gate, Limits):
            with pytest.raises(SettingError, match=f"did you mean {name}[?]"):
                make(**misspelt)
    else:
        for make in (Gate, Limits):
            with pytest.raises(SettingError, match=f"{name} .*unknown setting"):
                make(**given)
