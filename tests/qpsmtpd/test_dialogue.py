"""qpsmtpd-forkserver and smtpd-fork: what clients are told, and what is stored."""

from __future__ import annotations

import re
import smtplib
from typing import TYPE_CHECKING

import pytest
from support.daemon import PATIENCE
from support.differences import INTENDED, Facts, both
from support.ports import free_port
from support.qpsmtpd import HOSTNAME, LOOPBACK, Bench, Talk, at, kind

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = [pytest.mark.peers, pytest.mark.xdist_group("qpsmtpd")]


# -- the dialogue ------------------------------------------------------------------------------

HELLO = ("EHLO client.example",)
MAIL = (*HELLO, "MAIL FROM:<a@example.com>")
RCPT = (*MAIL, "RCPT TO:<b@example.com>")
DATA = (*RCPT, "DATA")

DIALOGUE: dict[str, tuple[Iterable[str], str]] = {
    "HELO": ((), "HELO client.example"),
    "EHLO": ((), "EHLO client.example"),
    "ehlo": ((), "ehlo client.example"),
    "HELO without name": ((), "HELO"),
    "EHLO without name": ((), "EHLO"),
    "MAIL before HELO": ((), "MAIL FROM:<a@example.com>"),
    "RCPT before HELO": ((), "RCPT TO:<b@example.com>"),
    "DATA before HELO": ((), "DATA"),
    "QUIT before HELO": ((), "QUIT"),
    "MAIL": (HELLO, "MAIL FROM:<a@example.com>"),
    "MAIL after HELO": (["HELO client.example"], "MAIL FROM:<a@example.com>"),
    "MAIL with a space": (HELLO, "mail from: <a@example.com>"),
    "MAIL from nobody": (HELLO, "MAIL FROM:<>"),
    "MAIL with BODY": (HELLO, "MAIL FROM:<a@example.com> BODY=8BITMIME"),
    "MAIL with SIZE": (HELLO, "MAIL FROM:<a@example.com> SIZE=100"),
    "MAIL alone": (HELLO, "MAIL"),
    "MAIL TO": (HELLO, "MAIL TO:<a@example.com>"),
    "MAIL of no address": (HELLO, "MAIL FROM:<a@>"),
    "mail-without-brackets": (HELLO, "MAIL FROM:a@example.com"),
    "RCPT": (MAIL, "RCPT TO:<b@example.com>"),
    "RCPT twice": (RCPT, "RCPT TO:<c@example.com>"),
    "RCPT postmaster": (MAIL, "RCPT TO:<postmaster>"),
    "RCPT before MAIL": (HELLO, "RCPT TO:<b@example.com>"),
    "RCPT alone": (MAIL, "RCPT"),
    "RCPT of no address": (MAIL, "RCPT TO:<b@>"),
    "RCPT after RSET": ((*MAIL, "RSET"), "RCPT TO:<b@example.com>"),
    "DATA": (RCPT, "DATA"),
    "DATA before MAIL": (HELLO, "DATA"),
    "DATA before RCPT": (MAIL, "DATA"),
    "message": (DATA, "Subject: x\r\n\r\nx\r\n."),
    "empty message": (DATA, "."),
    "NOOP after message": ((*DATA, "x\r\n."), "NOOP"),
    "MAIL after message": ((*DATA, "x\r\n."), "MAIL FROM:<a@example.com>"),
    "RCPT after message": ((*DATA, "x\r\n."), "RCPT TO:<b@example.com>"),
    "RSET": (RCPT, "RSET"),
    "NOOP": ((), "NOOP"),
    "NOOP with argument": ((), "NOOP hello"),
    "VRFY": (HELLO, "VRFY b@example.com"),
    "VRFY with brackets": (HELLO, "VRFY <b@example.com>"),
    "VRFY of a word": (HELLO, "VRFY b"),
    "EXPN": (HELLO, "EXPN list"),
    "HELP": (HELLO, "HELP"),
    "AUTH": (HELLO, "AUTH PLAIN AGEAYg=="),
    "QUIT": (HELLO, "QUIT"),
    "unknown": (HELLO, "FOO bar"),
    "empty": (HELLO, ""),
    "not ASCII": (HELLO, "\N{LATIN SMALL LETTER E WITH ACUTE}"),
    "hello-again": (HELLO, "EHLO client.example"),
    "starttls-without-certificate": (HELLO, "STARTTLS"),
    "mail-without-address": (HELLO, "MAIL FROM:"),
    "mail-within-a-transaction": (MAIL, "MAIL FROM:<a@example.com>"),
    "mail-with-an-unknown-parameter": (HELLO, "MAIL FROM:<a@example.com> FOO=BAR"),
    "mail-with-a-size-too-large": (HELLO, "MAIL FROM:<a@example.com> SIZE=9999999999"),
    "rcpt-with-an-unknown-parameter": (MAIL, "RCPT TO:<b@example.com> FOO=BAR"),
    "rcpt-of-a-foreign-domain": (MAIL, "RCPT TO:<b@elsewhere.example>"),
    "null-recipient": (MAIL, "RCPT TO:<>"),
    "vrfy-without-argument": (HELLO, "VRFY"),
    "rset-with-argument": (HELLO, "RSET x"),
    "data-with-argument": (RCPT, "DATA x"),
    "long-command": (HELLO, "NOOP " + 600 * "x"),
}
"""What a client says, and the commands before it, each of which is to be accepted."""


