"""Events: what a milter learns of a session and a message, and the macros that go with each."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from smtpd_fork.hops.milter.codec import Protocol, header_frame, text_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = [
    "BODY", "CONNECT", "DATA", "END", "END_OF_HEADER", "EVENTS", "HEADER", "HELO", "MAIL", "PAUSE",
    "RCPT", "Event", "Step", "body_steps", "connect_step", "header_step", "path_step",
]  # fmt: skip

CHUNK = 65_535
"""Bytes of a piece of the body (``MILTER_CHUNK_SIZE``)."""


class Event(NamedTuple):
    """A kind of event.

    :ivar name: for the log
    :ivar command: its octet
    :ivar unwanted: the option with which a milter does not want it
    :ivar silent: the option with which it does not answer it
    :ivar since: the version of the protocol that has it
    :ivar stage: its number in a milter's lists of macros; None: no macros go with it
    :ivar symbols: the macros that go with it if there is no such list: Postfix sends these
    :ivar repeats: a milter may skip those that follow (``SMFIR_SKIP``)
    """

    name: str
    command: bytes
    unwanted: int
    silent: int
    since: int = 2
    stage: int | None = None
    symbols: tuple[str, ...] = ()
    repeats: bool = False


CONNECT = Event(
    "connect", b"C", Protocol.NO_CONNECT.value, Protocol.SILENT_CONNECT.value, stage=0,
    symbols=("j", "daemon_name", "daemon_addr", "daemon_port", "v", "_", "client_addr",
             "client_name", "client_port", "client_ptr"),
)  # fmt: skip
HELO = Event(
    "helo", b"H", Protocol.NO_HELO.value, Protocol.SILENT_HELO.value, stage=1,
    symbols=("tls_version", "cipher", "cipher_bits", "cert_subject"),
)  # fmt: skip
MAIL = Event(
    "mail", b"M", Protocol.NO_MAIL.value, Protocol.SILENT_MAIL.value, stage=2,
    symbols=("i", "b", "auth_type", "auth_authen", "mail_addr", "mail_host", "mail_mailer"),
)  # fmt: skip
RCPT = Event(
    "rcpt", b"R", Protocol.NO_RCPT.value, Protocol.SILENT_RCPT.value, stage=3, repeats=True,
    symbols=("i", "rcpt_addr", "rcpt_host", "rcpt_mailer"),
)  # fmt: skip
DATA = Event("data", b"T", Protocol.NO_DATA.value, Protocol.SILENT_DATA.value, 4, 4, ("i",))
HEADER = Event(
    "header", b"L", Protocol.NO_HEADERS.value, Protocol.SILENT_HEADER.value, repeats=True
)
END_OF_HEADER = Event(
    "end of header", b"N", Protocol.NO_END_OF_HEADER.value, Protocol.SILENT_END_OF_HEADER.value,
    stage=6, symbols=("i",),
)  # fmt: skip
BODY = Event("body", b"B", Protocol.NO_BODY.value, Protocol.SILENT_BODY.value, repeats=True)
END = Event("end of message", b"E", 0, 0, stage=5, symbols=("i",))

EVENTS = (CONNECT, HELO, MAIL, RCPT, DATA, HEADER, END_OF_HEADER, BODY, END)


class Step(NamedTuple):
    """One event, or several of one kind.

    :ivar macros: that are known from now on
    :ivar several: how many events they are; *data* has their frames then. 0: it is one
    """

    event: Event
    data: bytes | memoryview = b""
    macros: Mapping[str, str] | None = None
    several: int = 0


PAUSE = Step(Event("pause", b"", 0, 0))
"""In place of an event: what follows is sent once all before is answered."""


def connect_step(host: str, address: str | None, port: int, macros: Mapping[str, str]) -> Step:
    """Return the event that a client has connected.

    :param host: its name, or its address in brackets
    :param address: IPv4 or IPv6; None: it is one of a unix socket
    """
    if address is None:
        return Step(CONNECT, text_of(host) + b"L\0\0" + text_of("local"), macros)
    family = b"6" if ":" in address else b"4"
    where = family + port.to_bytes(2, "big") + text_of(address)
    return Step(CONNECT, text_of(host) + where, macros)


def path_step(
    event: Event,
    address: str,
    parameters: Mapping[str, str | bool],
    macros: Mapping[str, str],
) -> Step:
    """Return MAIL or RCPT."""
    words = [name if value is True else f"{name}={value}" for name, value in parameters.items()]
    return Step(event, text_of(f"<{address}>") + b"".join(map(text_of, words)), macros)


def header_step(fields: Iterable[tuple[bytes, bytes]], *, leading_space: bool) -> Step:
    """Return the fields of a header.

    :param fields: names and values, as they came
    :param leading_space: values keep the space behind the colon
    """
    frames = [
        header_frame(name, _header_value(value, leading_space=leading_space))
        for name, value in fields
    ]
    return Step(HEADER, b"".join(frames), None, len(frames))


def _header_value(value: bytes, *, leading_space: bool) -> bytes:
    """Return the value of a field as milters get it: folded lines end in LF.

    Without *leading_space* one space is taken off, and no tab, as Sendmail and Postfix do: a milter
    that writes the value back puts one before it. A NUL, which would end the value, becomes a
    space: what is behind it is to be seen.
    """
    if b"\n" in value:
        value = value.replace(b"\r\n", b"\n")
    if b"\0" in value:
        value = value.replace(b"\0", b" ")
    return value if leading_space else value.removeprefix(b" ")


def body_steps(content: bytes, start: int) -> Iterator[Step]:
    """Yield the body in pieces, none of them copied before it is sent.

    :param start: where it begins in *content*
    """
    view = memoryview(content)
    for position in range(start, len(content), CHUNK):
        yield Step(BODY, view[position : position + CHUNK])


def packed(names: Iterable[str], values: Mapping[str, str]) -> bytes:
    """Return macros, as far as they have values, as a frame's data has them."""
    return b"".join(
        [_symbol(name) + text_of(value) for name in names if (value := values.get(name))]
    )


@lru_cache
def _symbol(name: str) -> bytes:
    return text_of(name if len(name) == 1 else f"{{{name}}}")
