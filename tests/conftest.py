from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvloop
from hypothesis import settings
from support.authority import Authority, Issued
from support.disk import Disk
from support.installation import install
from support.peers import needs_root, peer, table, watch_programs
from support.place import Place
from support.tls import Certificates

from smtpd_fork.sinks import Maildir

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from _pytest.terminal import TerminalReporter
    from playwright.sync_api import Browser


watch_programs()

# How long an example takes says more of the machine than of the program.
settings.register_profile("without deadlines", deadline=None)
settings.load_profile("without deadlines")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell runs the tests in the background; programs that they start would ignore it as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)


class DebugLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop, in debug mode: it complains of what was never awaited or closed."""

    def __init__(self) -> None:
        super().__init__()
        self.set_debug(True)
        self.slow_callback_duration = 60  # it logs what takes longer: that depends on the machine


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run every asynchronous test on both loops."""
    return {"uvloop": uvloop.new_event_loop, "asyncio": DebugLoop}


@pytest.hookimpl(wrapper=True, tryfirst=True)  # outermost: so it comes last
def pytest_terminal_summary(terminalreporter: TerminalReporter) -> Generator[None]:
    """Show what was absent on this machine, and how many tests that skipped."""
    yield
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        terminalreporter.section("absent here, and tests skipped by that")
        for line in table(report.longrepr[2] for report in skipped):
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def old(authority: Authority) -> Issued:
    """A certificate in use, which is to be renewed."""
    return authority.issue("old", "localhost", "127.0.0.1")


@pytest.fixture
def new(authority: Authority) -> Issued:
    """What renews it; it has a name more."""
    return authority.issue("new", "localhost", "127.0.0.1", "renewed.example")


@pytest.fixture(scope="session")
def command_for_nobody() -> Iterator[list[str]]:
    """The project, installed where the user nobody can execute it."""
    needs_root()
    folder = Path(tempfile.mkdtemp(prefix="smtpd-fork-", dir="/tmp"))
    try:
        folder.chmod(0o755)
        python = install(folder / "venv")
        yield [str(python), "-m", "smtpd_fork"]
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def public(command_for_nobody: list[str]) -> Iterator[Path]:
    """A folder that the user nobody can enter and not write to."""
    folder = Path(tempfile.mkdtemp(prefix="smtpd-fork-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody else listens on."""
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        yield other.getsockname()[1]


@pytest.fixture
def place(tmp_path: Path, certificates: Certificates, taken: int) -> Place:
    return Place(tmp_path, certificates, taken)


@pytest.fixture
def maildir(tmp_path: Path) -> Maildir:
    sink = Maildir(tmp_path / "M")
    sink.prepare()
    return sink


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture(scope="module")
def one_session_id() -> Iterator[None]:
    """Give all sessions one id, so that their replies can be compared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smtpd_fork.smtp.connection.new_session_id", lambda: "id")
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, headless; playwright drives it, and takes a while to import."""
    from playwright.sync_api import sync_playwright

    chromium = peer("chromium")
    with sync_playwright() as playwright:
        # It may be root that tests, and there may be no /dev/shm to speak of.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        launched = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield launched
        launched.close()
