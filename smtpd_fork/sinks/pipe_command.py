"""PipeCommand: a command line with words of the envelope, and the environment of its runs.

The command line is split like in a shell when it is loaded, but no shell is used. Words in braces
are replaced afterwards, so that a space or a ``;`` in an address stays within its argument.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smtpd_fork.peer_address import host_of
from smtpd_fork.setting_types import SettingError
from smtpd_fork.sinks.mailbox_path import WORDS, fill, words_in, words_of

if TYPE_CHECKING:
    from smtpd_fork.message import Mail, Recipient

__all__ = ["AddressRefusedError", "PipeCommand"]

KNOWN = (*WORDS, "recipient", "sender")

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

BAD_RECIPIENT = "553 5.1.3 The address cannot be delivered to by this server"
BAD_SENDER = "553 5.1.7 The sender's address cannot be used by this server"


class AddressRefusedError(Exception):
    """An address cannot be an argument of the command.

    :ivar reply: the reply to the client
    """

    def __init__(self, reply: str) -> None:
        super().__init__(reply)
        self.reply = reply


class PipeCommand:
    """A command with ``{user}``, ``{domain}``, ``{ext}``, ``{recipient}`` and ``{sender}``.

    :param command: the command line with the quoting of a shell; ``{{`` is a brace
    :param delimiter: the delimiter of user and extension; empty: there are no extensions
    :ivar program: the first word; absolute if it contains a ``/``, otherwise searched in PATH
    :ivar for_each: whether a word depends on the recipient, so that each recipient has its own run
    :ivar depends: whether a word depends on the envelope
    :raises SettingError: the command cannot be split, is empty, or has an unknown word
    """

    def __init__(self, command: str, *, delimiter: str = "+") -> None:
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise SettingError("command", command, str(error).lower()) from None
        if not words or "\0" in command:
            raise SettingError("command", command, "expected a program and its arguments")
        used = {word for each in words for word in words_in(each, KNOWN, "command")}
        if words_in(words[0], KNOWN, "command"):
            raise SettingError("command", command, "the program cannot depend on an address")
        self.program = fill(words[0], {})
        if "/" in self.program:
            # Made absolute now, because a daemon changes its working directory to / later.
            self.program = str(Path(self.program).expanduser().absolute())
        self.for_each = bool(used - {"sender"})
        self.depends = bool(used)
        self._words = words[1:]
        self._delimiter = delimiter

    def arguments(self, sender: str, recipient: str) -> list[bytes]:
        """Return the arguments for a message, including the program.

        :raises AddressRefusedError: an address would be an option of the command, or contains
            characters that an argument cannot contain
        """
        user, domain, ext = words_of(recipient, self._delimiter)
        values = {
            "user": user, "domain": domain, "ext": ext, "recipient": recipient, "sender": sender,
        }  # fmt: skip
        arguments, options_end = [os.fsencode(self.program)], False
        for word in self._words:
            filled = fill(word, values)
            reply = BAD_SENDER if word.startswith("{sender}") else BAD_RECIPIENT
            if filled.startswith("-") and not word.startswith("-") and not options_end:
                raise AddressRefusedError(reply)
            options_end = options_end or word == "--"
            arguments.append(_encoded(filled, reply))
        return arguments

    def environment(self, mail: Mail, recipients: Sequence[Recipient]) -> dict[str, bytes]:
        """Return the environment of a run: variables of the envelope, PATH and LANG.

        The client is that of XFORWARD, if it was sent, as in Postfix's delivery agents.

        :param recipients: the recipients of the run; variables about a recipient are set only if
            there is one
        """
        client, named = mail.client, mail.xforward
        known = {"ADDR": host_of(client.peer), "HELO": client.helo, "NAME": client.name}
        shown = named or {name: value for name, value in known.items() if value}
        variables = {
            "PATH": os.environ.get("PATH", DEFAULT_PATH),
            "LANG": os.environ.get("LANG", "C.UTF-8"),
            "SENDER": mail.sender,
            "QUEUE_ID": mail.id,
            "CLIENT_ADDRESS": shown.get("ADDR", ""),
            "CLIENT_HELO": shown.get("HELO", ""),
            "CLIENT_HOSTNAME": shown.get("NAME", ""),
        }
        if len(recipients) == 1:
            address = recipients[0].address
            _, domain, ext = words_of(address, self._delimiter)
            variables |= {"RECIPIENT": address, "DOMAIN": domain, "EXTENSION": ext}
        return {
            name: value.replace("\0", "?").encode("utf-8", "replace")
            for name, value in variables.items()
        }


def _encoded(argument: str, reply: str) -> bytes:
    try:
        encoded = argument.encode()
    except UnicodeEncodeError:
        raise AddressRefusedError(reply) from None
    if b"\0" in encoded:
        raise AddressRefusedError(reply)
    return encoded
