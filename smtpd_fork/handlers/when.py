"""When: conditions of a handler, which is not called for other sessions and messages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from aiosmtpd.smtp import Envelope
from aiosmtpd.smtp import Session as AnySession

from smtpd_fork.dialogue.notes import Marks, check_tag, marks_of
from smtpd_fork.gate.networks import Network, number_of
from smtpd_fork.message.address_patterns import AddressPatterns
from smtpd_fork.peer_address import host_of
from smtpd_fork.setting_types import SettingError
from smtpd_fork.units import parse_boolean, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["When"]


@dataclass(frozen=True)
class When:
    """Conditions, all of which must match. None is no condition.

    A condition on unknown data does not match: ``sender`` before MAIL, ``larger_than`` before the
    message was received. Conditions on tags and scores are evaluated when the handler is called,
    with those of the message and its client at that time.

    :ivar authenticated: whether the client has authenticated (AUTH)
    :ivar tls: whether the connection is encrypted
    :ivar client: networks of clients
    :ivar listener: addresses that clients connect to: ``192.0.2.1``, ``:587``, ``[::1]:25``, or the
        path of a unix socket
    :ivar sender: senders
    :ivar larger_than: bytes that the message must exceed
    :ivar tag: tags, at least one of which the message must have
    :ivar without_tag: tags, none of which the message may have
    :ivar score_at_least: minimum of the score
    :ivar score_below: the score must be below this
    """

    authenticated: bool | None = None
    tls: bool | None = None
    client: tuple[Network, ...] | None = None
    listener: tuple[str, ...] | None = None
    sender: AddressPatterns | None = None
    larger_than: int | None = None
    tag: tuple[str, ...] | None = None
    without_tag: tuple[str, ...] | None = None
    score_at_least: float | None = None
    score_below: float | None = None

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Self:
        """Parse the table ``when`` of a handler.

        :raises SettingError: a key is unknown, or its value cannot be read
        """
        if not isinstance(table, Mapping):
            raise SettingError("when", table, "expected a table of conditions")
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

    def holds(
        self, session: AnySession, sender: str | None, size: int | None, marks: Marks
    ) -> bool:
        """Return whether all conditions match.

        :param sender: the sender; None if it is unknown yet
        :param size: bytes of the message; None if it is unknown yet
        :param marks: the score and the tags
        """
        return (
            self.suits(session, sender)
            and (self.larger_than is None or (size is not None and size > self.larger_than))
            and self.allows(marks)
        )

    def suits(self, session: AnySession, sender: str | None) -> bool:
        """Return whether the conditions match that no filter and no content can change."""
        return (
            (self.authenticated is None or self.authenticated == bool(session.authenticated))
            and (self.tls is None or self.tls == (session.ssl is not None))
            and (self.client is None or _is_in(session.peer, self.client))
            and (self.listener is None or _listens(session, self.listener))
            and (self.sender is None or (sender is not None and self.sender.match(sender)))
        )

    def allows(self, marks: Marks) -> bool:
        """Return whether the conditions on score and tags match."""
        score, tags = marks
        return (
            (self.tag is None or not tags.isdisjoint(self.tag))
            and (self.without_tag is None or tags.isdisjoint(self.without_tag))
            and (self.score_at_least is None or score >= self.score_at_least)
            and (self.score_below is None or score < self.score_below)
        )

    @property
    def needs_marks(self) -> bool:
        """Whether they cannot match a message without score and tags."""
        return not self.allows(Marks())

    def holds_at(self, hook: str, session: AnySession, args: tuple[Any, ...]) -> bool:
        """Return whether they match in a call of a hook.

        :param args: the arguments of the hook after *session*
        """
        envelope: Envelope | None = args[0] if args else None
        if envelope is None:
            return self.holds(session, None, None, marks_of(session))
        sender = args[1] if hook == "handle_MAIL" else envelope.mail_from
        content = envelope.original_content
        size = None if content is None else len(content)
        return self.holds(session, sender, size, marks_of(session, envelope))


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


def _size(value: Any) -> int:
    if isinstance(value, str):
        return parse_size(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError("expected a size such as 10M")


def _tags(value: Any) -> tuple[str, ...]:
    tags = _several(value)
    for tag in tags:
        check_tag(tag)
    return tags


def _score(value: Any) -> float:
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with suppress(ValueError):
            if math.isfinite(score := float(value)):
                return score
    raise ValueError("expected a number such as 6.5")


_READERS: dict[str, Callable[[Any], Any]] = {
    "authenticated": parse_boolean,
    "tls": parse_boolean,
    "client": lambda value: tuple(map(Network.parse, _several(value))),
    "listener": _several,
    "sender": lambda value: AddressPatterns(_several(value)),
    "larger_than": _size,
    "tag": _tags,
    "without_tag": _tags,
    "score_at_least": _score,
    "score_below": _score,
}
