"""When: conditions of a handler; the others are not asked about a session or a message."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from aiosmtpd.smtp import Envelope
from aiosmtpd.smtp import Session as AnySession

from smtpd_fork.gate.networks import Network, number_of
from smtpd_fork.message.address_patterns import AddressPatterns
from smtpd_fork.peer_address import host_of
from smtpd_fork.setting_types import SettingError
from smtpd_fork.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["When"]


@dataclass(frozen=True)
class When:
    """Conditions; all of them must hold. None is no condition.

    A condition on what is not known yet does not hold: ``sender`` before MAIL, ``larger_than``
    before the message has come.

    :ivar authenticated: whether the client has authenticated (AUTH)
    :ivar tls: whether the connection is encrypted
    :ivar client: networks of clients
    :ivar listener: addresses that clients connect to: ``192.0.2.1``, ``:587``, ``[::1]:25``, or the
        path of a unix socket
    :ivar sender: senders
    :ivar larger_than: bytes of the message
    """

    authenticated: bool | None = None
    tls: bool | None = None
    client: tuple[Network, ...] | None = None
    listener: tuple[str, ...] | None = None
    sender: AddressPatterns | None = None
    larger_than: int | None = None

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Self:
        """Read the table ``when`` of a handler.

        :raises SettingError: a key is unknown, or its value cannot be read
        """
        values = {}
        for key, value in table.items():
            name = key.replace("-", "_")
            if name not in _READERS:
                known = ", ".join(sorted(each.replace("_", "-") for each in _READERS))
                raise SettingError(f"when.{key}", value, f"unknown condition; there are {known}")
            try:
                values[name] = _READERS[name](value)
            except ValueError as error:
                raise SettingError(f"when.{key}", value, str(error)) from None
        return cls(**values)

    def holds(self, session: AnySession, sender: str | None, size: int | None) -> bool:
        """Whether all conditions hold.

        :param sender: None if it is not known yet
        :param size: of the message in bytes; None if it is not known yet
        """
        return (
            (self.authenticated is None or self.authenticated == bool(session.authenticated))
            and (self.tls is None or self.tls == (session.ssl is not None))
            and (self.client is None or _is_in(session.peer, self.client))
            and (self.listener is None or _listens(session, self.listener))
            and (self.sender is None or (sender is not None and self.sender.match(sender)))
            and (self.larger_than is None or (size is not None and size > self.larger_than))
        )

    def may_hold(self, session: AnySession, sender: str | None) -> bool:
        """Whether they hold for a message of a size that is not known yet."""
        size = None if self.larger_than is None else self.larger_than + 1
        return self.holds(session, sender, size)

    def holds_at(self, hook: str, session: AnySession, args: tuple[Any, ...]) -> bool:
        """Whether they hold when a hook is called, with what it is called with behind *session*."""
        envelope: Envelope | None = args[0] if args else None
        if envelope is None:
            return self.holds(session, None, None)
        sender = args[1] if hook == "handle_MAIL" else envelope.mail_from
        content = envelope.original_content
        return self.holds(session, sender, None if content is None else len(content))


def _is_in(peer: Any, networks: Iterable[Network]) -> bool:
    host = host_of(peer)
    number = None if host is None else number_of(host)
    return number is not None and any(each.first <= number <= each.last for each in networks)


def _listens(session: Any, listeners: Iterable[str]) -> bool:
    local = getattr(session, "local", None)
    if not local:
        return False
    if isinstance(local, str):
        return local in listeners
    host, port = host_of(local) or "", local[1]
    quoted = f"[{host}]" if ":" in host else host
    return not {host, quoted, f":{port}", f"{quoted}:{port}"}.isdisjoint(listeners)


def _several(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, (list, tuple)) or not all(isinstance(each, str) for each in value):
        raise ValueError("expected a list of strings")
    return tuple(each.strip() for each in value)


def _boolean(value: Any) -> bool:
    texts = {"true": True, "yes": True, "false": False, "no": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in texts:
        return texts[value.lower()]
    raise ValueError("expected true or false")


def _size(value: Any) -> int:
    if isinstance(value, str):
        return parse_size(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError("expected a size such as 10M")


_READERS: dict[str, Callable[[Any], Any]] = {
    "authenticated": _boolean,
    "tls": _boolean,
    "client": lambda value: tuple(map(Network.parse, _several(value))),
    "listener": _several,
    "sender": lambda value: AddressPatterns(_several(value)),
    "larger_than": _size,
}
