"""The start of a process when the system has no resources."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest

from smtpd_fork.daemon import Invocation
from smtpd_fork.errors import OperatingSystemError
from smtpd_fork.supervisor.serving_process import ServingProcess, Start

if TYPE_CHECKING:
    from collections.abc import Callable


def fails_after(good: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that works so many times, and then finds no descriptor."""
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
    denials = Mock(page=list)
    start = Start(Invocation(["true"], None, {}), [], denials, None, 2, Mock())
    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(module, name, fails_after(good, getattr(module, name)))
    with pytest.raises(OperatingSystemError, match="cannot start a process: Too many open files"):
        await ServingProcess.start(1, start)
    assert os.listdir("/proc/self/fd") == before
