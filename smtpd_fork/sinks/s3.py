"""S3: put each message into a bucket of Amazon S3, or of another store with the same protocol.

250 means that the store has answered 200, or that the object exists already: its name contains the
idempotency key, and is written only once. An object is a complete message, with ``Return-Path``,
a ``Delivered-To`` for each recipient and ``Received`` at the top, as in a mailbox.
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
except ImportError:  # the constructor reports it
    INSTALLED = False
else:
    INSTALLED = True

if TYPE_CHECKING:
    from obstore.store import S3Store

__all__ = ["S3"]

VERSION = "1"
"""The version of the metadata of an object."""

LONGEST_VALUE = 300
"""Maximum characters of a value of the metadata; all metadata of an object may have 2 KB."""

UNUSABLE = 65
"""Exit status of the process that checks the bucket: the bucket cannot be used."""

UNKNOWN = 69
"""Exit status of the process that checks the bucket: the store did not answer."""


class S3(ServerSink):
    """Puts messages into a bucket, each as one object.

    The metadata are ``mail-version`` (1), ``mail-id``, ``mail-key``, ``mail-from``,
    ``mail-client``, ``mail-helo`` and ``mail-received``.

    :param bucket: the name of the bucket
    :param path: the name of an object: ``{key}`` is the idempotency key, ``{date}`` the date in UTC
        as ``2026/11/27``; without the date, a message that is sent again on another day is not
        stored again
    :param endpoint: URL of the store; default: ``AWS_ENDPOINT_URL``, or Amazon
    :param region: region; default: ``AWS_REGION``, or us-east-1
    :param access_key_id: access key; default: ``AWS_ACCESS_KEY_ID``, or the role of the machine
    :param secret_access_key: its secret; default: ``AWS_SECRET_ACCESS_KEY``
    :param overwrite: overwrite an existing object, for stores that do not support
        ``If-None-Match``
    :param timeout: seconds for one message
    :param connections: maximum concurrent requests; other messages wait
    :param wait: seconds that a message waits for a connection before it gets 451
    :param ca_file: file of CA certificates to verify the store's certificate with, in addition to
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
            reason = "expected a path with {key} and optionally {date}, without empty components"
            raise SettingError("path", path, reason)
        if endpoint is not None and not _is_url(endpoint):
            raise SettingError("endpoint", HIDDEN, "write http://HOST:PORT or https://HOST:PORT")
        if (access_key_id is None) != (secret_access_key is None):
            reason = "access-key-id requires secret-access-key, and vice versa"
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
        """Check that the bucket exists; log a warning if the store is down.

        The check runs in another process, because obstore's threads would not survive the fork of
        a daemon.

        :raises CannotCreateError: the bucket does not exist, or the credentials are wrong
        """
        probe = [sys.executable, "-c", f"import {__name__} as s3; s3.probe_from_stdin()"]
        ended = subprocess.run(  # noqa: S603 - it is this program
            probe, input=json.dumps(self._settings), text=True, capture_output=True, check=False
        )
        reason = ended.stdout.strip() or ended.stderr.strip()[-300:]
        if ended.returncode == UNUSABLE:
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
        """Put a message into the bucket."""
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
            await self._check_exists(store, name)
        except ERRORS as error:
            raise self._failure(error) from None
        return f"250 2.0.0 Ok: queued as {mail.id}"

    def _open(self) -> S3Store:
        try:
            return open_store(self._settings)
        except ERRORS as error:
            raise ServerDownError(reason_of(error)) from None

    async def _check_exists(self, store: S3Store, name: str) -> None:
        """Check that an object exists: a store also reports one that is just being removed.

        :raises NotDeliveredError: it does not exist
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


def probe_from_stdin() -> None:
    """Check a bucket in a separate process; see :meth:`S3.check`."""
    settings = json.load(sys.stdin)
    try:
        store = open_store(settings, timeout=PROBE_SECONDS)
    except ERRORS as error:
        _end(UNUSABLE, reason_of(error))
    try:
        obstore.list(store, prefix="0", chunk_size=1).collect()
    except ERRORS as error:
        reason = reason_of(error)
        if "AccessDenied" in reason:
            _end(0, reason)  # the credentials may allow to put objects, but not to list them
        _end(UNKNOWN if is_down(error) else UNUSABLE, reason)


def _end(status: int, reason: str) -> NoReturn:
    print(reason)  # noqa: T201 - for the parent process
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
