"""Make the header of a request to rspamd, which describes the client and the envelope."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from smtpd_fork.peer_address import host_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_fork.message import Mail

__all__ = ["request_fields"]

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Characters that would end a header line, or are not allowed in one."""

LONGEST_VALUE = 1000
"""Maximum characters of a value; valid addresses and names are shorter."""

MOST_RECIPIENT_BYTES = 48_000
"""Maximum bytes of all recipients: rspamd refuses requests with a header of more than 80 KiB."""


def request_fields(mail: Mail, session: Any, hostname: str) -> Iterator[tuple[str, str]]:
    """Yield the header fields of a request, those whose value is known.

    rspamd expects values without any encoding. A character that could end a line is replaced by a
    question mark.

    :param hostname: the name of this server; rspamd uses it as the authserv-id in
        Authentication-Results
    """
    client = mail.client
    yield "From", _safe(mail.sender) or "<>"
    room = MOST_RECIPIENT_BYTES
    for recipient in mail.recipients:
        address = _safe(recipient.address)
        room -= len(address.encode()) + len("Rcpt: \r\n")
        if room < 0:
            break
        yield "Rcpt", address
    if (host := host_of(client.peer)) is not None:
        yield "IP", _safe(host)
    if client.helo:
        yield "Helo", _safe(client.helo)
    if client.name:
        yield "Hostname", _safe(client.name)
    if client.login is not None:
        yield "User", _safe(client.user or "unknown")
    yield "Queue-Id", _safe(mail.id)
    yield "MTA-Name", _safe(hostname)
    cipher = (getattr(session, "ssl", None) or {}).get("cipher")
    if cipher:
        yield "TLS-Cipher", _safe(cipher[0])
        yield "TLS-Version", _safe(cipher[1])


def _safe(text: str) -> str:
    """Return an untrusted text as one line."""
    if len(text) > LONGEST_VALUE:
        text = text[:LONGEST_VALUE]
    return text if text.isascii() and text.isprintable() else _UNSAFE.sub("?", text)
