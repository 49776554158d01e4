"""S3: puts each message into a bucket, of Amazon or of any other store with that protocol.

250 means that the store has answered 200, or that the object is there already: its name has the
idempotency key, and a name is written once. An object is complete: ``Return-Path``, a
``Delivered-To`` for each recipient, and ``Received`` are on top of the message, as in a mailbox.
"""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from datetime import UTC
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote, urlsplit

from smtpd_fork.errors import CannotCreateError, MissingLibraryError
from smtpd_fork.hops.probe import PROBE_SECONDS
from smtpd_fork.hops.server_certificates import absolute
from smtpd_fork.message import Mail
from smtpd_fork.peer_address import host_of
from smtpd_fork.sanitizer import HIDDEN
from smtpd_fork.setting_types import Count, FilePath, Seconds, Secret, SettingError, Text
from smtpd_fork.sinks.mail_json import delivery_key
from smtpd_fork.sinks.server_sink import NotDeliveredError, ServerDownError, ServerSink

try:
    import obstore
    from obstore.exceptions import AlreadyExistsError

    from smtpd_fork.sinks.s3_store import ERRORS, is_down, open_store, reason_of
except ImportError:  # the constructor says so
    INSTALLED = False
else:
    INSTALLED = True

if TYPE_CHECKING:
    from obstore.store import S3Store

__all__ = ["S3"]

VERSION = "1"
"""Of the metadata of an object."""

LONGEST_VALUE = 300
"""Characters of a value of the metadata: all of an object's together may have 2 KB."""

NOT_FOUND = 65
"""Exit status of the process that looks at the bucket: it cannot be used."""

NOT_KNOWN = 69
"""Exit status of the process that looks at the bucket: the store did not say."""


class S3(ServerSink):
    """Puts messages into a bucket, each as an object.

    The metadata are ``mail-version`` (1), ``mail-id``, ``mail-key``, ``mail-from``,
    ``mail-client``, ``mail-helo`` and ``mail-received``.

    :param bucket: its name
    :param path: the name of an object: ``{key}`` is the idempotency key, ``{date}`` the date in UTC
        as ``2026/11/27``; without the date, a message that is sent again on another day is not
        stored again
    :param endpoint: URL of the store; default: ``AWS_ENDPOINT_URL``, else Amazon
    :param region: default: ``AWS_REGION``, else us-east-1
    :param access_key_id: default: ``AWS_ACCESS_KEY_ID``, else the role of the machine
    :param secret_access_key: of it; default: ``AWS_SECRET_ACCESS_KEY``
    :param overwrite: an object that is there is written again: for a store that does not know
        ``If-None-Match``
    :param timeout: seconds for one message
    :param connections: requests at once; other messages wait
    :param wait: seconds that a message waits for a connection
    :param ca_file: certificates of the CAs that the store's certificate is verified with, besides
        the system's
    """

    log = logging.getLogger("smtpd_fork.s3")

    def __init__(
        self,
        bucket: Text,
        *,
        path: Text = "{date}/{key}.eml",
        endpoint: str | None = None,
        region: str | None = None,
        access_key_id: str | None = None,
        secret_access_key: Secret | None = None,
        overwrite: bool = False,
        timeout: Seconds = 60.0,
        connections: Count = 10,
        wait: Seconds = 5.0,
        ca_file: FilePath | None = None,
    ) -> None:
        if not INSTALLED:
            raise MissingLibraryError("s3", ["obstore"], "s3")
        if not _is_bucket(bucket):
            raise SettingError("bucket", bucket, "expected a name of letters, digits, - and .")
        if not _is_path(path):
            reason = "expected a path with {key} and perhaps {date}, without empty parts"
            raise SettingError("path", path, reason)
        if endpoint is not None and not _is_url(endpoint):
            raise SettingError("endpoint", HIDDEN, "write http://HOST:PORT or https://HOST:PORT")
        if (access_key_id is None) != (secret_access_key is None):
            reason = "access-key-id and secret-access-key belong together"
            raise SettingError("access_key_id", HIDDEN, reason)
        host = f" at {urlsplit(endpoint).netloc}" if endpoint else ""
        server = f"the bucket {bucket}{host}"
        super().__init__(server, timeout=timeout, connections=connections, wait=wait)
        self._path = path
        self._mode: Any = "overwrite" if overwrite else "create"
        given = {
            "bucket": bucket,
            "endpoint": endpoint,
            "region": region,
            "access_key_id": access_key_id,
            "secret_access_key": secret_access_key,
            "ca_file": absolute(ca_file),
        }
        self._settings = {key: value for key, value in given.items() if value is not None}
        self._store: S3Store | None = None

    def check(self) -> None:
        """See whether the bucket is there; a store that is down is not an error.

        obstore's threads would not survive the daemon's fork: another process looks.

        :raises CannotCreateError: it is not, or the credentials are wrong
        """
        look = [sys.executable, "-c", f"import {__name__} as s3; s3.look_from_stdin()"]
        ended = subprocess.run(  # noqa: S603 - it is this program
            look, input=json.dumps(self._settings), text=True, capture_output=True, check=False
        )
        reason = ended.stdout.strip() or ended.stderr.strip()[-300:]
        if ended.returncode == NOT_FOUND:
            raise CannotCreateError(f"{self.server}: {reason}")
        if ended.returncode:
            self.log.warning("%s: %s; messages get 451 until it answers", self.server, reason)
        elif reason:
            self.log.warning("%s: %s", self.server, reason)

    async def close(self) -> None:
        """Close the connections."""
        await super().close()
        self._store = None

    async def send(self, mail: Mail) -> str:
        """Put a message."""
        if self._store is None:
            self._store = await asyncio.to_thread(self._open)
        store, key = self._store, await delivery_key(mail)
        date = mail.received.astimezone(UTC).strftime("%Y/%m/%d")
        name = self._path.replace("{date}", date).replace("{key}", key)
        try:
            await obstore.put_async(
                store,
                name,
                list(mail.delivered()),
                attributes=metadata(mail, key),
                mode=self._mode,
                use_multipart=False,
            )
        except AlreadyExistsError:
            await self._see(store, name)
        except ERRORS as error:
            raise self._failure(error) from None
        return f"250 2.0.0 Ok: queued as {mail.id}"

    def _open(self) -> S3Store:
        try:
            return open_store(self._settings)
        except ERRORS as error:
            raise ServerDownError(reason_of(error)) from None

    async def _see(self, store: S3Store, name: str) -> None:
        """See whether an object is there: a store also says so of one that is being removed.

        :raises NotDeliveredError: it is not
        """
        try:
            await obstore.head_async(store, name)
        except ERRORS as error:
            raise self._failure(error) from None

    @staticmethod
    def _failure(error: Exception) -> NotDeliveredError:
        reason = reason_of(error)
        return ServerDownError(reason) if is_down(error) else NotDeliveredError(reason)