@both(*INTENDED.keys() & DIALOGUE.keys())
def test_a_command_is_answered_with_the_same_first_digit(bench: Bench) -> Facts:
    port = free_port()
    facts: Facts = {}
    with bench.serve(*at(port), "-m", "0") as _:
        for name, (before, command) in DIALOGUE.items():
            with Talk(port) as talk:
                facts["banner"] = kind(talk)
                for one in before:
                    assert talk.say(one).code // 100 in {2, 3}, (name, one)
                facts[name] = talk.say(command).code // 100
                if command == "QUIT":
                    facts[f"{name}: closed"] = talk.closed
    return facts


@both("version-in-banner", "ehlo-size")
def test_the_greeting_names_the_host_and_what_is_supported(bench: Bench) -> Facts:
    port = free_port()
    with bench.serve(*at(port)) as _, Talk(port) as talk:
        (banner,) = talk.reply().lines
        first, *offered = talk.say(*HELLO).lines
    return {
        "banner": banner.split()[:2],
        "version-in-banner": bool(re.search(r"\d+\.\d+", banner.removeprefix(HOSTNAME))),
        "host": first.split()[0],
        "8BITMIME": "8BITMIME" in offered,
        "PIPELINING": "PIPELINING" in offered,
        "ehlo-size": any(line.startswith("SIZE") for line in offered),
    }


@both()
def test_commands_in_one_packet_are_answered_in_order(bench: Bench) -> Facts:
    port = free_port()
    with bench.serve(*at(port)) as _, Talk(port) as talk:
        codes = [talk.reply().code, talk.say("\r\n".join((*RCPT, "NOOP"))).code]
        return {"codes": codes + [talk.reply().code for _ in RCPT]}


@both("bare-lf-ends-data", "bare-lf-behind-final-dot")
def test_only_crlf_dot_crlf_ends_a_message(bench: Bench) -> Facts:
    port = free_port()
    with bench.serve(*at(port)) as _:
        with Talk(port) as talk:
            talk.reply()
            for one in DATA:
                talk.say(one)
            smuggled = [talk.say("x\n.\r\nFOO\r\n.").code, talk.say("NOOP").code]
        with Talk(port) as talk:
            talk.reply()
            for one in DATA:
                talk.say(one)
            behind = talk.say("x\r\n.\n\r\n.").code
    return {"bare-lf-ends-data": smuggled, "bare-lf-behind-final-dot": behind}


@both("many-unknown-commands")
def test_unknown_commands_are_answered_500_until_it_is_too_much(bench: Bench) -> Facts:
    port = free_port()
    with bench.serve(*at(port)) as _, Talk(port) as talk:
        talk.reply()
        codes = [talk.say("FOO").code for _ in range(22)]
    return {"first twenty": codes[:20], "many-unknown-commands": codes[20:]}


# -- the message -------------------------------------------------------------------------------


@both("authentication-results", "received-names-id-and-recipient")
def test_a_message_is_stored_in_a_maildir_with_the_headers_of_its_way(bench: Bench) -> Facts:
    port = free_port()
    body = "Subject: hello\nX-Long: one\n\ttwo\n\n.dot\n..dots\nthe end \n\xe9\n"
    sent = body.replace("\n", "\r\n").encode()
    with bench.serve(*at(port)) as _, smtplib.SMTP(LOOPBACK, port, timeout=PATIENCE) as client:
        client.sendmail("a@example.com", ["b@example.com"], sent, ["BODY=8BITMIME"])
    (path,) = (bench.maildir / "new").iterdir()
    text = path.read_bytes().decode()
    head, _, stored = text.partition("Subject: ")
    fields = re.sub(r"\n[ \t]+", " ", head).splitlines()
    (received,) = [field for field in fields if field.startswith("Received: ")]
    status = path.stat()
    return {
        "way": fields[:2],
        "received": (
            "[127.0.0.1]" in received,
            f" by {HOSTNAME} " in received,
            " with ESMTP" in received,
            bool(re.search(r"; \w{3}, +\d+ \w{3} \d{4} \d\d:\d\d:\d\d [+-]\d{4}$", received)),
        ),
        "received-names-id-and-recipient": bool(
            re.search(r" id \S+ for <b@example.com>;", received)
        ),
        "authentication-results": any(f.startswith("Authentication-Results") for f in fields),
        "fields": {field.partition(":")[0] for field in fields} - {"Authentication-Results"},
        "stored as it was sent": f"Subject: {stored}" == body,
        "left in tmp": list((bench.maildir / "tmp").iterdir()),
        "mode": oct(status.st_mode),
        "owner": status.st_uid,
    }


@both()
def test_a_message_to_several_is_stored_once_and_a_bounce_has_no_return_path(
    bench: Bench,
) -> Facts:
    port = free_port()
    with bench.serve(*at(port)) as _, smtplib.SMTP(LOOPBACK, port, timeout=PATIENCE) as client:
        client.sendmail("", ["b@example.com", "c@example.com"], "Subject: hello\n\nhello\n")
    (path,) = (bench.maildir / "new").iterdir()
    head = path.read_text().partition("\n\n")[0].splitlines()
    return {
        "return path": head[0],
        "delivered to": {line for line in head if line.startswith("Delivered-To:")},
    }


@both("message-without-header")
def test_lines_that_are_no_header_are_part_of_the_message(bench: Bench) -> Facts:
    port = free_port()
    with bench.serve(*at(port)) as _, Talk(port) as talk:
        talk.reply()
        for one in DATA:
            talk.say(one)
        code = talk.say("not a header\r\n\r\nthe rest\r\n.").code
    (path,) = (bench.maildir / "new").iterdir()
    text = path.read_text()
    return {
        "code": code,
        "the rest": text.endswith("\n\nthe rest\n"),
        "message-without-header": "stored" if "\nnot a header\n" in text else "lost",
    }
