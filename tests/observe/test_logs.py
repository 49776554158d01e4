"""Log entries: their fields, and protection against text of clients."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import subprocess
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client
from support.daemon import COMMAND, LOCAL, PATIENCE, clean_environment
from support.logs import HOSTILE, logging_with, objects, parse
from support.page import read
from support.server import greeted, serve

from smtpd_fork.gate import Full, Refusal
from smtpd_fork.observe.logs import FIELDS
from smtpd_fork.observe.logs.fields import MAX_TEXT, MAX_TRACEBACK, fields_of
from smtpd_fork.observe.logs.formats import JsonFormat, TextFormat, for_journald, for_syslog
from smtpd_fork.sinks import Discard, Maildir

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger("handler.of.a.test")

TEXT = TextFormat("%(asctime)s %(levelname)s %(message)s")


def record(text: str = "hello", **more: Any) -> logging.LogRecord:
    about = {"name": "x", "levelno": 30, "levelname": "WARNING", "created": 1767225600.25}
    return logging.makeLogRecord({**about, "msg": text, **more})


def failed(text: str) -> Any:
    """Return the ``exc_info`` of an error with the text *text*."""
    try:
        int(text)
    except ValueError as error:
        error.args = (text,)
        return (ValueError, error, error.__traceback__)


def test_the_fields_of_the_docs_are_those_of_the_program() -> None:
    section = read("docs/operation.md").partition("### Fields")[2].partition("\n## ")[0]
    found = re.findall(r"^\| `(\w+)` \| (.+) \|$", section, re.MULTILINE)
    assert found == list(FIELDS.items())


def test_an_entry_in_json_is_one_object_with_time_in_utc() -> None:
    found = json.loads(JsonFormat().format(record("%s %d", args=("hello", 5))))
    assert list(found) == ["time", "level", "logger", "pid", "message"]
    assert found["time"] == "2026-01-01T00:00:00.250000Z"
    assert datetime.fromisoformat(found["time"]).tzinfo is UTC
    assert (found["level"], found["logger"], found["message"]) == ("warning", "x", "hello 5")


@pytest.mark.parametrize(
    ("verdict", "rule", "key"),
    [
        (Refusal("rate", "192.0.2.1", 7, 5, id="ab-1"), "rate", "192.0.2.1"),
        (Full(101, 100), "limit_connections", ""),
    ],
)
def test_the_entry_of_a_refusal_has_all_its_fields(verdict: Any, rule: str, key: str) -> None:
    found = fields_of(record(refusal=verdict, more=3, seconds=5))
    assert (found["rule"], found["key"]) == (rule, key)
    assert (found["count"], found["limit"]) == (verdict.count, verdict.limit)
    assert (found["more"], found["seconds"]) == (3, 5)
    assert "extra" not in found


class Nameless:
    def __str__(self) -> str:
        raise RuntimeError("no name")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (5, 5),
        (True, True),
        (None, None),
        (0.5, 0.5),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        ({"a": [1]}, "{'a': [1]}"),
        (b"\xff", "b'\\xff'"),
        ("\udc80", "\\udc80"),
        (Nameless(), "<Nameless>"),
    ],
)
def test_fields_of_a_handler_are_an_object_of_simple_values(given: Any, found: Any) -> None:
    def strict(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    line = JsonFormat().format(record(mine=given))
    assert json.loads(line, parse_constant=strict)["extra"] == {"mine": found}


def test_fields_of_a_handler_are_limited() -> None:
    found = fields_of(record("x" * 10**6, **{f"n{n}": "y" * 10**6 for n in range(1000)}))
    assert len(json.dumps(found)) < 64 * 1024
    assert found["message"].endswith(f"... ({10**6 - MAX_TEXT} more)")


def test_a_message_with_wrong_arguments_is_still_logged() -> None:
    assert "hello %d (not formatted" in TEXT.format(record("hello %d", args=("x",)))


def test_the_end_of_a_long_traceback_is_kept() -> None:
    found = fields_of(record(exc_info=failed("x" * 10**5 + "end")))
    assert found["traceback"].endswith("end")
    assert len(found["traceback"]) <= MAX_TRACEBACK


def hostile_records() -> list[logging.LogRecord]:
    return [
        record(HOSTILE),
        record("%s", args=(HOSTILE,)),
        record("hello", exc_info=failed(HOSTILE)),
        record("hello", session=HOSTILE, client=HOSTILE, mine=HOSTILE),
        record("hello", stack_info=HOSTILE),
    ]


@pytest.mark.parametrize("index", range(len(hostile_records())))
def test_hostile_bytes_cannot_forge_or_break_a_line(index: int) -> None:
    hostile = hostile_records()[index]
    first, *rest = TEXT.format(hostile).split("\n")
    assert re.match(r"\S+ \S+ WARNING ", first)
    assert all(line.startswith("  ") for line in rest)
    assert all(line.isprintable() for line in (first, *rest))
    line = JsonFormat().format(hostile)
    assert line.isascii()
    assert line.isprintable()
    assert set(json.loads(line)) <= set(FIELDS)
    for datagram in for_syslog(None)(hostile):
        assert re.match(r"<20>smtpd-fork\[\d+\]: WARNING ", datagram.decode())
        assert datagram.decode().isprintable()
    (entry,) = for_journald(None)(hostile)
    fields = parse(entry)
    assert all(re.fullmatch(r"[A-Z_]+", name) for name in fields)
    assert fields["PRIORITY"] == "4"
    assert "\n2026" not in fields["MESSAGE"]


class Talks(Discard):
    """A handler that logs in its hooks."""

    async def handle_RCPT(self, *args: Any) -> str:
        log.info("now")
        await asyncio.sleep(0)
        log.info("later")
        await asyncio.to_thread(log.info, "in a thread")
        args[2].rcpt_tos.append(args[3])
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        log.info("no wait")
        raise ValueError("no moon")


async def test_all_lines_of_a_session_have_its_id(tmp_path: Path) -> None:
    """This includes lines of its handlers, in each kind of hook, and no lines of other sessions."""
    path = tmp_path / "log"
    with logging_with(log_to=str(path), log_format="json", log_level="debug") as log_queue:
        log_queue.begin()
        async with serve(Talks()) as server:
            clients = [
                await Client.to(server.addresses[0], source=f"127.0.0.{n}") for n in (1, 2, 3)
            ]
            for client in clients:
                await client.greet()
            replies = await asyncio.gather(*(client.deliver() for client in clients))
            assert [reply.code for reply in replies] == [451] * 3
            for client in clients:
                assert (await client.say("QUIT")).code == 221
                await client.close()
    sessions: dict[str, list[str]] = {}
    for entry in objects(path):
        if entry["logger"] in {log.name, "smtpd_fork.session"}:
            sessions.setdefault(entry["session"], []).append(entry["message"])
    assert len(sessions) == 3
    for name, lines in sessions.items():
        for wanted in ("now", "later", "in a thread", "no wait", ": connection closed"):
            assert len([line for line in lines if line.endswith(wanted)]) == 1
        failed = [line for line in lines if ": a handler failed, the client gets 451" in line]
        assert len(failed) == 1
        assert failed[0].startswith(f"[{name}] 127.0.0.")
        others = set(sessions) - {name}
        assert not [line for line in lines if any(f"[{other}]" in line for other in others)]


def test_a_text_line_of_a_handler_has_the_session_id_too() -> None:
    assert TEXT.format(record(session="ab-1")).endswith("WARNING [ab-1] hello")
    assert TEXT.format(record("[ab-1-2] queued", session="ab-1")).endswith("G [ab-1-2] queued")


async def test_the_entry_of_a_queued_message_has_its_values_as_fields(tmp_path: Path) -> None:
    path = tmp_path / "log"
    maildir = Maildir(tmp_path / "mail")
    maildir.prepare()
    with logging_with(log_to=str(path), log_format="json"):
        async with greeted(maildir) as client:
            reply = await client.deliver("Subject: secret subject\r\n\r\nsecret text\r\n")
    (entry,) = [e for e in objects(path) if "queued" in e["message"]]
    assert (entry["from"], entry["to"]) == ("a@example.com", 1)
    assert entry["size"] > 0
    assert entry["client"].startswith("127.0.0.1:")
    assert reply.text.endswith(entry["queue_id"])
    assert entry["queue_id"].startswith(entry["session"])
    assert "secret" not in path.read_text()


async def test_entries_below_the_level_are_not_formatted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    original = logging.LogRecord.__init__

    def count(self: Any, name: str, *args: Any, **more: Any) -> None:
        made.append(name)
        original(self, name, *args, **more)

    with logging_with(log_to=str(tmp_path / "log"), log_level="error"):
        async with serve(Discard()) as server:
            monkeypatch.setattr(logging.LogRecord, "__init__", count)
            async with await Client.to(server.addresses[0]) as client:
                await client.greet()
                assert (await client.deliver()).code == 250
    assert not [name for name in made if name.startswith("smtpd_fork")]


def test_the_daemon_logs_json_on_standard_error(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, *LOCAL, "--log-format", "json"],
        cwd=tmp_path,
        env=clean_environment(),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        entries = []
        for line in process.stderr:
            entries.append(json.loads(line))
            if entries[-1]["message"].startswith("serving, pid"):
                process.terminate()
        assert process.wait(PATIENCE) == 0
    assert entries[-1]["message"] == "stopped"
    assert {entry["pid"] for entry in entries} == {process.pid}
    (listening,) = [entry for entry in entries if "address" in entry]
    assert listening["message"] == f"listening on {listening['address']}"
