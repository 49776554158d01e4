"""Events of the milter protocol, with the macros that are sent before each of them."""

from __future__ import annotations

from enum import IntFlag
from typing import TYPE_CHECKING, NamedTuple

from smtpd_fork.hops.milter.codec import LENGTH, text_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = [
    "BODY", "CONNECT", "DATA", "END", "END_OF_HEADER", "EVENTS", "HEADER", "HELO", "MAIL", "PAUSE",
    "RCPT", "Event", "Step", "body_steps", "connect_step", "header_step", "path_step",
    "unknown_client_step",
]  # fmt: skip

CHUNK = 65_535
"""Bytes of a chunk of the body (``MILTER_CHUNK_SIZE``)."""


class Protocol(IntFlag):
    """Events that a milter does not want or does not answer (``SMFIP_*``).

    The numbers are those of libmilter's ``mfdef.h``.
    """

    NO_CONNECT = 0x1
    NO_HELO = 0x2
    NO_MAIL = 0x4
    NO_RCPT = 0x8
    NO_BODY = 0x10
    NO_HEADERS = 0x20
    NO_END_OF_HEADER = 0x40
    SILENT_HEADER = 0x80
    NO_UNKNOWN = 0x100
    NO_DATA = 0x200
    SKIP = 0x400
    SILENT_CONNECT = 0x1000
    SILENT_HELO = 0x2000
    SILENT_MAIL = 0x4000
    SILENT_RCPT = 0x8000
    SILENT_DATA = 0x10000
    SILENT_UNKNOWN = 0x20000
    SILENT_END_OF_HEADER = 0x40000
    SILENT_BODY = 0x80000
    LEADING_SPACE = 0x100000
    """Values of header fields include the space after the colon, in both directions."""


class Event(NamedTuple):
    """A kind of event.

    :ivar name: the name for the log
    :ivar command: the octet of the command
    :ivar unwanted: the option of milters that do not want the event
    :ivar silent: the option of milters that do not answer the event
    :ivar since: the first version of the protocol with the event
    :ivar stage: the number of the event in a milter's lists of macros; below 0: it has no macros
    :ivar symbols: the macros to send if the milter has sent no list for the event; those of
        Postfix. Names are written as in Sendmail's manual: with braces unless they are one letter
    :ivar repeats: whether a milter may skip further events of this kind (``SMFIR_SKIP``)
    """

    name: str
    command: bytes
    unwanted: Protocol
    silent: Protocol
    since: int = 2
    stage: int = -1
    symbols: tuple[str, ...] = ()
    repeats: bool = False


CONNECT = Event(
    "connect", b"C", Protocol.NO_CONNECT, Protocol.SILENT_CONNECT, stage=0,
    symbols=("j", "{daemon_name}", "{daemon_addr}", "{daemon_port}", "v", "_", "{client_addr}",
             "{client_name}", "{client_port}", "{client_ptr}"),
)  # fmt: skip
HELO = Event(
    "helo", b"H", Protocol.NO_HELO, Protocol.SILENT_HELO, stage=1,
    symbols=("{tls_version}", "{cipher}", "{cipher_bits}", "{cert_subject}"),
)  # fmt: skip
MAIL = Event(
    "mail", b"M", Protocol.NO_MAIL, Protocol.SILENT_MAIL, stage=2,
    symbols=("i", "b", "{auth_type}", "{auth_authen}", "{mail_addr}", "{mail_host}",
             "{mail_mailer}"),
)  # fmt: skip
RCPT = Event(
    "rcpt", b"R", Protocol.NO_RCPT, Protocol.SILENT_RCPT, stage=3, repeats=True,
    symbols=("i", "{rcpt_addr}", "{rcpt_host}", "{rcpt_mailer}"),
)  # fmt: skip
DATA = Event("data", b"T", Protocol.NO_DATA, Protocol.SILENT_DATA, 4, 4, ("i",))
HEADER = Event("header", b"L", Protocol.NO_HEADERS, Protocol.SILENT_HEADER, repeats=True)
END_OF_HEADER = Event(
    "end of header", b"N", Protocol.NO_END_OF_HEADER, Protocol.SILENT_END_OF_HEADER,
    stage=6, symbols=("i",),
)  # fmt: skip
BODY = Event("body", b"B", Protocol.NO_BODY, Protocol.SILENT_BODY, repeats=True)
END = Event("end of message", b"E", Protocol(0), Protocol(0), stage=5, symbols=("i",))

EVENTS = (CONNECT, HELO, MAIL, RCPT, DATA, HEADER, END_OF_HEADER, BODY, END)


class Step(NamedTuple):
    """One event, or several events of one kind.

    :ivar data: the data of the event, or the frames of several events
    :ivar macros: macros whose values are known from this event on
    :ivar several: the number of events whose frames *data* contains; 0: *data* is of one event
    """

    event: Event
    data: bytes | memoryview = b""
    macros: Mapping[str, str] | None = None
    several: int = 0


PAUSE = Step(Event("pause", b"", Protocol(0), Protocol(0)))
"""Not an event: the following events are sent after all previous events were answered."""


def connect_step(host: str, address: str | None, port: int, macros: Mapping[str, str]) -> Step:
    """Return the event of a client's connection.

    :param host: the name of the client, or its address in brackets
    :param address: IPv4 or IPv6 address; None: the client uses a unix socket
    """
    if address is None:
        return Step(CONNECT, text_of(host) + b"L\0\0" + text_of("local"), macros)
    family = b"6" if ":" in address else b"4"
    where = family + port.to_bytes(2, "big") + text_of(address)
    return Step(CONNECT, text_of(host) + where, macros)


def unknown_client_step(host: str, macros: Mapping[str, str]) -> Step:
    """Return the event of a connection of a client whose address is not known."""
    return Step(CONNECT, text_of(host) + b"U", macros)


def path_step(
    event: Event,
    address: str,
    parameters: Mapping[str, str | bool],
    macros: Mapping[str, str],
) -> Step:
    """Return the event of MAIL or RCPT."""
    words = [name if value is True else f"{name}={value}" for name, value in parameters.items()]
    return Step(event, text_of(f"<{address}>") + b"".join(map(text_of, words)), macros)


def header_step(fields: Iterable[tuple[bytes, bytes]], *, leading_space: bool) -> Step:
    """Return the events of header fields; folded lines end in LF, as the protocol requires.

    Without *leading_space* one space is removed, but not a tab, as Sendmail and Postfix do: a space
    is added to values that the milter writes back. A NUL becomes a space, because it would end the
    value and so hide the rest of it from the milter.

    :param fields: names and values in their original form
    :param leading_space: whether values include the space after the colon
    """
    frames = []
    for name, value in fields:
        text = value if leading_space else value.removeprefix(b" ")
        if b"\n" in text:
            text = text.replace(b"\r\n", b"\n")
        if b"\0" in text:
            text = text.replace(b"\0", b" ")
        length = LENGTH.pack(len(name) + len(text) + 3)
        frames.append(b"%bL%b\0%b\0" % (length, name, text))
    return Step(HEADER, b"".join(frames), None, len(frames))


def body_steps(content: bytes, start: int) -> Iterator[Step]:
    """Yield the body in chunks, without copying it.

    :param start: the index of the body in *content*
    """
    view = memoryview(content)
    for position in range(start, len(content), CHUNK):
        yield Step(BODY, view[position : position + CHUNK])
