"""Make a store of obstore from settings, and shorten its errors to one line without secrets."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from obstore.exceptions import BaseError
from obstore.store import S3Store

from smtpd_fork.sanitizer import printable
from smtpd_fork.setting_types import LONGEST_SECONDS

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ERRORS", "is_down", "open_store", "reason_of"]

ERRORS = (BaseError, OSError, ValueError)
"""Exceptions of obstore if a store is unreachable, or refuses."""

CONNECT_SECONDS = 10.0

IDLE_SECONDS = 5.0
"""Seconds after which an idle connection is closed, also after close(): obstore's threads may keep
its pool for a while. Many stores close idle connections themselves not much later."""

_STATUS = re.compile(r"non-2xx status code: (\d{3}[^:\n]*)")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_CAUSE = re.compile(
    r'message: "([^"\n]+)"|\b(invalid peer certificate: \w+)|"(operation timed out)'
)


def open_store(settings: Mapping[str, str], *, timeout: float | None = None) -> S3Store:
    """Return a store, which connects on first use. Blocks: certificates are read.

    :param settings: ``bucket``, and arguments of S3's constructor
    :param timeout: timeout of a request, in seconds; None: the caller has its own
    :raises OSError: the file of CA certificates cannot be read
    """
    options = dict(settings)
    bucket, ca_file = options.pop("bucket"), options.pop("ca_file", None)
    client: Any = {
        "timeout": _duration(timeout or LONGEST_SECONDS),
        "connect_timeout": _duration(CONNECT_SECONDS),
        "pool_idle_timeout": _duration(IDLE_SECONDS),
    }
    endpoint = options.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL", "")
    if endpoint.startswith("http:"):
        client["allow_http"] = True
    if ca_file is not None:
        client["root_certificate"] = Path(ca_file).read_bytes()
    config: Any = options
    retries: Any = {"max_retries": 0}  # the client sends the message again
    return S3Store(bucket, client_options=client, retry_config=retries, **config)


def _duration(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"


def reason_of(error: BaseException) -> str:
    """Return the text of an error on one line: status and code of an answer, or the cause."""
    text = str(error)
    status, code, cause = _STATUS.search(text), _CODE.search(text), _CAUSE.search(text)
    if status is not None:
        return printable(f"{status[1].strip()} {code[1] if code else ''}".strip())
    reason = text.partition("\n")[0].rpartition(" - ")[2]
    if cause is not None:
        reason += f": {cause[1] or cause[2] or cause[3]}"
    return printable(reason or type(error).__name__)


def is_down(error: BaseException) -> bool:
    """Return whether the store could not be reached, or has answered 5xx."""
    status = _STATUS.search(str(error))
    return status is None or status[1].startswith("5")
