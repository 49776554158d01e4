"""aiosmtplib: python send_aiosmtplib.py PORT SENDER RECIPIENT <message."""

import asyncio
import sys

import aiosmtplib

port, sender, recipient = sys.argv[1:]
options = [] if sender.isascii() else ["SMTPUTF8", "BODY=8BITMIME"]
asyncio.run(
    aiosmtplib.send(
        sys.stdin.buffer.read(),
        sender=sender,
        recipients=[recipient],
        hostname="127.0.0.1",
        port=int(port),
        mail_options=options,
        timeout=20,
    )
)
