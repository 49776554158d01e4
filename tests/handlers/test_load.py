"""Handlers by name: valid names, how they are created, and the errors."""

from __future__ import annotations

import re
import sys
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.handlers import Mailbox, Sink

from smtpd_fork.errors import ExitStatus, HandlerError
from smtpd_fork.handlers import load_handlers
from smtpd_fork.handlers.load import load_handler
from smtpd_fork.sanitizer import shown_handler
from smtpd_fork.sinks import Debug, Discard, Maildir

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Write = Callable[[str], str]

_numbers = count()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Return a function that writes a module in the current directory, and returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])

    def write_module(source: str) -> str:
        name = f"handlers_of_a_test_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(source)
        return name

    return write_module


CLASS = """
class Handler:
    def __init__(self, *args):
        self.args = args

    async def handle_DATA(self, server, session, envelope):
        return "250 ok"
"""


# -- built-in handlers -------------------------------------------------------------------------


def test_discard_and_debug_are_known_by_name() -> None:
    assert isinstance(load_handler("discard"), Discard)
    assert isinstance(load_handler("debug"), Debug)


def test_the_path_of_a_maildir_is_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    handler = load_handler("maildir:in/box")
    assert isinstance(handler, Maildir)
    assert handler.path == tmp_path / "in/box"


def test_maildir_without_a_path_is_in_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_handler("maildir").path == tmp_path / "Maildir"


def test_the_path_of_a_maildir_may_have_colons_and_commas(tmp_path: Path) -> None:
    assert load_handler(f"maildir:{tmp_path}/a:b,c").path == tmp_path / "a:b,c"


def test_the_path_of_a_maildir_may_begin_with_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_handler("maildir:~/Maildir").path == tmp_path / "Maildir"


def test_loading_a_maildir_creates_no_files(tmp_path: Path) -> None:
    load_handler(f"maildir:{tmp_path}/box")
    assert not (tmp_path / "box").exists()


@pytest.mark.parametrize(
    "text",
    ["", "nosuch", "maildir:", "debug:", "debug:x", "discard:x", "maildir:~no-such-user/Maildir"],
)
def test_an_invalid_argument_of_a_built_in_handler_is_an_error(text: str) -> None:
    with pytest.raises(HandlerError) as caught:
        load_handler(text)
    assert repr(shown_handler(text)) in str(caught.value)
    assert caught.value.exit_status == ExitStatus.CONFIG


def test_the_error_of_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(HandlerError, match=r"no such name \(accept, auth, debug, "):
        load_handler("nosuch")


# -- module:attr -------------------------------------------------------------------------------


def test_a_class_is_instantiated(write: Write) -> None:
    module = write(CLASS)
    assert load_handler(f"{module}:Handler").args == ()


def test_a_class_gets_the_arguments_after_its_name(write: Write) -> None:
    module = write(CLASS)
    assert load_handler(f"{module}:Handler:one,two").args == ("one", "two")


def test_an_argument_may_contain_a_colon(write: Write) -> None:
    module = write(CLASS)
    assert load_handler(f"{module}:Handler:host:25,x").args == ("host:25", "x")


def test_an_instance_is_used_unchanged(write: Write) -> None:
    module = write(CLASS + "instance = Handler('mine')\n")
    assert load_handler(f"{module}:instance") is sys.modules[module].__dict__["instance"]


def test_a_callable_instance_is_not_called(write: Write) -> None:
    module = write(CLASS + "    def __call__(self):\n        1 / 0\n\ninstance = Handler()\n")
    assert load_handler(f"{module}:instance").args == ()


def test_an_instance_takes_no_arguments(write: Write) -> None:
    module = write(CLASS + "instance = Handler()\n")
    with pytest.raises(HandlerError, match="an instance takes no arguments"):
        load_handler(f"{module}:instance:one")


def test_a_factory_is_called(write: Write) -> None:
    module = write(CLASS + "def make(*args):\n    return Handler('made', *args)\n")
    assert load_handler(f"{module}:make").args == ("made",)
    assert load_handler(f"{module}:make:a,b").args == ("made", "a", "b")


