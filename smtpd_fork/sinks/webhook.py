"""Webhook: post each message to a URL.

250 means that the application has answered 2xx, and that its answer was read completely. Requests
are signed as specified by standardwebhooks.com. A message that the client sends again has the same
``webhook-id``, so that the application can recognize it.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Literal

from aiosmtpd.smtp import MISSING, Envelope
from aiosmtpd.smtp import Session as AnySession

from smtpd_fork.hops.http import WebServer, read_url
from smtpd_fork.hops.http_connection import AnswerTooLongError, HttpError
from smtpd_fork.message import Mail
from smtpd_fork.sanitizer import HIDDEN
from smtpd_fork.setting_types import Count, FilePath, Seconds, Secret, SettingError, Text
from smtpd_fork.sinks.mail_json import delivery_key
from smtpd_fork.sinks.server_sink import TOO_MANY, NotDeliveredError, ServerDownError, ServerSink
from smtpd_fork.sinks.webhook_request import (
    Body,
    addresses,
    envelope_fields,
    read_secrets,
    signature_fields,
)  # fmt: skip

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Webhook"]

LONGEST_RECIPIENTS = 6000
"""Maximum bytes of the recipients in a header field; servers accept lines of up to 8 KiB (nginx,
aiohttp, Apache)."""

LONGEST_ANSWER = 1 << 20
"""Maximum bytes of an answer's body, which is read and discarded."""

REFUSED = "554 5.3.0 The application refused the message"

_TEMPORARY = {408, 425, 429}
"""Request Timeout, Too Early, Too Many Requests."""


class Webhook(ServerSink):
    """Posts messages to a web application.

    :param url: URL of the application, ``http://`` or ``https://``; a user name and a password in
        it are sent by HTTP's Basic authentication
    :param format: ``raw``: the body is the message, and the envelope is in header fields
        ``X-Mail-*``; ``json``: the body is an object with both
    :param secret: key that signs requests: ``whsec_`` and Base64; several, to change the key, are
        separated by spaces
    :param token: token to send as ``Authorization: Bearer TOKEN``
    :param permanent: whether a status of 4xx, except 408, 425 and 429, refuses the message
        permanently (554); default: the client gets 451, so that an expired token does not bounce
        mail
    :param timeout: seconds for one request
    :param connections: maximum concurrent requests; other messages wait
    :param wait: seconds that a message waits for a connection before it gets 451
    :param ca_file: file of CA certificates to verify the server's certificate with; default: the
        system's
    """

    log = logging.getLogger("smtpd_fork.webhook")

    def __init__(
        self,
        url: Text,
        *,
        format: Literal["raw", "json"] = "raw",  # noqa: A002 - the key of users
        secret: Secret | None = None,
        token: Secret | None = None,
        permanent: bool = False,
        timeout: Seconds = 30.0,
        connections: Count = 10,
        wait: Seconds = 5.0,
        ca_file: FilePath | None = None,
    ) -> None:
        bare, self._authorization = read_url(url)
        self._application = WebServer(
            bare, connections=connections, ca_file=ca_file, extra="webhook"
        )
        super().__init__(
            f"the webhook {self._application.shown}",
            timeout=timeout,
            connections=connections,
            wait=wait,
        )
        if format not in {"raw", "json"}:
            raise SettingError("format", format, "expected raw or json")
        self._json = format == "json"
        try:
            self._secrets = read_secrets(secret or "")
        except ValueError as error:
            raise SettingError("secret", HIDDEN, str(error)) from None
        if token is not None and not (token.isascii() and token.isprintable()):
            raise SettingError("token", HIDDEN, "only printable ASCII can be sent")
        if token is not None and self._authorization is not None:
            raise SettingError("token", HIDDEN, "not with a user name in the URL")
        if token is not None:
            self._authorization = f"Bearer {token}"
        self._permanent = permanent

    def check(self) -> None:
        """Check that the CA certificates can be read.

        :raises CannotCreateError: they cannot be read
        """
        self._application.read_certificates()

    def prepare(self) -> None:
        """Read the CA certificates.

        :raises CannotCreateError: they cannot be read
        """
        self._application.read_certificates()

    async def close(self) -> None:
        """Close the connections."""
        await super().close()
        await self._application.close()

    async def handle_RCPT(
        self, server: Any, session: AnySession, envelope: Envelope, address: str, options: list[str]
    ) -> Any:
        """Refuse a recipient that does not fit into the header of the request."""
        if not self._json and envelope.rcpt_tos:
            listed = addresses([*envelope.rcpt_tos, address])
            if len(listed) > LONGEST_RECIPIENTS:
                return TOO_MANY
        return MISSING

    async def send(self, mail: Mail) -> str:
        """Post a message."""
        key = await delivery_key(mail)
        body = Body.json(mail, key) if self._json else Body.raw(mail)
        headers = {
            **(self._json_headers() if self._json else self._raw_headers(mail)),
            **await signature_fields(key, int(time.time()), body, self._secrets),
            "Content-Length": str(body.size),
        }
        if self._authorization is not None:
            headers["Authorization"] = self._authorization
        status = await self._status(headers, body)
        if 200 <= status < 300:  # noqa: PLR2004 - HTTP's classes
            return f"250 2.0.0 Ok: queued as {mail.id}"
        raise self._refusal(status)

    @staticmethod
    def _json_headers() -> dict[str, str]:
        return {"Content-Type": "application/json"}

    @staticmethod
    def _raw_headers(mail: Mail) -> dict[str, str]:
        fields = envelope_fields(mail)
        if len(fields["X-Mail-To"]) > LONGEST_RECIPIENTS and len(mail.recipients) > 1:
            raise NotDeliveredError("the recipients do not fit into a header: use format=json")
        return {"Content-Type": "message/rfc822", **fields}

    def _refusal(self, status: int) -> NotDeliveredError:
        reason = f"the application answered {status}"
        if 300 <= status < 400:  # noqa: PLR2004 - HTTP's classes
            return NotDeliveredError(f"{reason}; redirects are not followed")
        if 400 <= status < 500 and status not in _TEMPORARY and self._permanent:  # noqa: PLR2004
            return NotDeliveredError(reason, REFUSED)
        return NotDeliveredError(reason)

    async def _status(self, headers: Mapping[str, str], body: Body) -> int:
        """Send a request, and return the status of the answer.

        :raises ServerDownError: no answer was received, or it is not HTTP
        :raises NotDeliveredError: the answer is too long
        """
        try:
            answer = await self._application.ask(headers.items(), body, LONGEST_ANSWER)
        except AnswerTooLongError as error:
            raise NotDeliveredError(str(error)) from None
        except HttpError as error:
            raise ServerDownError(str(error)) from None
        return answer.status
