"""A sink that stores messages in an SQLite database, and a filter, in one file.

Save it as ``own_sink.py`` and run, in the same directory::

    smtpd-fork --handler own_sink:NoPrograms --handler own_sink:Database:mail.db

In a file for ``--config`` the parameters of a class are its keys::

    [[handler]]
    use = "own_sink:Database"
    path = "mail.db"
    for = ["example.com"]

``await check_sink(...)`` of :mod:`smtpd_fork.testing` tests that no message is lost after 250.
"""

from __future__ import annotations

import asyncio
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aiosmtpd.smtp import MISSING

from smtpd_fork import Answer, Envelope, Filter, Mail, Replies, Session, Sink, prepend

TABLE = """
CREATE TABLE IF NOT EXISTS mail (
    key TEXT PRIMARY KEY,  -- a message that is sent again has the same key
    received TEXT, sender TEXT, recipients TEXT, content BLOB
)
"""


class NoPrograms(Filter):
    """Refuses messages with an attached program, and adds a field to the others."""

    async def handle_DATA(self, server: object, session: Session, envelope: Envelope) -> Answer:
        """Refuse a message, or leave it to the next handler."""
        if b'.exe"' in (envelope.original_content or b""):
            return "554 5.7.1 No programs, please"
        prepend(envelope, "X-Checked", "no programs")
        return MISSING


class Database(Sink):
    """Stores messages in an SQLite database; 250 means that the transaction is on the disk.

    :param path: path of the database; it is created if it does not exist
    """

    supports_binarymime = True

    def __init__(self, path: str = "mail.db") -> None:
        self.path = Path(path).absolute()  # a daemon's working directory becomes /
        # A thread, as fsync(2) would block the event loop; only one, as SQLite has one writer.
        self._thread: ThreadPoolExecutor | None = None

    def prepare(self) -> None:
        """Create the table, as the user of the daemon."""
        with self._connect() as database:
            database.execute(TABLE)
        database.close()

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, timeout=5.0)
        database.execute("PRAGMA synchronous = FULL")
        return database

    async def deliver(self, mail: Mail) -> Replies:
        """Store a message."""
        if self._thread is None:  # threads do not survive the fork of a daemon
            self._thread = ThreadPoolExecutor(1)
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._store, mail)
        except sqlite3.Error:  # such as a full disk, or a locked database
            return "451 4.3.0 The database is not available, try again later"
        return f"250 2.0.0 Ok: stored as {mail.id}"

    def _store(self, mail: Mail) -> None:
        recipients = " ".join(each.address for each in mail.recipients)
        content = b"".join(mail.delivered())
        row = (mail.key, mail.received.isoformat(), mail.sender, recipients, content)
        database = self._connect()
        try:
            with database:  # one transaction
                database.execute("INSERT OR IGNORE INTO mail VALUES (?, ?, ?, ?, ?)", row)
        finally:
            database.close()

    async def close(self) -> None:
        """Wait until the current messages are written."""
        if self._thread is not None:
            await asyncio.to_thread(self._thread.shutdown)
