"""A store of obstore: made from settings, with errors of one line that show no secret."""

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
"""What obstore raises for a store that is away, or refuses."""

CONNECT_SECONDS = 10.0

IDLE_SECONDS = 5.0
"""A connection without a request is closed then, also after close(): its pool may live on for a
while in threads of obstore. Many stores close it themselves not much later."""

_STATUS = re.compile(r"non-2xx status code: (\d{3}[^:\n]*)")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_CAUSE = re.compile(
    r'message: "([^"\n]+)"|\b(invalid peer certificate: \w+)|"(operation timed out)'
)


def open_store(settings: Mapping[str, str], *, timeout: float | None = None) -> S3Store:
    """Return a store; it connects when it is used. Blocks: certificates are read.

    :param settings: ``bucket``, and keys of S3's constructor
    :param timeout: seconds of a request; None: the caller has a limit
    :raises OSError: the file of CAs cannot be read
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
    """Return what is the matter, on one line: the status and code of an answer, or the cause."""
    text = str(error)
    status, code, cause = _STATUS.search(text), _CODE.search(text), _CAUSE.search(text)
    if status is not None:
        return printable(f"{status[1].strip()} {code[1] if code else ''}".strip())
    reason = text.partition("\n")[0].rpartition(" - ")[2]
    if cause is not None:
        reason += f": {cause[1] or cause[2] or cause[3]}"
    return printable(reason or type(error).__name__)


def is_down(error: BaseException) -> bool:
    """Whether the store could not be reached, or said that it is not well (5xx)."""
    status = _STATUS.search(str(error))
    return status is None or status[1].startswith("5")