def test_an_attribute_of_an_attribute_may_be_named(write: Write) -> None:
    module = write(CLASS + "class Outer:\n    Inner = Handler\n")
    assert load_handler(f"{module}:Outer.Inner").args == ()


def test_a_module_of_a_package_may_be_named(tmp_path: Path, write: Write) -> None:
    package = write("").upper()
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    (tmp_path / package / "below.py").write_text(CLASS)
    assert load_handler(f"{package}.below:Handler").args == ()


def test_the_current_directory_is_added_to_the_path_once(tmp_path: Path, write: Write) -> None:
    module = write(CLASS)
    load_handler(f"{module}:Handler")
    load_handler(f"{module}:Handler")
    assert sys.path.count(str(tmp_path)) == 1


def test_aiosmtpds_own_handlers_run_unchanged(tmp_path: Path) -> None:
    assert isinstance(load_handler("aiosmtpd.handlers:Sink"), Sink)
    mailbox = load_handler(f"aiosmtpd.handlers:Mailbox:{tmp_path}/box")
    assert isinstance(mailbox, Mailbox)
    assert str(mailbox.mail_dir) == f"{tmp_path}/box"


def test_a_class_with_from_cli_is_created_by_it(write: Write) -> None:
    module = write(
        CLASS + "    @classmethod\n"
        "    def from_cli(cls, parser, *args):\n"
        "        return cls('from the command line', *args)\n"
    )
    assert load_handler(f"{module}:Handler:x").args == ("from the command line", "x")


def test_an_error_of_from_cli_is_a_handler_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(HandlerError, match="handlers:Mailbox") as caught:
        load_handler("aiosmtpd.handlers:Mailbox")
    assert "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")


# -- errors ------------------------------------------------------------------------------------

FAULTS = {
    "a module that it imports does not exist": ("import no_such_module", "x", "no_such_module"),
    "the module has a syntax error": ("def (:", "x", "SyntaxError"),
    "the module raises": ("raise RuntimeError('at\\nimport')", "x", "RuntimeError: at import"),
    "the module exits": ("import sys; sys.exit(0)", "x", "SystemExit"),
    "the attribute does not exist": ("", "x", "has no x"),
    "the attribute's attribute does not exist": ("x = 1", "x.y", "has no x.y"),
    "the constructor raises": (
        "class x:\n    def __init__(self):\n        raise ValueError('two\\nlines')",
        "x",
        "ValueError: two lines",
    ),
    "the constructor exits": (
        "class x:\n    def __init__(self):\n        raise SystemExit(0)",
        "x",
        "SystemExit",
    ),
    "the constructor wants arguments": (
        "class x:\n    def __init__(self, one):\n        pass",
        "x",
        "TypeError",
    ),
    "the constructor takes no arguments": ("class x:\n    pass", "x:one", "TypeError"),
    "the factory returns nothing": ("def x():\n    pass", "x", "NoneType is not a handler"),
    "the factory is asynchronous": (
        "async def x():\n    return object()",
        "x",
        "coroutine is not a handler",
    ),
    "the attribute is a text": ("x = 'text'", "x", "str is not a handler"),
    "the attribute is a number": ("x = 5", "x", "int is not a handler"),
}


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_handler_that_cannot_be_loaded_is_an_error_of_one_line(fault: str, write: Write) -> None:
    source, attr, reason = FAULTS[fault]
    text = f"{write(source)}:{attr}"
    with pytest.raises(HandlerError) as caught:
        load_handler(text)
    message = str(caught.value)
    assert message.startswith(f"handler {shown_handler(text)!r}: ")
    assert reason in message
    assert "\n" not in message


def test_a_module_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(HandlerError, match="cannot import no_such_module: ModuleNotFoundError"):
        load_handler("no_such_module:x")


def test_a_misspelt_name_of_a_built_in_handler_gets_a_hint() -> None:
    with pytest.raises(HandlerError, match=r"did you mean webhook\?$"):
        load_handler("webhok:example:8080")


