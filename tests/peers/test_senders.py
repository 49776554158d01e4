"""Real senders: the Maildir has each message as it was sent, except for the sender's changes.

Fourteen programs and libraries send eighteen letters each. ``make peers`` runs this file.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.daemon import Daemon

from peers.habits import ADDED_FIELDS, HABITS, NO_EMPTY_LINE, REFUSALS, Habit, lines_of_unix
from peers.letters import LETTERS, MBOX_LINE, SENDER, Letter
from peers.programs import SENDERS, SMTPUTF8, Place, SenderError

if TYPE_CHECKING:
    from collections.abc import Iterator

# The first run installs nodemailer and Haraka, and compiles a program in Go.
pytestmark = [pytest.mark.peers, pytest.mark.timeout(300)]

_TRACE = re.compile(rb"Return-Path: <(?P<sender>.*)>\nDelivered-To: .*\nReceived: .*\n(?:\t.*\n)+")


class Post:
    """A daemon and its Maildir, and the environments of the senders."""

    def __init__(self, folder: Path, daemon: Daemon) -> None:
        self._folder = folder
        self._daemon = daemon
        self.places: dict[str, Place] = {}

    def place(self, name: str) -> Place:
        if name not in self.places:
            folder = self._folder / re.sub(r"\W", "-", name)
            folder.mkdir()
            self.places[name] = Place(folder, self._daemon.port)
        return self.places[name]

    def take(self) -> list[bytes]:
        """Return the received messages, and remove them."""
        paths = list((self._folder / "Maildir" / "new").iterdir())
        messages = [path.read_bytes() for path in paths]
        for path in paths:
            path.unlink()
        return messages


@pytest.fixture(scope="module")
def post() -> Iterator[Post]:
    folder = Path(tempfile.mkdtemp(prefix="smtpd-fork-", dir="/tmp"))
    folder.chmod(0o755)  # Postfix enters it as its own user.
    with Daemon("-l", "127.0.0.1:0", "--hostname", "mx.example.com", cwd=folder) as daemon:
        post = Post(folder, daemon)
        yield post
        for place in post.places.values():
            place.running.close()
    shutil.rmtree(folder)


@pytest.mark.parametrize("letter", LETTERS, ids=lambda letter: letter.name)
@pytest.mark.parametrize("name", SENDERS)
def test_a_message_is_stored_as_the_sender_got_it(name: str, letter: Letter, post: Post) -> None:
    if name not in SMTPUTF8:
        letter = letter._replace(sender=SENDER)
    place = post.place(name)
    if letter.name in REFUSALS.get(name, {}):
        with pytest.raises(SenderError):
            SENDERS[name](place, letter)
        assert post.take() == []
        return
    SENDERS[name](place, letter)
    (stored,) = post.take()
    trace = _TRACE.match(stored)
    assert trace is not None
    assert trace["sender"].decode() == letter.sender
    habit = HABITS.get(name, {}).get(letter.name, Habit("none"))
    arrived = without(ADDED_FIELDS.get(name, set()), stored[trace.end() :], letter)
    wanted = expected(letter, habit, empty_line=name not in NO_EMPTY_LINE)
    assert habit.undo(arrived) == habit.undo(wanted)


def expected(letter: Letter, habit: Habit, *, empty_line: bool) -> bytes:
    """Return the expected content below the trace headers."""
    text = lines_of_unix(habit.of(letter.text))
    if text and not text.endswith(b"\n"):
        text += b"\n"
    if text.startswith(MBOX_LINE):
        return b"Mailbox-Line: " + text
    if empty_line and text and not text.startswith(b"From: "):
        return b"\n" + text  # The added fields are the only header.
    return text


def without(added: set[bytes], arrived: bytes, letter: Letter) -> bytes:
    """Return *arrived* without the fields that a sender has added."""
    header = re.match(rb"(?:.+\n)*", arrived)
    assert header is not None
    kept = []
    for field in re.findall(rb".+\n(?:[ \t].*\n)*", header[0]):
        given = field.replace(b"\n", b"\r\n") in letter.text or field in letter.text
        if given or field.partition(b":")[0] not in added:
            kept.append(field)
    return b"".join(kept) + (arrived[header.end() :] if letter.text else b"")
