"""Notes, scores and tags that handlers give a session or a message.

All handlers of a chain share them: a handler reads the notes of another, and the condition ``when``
of a handler tests scores and tags. Those of a session apply to all its messages; those of an
envelope end with its transaction. All functions also accept the sessions and envelopes of aiosmtpd.
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

__all__ = [
    "Marks",
    "add_score",
    "add_tag",
    "check_tag",
    "forget_notes",
    "keep_notes",
    "marks_of",
    "note_of",
    "notes_of",
    "record_call",
    "was_called",
]  # fmt: skip

MAX_TAGS = 100
"""Maximum of tags of a session or envelope, as the log shows all of them."""

_TAG = re.compile(r"[A-Za-z0-9_.:/-]{1,64}")
"""A tag is one word in the log, and in a list of the configuration."""

_SCORE, _TAGS, _NOTES = "_smtpd_fork_score", "_smtpd_fork_tags", "notes"
_ASKED = "_smtpd_fork_asked"
"""Attributes of a session or envelope; created when needed, to save memory of idle sessions."""

_ATTRIBUTES = {_SCORE, _TAGS, _NOTES, _ASKED}


class Marks(NamedTuple):
    """The score and the tags of a message."""

    score: float = 0.0
    tags: frozenset[str] = frozenset()

    def __str__(self) -> str:
        """Return the text at the end of a log line; empty without score and tags."""
        score = f" score={self.score:g}" if self.score else ""
        return f"{score} tags={','.join(sorted(self.tags))}" if self.tags else score

    @property
    def facts(self) -> dict[str, float | str]:
        """Return the fields of a log entry; without those that are 0 or empty."""
        facts: dict[str, float | str] = {}
        if self.score:
            facts["score"] = self.score
        if self.tags:
            facts["tags"] = ",".join(sorted(self.tags))
        return facts


_NONE = Marks()
"""The marks of most messages, created once."""


def notes_of(noted: Any) -> dict[str, Any]:
    """Return the notes of a session or an envelope: a dict for handlers.

    For the classes of this package it is also the attribute ``notes``.
    """
    notes: dict[str, Any] | None = getattr(noted, _NOTES, None)
    if notes is None:
        notes = {}
        setattr(noted, _NOTES, notes)
    return notes


def note_of(noted: Any, name: str) -> Any:
    """Return a note of a session or an envelope, or None. It does not create the dict."""
    notes: dict[str, Any] | None = vars(noted).get(_NOTES)
    return None if notes is None else notes.get(name)


def add_score(marked: Any, points: float) -> float:
    """Add points to the score of a session or an envelope; return its new score.

    :param marked: the session or the envelope
    :param points: the points, which may be negative; scores begin at 0
    :raises ValueError: *points* or the new score is not a finite number
    """
    score: float = getattr(marked, _SCORE, 0.0) + points
    if not math.isfinite(score):
        raise ValueError(f"{points!r} added to the score is not a finite number")
    setattr(marked, _SCORE, score)
    return score


def add_tag(marked: Any, tag: str) -> None:
    """Add a tag to a session or an envelope; do nothing if it has the tag already.

    :param marked: the session or the envelope
    :param tag: 1 to 64 letters, digits and ``_ . : / -``
    :raises ValueError: *tag* is not a valid tag, or there are 100 tags
    """
    check_tag(tag)
    tags: frozenset[str] = getattr(marked, _TAGS, frozenset())
    if tag not in tags:
        if len(tags) >= MAX_TAGS:
            raise ValueError(f"cannot add tag {tag}: there are {MAX_TAGS} tags already")
        setattr(marked, _TAGS, tags | {tag})


def check_tag(tag: object) -> None:
    """Check that *tag* is a valid tag.

    :raises ValueError: it is not
    """
    if not isinstance(tag, str) or _TAG.fullmatch(tag) is None:
        raise ValueError(f"a tag has 1 to 64 letters, digits and _.:/-, not {tag!r:.100}")


def marks_of(*marked: Any) -> Marks:
    """Return the score and the tags of a message: those of its session and its envelope together.

    ::

        score, tags = marks_of(session, envelope)

    :param marked: the session and the envelope
    """
    marks = _NONE
    for each in marked:
        score: float = getattr(each, _SCORE, 0.0)
        tags: frozenset[str] = getattr(each, _TAGS, _NONE.tags)
        if score or tags:
            marks = Marks(marks.score + score, marks.tags | tags)
    return marks


def record_call(session: Any, handler: object) -> None:
    """Record that a handler with conditions was called for a session."""
    asked: tuple[object, ...] = getattr(session, _ASKED, ())
    if not was_called(session, handler):
        setattr(session, _ASKED, (*asked, handler))


def was_called(session: Any, handler: object) -> bool:
    """Return whether a handler with conditions was called for a session before."""
    return any(each is handler for each in getattr(session, _ASKED, ()))


def keep_notes(before: Any, session: Any) -> None:
    """Copy notes, score and tags to a session from the previous one, as after STARTTLS."""
    for name in _ATTRIBUTES & vars(before).keys():
        setattr(session, name, vars(before)[name])


def forget_notes(envelope: Any) -> None:
    """Remove notes, score and tags from an envelope, for a new transaction."""
    for name in _ATTRIBUTES & vars(envelope).keys():
        delattr(envelope, name)
