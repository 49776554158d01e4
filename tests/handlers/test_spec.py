"""The grammar of handlers: text and tables are equivalent, and no input causes a crash."""

from __future__ import annotations

import re
import tomllib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_fork.errors import HandlerError
from smtpd_fork.handlers.load import BUILT_IN, load_route
from smtpd_fork.handlers.parameters import Parameters
from smtpd_fork.handlers.spec import HandlerSpec
from smtpd_fork.sanitizer import BUILT_IN_NAMES
from smtpd_fork.setting_types import (
    Count,
    FilePath,
    Seconds,
    Secret,
    SettingError,
    Size,
)

if TYPE_CHECKING:
    from pathlib import Path

MODULE = """
from typing import Literal
from smtpd_fork import Sink
from smtpd_fork.setting_types import Count, FilePath, Seconds, Secret, Size


class Queue(Sink):
    def __init__(self, url: str = "x", *, at_once: Count = 1, wait: Seconds = 5.0,
                 largest: Size = 0, ca_file: FilePath | None = None, token: Secret | None = None,
                 hosts: list[str] = (), mode: Literal["a", "b"] = "a", strict: bool = False):
        self.given = dict(url=url, at_once=at_once, wait=wait, largest=largest, ca_file=ca_file,
                          token=token, hosts=hosts, mode=mode, strict=strict)

    async def deliver(self, mail):
        return "250 ok"


def anything(*arguments, **keys):
    queue = Queue()
    queue.given = (arguments, keys)
    return queue
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"queue_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def given_to(entry: Any, directory: Path | None = None) -> Any:
    return load_route(entry, directory).handler.given


def test_text_and_table_give_a_users_class_the_same_values(module: str, tmp_path: Path) -> None:
    text = (
        f"{module}:Queue:u,at-once=3,wait=2m,largest=1K,ca_file=ca.pem,token=t0k3n,"
        "hosts=a,hosts=b,mode=b,strict=yes"
    )
    table = tomllib.loads(
        f'use = "{module}:Queue"\nurl = "u"\nat-once = 3\nwait = "2m"\nlargest = "1K"\n'
        'ca_file = "ca.pem"\ntoken = "t0k3n"\nhosts = ["a", "b"]\nmode = "b"\nstrict = true\n'
    )
    wanted = {
        "url": "u",
        "at_once": 3,
        "wait": 120.0,
        "largest": 1024,
        "token": "t0k3n",
        "ca_file": f"{tmp_path}/ca.pem",
        "hosts": ["a", "b"],
        "mode": "b",
        "strict": True,
    }
    assert given_to(text, tmp_path) == given_to(table, tmp_path) == wanted


def test_a_function_gets_its_parameters(module: str) -> None:
    assert given_to(f"{module}:anything:one,two") == (("one", "two"), {})
    assert given_to({"use": f"{module}:anything", "arguments": ["one"], "n": 3}) == (
        ("one",),
        {"n": 3},
    )


def test_the_keys_of_the_chain_are_not_parameters(module: str) -> None:
    text = f"{module}:Queue:u,for=a.example,b.example,copy=best-effort,name=q,when.tls=yes"
    table = {
        "use": f"{module}:Queue",
        "url": "u",
        "for": ["a.example", "b.example"],
        "copy": "best-effort",
        "name": "q",
        "when": {"tls": True},
    }
    for entry in (text, table):
        route = load_route(entry)
        assert route.handler.given["url"] == "u"
        assert route.recipients.patterns == ("a.example", "b.example")
        assert (route.copy, route.name) == ("best-effort", "q")
        assert route.when is not None
        assert route.when.tls is True


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"at_onc": 3}, r"at-onc: unknown key; did you mean at-once\?"),
        ({"zzz": 3}, r"zzz: unknown key; the keys are url, at-once, wait"),
        ({"at-once": 0}, "at-once: expected a whole number >= 1"),
        ({"at-once": "three"}, "at-once: expected a whole number"),
        ({"wait": "soon"}, "wait: "),
        ({"mode": "c"}, "mode: expected one of a, b"),
        ({"strict": "perhaps"}, "strict: expected true or false"),
        ({"hosts": 3}, "hosts: expected .*, not int"),
        ({"copy": "sometimes"}, "copy 'sometimes': expected true, false or best-effort"),
        ({"for": "a b"}, "for .*not a domain"),
        ({"when": "night"}, "when 'night': expected a table"),
        ({"when": {"moon": "full"}}, "when.moon .*unknown condition; there are authenticated,"),
        ({"when": {"client": "x"}}, "when.client .*not a network"),
        ({"token": "hunter2", "at-once": "x"}, "at-once"),
    ],
)
def test_an_error_names_the_key_and_hides_the_values_of_users_handlers(
    keys: dict[str, Any], said: str, module: str
) -> None:
    with pytest.raises(HandlerError) as caught:
        load_route({"use": f"{module}:Queue", **keys})
    text = str(caught.value).replace(" '***'", "")
    assert re.search(said, text), text
    assert "hunter2" not in text


@pytest.mark.parametrize(
    ("text", "use", "arguments", "keys"),
    [
        ("discard", "discard", [], {}),
        ("maildir:/var/mail/a,b", "maildir", ["/var/mail/a,b"], {}),
        ("maildir:/x,writers=3", "maildir", ["/x"], {"writers": "3"}),
        ("maildir:path=/x,y,writers=3", "maildir", [], {"path": "/x,y", "writers": "3"}),
        ("discard,name=x", "discard", [], {}),
        ("a.b:C", "a.b:C", [], {}),
        ("a.b:C:one,two=2", "a.b:C", ["one"], {"two": "2"}),
        ("a.b:C,two=2", "a.b:C", [], {"two": "2"}),
        ("a:B:x=1=2", "a:B", [], {"x": "1=2"}),
    ],
)
def test_text_is_split_into_these_parts(
    text: str, use: str, arguments: list[str], keys: dict[str, str]
) -> None:
    spec = HandlerSpec.of(text)
    assert (spec.use, spec.arguments, spec.keys) == (use, arguments, keys)


@given(st.text(max_size=60) | st.from_regex(r"(maildir|discard|m:A)[:,].{0,40}", fullmatch=True))
def test_any_text_is_a_spec(text: str) -> None:
    HandlerSpec.of(text)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
names = st.sampled_from(("use", "argument", "arguments", "for", "copy", "when", "name", "path"))


@given(st.dictionaries(names, values, max_size=5))
def test_any_table_is_a_handler_or_an_error(table: dict[str, Any]) -> None:
    table.setdefault("use", "discard")
    with suppress(HandlerError):
        load_route(table)


def test_a_parameter_of_another_type_is_not_a_key_of_a_built_in_handler() -> None:
    def made(path: str, *, stream: object = None, at: tuple[str, ...] = ()) -> None: ...

    assert Parameters(made, strict=True).keys == ["path", "at"]
    assert Parameters(made, strict=False).keys == ["path", "stream", "at"]


def test_every_built_in_handler_is_known_to_the_sanitizer() -> None:
    assert set(BUILT_IN) == BUILT_IN_NAMES


def test_values_of_setting_types_are_parsed() -> None:
    def made(
        a: Count, b: Seconds, c: Size, d: FilePath, e: Secret, f: int | None, g: float, h: list[int]
    ) -> None: ...

    texts = dict(zip("abcdefgh", ["2", "1m", "2K", "x", "s", "7", "0.5", "1,2"], strict=True))
    read = Parameters(made, strict=True).values(texts, None)
    assert list(read.values()) == [2, 60.0, 2048, "x", "s", 7, 0.5, [1, 2]]
    with pytest.raises(SettingError, match="a 'x': expected a whole number"):
        Parameters(made, strict=True).values({"a": "x"}, None)
