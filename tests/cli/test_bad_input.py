"""Bad input: a failed start prints one line with the error and its origin, and leaves no files.

``check`` prints the same line, and ends with the same status.
"""

from __future__ import annotations

import pytest
from support.faults import FAULTS
from support.place import Place, only_line

UNLIKE = {"there is a word too many": "a subcommand of check is not named as one"}
"""Errors for which ``check`` prints another line than the start, with the reason."""


@pytest.mark.parametrize("name", FAULTS)
def test_a_start_that_fails_says_why_in_one_line_as_check_does_and_leaves_nothing(
    name: str, place: Place
) -> None:
    fault = FAULTS[name]
    options = place.fill(fault.options)
    started = place.start(*options)
    line = only_line(started)
    assert started.returncode == fault.status
    for word in place.fill(fault.words):
        assert word in line
    place.assert_nothing_left()
    if name not in UNLIKE:
        checked = place.check(*options)
        assert line in checked.stderr.splitlines(keepends=True)
        assert checked.returncode == started.returncode
        place.assert_nothing_left()


DETACHED = (
    "the port is taken",
    "the port is too high",
    "the pid-file's folder is not there",
    "the user is unknown",
    "the handler's constructor raises",
    "the Maildir cannot be made",
    "the key is encrypted",
    "the log's folder is not there",
    "the option is unknown",
)


@pytest.mark.parametrize("name", DETACHED)
def test_with_detach_the_parent_says_the_same_with_the_same_status(name: str, place: Place) -> None:
    options = place.fill(FAULTS[name].options)
    in_front = place.start(*options)
    detached = place.start("--detach", *options)
    assert detached.returncode == in_front.returncode == FAULTS[name].status
    assert only_line(detached) == only_line(in_front)
    place.assert_nothing_left()