def metadata(mail: Mail, key: str) -> dict[str, str]:
    """Return the metadata of an object, in percent-coded ASCII; addresses may be cut."""
    client = mail.client
    found = {
        "mail-version": VERSION,
        "mail-id": mail.id,
        "mail-key": key,
        "mail-from": mail.sender,
        "mail-client": host_of(client.peer) or "",
        "mail-helo": client.helo,
        "mail-origin": mail.xforward.get("ADDR", ""),
        "mail-received": mail.received.isoformat(),
    }
    coded = {
        name: quote(value.encode("utf-8", "surrogateescape"), safe="@:/+[]=")[:LONGEST_VALUE]
        for name, value in found.items()
    }
    return {"Content-Type": "message/rfc822", **{k: v for k, v in coded.items() if v}}


def look_from_stdin() -> None:
    """Look at a bucket, as a process of its own: see :meth:`S3.check`."""
    settings = json.load(sys.stdin)
    try:
        store = open_store(settings, timeout=PROBE_SECONDS)
    except ERRORS as error:
        _end(NOT_FOUND, reason_of(error))
    try:
        obstore.list(store, prefix="0", chunk_size=1).collect()
    except ERRORS as error:
        reason = reason_of(error)
        if "AccessDenied" in reason:
            _end(0, reason)  # it may be that objects can be put, and not listed
        _end(NOT_KNOWN if is_down(error) else NOT_FOUND, reason)


def _end(status: int, reason: str) -> NoReturn:
    print(reason)  # noqa: T201 - for the process that began this one
    sys.exit(status)


def _is_bucket(text: str) -> bool:
    return text.isascii() and text.replace("-", "").replace(".", "").replace("_", "").isalnum()


def _is_path(text: str) -> bool:
    bare = text.replace("{date}", "d").replace("{key}", "k")
    parts = bare.split("/")
    plain = text.isascii() and text.isprintable() and "{" not in bare and "}" not in bare
    return plain and "{key}" in text and not {"", ".", ".."} & set(parts)


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return bool(parts.scheme in {"http", "https"} and parts.hostname and not parts.username)
    except ValueError:
        return False
