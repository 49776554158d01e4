"""Answer: rspamd's answer about a message. Sans-io.

Only the necessary parts of the JSON are read. A value of the wrong type is an error, and so is JSON
that is nested too deeply.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

__all__ = [
    "AddedField", "Answer", "MilterBlock", "RspamdGarbageError", "Value", "parse_answer",
]  # fmt: skip


class RspamdGarbageError(ValueError):
    """rspamd's answer is not valid."""


class AddedField(msgspec.Struct):
    """A header field with a position.

    :ivar order: the number of the field before which it is inserted; negative: from the end
    :ivar index: another name of *order*
    """

    value: str | int | float
    order: int | None = None
    index: int | None = None


Value = str | int | float | AddedField


class MilterBlock(msgspec.Struct):
    """The changes that modules of rspamd request, in the format for milters.

    :ivar remove_headers: for each name, the numbers of the fields to remove, from 1; negative: from
        the end; 0: all of them
    :ivar add_headers: for each name, the values of fields to add
    :ivar change_from: a new sender
    :ivar reject: ``discard`` or ``quarantine``, instead of a refusal
    :ivar no_action: whether the action is only shown in a header field
    :ivar spam_header: the field that marks spam instead of ``X-Spam: Yes``
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
    """An answer to ``/checkv2``.

    :ivar action: the action in lower case
    :ivar messages: texts by name, for example ``smtp_message``
    :ivar subject: the new subject for the action "rewrite subject"
    :ivar signatures: values of fields DKIM-Signature
    :ivar symbols: symbols by name
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
    """Parse the body of an answer.

    Octets that are not UTF-8, which may come from the message, are replaced.

    :raises RspamdGarbageError: the answer is not valid
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
        raise RspamdGarbageError(f"its answer is not valid: {text}") from None
    answer.action = answer.action.lower()
    return answer
