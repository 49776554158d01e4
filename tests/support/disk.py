"""Disk errors for tests: each step of the writer of a Maildir can fail or hang."""

from __future__ import annotations

import os
import stat
import threading
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from smtpd_fork.sinks import Maildir

STEPS = (
    *("create", "write", "sync file", "close file"),
    *("open directory", "rename", "sync directory", "close directory"),
)
"""The steps of the writer, in order."""


class Disk:
    """Wraps the system calls of the threads that write.

    :ivar steps: the completed steps, in order
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[str] = []
        self._fault: Callable[[], None] | None = None
        self._faulty_step = ""
        self._after = False
        for name in ("open", "writev", "fsync", "close"):
            monkeypatch.setattr(
                os, name, self._recorded(getattr(os, name), getattr(self, f"_{name}"))
            )
        monkeypatch.setattr(os, "rename", self._recorded(os.rename, lambda *_: "rename"))

    def fails(self, step: str, number: int, *, after: bool = False, once: bool = False) -> None:
        """Let *step* fail with an error.

        :param after: whether the step does its work before it fails
        :param once: whether only the next call fails
        """

        def fail() -> None:
            if once:
                self.works()
            raise OSError(number, os.strerror(number))

        self._faulty_step, self._fault, self._after = step, fail, after

    def hangs(self, step: str, *, after: bool = False) -> Hang:
        """Let *step* hang until it is released; *after*: once it has done its work."""
        hang = Hang()
        self._faulty_step, self._fault, self._after = step, hang, after
        return hang

    def works(self) -> None:
        self._fault = None

    def _recorded(
        self, call: Callable[..., Any], step_of: Callable[..., str]
    ) -> Callable[..., Any]:
        def noted(*args: Any, **options: Any) -> Any:
            if not threading.current_thread().name.startswith("maildir_"):
                return call(*args, **options)
            step = step_of(*args)
            self.steps.append(step)
            fault = self._fault if step == self._faulty_step else None
            if fault is None:
                return call(*args, **options)
            # A failed close() has closed the descriptor all the same (close(2)).
            if not self._after and not step.startswith("close"):
                fault()
                return call(*args, **options)
            call(*args, **options)
            return fault()

        return noted

    def _open(self, path: Any, flags: int, *_: Any) -> str:
        return "create" if flags & os.O_CREAT else "open directory"

    def _writev(self, *_: Any) -> str:
        return "write"

    def _fsync(self, descriptor: int) -> str:
        return f"sync {_kind(descriptor)}"

    def _close(self, descriptor: int) -> str:
        return f"close {_kind(descriptor)}"


class Hang:
    """A call that hangs; a context manager that releases it at the end, if not before."""

    def __init__(self) -> None:
        self._begun, self._over = threading.Event(), threading.Event()

    @property
    def begun(self) -> bool:
        return self._begun.is_set()

    def release(self) -> None:
        self._over.set()

    def __call__(self) -> None:
        self._begun.set()
        self._over.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _kind(descriptor: int) -> str:
    return "directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"


def left(maildir: Maildir) -> list[str]:
    """Return the names of all files in the Maildir, such as ``new/NAME``."""
    return sorted(
        f"{path.parent.name}/{path.name}" for path in maildir.path.rglob("*") if path.is_file()
    )
