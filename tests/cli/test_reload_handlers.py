"""``--reload-handlers``: a changed handler is loaded for new sessions."""

from __future__ import annotations

import re
from signal import SIGHUP
from smtplib import SMTP
from typing import TYPE_CHECKING

from support.daemon import Daemon, on_both_loops

if TYPE_CHECKING:
    from pathlib import Path

HANDLER = """\
import rules

class Mine:
    async def handle_RCPT(self, server, session, envelope, address, options):
        return rules.REPLY
"""
OPTIONS = ("-l", "127.0.0.1:0", "--reload-handlers", "--handler", "mine:Mine")
LOADED = r"configuration reloaded \(handlers loaded again\)$"


def started(place: Path, *options: str) -> Daemon:
    (place / "mine.py").write_text(HANDLER)
    (place / "rules.py").write_text('REPLY = "550 5.7.1 one"\n')
    return Daemon(*(options or OPTIONS), cwd=place)


def answer(client: SMTP) -> bytes:
    client.ehlo()
    client.docmd("MAIL FROM:<a@example.org>")
    return client.docmd("RCPT TO:<b@example.com>")[1]


def of_new_session(daemon: Daemon) -> bytes:
    with SMTP("127.0.0.1", daemon.port) as client:
        return answer(client)


@on_both_loops
def test_a_new_session_uses_the_changed_handler_and_an_open_one_the_old(
    tmp_path: Path, loop: str
) -> None:
    with started(tmp_path, *OPTIONS, "--loop", loop) as daemon:
        port = daemon.port
        with SMTP("127.0.0.1", port) as old:
            assert answer(old) == b"5.7.1 one"
            (tmp_path / "mine.py").write_text(HANDLER.replace("rules.REPLY", '"551 5.7.1 mine"'))
            daemon.wait_for(LOADED)
            with SMTP("127.0.0.1", port) as new:
                assert answer(new) == b"5.7.1 mine"
            assert answer(old) == b"5.7.1 one"


def test_a_module_in_the_directory_of_the_handler_is_watched_too(tmp_path: Path) -> None:
    with started(tmp_path) as daemon:
        watched = daemon.wait_for(r"changed handlers are loaded for new sessions: (.*)$")[1]
        assert set(watched.split(", ")) == {f"{tmp_path}/mine.py", f"{tmp_path}/rules.py"}
        # The same size, and perhaps the same second: a .pyc file would not be replaced.
        (tmp_path / "rules.py").write_text('REPLY = "550 5.7.1 two"\n')
        daemon.wait_for(rf"{re.escape(str(tmp_path))}/rules.py changed: reloading the config")
        daemon.wait_for(LOADED)
        assert of_new_session(daemon) == b"5.7.1 two"


def test_a_handler_that_cannot_be_loaded_leaves_the_previous_one_in_force(tmp_path: Path) -> None:
    with started(tmp_path) as daemon:
        file = tmp_path / "mine.py"
        file.write_text("class Mine:\n  oops\n")
        error = daemon.wait_for(r"ERROR reload failed, previous settings stay in force: (.*)$")[1]
        assert error == (
            "handler 'mine:Mine': cannot import mine: NameError: name 'oops' is not defined "
            "(from --handler)"
        )
        assert of_new_session(daemon) == b"5.7.1 one"
        file.unlink()
        daemon.wait_for("cannot import mine: ModuleNotFoundError: No module named 'mine'")
        assert of_new_session(daemon) == b"5.7.1 one"
        file.write_text(HANDLER)
        daemon.wait_for(LOADED)
        assert of_new_session(daemon) == b"5.7.1 one"


def test_without_the_option_a_changed_file_has_no_effect(tmp_path: Path) -> None:
    options = [each for each in OPTIONS if each != "--reload-handlers"]
    with started(tmp_path, *options) as daemon:
        (tmp_path / "rules.py").write_text('REPLY = "550 5.7.1 two"\n')
        daemon.signal(SIGHUP)
        daemon.wait_for(r"configuration reloaded \(nothing changed\)$")
        assert of_new_session(daemon) == b"5.7.1 one"


def test_handlers_without_files_are_a_warning(tmp_path: Path) -> None:
    with Daemon(
        "-l", "127.0.0.1:0", "--reload-handlers", "--handler", "discard", cwd=tmp_path
    ) as daemon:
        daemon.wait_for("WARNING --reload-handlers has no effect: no handler is a module:attr$")
