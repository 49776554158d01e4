"""Generates the documents that list the options, from the definitions of the options.

Run it with ``make papers``. It writes the example configuration file, the page of the options, the
tables of the session page, the manual page, and the types of the keywords of Server. A test checks
that these files are up to date.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click
import msgspec

from smtpd_fork.cli.manual_page import flags_of, manual_page
from smtpd_fork.cli.names import COMPLETION_VARIABLE, CONFIG_VARIABLE
from smtpd_fork.cli.options import OPTIONS, SECTIONS
from smtpd_fork.cli.setting_option import DEFAULTS, TABLES, SettingOption, format_setting
from smtpd_fork.cli.show_config import toml
from smtpd_fork.config import READERS, Config
from smtpd_fork.dialogue.commands import COMMANDS, TAKES_COMMANDS, Command, State
from smtpd_fork.gate import GATE_SETTINGS

__all__ = ["documents", "example", "options_page", "settings_module"]

_ROOT = Path(__file__).parents[2]

_COMMANDS_MARK = "<!-- commands: make papers -->"
_STATES_MARK = "<!-- states: make papers -->"

_WIDTH = 96


def _quoted(text: str) -> str:
    """Return a help text in Markdown: flags are in backquotes."""
    return re.sub(r"(?<![\w`])(--?[a-z][\w-]*)", r"`\1`", text).replace("|", "\\|")


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def commands_table() -> str:
    """Return the table of ``docs/session.md``: each command in each state."""
    states = TAKES_COMMANDS[:-1]
    heads = ["command", *(state.name for state in states)]
    rows = [[f"`{row.name}`", *(_in_state(row, state) for state in states)] for row in COMMANDS]
    return f"{_COMMANDS_MARK}\n{_table(heads, rows)}"


def _in_state(row: Command, state: State) -> str:
    refused = row.otherwise.get(state) or row.late.get(state)
    if refused is not None:
        code, _, words = refused
        return f"{code} {words.removeprefix('Error: ')}"
    to = _next_state(row, state)
    return "stays" if to is None else f"**{to.name}**"


def _next_state(row: Command, state: State) -> State | None:
    """Return the state that a command leads to; None: there is no change."""
    refused = state in row.otherwise or state in row.late
    stays = row.name == "RSET" and state is State.HELLO  # RSET does not replace EHLO
    return None if refused or stays else row.leads_to


_OTHER_TRANSITIONS = """\
    DATA --> DELIVERY: end of the message
    CHUNK --> DELIVERY: end of the last chunk
    CHUNK --> CHUNKS: end of another chunk
    DELIVERY --> READY: answer of the handler
    EXCHANGE --> READY: end of AUTH
    HANDSHAKE --> HELLO: TLS is active
    HANDSHAKE --> BARRED: handle_STARTTLS refuses
    LEAVING --> [*]
```
"""


def states_diagram() -> str:
    """Return the diagram of ``docs/session.md``: the commands that lead from a state to another."""
    transitions: dict[tuple[str, str], list[str]] = {}
    for row in COMMANDS:
        for state in TAKES_COMMANDS[:-1]:
            to = _next_state(row, state)
            if to is not None and to != state:
                transitions.setdefault((state.name, to.name), []).append(row.name)
    lines = [f"    {a} --> {b}: {', '.join(names)}\n" for (a, b), names in transitions.items()]
    head = "```mermaid\nstateDiagram-v2\n    [*] --> GREETING\n    GREETING --> HELLO: 220\n"
    return f"{_STATES_MARK}\n{head}{''.join(lines)}{_OTHER_TRANSITIONS}"


def options_page() -> str:
    """Return ``docs/options.md``."""
    return _PAGE_HEAD + "".join(map(_section_table, SECTIONS)) + _PAGE_TAIL


def _section_table(section: str) -> str:
    heads = ("option", "in a file", "environment", "default", "meaning")
    rows = [
        (
            *(f"`{flags_of(o)}`", f"`{'.'.join(filter(None, (o.table, o.key)))}`", f"`{o.envvar}`"),
            *(o.default_text, _quoted(o.help or "")),
        )
        for o in OPTIONS
        if o.section == section
    ]
    return f"\n## {section}\n\n{_table(heads, rows)}"


_PAGE_HEAD = f"""\
# The options

This page lists all options of the daemon, with their keys in the configuration file, environment
variables and defaults. (`make papers` generates it.) Precedence: command line, environment,
configuration file (`--config` or `{CONFIG_VARIABLE}`), defaults.

- In a file, names may have `_` instead of `-`. The value of a repeatable option is one value or a
  list; [the example](../examples/smtpd-fork.toml) contains all options.
- In the environment, the values of a repeatable option are separated by spaces;
  `"a value with spaces"` is quoted.
- A size is in bytes, or such as `25M`; a time is in seconds, or such as `500ms`, `5m`, `1h`.
- `smtpd-fork config` prints the effective settings with their origin.
- `eval "$({COMPLETION_VARIABLE}=bash_source smtpd-fork)"` turns on completion of commands and
  options in bash; use `zsh_source` for zsh and `fish_source` for fish.
"""

