"""Answer: what rspamd says of a message. Sans-io.

Of its JSON only what is needed here is read; a value of another type than it should have is an
error, and so is JSON that is nested too deeply.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

__all__ = [
    "AddedField", "Answer", "MilterBlock", "RspamdGarbageError", "Value", "parse_answer",
]  # fmt: skip


class RspamdGarbageError(ValueError):
    """What rspamd sent is no answer; the text says why."""


class AddedField(msgspec.Struct):
    """A header field with a place.

    :ivar order: the number of the field that it is put before; below 0 from the end
    :ivar index: another name of that
    """

    value: str | int | float
    order: int | None = None
    index: int | None = None


Value = str | int | float | AddedField


class MilterBlock(msgspec.Struct):
    """What modules of rspamd want to be changed, as they have it for milters.

    :ivar remove_headers: by name: which of the fields of that name, from 1, below 0 from the end; 0
        is all of them
    :ivar add_headers: by name: values
    :ivar change_from: a new sender
    :ivar reject: ``discard`` or ``quarantine``, in place of a refusal
    :ivar no_action: the action is not taken, only shown
    :ivar spam_header: what marks spam instead of ``X-Spam: Yes``
    """

    remove_headers: dict[str, float | list[float]] | list[Any] = {}
    add_headers: dict[str, Value | list[Value]] | list[Any] = {}
    change_from: str | None = None
    add_rcpt: list[str] = []
    del_rcpt: list[str] = []
    reject: str | None = None
    no_action: bool = False
    spam_header: str | dict[str, str] | None = None


class Answer(msgspec.Struct, rename={"signatures": "dkim-signature"}):
    """What rspamd answers to ``/checkv2``.

    :ivar action: in lower case
    :ivar messages: texts, among them ``smtp_message``
    :ivar subject: for the action "rewrite subject"
    :ivar signatures: values of fields DKIM-Signature
    :ivar symbols: by name
    """

    action: str
    score: Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)] = 0.0
    messages: dict[str, Any] | list[Any] = {}
    subject: str | None = None
    milter: MilterBlock | list[Any] | None = None
    signatures: str | list[str] = []
    symbols: dict[str, msgspec.Raw] | list[Any] = {}

    @property
    def block(self) -> MilterBlock:
        """The milter block; an empty one if there is none."""
        return self.milter if isinstance(self.milter, MilterBlock) else MilterBlock()

    @property
    def symbol_names(self) -> tuple[str, ...]:
        """The names of the symbols."""
        return tuple(self.symbols) if isinstance(self.symbols, dict) else ()

    @property
    def smtp_message(self) -> str:
        """The text for the client; empty if there is none."""
        messages = self.messages if isinstance(self.messages, dict) else {}
        text = messages.get("smtp_message", "")
        return text if isinstance(text, str) else ""


_decoder = msgspec.json.Decoder(Answer)


def parse_answer(body: bytes) -> Answer:
    """Return an answer.

    An octet that is no UTF-8, which is of the message perhaps, makes no answer illegible.

    :raises RspamdGarbageError: it is none
    """
    try:
        try:
            answer = _decoder.decode(body)
        except (UnicodeDecodeError, msgspec.DecodeError):
            legible = body.decode("utf-8", "replace").encode()
            if legible == body:
                raise
            answer = _decoder.decode(legible)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        text = str(error) or type(error).__name__
        raise RspamdGarbageError(f"its answer cannot be read: {text}") from None
    answer.action = answer.action.lower()
    return answer
