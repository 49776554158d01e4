"""The errors of invalid settings: they have the value, what is expected, or the right name."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from smtpd_fork.peer_address import describe
from smtpd_fork.setting_types import SettingError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import msgspec

__all__ = ["no_such_setting", "reason_of", "setting_error", "wrong_type"]

_SESSION = (
    "auth_callback", "auth_exclude_mechanism", "auth_require_tls", "auth_required",
    "authenticator", "command_call_limit", "decode_data", "enable_SMTPUTF8", "ident",
)  # fmt: skip
"""Keywords of aiosmtpd's SMTP that its Controller takes as well."""

_INSTEAD = {
    "listen_address": "use listen, as the option is --listen-address",
    "host": "use listen='ADDR:PORT'",
    "address": "use listen='ADDR:PORT'",
    "data_size_limit": "use max_message_size",
    "server_hostname": "use hostname",
    "unix_socket": "use listen='unix:PATH'",
    "ssl_context": "use tls_context, and listen='smtps:ADDR:PORT'",
    "proxy_protocol_timeout": "use proxy_timeout, and listen='smtp+proxy:ADDR:PORT'",
    "ready_timeout": "start() returns when the server accepts clients",
    "loop": "a Server runs in the loop of start(); ThreadedServer takes loop_factory",
    "server_kwargs": "use session_options",
    "rates": "did you mean rate, or rate_net?",
    "access": "did you mean allow, or deny?",
} | {name: f"use session_options={{{name!r}: ...}}" for name in _SESSION}
"""Names of aiosmtpd's Controller, of options and of earlier versions, and the hint for each."""

ALIKE = 0.7
"""Similarity (:mod:`difflib`) from which on an unknown name gets a known one as a hint."""

_WHERE = re.compile(r"^(?P<reason>.*?)(?: - at `\$\.(?P<name>\w+)(?:\[(?P<index>\d+)\])?[^`]*`)?$")
_WHOLE = re.compile(r"\b(\d+)\.0\b")
_IN_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str of length >= 1": "a string that is not empty",
    "str": "a string",
    "object": "a table",
    " | null": "",
    " | object": "",
}
"""Type names in msgspec's messages, and the words that replace them in ours."""
_WORD = re.compile("|".join(rf"\b{re.escape(word)}\b" for word in _IN_WORDS))
_UNKNOWN = re.compile(r"unknown field `(\w+)`")


def setting_error(
    cls: type[msgspec.Struct], message: str, settings: Mapping[str, Any]
) -> SettingError:
    """Return the error for a message of msgspec; it adds the value, which msgspec does not name."""
    unknown = _UNKNOWN.search(message)
    if unknown:
        return no_such_setting(unknown[1], settings.get(unknown[1]), cls.__struct_fields__)
    where = _WHERE.match(message)
    assert where is not None
    name = where["name"]
    value = settings[name]
    if where["index"] and isinstance(value, (list, tuple)):
        value = value[int(where["index"])]
    reason = reason_of(message, value, get_type_hints(cls)[name])
    if name == "listen":
        reason += _right_listen(value, settings[name])
    return SettingError(name, value, reason)


def reason_of(message: str, value: object, hint: Any) -> str:
    """Return the reason why a value is invalid, from the message of msgspec.

    :param hint: the type of the setting
    """
    if message.startswith("Invalid enum value"):
        return f"expected one of {', '.join(_choices(hint))}"
    where = _WHERE.match(message)
    reason, got, _ = (where["reason"] if where else message).replace("`", "").partition(", got ")
    reason = _WORD.sub(lambda found: _IN_WORDS[found[0]], reason)
    reason = _WHOLE.sub(r"\1", reason)
    if get_origin(hint) in {tuple, list}:
        reason = reason.replace("a string", "a string or a list of strings").replace(
            "array", "a value or a list"
        )
    if got and not isinstance(value, str):
        reason += f", not {type(value).__name__}"
    return reason[0].lower() + reason[1:]


def wrong_type(name: str, value: object, wanted: type) -> SettingError:
    """Return the error for a value whose type is not *wanted*."""
    message = f"Expected `{wanted.__name__}`, got `{type(value).__name__}`"
    return SettingError(name, value, reason_of(message, value, wanted))


def _choices(hint: Any) -> list[str]:
    """Return the values of a Literal, also within a union."""
    if get_origin(hint) is Literal:
        return [str(each) for each in get_args(hint)]
    return [word for part in get_args(hint) for word in _choices(part)]


def no_such_setting(name: str, value: object, known: Sequence[str]) -> SettingError:
    """Return the error for a name that is not among the *known* settings."""
    return SettingError(name, value, f"unknown setting{_right_name(name, known)}")


def _right_name(name: str, known: Sequence[str]) -> str:
    """Return a hint at the setting that is probably meant by an unknown name, or ""."""
    if name in _INSTEAD:
        return f": {_INSTEAD[name]}"
    alike = get_close_matches(name, known, n=1, cutoff=ALIKE)
    return f"; did you mean {alike[0]}?" if alike else ""


def _right_listen(*values: object) -> str:
    """Return how to write an address as text, if one of *values* is a pair of host and port."""
    for value in values:
        match value:
            case (str(host), int(port)):
                return f": write {describe((host, port))!r}"
    return ""