_PAGE_TAIL = """
## Listeners and handlers in a file

Instead of `listen-address` and `handler`, a file may have tables:

- `[[listener]]` is a listen address, with the keys `address` or `path` (of a unix socket), `port`,
  `protocol` (`smtp`, `lmtp`), `tls` (`starttls`: offered if there is a certificate; `none`;
  `required`; `implicit`) and `proxy` (true: a PROXY header is required).
- `[[handler]]` is a handler: `use` is its name or `module:attr`; `for`, `copy`, `quarantine` and
  `when` [select its messages](sinks.md#configure-sinks). The other keys are those of the handler;
  for `module:attr` they are the parameters of the class or function, and `argument`, or the list
  `arguments`, has its positional arguments.
"""

_LISTENER = """\
# Instead of listen-address, each listen address may be a table at the end of the file:
#
# [[listener]]
# address = "0.0.0.0"
# port = 25
# protocol = "smtp"     # or "lmtp"
# tls = "starttls"      # "none", "required", "implicit"
# proxy = false         # true: a PROXY header is required
#
# Instead of handler, each handler may be a table:
#
# [[handler]]
# use = "accept"
# domains = ["example.com"]
#
# [[handler]]
# use = "lmtp"
# address = "unix:/run/dovecot/lmtp"
# for = ["example.com"]
#
# [[handler]]
# use = "s3"
# bucket = "archive"
# copy = "best-effort\""""


_EXAMPLE_HEAD = f"""\
# Configuration file of smtpd-fork, for --config. A line that begins with #: shows a default value;
# to change a setting, remove the #: and edit the value. The command line and the environment
# override this file. smtpd-fork check --config FILE reports errors in it.

{_LISTENER}
"""


def example() -> str:
    """Return ``examples/smtpd-fork.toml``: every setting, commented out, with its default."""
    return _EXAMPLE_HEAD + "".join(map(_example_table, TABLES))


def _example_table(table: str) -> str:
    text = f"\n[{table}]\n" if table else ""
    section = ""
    for option in OPTIONS:
        if option.table != table:
            continue
        if option.section != section:
            section = option.section
            text += f"\n{f'# -- {section} '.ljust(_WIDTH, '-')}\n"
        text += f"\n{_comment(option.help or '')}#: {option.key} = {_example_value(option)}\n"
    return text


def _example_value(option: SettingOption) -> str:
    """Return the default in the form of a file, or else the form of a value."""
    default = DEFAULTS[option.setting]
    word = option.default_text or "none"
    if default is msgspec.NODEFAULT or default is None:
        return f"{toml(option.metavar or '')}  # default: {word}"
    if default == ():
        return f"[]  # each {option.metavar}; default: {word}"
    return toml(format_setting(option.setting, default))


def _comment(text: str) -> str:
    wrapped = click.formatting.wrap_text(text, _WIDTH - 2)
    return "".join(f"# {line}\n" for line in wrapped.splitlines())


_SETTINGS_HEAD = '''\
"""Settings: the keywords of Server, for type checkers; ``make papers`` generates this file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_fork.config import WhenFull

__all__ = ["GateSettings", "Settings"]


class GateSettings(TypedDict, total=False):
    """The limits of a gate by name, for :class:`smtpd_fork.Limits`."""

'''

_SERVER_HEAD = '''

class Settings(GateSettings, total=False):
    """The settings by name, for :meth:`smtpd_fork.Config.build`; None means the default.

    :class:`smtpd_fork.Config` documents them.
    """

'''


def settings_module() -> str:
    """Return ``smtpd_fork/settings.py``."""
    hints = get_type_hints(Config)
    lines = {n: f"    {n}: {accepted(n, hints[n])} | None\n" for n in Config.__struct_fields__}
    of_gate = [line for name, line in lines.items() if name in GATE_SETTINGS]
    others = [line for name, line in lines.items() if name not in GATE_SETTINGS]
    return "".join([_SETTINGS_HEAD, *of_gate, _SERVER_HEAD, *others])


def accepted(name: str, hint: Any) -> str:
    """Return the type of the values that a setting accepts, except None."""
    if get_origin(hint) is tuple:
        kind = get_args(hint)[0].__name__
        return f"Sequence[{kind}] | {kind}"
    if get_origin(hint) is Literal:
        return f"Literal[{', '.join(json.dumps(value) for value in get_args(hint))}]"
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    if name in READERS:
        kinds.append(str)  # a text with a unit or a word
    return " | ".join(kind.__name__ for kind in dict.fromkeys(kinds))


def _with_generated_parts(text: str, parts: Sequence[tuple[str, Callable[[], str]]]) -> str:
    """Return a page with its generated parts replaced."""
    for pattern, part in parts:
        text = re.sub(pattern, lambda _, part=part: part(), text)  # type: ignore[misc]  # mypy#11846
    return text


def documents() -> dict[Path, str]:
    """Return the text of each generated file, by its path."""
    session = _ROOT / "docs/session.md"
    pages = {
        session: [
            (rf"{re.escape(_COMMANDS_MARK)}\n(?:\|.*\n)*", commands_table),
            (rf"{re.escape(_STATES_MARK)}\n(?:```(?s:.*?)```\n)?", states_diagram),
        ],
    }
    return {
        **{path: _with_generated_parts(path.read_text(), parts) for path, parts in pages.items()},
        _ROOT / "docs/options.md": options_page(),
        _ROOT / "examples/smtpd-fork.toml": example(),
        _ROOT / "packaging/smtpd-fork.8": manual_page(),
        _ROOT / "smtpd_fork/settings.py": settings_module(),
    }


if __name__ == "__main__":
    for path, text in documents().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
