"""Python's smtplib: python send_smtplib.py PORT SENDER RECIPIENT <message."""

import smtplib
import sys

port, sender, recipient = sys.argv[1:]
with smtplib.SMTP("127.0.0.1", int(port), timeout=20) as client:
    options = [] if sender.isascii() else ["SMTPUTF8", "BODY=8BITMIME"]
    client.sendmail(sender, [recipient], sys.stdin.buffer.read(), options)
