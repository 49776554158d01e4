"""The SMTP client of tests/container/run; the standard library only, as it also runs inside.

client.py free-port             print a port of 127.0.0.1 that nobody has
client.py wait PORT             until the server greets; print the greeting
client.py send PORT SUBJECT     deliver a message; print the answer to it
client.py second PORT           hold a session; print what a second client is told
client.py hold PORT             stop in the middle of DATA; print "held", stay until cut off, and
                                print what was said last
client.py load PORT             deliver messages from four threads until the server stops; print how
                                many were answered 250
"""

from __future__ import annotations

import smtplib
import socket
import sys
import threading
import time

HOST = "127.0.0.1"
PATIENCE_SECONDS = 20.0


def greeted(port: int) -> tuple[smtplib.SMTP, str]:
    """Ask again while the server does not answer, or has the last session in its count still."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        client = smtplib.SMTP(local_hostname="client.example", timeout=PATIENCE_SECONDS)
        try:
            code, text = client.connect(HOST, port)
        except OSError as error:
            code, text = 0, str(error).encode()
        if code == 220:
            return client, f"{code} {text.decode()}"
        client.close()
        if time.monotonic() > end:
            raise SystemExit(f"no greeting: {code} {text.decode()}")
        time.sleep(0.1)


def free_port() -> None:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        print(listener.getsockname()[1])


def wait(port: int) -> None:
    client, greeting = greeted(port)
    client.quit()
    print(greeting)


def send(port: int, subject: str) -> None:
    client, _ = greeted(port)
    client.ehlo()
    client.mail("from@client.example")
    client.rcpt("to@server.example")
    code, text = client.data(f"Subject: {subject}\r\n\r\nHello.\r\n.dot\r\n")
    client.quit()
    print(code, text.decode())


def second(port: int) -> None:
    client, _ = greeted(port)
    other = smtplib.SMTP(timeout=PATIENCE_SECONDS)
    code, text = other.connect(HOST, port)
    other.close()
    client.quit()
    print(code, text.decode())


def hold(port: int) -> None:
    client, _ = greeted(port)
    client.ehlo()
    client.mail("from@client.example")
    client.rcpt("to@server.example")
    code, text = client.docmd("DATA")
    if code != 354:
        raise SystemExit(f"DATA: {code} {text.decode()}")
    client.send(b"Subject: half\r\n\r\nand no mo")
    print("held", flush=True)
    try:
        code, text = client.getreply()
    except smtplib.SMTPServerDisconnected:
        print("cut off without a word")
    else:
        print(code, text.decode())


def load(port: int) -> None:
    taken: list[int] = []

    def deliver() -> None:
        client = smtplib.SMTP(HOST, port, "client.example", timeout=PATIENCE_SECONDS)
        while True:
            try:
                client.sendmail("from@client.example", ["to@server.example"], "Subject: x\r\n")
            except (smtplib.SMTPException, OSError):  # it stops, as it was told to
                return
            taken.append(1)

    threads = [threading.Thread(target=deliver) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(len(taken))


def main() -> None:
    name, *rest = sys.argv[1:]
    if name == "free-port":
        free_port()
    elif name == "send":
        send(int(rest[0]), rest[1])
    else:
        {"wait": wait, "second": second, "hold": hold, "load": load}[name](int(rest[0]))


main()
