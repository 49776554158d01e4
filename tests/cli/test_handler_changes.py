"""The lines of a reload about changed handlers."""

from __future__ import annotations

from typing import Any

import pytest

from smtpd_fork.cli.setting_changes import daemon_changes
from smtpd_fork.config import DaemonConfig

LMTP: dict[str, Any] = {"use": "lmtp", "address": "unix:/x"}
RELAY: dict[str, Any] = {"use": "relay", "address": "mx", "password": "hunter2"}


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        (["discard"], ["debug"], ["handler discard -> debug"]),
        (["m:A:one"], ["m:A:two"], ["handler arguments changed"]),
        (
            [LMTP, RELAY],
            [LMTP | {"address": "unix:/y"}, RELAY | {"wait": "1s"}],
            [
                'handler 1 (lmtp): address "unix:/x" -> "unix:/y"',
                'handler 2 (relay): wait none -> "1s"',
            ],
        ),
        ([RELAY], [RELAY | {"password": "s3cret"}], ["handler 1 (relay): password has changed"]),
        (
            [LMTP],
            [RELAY],
            [
                (
                    'handler { use = "lmtp", address = "unix:/x" } '
                    '-> { use = "relay", address = "mx", password = "***" }'
                )
            ],
        ),
        ([LMTP], ["discard"], ['handler { use = "lmtp", address = "unix:/x" } -> discard']),
    ],
)
def test_a_line_names_the_key_that_has_changed_and_no_secret(
    before: list[Any], after: list[Any], lines: list[str]
) -> None:
    old, new = (DaemonConfig.build({"handler": each}) for each in (before, after))
    assert list(daemon_changes(old, new)) == lines
