"""A sink that fails under aiosmtpd, which answers 500 after an unexpected error."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from support.aiosmtpd_controller import client_of_aiosmtpd

from smtpd_fork.sinks import Sink

if TYPE_CHECKING:
    from smtpd_fork import Mail


class Faulty(Sink):
    """A sink that raises an exception, or returns a value."""

    def __init__(self, result: Any) -> None:
        self.result = result

    async def deliver(self, mail: Mail) -> Any:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.mark.parametrize(
    "result", [RuntimeError("password=hunter2"), TimeoutError(), ["250 Ok"] * 7, None, 250]
)
def test_an_unexpected_error_is_temporary_under_aiosmtpd_and_its_text_is_not_sent(
    result: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    with client_of_aiosmtpd(Faulty(result)) as client:
        client.ehlo()
        client.mail("a@example.com")
        client.rcpt("b@example.com")
        code, text = client.data(b"Subject: x\r\n\r\nx\r\n")
    assert (code, text) == (451, b"4.3.0 The message could not be delivered, try again later")
    (record,) = [each for each in caplog.records if each.name == "smtpd_fork.sinks"]
    assert record.exc_info is not None
