"""Common misconfigurations: ``check`` and the start print the same helpful line."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from support.daemon import LOCAL, Daemon, run
from support.peers import proc
from support.place import Place, only_line

FILES = {
    "handler.toml": '[gate]\nhandler = "discard"\n',
    "use.toml": '[[handler]]\nname = "discard"\n',
    "listener.toml": '[listener]\naddress = "127.0.0.1"\n',
    "quotes.toml": "listen-address = 127.0.0.1:2525\n",
    "number.toml": "\nmax-from-ip = lots\n",
    "hooks.py": "class NoHooks:\n    pass\nclass Late:\n    async def handle_DATA(self, *_): ...\n",
}

ERRORS = {
    "--config handler.toml": (
        os.EX_CONFIG, "gate.handler 'discard': handler belongs at the top level, above [gate]"
    ),
    "--config use.toml": (
        os.EX_CONFIG, "line 1: handler 1: use: the key is missing; expected maildir, relay, ..."
    ),
    "--config listener.toml": (os.EX_CONFIG, "write [[listener]]"),
    "--config quotes.toml": (os.EX_CONFIG, "line 1: listen-address: put the value in quotes"),
    "--config number.toml": (os.EX_CONFIG, "line 2: max-from-ip: expects a number, e.g. 5"),
    "--tls-cert {cert} --tls-key {other}": (os.EX_CONFIG, "{other} is not the key of {cert}"),
    "--tls-cert {cert}": (os.EX_CONFIG, "{cert} has no private key; give --tls-key"),
    "--tls-key {key}": (os.EX_USAGE, "smtpd-fork: --tls-key needs --tls-cert\n"),
    "--tls-client-ca {cert}": (os.EX_USAGE, "smtpd-fork: --tls-client-ca needs --tls-cert\n"),
    "--require-starttls": (os.EX_USAGE, "smtpd-fork: --require-starttls needs --tls-cert\n"),
    "--deny nosuch.txt": (
        os.EX_USAGE, "no such file and not a network: write ./nosuch.txt for a file"
    ),
    "--pid-file /nosuch/pid": (
        os.EX_CANTCREAT, "cannot write pid file /nosuch/pid: directory /nosuch does not exist"
    ),
    "--handler maildr:/tmp/x": (os.EX_CONFIG, "did you mean maildir:/tmp/x?"),
    "--handler hooks:NoHooks": (os.EX_CONFIG, "NoHooks is not a handler: it has no handle_DATA"),
    "--handler discard --handler debug": (
        os.EX_CONFIG, "the sink debug gets no message: discard takes all messages before it"
    ),
    "--handler debug,for=a.example --handler discard,for=A.EXAMPLE": (
        os.EX_CONFIG, "the sink discard gets no message: debug takes all messages before it"
    ),
    "--handler discard,copy=true": (
        os.EX_CONFIG, "discard is a copy, and no sink takes the messages"
    ),
    "--handler discard --handler hooks:Late": (
        os.EX_CONFIG, "late is after the sink discard and gets no message"
    ),
    "--handler maildir:m,wirters=3": (
        os.EX_CONFIG, "wirters '3': unknown key; did you mean writers?"
    ),
    "--handler maildir:m,writers=many": (
        os.EX_CONFIG, "writers 'many': expected a whole number"
    ),
    "--handler discard,when.tsl=yes": (os.EX_CONFIG, "when.tsl 'yes': unknown condition"),
    "--handler-timeout 1m --handler lmtp:unix:/x,timeout=2m": (
        os.EX_CONFIG, "timeout '2m': must be at most 55s: --handler-timeout is 60s"
    ),
    "--handler lmtp:unix:/x,adress=y": (
        os.EX_CONFIG, "adress 'y': unknown key; did you mean address?"
    ),
    "--handler lmtp:unix:/run/{{user}}": (
        os.EX_CONFIG, "placeholders such as {{user}} are not possible here"
    ),
    "--handler lmtp": (os.EX_CONFIG, "handler 'lmtp': needs address"),
    "--rate 30/minute": (os.EX_USAGE, "write 30/m, 30/h, 30/d or 30/10s"),
    "--deny hooks.py": (os.EX_USAGE, "'hooks.py': not a network: write ./hooks.py for a file"),
    "-l smtpx:127.0.0.1:0": (
        os.EX_USAGE, "'smtpx' is not a protocol; the protocols are smtp, smtps, lmtp"
    ),
    "-l smtps:127.0.0.1:0": (os.EX_USAGE, "'smtps:127.0.0.1:0' needs --tls-cert"),
    "-l 127.0.0.1:2599 -l 0.0.0.0:2599": (os.EX_USAGE, "overlaps with 127.0.0.1:2599"),
    "-l 127.0.0.1:2599 --metrics :2599": (os.EX_USAGE, "overlaps with 127.0.0.1:2599"),
    "-l unix:one --control one": (os.EX_USAGE, "--control 'one': overlaps with unix:"),
    "-c 5 --exempt ::1 --reserve 5": (
        os.EX_USAGE, "--reserve 5: must be less than -c/--limit-connections, which is 5"
    ),
    "--tls-cert {cert} --tls-key {key} --tls-client-ca {key}": (
        os.EX_CONFIG, "{key} has no PEM certificate"
    ),
    "--fleet http://127.0.0.1": (
        os.EX_USAGE, "--fleet 'http://127.0.0.1': write redis://HOST[:PORT], rediss://HOST, unix:"
    ),
    "--fleet redis://me:secret@127.0.0.1": (
        os.EX_USAGE, "put the password into a file, and name that with --fleet-secret"
    ),
    "--fleet-secret {key}": (os.EX_USAGE, "--fleet-secret needs --fleet\n"),
    "--fleet unix:/nosuch --fleet-secret nosuch": (
        os.EX_USAGE, "--fleet-secret 'nosuch': cannot read the file: No such file or directory"
    ),
    "--fleet unix:/nosuch --fleet-secret {key}": (
        os.EX_USAGE, "expected a file with one line, the password"
    ),
    "--fleet rediss://127.0.0.1 --fleet-tls-ca {key}": (
        os.EX_USAGE, "--fleet-tls-ca '{key}': the file contains no PEM certificate"
    ),
    "--timeout 0": (os.EX_USAGE, "--timeout '0': expected a number > 0\n"),
    "--log-to -": (os.EX_USAGE, "--log-to '-': write stderr or stdout, or ./- for a file"),
}  # fmt: skip


@pytest.mark.parametrize("typed", ERRORS)
def test_an_error_is_one_line_that_says_what_to_write(typed: str, place: Place) -> None:
    for name, text in FILES.items():
        (place.folder / name).write_text(text)
    status, line = ERRORS[typed]
    options = place.fill(tuple(typed.split()))
    started, checked = place.start(*options), place.check(*options)
    assert line.format_map(place.fields) in only_line(started)
    assert only_line(checked) == only_line(started)
    assert (checked.returncode, started.returncode) == (status, status)
    place.assert_nothing_left()


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("--metrics 127.0.0.1:0", "--metrics needs aiohttp and prometheus_client: EXTRA[metrics]'"),
        ("--dnsbl x.invalid", "--dnsbl needs dnspython: EXTRA[dns]'"),
        ("--dnsbl x.invalid --rdns", "--dnsbl and --rdns need dnspython: EXTRA[dns]'"),
    ],
)
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    typed: str, line: str, place: Place, command_for_nobody: list[str]
) -> None:
    options = typed.split()
    started = place.start(*options, command=command_for_nobody)
    checked = place.check(*options, command=command_for_nobody)
    line = line.replace("EXTRA", "pip install 'smtpd-fork")
    assert only_line(started) == only_line(checked) == f"smtpd-fork: {line}\n"
    assert started.returncode == checked.returncode == os.EX_CONFIG


def test_a_maildir_that_the_user_cannot_write_to_is_an_error(
    public: Path, command_for_nobody: list[str]
) -> None:
    options = ("-l", "127.0.0.1:0", "-u", "nobody", "--handler", "maildir:./Maildir")
    started = run(*options, cwd=public, command=command_for_nobody)
    checked = run("check", *options, cwd=public, command=command_for_nobody)
    line = f"the Maildir {public}/Maildir cannot be created by user nobody: Permission denied"
    assert line in only_line(started)
    assert only_line(checked) == only_line(started)
    assert started.returncode == checked.returncode == os.EX_CANTCREAT
    (public / "Maildir/new").mkdir(parents=True)
    started = run(*options, cwd=public, command=command_for_nobody)
    checked = run("check", *options, cwd=public, command=command_for_nobody)
    assert only_line(checked) == only_line(started)
    assert started.returncode == checked.returncode == os.EX_CANTCREAT


WARNINGS = {
    "-l smtp+proxy:127.0.0.1:0": "no --proxy-trust, so every client of smtp+proxy:127.0.0.1:0",
    "SMTPD_FORK_MAXFROMIP": "unknown variable SMTPD_FORK_MAXFROMIP ignored; "
    "did you mean SMTPD_FORK_MAX_FROM_IP?",
    "SMTPD_FORK_LISTEN": "unknown variable SMTPD_FORK_LISTEN ignored; "
    "did you mean SMTPD_FORK_LISTEN_ADDRESS?",
    "--max-buffered 1M": "--max-message-size is larger than --max-buffered (32M > 1M)",
    "--processes 2 --max-buffered 40M": "--max-message-size is larger than --max-buffered "
    "(32M > 20M)",
    "--reload-handlers": "--reload-handlers has no effect: no handler is a module:attr",
    "--handler accept:a.example,b.example --handler discard,for=a.example": "no sink takes mail "
    "for b.example, which accept accepts: it gets 550",
    "--handler accept:domains --handler discard": "accept: domains is a domain here; "
    "write ./domains for the file",
}


@pytest.mark.parametrize("typed", WARNINGS)
def test_a_warning_is_the_same_in_check_and_in_the_log(typed: str, tmp_path: Path) -> None:
    options, environment = typed.split(), {}
    if typed.isupper():
        options, environment = [], {typed: "3"}
    if "--handler" not in options:
        options += ["--handler", "discard"]
    options = ["-l", "127.0.0.1:0", *options]
    (tmp_path / "domains").write_text("example.com\n")
    checked = run("check", *options, cwd=tmp_path, environment=environment)
    (warning,) = re.findall(r"^warning: (.*)$", checked.stdout, re.MULTILINE)
    assert warning.startswith(WARNINGS[typed])
    assert (checked.returncode, checked.stderr) == (0, "")
    assert checked.stdout.endswith("\nconfiguration OK\n")
    with Daemon(*options, cwd=tmp_path, environment=environment) as daemon:
        assert f"WARNING {warning}" in daemon.log


def test_the_error_of_an_unknown_command_has_a_hint(tmp_path: Path) -> None:
    ended = run("chek", cwd=tmp_path)
    assert ended.returncode == os.EX_USAGE
    wanted = "no such command 'chek'; did you mean check? Commands: check, config, "
    assert only_line(ended).startswith(f"smtpd-fork: {wanted}")


@pytest.mark.parametrize("known_by", ["--pid-file", "--control"])
def test_check_skips_addresses_and_files_of_the_running_daemon(
    known_by: str, tmp_path: Path
) -> None:
    with Daemon(*LOCAL, "-l", "unix:smtp.sock", known_by, "it", cwd=tmp_path) as daemon:
        same = ("-l", f"127.0.0.1:{daemon.port}", "-l", "unix:smtp.sock", "--handler", "discard")
        checked = run("check", *same, known_by, "it", cwd=tmp_path)
        assert (checked.returncode, checked.stderr) == (0, "")
        skipped, ok = checked.stdout.splitlines()
        assert ok == "configuration OK"
        held = "held" if Path("/proc/self").exists() else "perhaps held"
        front = f"{held} by the running daemon (pid {daemon.process.pid}), skipped: "
        assert skipped.startswith(f"{front}127.0.0.1:{daemon.port}, unix:{tmp_path}/smtp.sock, ")
        assert skipped.endswith(f"{tmp_path}/it")
        daemon.deliver()


def test_check_finds_an_address_of_another_program_while_the_daemon_runs(
    tmp_path: Path, taken: int
) -> None:
    proc()
    with Daemon(*LOCAL, "--pid-file", "pid", cwd=tmp_path):
        options = ("-l", f"127.0.0.1:{taken}", "--handler", "discard", "--pid-file", "pid")
        checked = run("check", *options, cwd=tmp_path)
    assert checked.returncode == os.EX_OSERR
    assert f"127.0.0.1:{taken}: the address is in use" in only_line_of(checked.stderr)


def only_line_of(text: str) -> str:
    (line,) = text.splitlines()
    return line


def test_the_first_start_says_where_mail_goes_and_that_it_is_for_any_recipient(
    tmp_path: Path,
) -> None:
    with Daemon("-p", "0", cwd=tmp_path) as daemon:
        wanted = f"mail for any recipient, from any client, goes to the Maildir {tmp_path}/Maildir"
        assert f"INFO {wanted}" in daemon.log
        assert re.search(r"listening on \[::\]:\d+ \(IPv6 and IPv4\)$", daemon.log, re.MULTILINE)


def test_the_client_commands_have_a_variable_of_their_own(tmp_path: Path) -> None:
    environment = {"SMTPD_FORK_CONTROL_SOCKET": str(tmp_path / "one")}
    with (
        Daemon(*LOCAL, "--control", "one", cwd=tmp_path, environment=environment) as first,
        Daemon(*LOCAL, cwd=tmp_path, environment=environment) as second,
    ):
        ended = run("status", cwd=tmp_path, environment=environment)
        assert f"pid {first.process.pid}: serving" in ended.stdout
        assert "control socket" not in second.log
        assert "unknown variable" not in second.log
