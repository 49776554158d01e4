from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import uvloop
from support.tls import Certificates

if TYPE_CHECKING:
    from collections.abc import Callable


class DebugLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop, in debug mode: it complains of what was never awaited or closed."""

    def __init__(self) -> None:
        super().__init__()
        self.set_debug(True)


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run every asynchronous test on both loops."""
    return {"uvloop": uvloop.new_event_loop, "asyncio": DebugLoop}


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))
