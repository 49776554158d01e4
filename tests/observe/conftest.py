from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.control import CONTROL, SOCKET
from support.daemon import LOCAL, Daemon

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=["uvloop", "asyncio"])
def daemon(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A daemon with a control socket."""
    with Daemon(*LOCAL, *CONTROL, "--loop", request.param, cwd=tmp_path) as running:
        yield running
        if running.process.poll() is None:
            assert running.stop() == 0
        assert "Traceback" not in running.log
        assert not (tmp_path / SOCKET).exists()


@pytest.fixture(scope="module")
def place_with_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of a daemon that many tests share; they must not change it."""
    place = tmp_path_factory.mktemp("control")
    with Daemon(*LOCAL, *CONTROL, cwd=place) as running:
        yield place
        assert running.stop() == 0
        assert "Traceback" not in running.log