@pytest.mark.parametrize(
    "text", [":", ":x", "x:", "a b:c", "../up:x", "json:", "json:JSON Decoder", "json::x", "1a:b"]
)
def test_text_that_is_not_a_module_and_attribute_is_not_imported(text: str) -> None:
    with pytest.raises(HandlerError, match="not a module:attr"):
        load_handler(text)


# -- chains ------------------------------------------------------------------------------------


def test_a_chain_has_its_handlers_in_the_order_of_their_names(write: Write) -> None:
    module = write(CLASS)
    chain = load_handlers([f"{module}:Handler:first", f"{module}:Handler:second", "discard"])
    first, second, last = chain.handlers
    assert (first.args, second.args) == (("first",), ("second",))
    assert isinstance(last, Discard)


def test_the_same_name_twice_is_two_handlers(write: Write) -> None:
    module = write(CLASS)
    one, other = load_handlers([f"{module}:Handler"] * 2).handlers
    assert one is not other


def test_a_handler_that_would_get_no_message_is_an_error_and_one_before_a_sink_is_not(
    write: Write,
) -> None:
    module = write(CLASS)
    load_handlers([f"{module}:Handler", "discard"])
    with pytest.raises(HandlerError, match="the sink debug gets no message: discard takes all"):
        load_handlers(["discard", "debug"])
    with pytest.raises(HandlerError, match="handler is after the sink discard"):
        load_handlers(["discard", f"{module}:Handler"])


def test_one_wrong_name_is_an_error_of_the_chain() -> None:
    with pytest.raises(HandlerError, match="'nosuch'"):
        load_handlers(["discard", "nosuch"])


def test_a_handler_error_of_a_user_keeps_its_text(write: Write) -> None:
    module = write(
        "from smtpd_fork.errors import HandlerError\n"
        "def make():\n    raise HandlerError('the moon is full')\n"
    )
    with pytest.raises(HandlerError, match=rf"^handler '{module}:make': the moon is full$"):
        load_handler(f"{module}:make")


def test_the_original_exception_is_the_cause(write: Write) -> None:
    module = write("raise KeyError('x')")
    with pytest.raises(HandlerError) as caught:
        load_handler(f"{module}:x")
    cause: Any = caught.value.__cause__
    assert isinstance(cause, KeyError)


def test_a_handler_that_is_a_tuple_by_its_class_can_be_loaded(write: Write) -> None:
    module = write("import collections\n" + CLASS.replace(
        "class Handler:", 'class Handler(collections.namedtuple("Pair", "one two")):'
    ).replace("    def __init__(self, *args):\n        self.args = args\n", ""))  # fmt: skip
    assert load_handler(f"{module}:Handler:a,b").one == "a"


OURS = """
from smtpd_fork import SettingError, Sink


class Spool(Sink):
    def __init__(self, directory: str, limit: int = 5, password: str = ""):
        if limit < 1:
            raise SettingError("limit", limit, f"must be at least 1, {password}")
        self.given = (directory, limit, password)

    async def deliver(self, mail):
        return "250 2.0.0 Ok"
"""


def test_arguments_of_a_users_sink_are_typed(write: Write) -> None:
    module = write(OURS)
    assert load_handler(f"{module}:Spool:in,3").given == ("in", 3, "")
    assert load_handler(f"{module}:Spool:in,password=x=y").given == ("in", 5, "x=y")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (":in,many", "limit '***': expected a whole number"),
        (":in,limt=3", "limt '***': unknown key; did you mean limit?"),
        (":in,directory=out", "takes directory once"),
        (",limit=3", "needs directory"),
        (":in,0,hunter2", "limit '***': must be at least 1, ***"),
    ],
)
def test_the_error_of_a_users_sink_names_the_wrong_key(
    arguments: str, says: str, write: Write
) -> None:
    with pytest.raises(HandlerError, match=f": {re.escape(says)}$"):
        load_handler(f"{write(OURS)}:Spool{arguments}")
