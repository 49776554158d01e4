"""Invalid settings, each with the expected error of a start."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """An invalid setting and the expected error.

    :ivar options: with fields that :class:`Place` replaces
    :ivar status: exit status
    :ivar words: texts that the error contains: the value, the configuration source, the reason
    """

    options: tuple[str, ...]
    status: int
    words: tuple[str, ...]


FAULTS = {
    # -- addresses
    "the port is taken": Fault(
        ("-l", "127.0.0.1:{taken}"),
        os.EX_OSERR,
        ("127.0.0.1:{taken}", "in use", "-l/--listen-address"),
    ),
    "the port of -p is taken": Fault(
        ("-p", "{taken}", "-l", "127.0.0.1"), os.EX_OSERR, ("127.0.0.1:{taken}", "-p/--port")
    ),
    "the port is too high": Fault(("-p", "65536"), os.EX_USAGE, ("'65536'", "-p/--port")),
    "the port is below 0": Fault(("-p", "-1"), os.EX_USAGE, ("'-1'", "-p/--port")),
    "the port is no number": Fault(("-p", "smtp"), os.EX_USAGE, ("'smtp'", "-p/--port")),
    "the second port is wrong": Fault(("-p", "25", "-p", "x"), os.EX_USAGE, ("'x'", "--port")),
    "the address's port is too high": Fault(
        ("-l", "127.0.0.1:65536"), os.EX_USAGE, ("'127.0.0.1:65536'", "-l/--listen-address")
    ),
    "the address is malformed": Fault(
        ("-l", "::1]:25"), os.EX_USAGE, ("'::1]:25'", "-l/--listen-address")
    ),
    "the address is empty": Fault(("-l", ""), os.EX_USAGE, ("''", "-l/--listen-address")),
    "the scheme is unknown": Fault(
        ("-l", "http://127.0.0.1"), os.EX_USAGE, ("'http://127.0.0.1'", "-l/--listen-address")
    ),
    "the host cannot be resolved": Fault(
        ("-l", "no-such-host.invalid:0"),
        os.EX_CONFIG,
        ("no-such-host.invalid:0", "-l/--listen-address"),
    ),
    "the address is no interface's": Fault(
        ("-l", "192.0.2.1:0"), os.EX_OSERR, ("192.0.2.1:0", "no interface", "-l/--listen-address")
    ),
    # -- the gate
    "a network limit is none": Fault(
        ("--max-from-net", "5"), os.EX_USAGE, ("--max-from-net '5'", "N/PREFIX")
    ),
    "a rate is none": Fault(("--rate", "5/x"), os.EX_USAGE, ("--rate '5/x'",)),
    "a network is none": Fault(
        ("--deny", "192.0.2.1/24"), os.EX_USAGE, ("--deny '192.0.2.1/24'", "192.0.2.0/24")
    ),
    "a list is not there": Fault(
        ("--allow", "{folder}/none"), os.EX_USAGE, ("--allow", "{folder}/none", "No such file")
    ),
    "a line of a list is none": Fault(
        ("--exempt", "{folder}/file"), os.EX_USAGE, ("--exempt", "{folder}/file, line 1", "'a'")
    ),
    "all places are reserved": Fault(
        ("-c", "5", "--reserve", "5", "--exempt", "::1"), os.EX_USAGE, ("--reserve", "less than")
    ),
    # -- addresses again
    "the unix socket's folder is not there": Fault(
        ("-l", "unix:{folder}/none/sock"),
        os.EX_CANTCREAT,
        ("unix:{folder}/none/sock", "does not exist", "-l/--listen-address"),
    ),
    "the unix socket's path is a file": Fault(
        ("-l", "unix:{folder}/file"),
        os.EX_CANTCREAT,
        ("unix:{folder}/file", "not a socket", "-l/--listen-address"),
    ),
    "the unix socket's path is too long": Fault(
        ("-l", "unix:{long}"), os.EX_USAGE, ("unix:{long}", "too long", "-l/--listen-address")
    ),
    "smtps without a certificate": Fault(
        ("-l", "smtps:127.0.0.1:0"),
        os.EX_USAGE,
        ("'smtps:127.0.0.1:0'", "needs --tls-cert", "-l/--listen-address"),
    ),
    "the backlog is no number": Fault(("--backlog", "all"), os.EX_USAGE, ("'all'", "--backlog")),
    "the socket's mode is not octal": Fault(
        ("--socket-mode", "0999"), os.EX_USAGE, ("'0999'", "--socket-mode")
    ),
    # -- limits
    "-c is below 0": Fault(("-c", "-1"), os.EX_USAGE, ("'-1'", "-c/--limit-connections")),
    "-c is 0": Fault(("-c", "0"), os.EX_USAGE, ("'0'", "-c/--limit-connections")),
    "-c is no number": Fault(("-c", "abc"), os.EX_USAGE, ("'abc'", "-c/--limit-connections")),
    "-m is below 0": Fault(("-m", "-1"), os.EX_USAGE, ("'-1'", "-m/--max-from-ip")),
    "when full is nonsense": Fault(
        ("--when-full", "hide"), os.EX_USAGE, ("'hide'", "defer", "refuse", "--when-full")
    ),
    "the timeout is 0": Fault(("--timeout", "0"), os.EX_USAGE, ("'0'", "--timeout")),
    "the time for a message is 0": Fault(
        ("--data-timeout", "0"), os.EX_USAGE, ("'0'", "--data-timeout")
    ),
    "the handler's time is no time": Fault(
        ("--handler-timeout", "never"), os.EX_USAGE, ("'never'", "--handler-timeout")
    ),
    "the session's time is more than a week": Fault(
        ("--session-timeout", "169h"), os.EX_USAGE, ("'169h'", "--session-timeout")
    ),
    "the rate is below 0": Fault(
        ("--min-data-rate", "-1"), os.EX_USAGE, ("'-1'", "--min-data-rate")
    ),
    "the errors are below 0": Fault(("--max-errors", "-1"), os.EX_USAGE, ("'-1'", "--max-errors")),
    "no recipients are allowed": Fault(
        ("--max-recipients", "0"), os.EX_USAGE, ("'0'", "--max-recipients")
    ),
    "the size of all messages is no size": Fault(
        ("--max-buffered", "half"), os.EX_USAGE, ("'half'", "--max-buffered")
    ),
    "the size is no size": Fault(
        ("--max-message-size", "5 apples"), os.EX_USAGE, ("'5 apples'", "--max-message-size")
    ),
    "the length of a line is no size": Fault(
        ("--max-line-length", "-1"), os.EX_USAGE, ("'-1'", "--max-line-length")
    ),
    "the size's unit only looks like one": Fault(
        ("--max-message-size", "5\N{KELVIN SIGN}"), os.EX_USAGE, ("--max-message-size",)
    ),
    # -- the process
    "the pid-file's folder is not there": Fault(
        ("--pid-file", "none/daemon.pid"),
        os.EX_CANTCREAT,
        ("{folder}/none/daemon.pid", "{folder}/none does not exist", "--pid-file"),
    ),
    "the pid-file is a folder": Fault(
        ("--pid-file", "{folder}"), os.EX_CANTCREAT, ("{folder}", "Is a directory", "--pid-file")
    ),
    "the pid-file is a symbolic link": Fault(
        ("--pid-file", "link"), os.EX_CANTCREAT, ("{folder}/link", "symbolic link", "--pid-file")
    ),
    "the user is unknown": Fault(
        ("-u", "no-such-user"), os.EX_NOUSER, ("'no-such-user'", "-u/--user")
    ),
    "the uid is unknown": Fault(("-u", "4000000000"), os.EX_NOUSER, ("'4000000000'", "-u/--user")),
    "the loop is unknown": Fault(
        ("--loop", "trio"), os.EX_USAGE, ("'trio'", "uvloop, asyncio", "--loop")
    ),
    "the log's folder is not there": Fault(
        ("--log-to", "none/log"), os.EX_CANTCREAT, ("{folder}/none/log", "--log-to")
    ),
    "the log is a folder": Fault(
        ("--log-to", "{folder}"), os.EX_CANTCREAT, ("{folder}", "Is a directory", "--log-to")
    ),
    "the log level is unknown": Fault(
        ("--log-level", "loud"),
        os.EX_USAGE,
        ("'loud'", "debug, info, warning, error", "--log-level"),
    ),
    # -- mail
    "the handler's name is unknown": Fault(
        ("--handler", "nosuch"), os.EX_CONFIG, ("'nosuch'", "--handler")
    ),
    "the handler cannot be imported": Fault(
        ("--handler", "no_such_module:x"),
        os.EX_CONFIG,
        ("'no_such_module:x'", "ModuleNotFoundError", "--handler"),
    ),
    "the handler's constructor raises": Fault(
        ("--handler", "broken:Raises"),
        os.EX_CONFIG,
        ("'broken:Raises'", "ValueError: no moon tonight", "--handler"),
    ),
    "the handler's constructor exits": Fault(
        ("--handler", "broken:Exits"), os.EX_CONFIG, ("'broken:Exits'", "--handler")
    ),
    "the Maildir cannot be made": Fault(
        ("--handler", "maildir:{folder}/file/Maildir"),
        os.EX_CANTCREAT,
        ("{folder}/file/Maildir", "Not a directory", "--handler"),
    ),
    "the Maildir is in the home of nobody": Fault(
        ("--handler", "maildir:~no-such-user/Maildir"),
        os.EX_CONFIG,
        ("~no-such-user/Maildir", "--handler"),
    ),
    "what becomes of a bare LF is nonsense": Fault(
        ("--bare-newline", "keep"),
        os.EX_USAGE,
        ("'keep'", "reject", "normalize", "accept", "--bare-newline"),
    ),
    "the hostname has a space": Fault(
        ("--hostname", "mx example"), os.EX_USAGE, ("'mx example'", "--hostname")
    ),
    # -- TLS
    "the certificate is not there": Fault(
        ("--tls-cert", "no.pem"),
        os.EX_CONFIG,
        ("no.pem", "No such file or directory", "--tls-cert"),
    ),
    "the certificate is none": Fault(
        ("--tls-cert", "{folder}/file", "--tls-key", "{key}"),
        os.EX_CONFIG,
        ("{folder}/file", "--tls-cert"),
    ),
    "the key is not there": Fault(
        ("--tls-cert", "{cert}", "--tls-key", "no.pem"),
        os.EX_CONFIG,
        ("no.pem", "No such file or directory", "--tls-key"),
    ),
    "the key is another certificate's": Fault(
        ("--tls-cert", "{cert}", "--tls-key", "{other}"),
        os.EX_CONFIG,
        ("{other}", "--tls-cert", "--tls-key"),
    ),
    "the key is encrypted": Fault(
        ("--tls-cert", "{cert}", "--tls-key", "{encrypted}"),
        os.EX_CONFIG,
        ("{encrypted}", "encrypted", "--tls-key"),
    ),
    "a key without a certificate": Fault(
        ("--tls-key", "{key}"), os.EX_USAGE, ("--tls-key needs --tls-cert",)
    ),
    "TLS is required and cannot be had": Fault(
        ("--require-starttls",), os.EX_USAGE, ("--require-starttls",)
    ),
    # -- the command line
    "the option is unknown": Fault(("--lisen", "x"), os.EX_USAGE, ("--lisen",)),
    "the option's value is missing": Fault(("-p",), os.EX_USAGE, ("-p",)),
    "there is a word too many": Fault(("discard",), os.EX_USAGE, ("discard",)),
    "a sink would get no message": Fault(
        ("--handler", "discard", "--handler", "debug"), os.EX_CONFIG, ("--handler", "debug gets no")
    ),
}
