"""Messages as data: the message that a sink delivers, its header fields and its trace fields.

No module of this package uses sockets, an event loop or files.
"""

from smtpd_fork.dialogue.notes import Marks, add_score, add_tag, marks_of, notes_of
from smtpd_fork.message.fields import Field, encode_field, fields, insert_field, prepend
from smtpd_fork.message.lines import spans, unix_lines
from smtpd_fork.message.loops import earlier_mailboxes
from smtpd_fork.message.mail import Mail, MailClient, Recipient
from smtpd_fork.message.quarantine_mark import quarantine
from smtpd_fork.message.results import Replies, combined

__all__ = [
    "Field",
    "Mail",
    "MailClient",
    "Marks",
    "Recipient",
    "Replies",
    "add_score",
    "add_tag",
    "combined",
    "earlier_mailboxes",
    "encode_field",
    "fields",
    "insert_field",
    "marks_of",
    "notes_of",
    "prepend",
    "quarantine",
    "spans",
    "unix_lines",
]
