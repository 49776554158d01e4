"""Notes: what handlers remember of a session or a message, and the score and tags they give it.

The handlers of a chain share them: what one notes, another reads, and the condition ``when`` of a
handler asks for scores and tags. What is noted of a session holds for all its messages; what is
noted of an envelope ends with its transaction. All functions take the sessions and envelopes of
aiosmtpd as well.
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

__all__ = [
    "Marks", "add_score", "add_tag", "check_tag", "forget_notes", "keep_notes", "marks_of",
    "note_asked", "note_of", "notes_of", "was_asked",
]  # fmt: skip

MAX_TAGS = 100
"""Tags of one session or envelope: the log shows all of them."""

_TAG = re.compile(r"[A-Za-z0-9_.:/-]{1,64}")
"""A tag is one word of the log, and of a list in the configuration."""

_SCORE, _TAGS, _NOTES = "_smtpd_fork_score", "_smtpd_fork_tags", "notes"
_ASKED = "_smtpd_fork_asked"
"""Attributes of a session or envelope, there once they are needed: an idle session has none."""

_ATTRIBUTES = {_SCORE, _TAGS, _NOTES, _ASKED}


class Marks(NamedTuple):
    """The score and the tags of a message."""

    score: float = 0.0
    tags: frozenset[str] = frozenset()

    def __str__(self) -> str:
        """Return them as a line of the log ends; empty if there are none."""
        score = f" score={self.score:g}" if self.score else ""
        return f"{score} tags={','.join(sorted(self.tags))}" if self.tags else score

    @property
    def facts(self) -> dict[str, float | str]:
        """Return them as fields of a log entry, those there are."""
        facts: dict[str, float | str] = {}
        if self.score:
            facts["score"] = self.score
        if self.tags:
            facts["tags"] = ",".join(sorted(self.tags))
        return facts


_NONE = Marks()
"""Of most messages: made once."""


def notes_of(noted: Any) -> dict[str, Any]:
    """Return the notes of a session or an envelope, a dict for handlers.

    Here it is also their attribute ``notes``.
    """
    notes: dict[str, Any] | None = getattr(noted, _NOTES, None)
    if notes is None:
        notes = {}
        setattr(noted, _NOTES, notes)
    return notes


def note_of(noted: Any, name: str) -> Any:
    """Return one note of a session or an envelope; None: there is none. No notes are made."""
    notes: dict[str, Any] | None = vars(noted).get(_NOTES)
    return None if notes is None else notes.get(name)


def add_score(marked: Any, points: float) -> float:
    """Add points to the score of a session or an envelope; return its new score.

    :param points: may be negative; 0 is where each begins
    :raises ValueError: they are no finite number, or the score would be none
    """
    score: float = getattr(marked, _SCORE, 0.0) + points
    if not math.isfinite(score):
        raise ValueError(f"{points!r} added to a score is no finite number")
    setattr(marked, _SCORE, score)
    return score


def add_tag(marked: Any, tag: str) -> None:
    """Add a tag to a session or an envelope; nothing if it has the tag.

    :param tag: 1 to 64 letters, digits and ``_ . : / -``
    :raises ValueError: it is something else, or there are 100 tags
    """
    check_tag(tag)
    tags: frozenset[str] = getattr(marked, _TAGS, frozenset())
    if tag not in tags:
        if len(tags) >= MAX_TAGS:
            raise ValueError(f"more than {MAX_TAGS} tags, the last is {tag}")
        setattr(marked, _TAGS, tags | {tag})


def check_tag(tag: object) -> None:
    """See that *tag* is one.

    :raises ValueError: it is none
    """
    if not isinstance(tag, str) or _TAG.fullmatch(tag) is None:
        raise ValueError(f"a tag has 1 to 64 letters, digits and _.:/-, unlike {tag!r:.100}")


def marks_of(*marked: Any) -> Marks:
    """Return the score and the tags of a message: those of its session and its envelope together.

    ::

        score, tags = marks_of(session, envelope)
    """
    marks = _NONE
    for each in marked:
        score: float = getattr(each, _SCORE, 0.0)
        tags: frozenset[str] = getattr(each, _TAGS, _NONE.tags)
        if score or tags:
            marks = Marks(marks.score + score, marks.tags | tags)
    return marks


def note_asked(session: Any, handler: object) -> None:
    """Note that a handler with conditions was asked about a session."""
    asked: tuple[object, ...] = getattr(session, _ASKED, ())
    if not was_asked(session, handler):
        setattr(session, _ASKED, (*asked, handler))


def was_asked(session: Any, handler: object) -> bool:
    """Whether a handler with conditions was asked about a session before."""
    return any(each is handler for each in getattr(session, _ASKED, ()))


def keep_notes(before: Any, session: Any) -> None:
    """Give a session what was noted of the one that it follows, as under TLS."""
    for name in _ATTRIBUTES & vars(before).keys():
        setattr(session, name, vars(before)[name])


def forget_notes(envelope: Any) -> None:
    """Have an envelope begin a transaction without notes, score and tags."""
    for name in _ATTRIBUTES & vars(envelope).keys():
        delattr(envelope, name)
