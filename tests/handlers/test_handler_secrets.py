"""An argument of a handler may be a password, and is not in errors, log lines or settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.daemon import Daemon, run

from smtpd_fork.sanitizer import hidden, shown_handler, without_arguments

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "S3cret-w0rd"

HANDLERS = """
import os


class Relay:
    def __init__(self, url):
        raise ConnectionError(f"cannot log in: {url}")


class Parsing:
    def __init__(self, url):
        user, password = url.split("//")[1].split("@")[0].split(":")
        raise ValueError(f"{user} with {password!r} is refused")


class Cli:
    @classmethod
    def from_cli(cls, parser, *args):
        parser.error(f"too many: {args}")


class Fine:
    def __init__(self, *args):
        pass

    async def handle_DATA(self, server, session, envelope):
        return "250 ok"


class Unready(Fine):
    async def handle_RCTP(self, *_):
        return "250 ok"


instance = Fine()
"""

BROKEN = [
    f"smtp://user:{SECRET}@mx.example.com",
    f"user:{SECRET}@mx.example.com",
    f"nosuch:Relay:smtp://user:{SECRET}@mx.example.com",
    f"nosuch:{SECRET}",
    f"mine:Nosuch:{SECRET}",
    f"mine:Relay:smtp://user:{SECRET}@mx.example.com",
    f"mine:Parsing:smtp://user:{SECRET}@mx.example.com",
    f"mine:Relay:user,{SECRET}",
    f"mine:Cli:one,{SECRET}",
    f"mine:instance:{SECRET}",
    f"mine:Unready:{SECRET}",
    f"debug:{SECRET}",
    f"discard:{SECRET}",
    f"a b:c:{SECRET}",
    f"relay:user:{SECRET}@mx.example.com:25",
    f"lmtp:user:{SECRET}@mx.example.com:24",
    f"relay:smtp://user:{SECRET}@mx.example.com:25",
    f"relay:mx.example.com:25,passwort={SECRET}",
    f"webhook:http://mx.example.com/,tokn={SECRET}",
    f"webhook:http://mx.example.com/,secrets={SECRET}",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(HANDLERS)
    return tmp_path


def test_a_start_that_fails_names_the_handler_and_no_argument(folder: Path) -> None:
    for text in BROKEN:
        options = ["-l", "127.0.0.1:0", "--handler", text]
        ended = run(*options, cwd=folder)
        assert ended.returncode == 78, text
        assert SECRET not in ended.stdout + ended.stderr, ended.stderr
        assert ended.stderr.count("\n") == 1, ended.stderr


def test_check_and_config_show_no_argument(folder: Path) -> None:
    file = folder / "c.toml"
    file.write_text(
        f'[[handler]]\nuse = "mine:Fine"\narguments = ["{SECRET}", "smtp://u:{SECRET}@h"]\n'
    )
    for command in ("check", "config"):
        for options in (["--handler", f"mine:Fine:{SECRET}"], ["--config", str(file)]):
            ended = run(command, "-l", "127.0.0.1:0", *options, cwd=folder)
            assert ended.returncode == 0, ended.stderr
            assert SECRET not in ended.stdout + ended.stderr
            assert command == "check" or '"mine:Fine:***"' in ended.stdout
        ended = run(command, "--handler", f"mine:Relay:{SECRET}", cwd=folder)
        assert SECRET not in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    "text",
    [
        f'[[handler]]\nuse = "mine:Fine"\narguments = ["{SECRET}", 5]\n',
        f'[[handler]]\nuse = "mine:Fine"\narguments = "{SECRET}"\n',
        f'[[handler]]\nuse = "mine:Fine"\nargument = "a"\narguments = ["{SECRET}"]\n',
        f'[[handler]]\nuse = "mine:Fine"\npassword = "{SECRET}"\n',
        f'handler = ["mine:Fine:{SECRET}", 5]\n',
        f'handler = {{use = "mine:Fine", argument = "{SECRET}"}}\n',
        f'handlers = ["mine:Fine:{SECRET}"]\n',
        f'[gate]\nhandler = "mine:Fine:{SECRET}"\n',
    ],
    ids=range(8),
)
def test_an_error_in_a_file_shows_no_argument(folder: Path, text: str) -> None:
    (folder / "c.toml").write_text(text)
    ended = run("check", "--config", "c.toml", cwd=folder)
    assert ended.returncode == 78, ended.stderr
    assert "c.toml, line " in ended.stderr
    assert SECRET not in ended.stdout + ended.stderr, ended.stderr


def test_the_log_shows_no_argument_at_start_and_reload(folder: Path) -> None:
    file = folder / "c.toml"
    file.write_text(
        f'listen-address = "127.0.0.1:0"\nhandler = ["mine:Fine:{SECRET}", "discard"]\n'
    )
    with Daemon("--config", "c.toml", "--log-level", "debug", cwd=folder) as daemon:
        file.write_text(f'listen-address = "127.0.0.1:0"\nhandler = "mine:Relay:{SECRET}"\n')
        daemon.process.send_signal(1)
        daemon.wait_for(r"settings stay in force: handler 'mine:Relay:\*\*\*': ConnectionError")
        assert SECRET not in daemon.log


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("maildir:/var/mail/in", "maildir:/var/mail/in"),
        ("discard", "discard"),
        ("mine:Fine", "mine:Fine"),
        ("a.b:C.d", "a.b:C.d"),
        ("mine:Fine:a,b:c", "mine:Fine:***"),
        ("smtp://u:p@h", "smtp:***"),
        ("debug:x", "debug:x"),
        ("discard,copy=true", "discard,copy=true"),
        ("lmtp:unix:/run/x,for=a.example", "lmtp:unix:/run/x,for=a.example"),
        ("webhook:https://u:p@h/,secret=whsec_x,y", "webhook:https://u:***@h/,secret=***"),
        (
            "relay:h:25,user=u,password=p,q,tls=starttls",
            "relay:h:25,user=u,password=***,tls=starttls",
        ),
    ],
)
def test_a_handler_is_shown_without_arguments(text: str, shown: str) -> None:
    assert shown_handler(text) == shown


def test_an_error_is_shown_without_arguments_that_it_repeats() -> None:
    arguments = "smtp://user:p%40ss@host/x?key=abc,plain"
    for said in ("p%40ss", "p@ss", "key=abc", "abc", "plain", arguments, "['plain']"):
        assert without_arguments(f"ValueError: no {said}", arguments).count("***"), said
    assert without_arguments("ValueError: no x", "x") == "ValueError: no x"


def test_recognizable_secrets_are_hidden() -> None:
    said = hidden("shop:Orders:redis://me:s3cret@db/1,https://host/a@b,password=tiger,token=x;y")
    assert said == "shop:Orders:redis://me:***@db/1,https://host/a@b,password=***,token=***;y"
