"""The pytest plugin with the fixture ``smtp_server``; see docs/testing.md.

pytest imports this module whenever it starts in an environment with smtpd_fork. Therefore the
module imports nothing else of the package until a test uses the fixture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_fork.server.threaded import ServerOptions
    from smtpd_fork.testing import SmtpServer

__all__ = ["smtp_server", "smtp_server_options"]


@pytest.fixture
def smtp_server_options() -> ServerOptions:
    """Return the keywords of smtpd_fork.Server for ``smtp_server``; override it to set keywords."""
    return {}


@pytest.fixture
def smtp_server(smtp_server_options: ServerOptions) -> Iterator[SmtpServer]:
    """Serve SMTP on a free port of 127.0.0.1, and keep the messages that are received."""
    from smtpd_fork.testing import SmtpServer  # noqa: PLC0415 - see the module's docstring

    with SmtpServer(**smtp_server_options) as server:
        yield server
