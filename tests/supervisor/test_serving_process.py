"""A process as its supervisor sees it: a start without resources, and the health check."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock, Mock

import pytest
from support.peers import proc

from smtpd_fork.daemon import Invocation
from smtpd_fork.errors import OperatingSystemError
from smtpd_fork.supervisor.channel import ChannelClosedError
from smtpd_fork.supervisor.serving_process import ServingProcess, Start

if TYPE_CHECKING:
    from collections.abc import Callable


def fails_after(good: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that succeeds a number of times, and then fails with EMFILE."""
    left = iter(range(good))

    def call(*arguments: Any) -> Any:
        if next(left, None) is None:
            raise OSError(errno.EMFILE, "Too many open files")
        return function(*arguments)

    return call


@pytest.mark.parametrize(
    ("module", "name", "good"),
    [
        (os, "memfd_create", 0),
        (os, "ftruncate", 0),
        (socket, "socketpair", 0),
        (socket, "socketpair", 1),
        (os, "dup", 0),
    ],
)
async def test_a_start_without_a_descriptor_leaves_none_open_and_can_be_tried_again(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, good: int
) -> None:
    descriptors = proc("self", "fd")
    denials = Mock(page=list)
    start = Start(Invocation(["true"], None, {}), [], denials, None, 2, Mock())
    before = os.listdir(descriptors)
    monkeypatch.setattr(module, name, fails_after(good, getattr(module, name)))
    with pytest.raises(OperatingSystemError, match="cannot start a process: Too many open files"):
        await ServingProcess.start(1, start)
    assert os.listdir(descriptors) == before


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_process_is_killed_if_it_does_not_answer_twice(
    monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    monkeypatch.setattr("smtpd_fork.supervisor.serving_process.PING_SECONDS", 0)
    second = TimeoutError() if hangs else 3
    answers = [1, TimeoutError(), second, TimeoutError(), second, ChannelClosedError()]
    system_process, channel = Mock(pid=1), Mock(ask=AsyncMock(side_effect=answers))
    process = ServingProcess(1, system_process, channel, 0.0)
    await process._watch()
    assert process.sessions == (1 if hangs else 3)
    assert system_process.kill.called == hangs
