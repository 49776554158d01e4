"""Generates the documents that list the options, from the definitions of the options.

Run as ``make papers``. It writes the annotated example, the page of the options, the table of
README, the manual page, and the types of the keywords of Server. A test checks that the files in
the tree are up to date.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import click
import msgspec

from smtpd_fork.cli.base_command import CONFIG_HELP
from smtpd_fork.cli.command import SUBCOMMANDS, SUMMARIES, command
from smtpd_fork.cli.options import DEFAULTS, OPTIONS, SECTIONS, TABLES, format_setting
from smtpd_fork.cli.setting_sources import CONFIG_VARIABLE
from smtpd_fork.cli.show_config import toml
from smtpd_fork.config import READERS, Config
from smtpd_fork.dialogue.commands import COMMANDS, TAKES_COMMANDS, Command, State
from smtpd_fork.errors import MEANINGS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from smtpd_fork.cli.options import SettingOption

__all__ = ["documents", "example", "manual_page", "options_page", "readme_table", "settings_module"]

_ROOT = Path(__file__).parents[2]

_MARK = "<!-- options: make papers -->"

_COMMANDS_MARK = "<!-- commands: make papers -->"
_STATES_MARK = "<!-- states: make papers -->"

_WIDTH = 96


def _flags(option: SettingOption) -> str:
    return ", ".join(option.opts) + ("" if option.is_flag else f" {option.metavar}")


def _quoted(text: str) -> str:
    """Return help in Markdown: flags and what is to be written as it is between backquotes."""
    return re.sub(r"(?<![\w`])(--?[a-z][\w-]*)", r"`\1`", text).replace("|", "\\|")


def readme_table() -> str:
    """Return the table of the options that README has."""
    rows = [
        f"| `{_flags(option)}` | {option.default_text} | {_quoted(option.help or '')} |"
        for option in OPTIONS
    ]
    return "\n".join([_MARK, "| option | default | meaning |", "| --- | --- | --- |", *rows, ""])


def commands_table() -> str:
    """Return the table of ``docs/session.md``: each command in each state."""
    states = TAKES_COMMANDS[:-1]
    head = ["command", *(state.name for state in states)]
    rows = [[f"`{row.name}`", *(_in_state(row, state) for state in states)] for row in COMMANDS]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join([_COMMANDS_MARK, *(f"| {' | '.join(cells)} |" for cells in lines), ""])


def _in_state(row: Command, state: State) -> str:
    refused = row.otherwise.get(state) or row.late.get(state)
    if refused is not None:
        code, _, words = refused
        return f"{code} {words.removeprefix('Error: ')}"
    to = _led_to(row, state)
    return "stays" if to is None else f"**{to.name}**"


def _led_to(row: Command, state: State) -> State | None:
    """Return the state that a command leads to; None: there is no change."""
    if state in row.otherwise or state in row.late:
        return None
    if row.name == "RSET" and state is State.HELLO:  # it introduces nobody
        return None
    return row.leads_to


def states_diagram() -> str:
    """Return the same as a diagram: what leads from a state to another."""
    ways: dict[tuple[str, str], list[str]] = {}
    for row in COMMANDS:
        for state in TAKES_COMMANDS[:-1]:
            to = _led_to(row, state)
            if to is not None and to != state:
                ways.setdefault((state.name, to.name), []).append(row.name)
    for name in ("DATA", "CHUNK"):
        ways[name, "DELIVERY"] = ["its end"]
    ways["CHUNK", "CHUNKS"] = ["not the last"]
    ways["DELIVERY", "READY"] = ["the handler's answer"]
    ways["EXCHANGE", "READY"] = ["the last answer"]
    ways["HANDSHAKE", "HELLO"] = ["TLS"]
    ways["HANDSHAKE", "BARRED"] = ["handle_STARTTLS says no"]
    lines = [f"    {a} --> {b}: {', '.join(names)}" for (a, b), names in ways.items()]
    head = ["    [*] --> GREETING", "    GREETING --> HELLO: 220"]
    body = ["```mermaid", "stateDiagram-v2", *head, *lines, "    LEAVING --> [*]", "```"]
    return "\n".join([_STATES_MARK, *body, ""])


def options_page() -> str:
    """Return ``docs/options.md``."""
    return _PAGE_HEAD + "".join(map(_section_table, SECTIONS)) + _PAGE_TAIL


def _section_table(section: str) -> str:
    rows = [
        f"| `{_flags(option)}` | `{'.'.join(filter(None, (option.table, option.key)))}` "
        f"| `{option.envvar}` | {option.default_text} | {_quoted(option.help or '')} |\n"
        for option in OPTIONS
        if option.section == section
    ]
    head = "| option | in a file | environment | default | meaning |\n"
    return f"\n## {section}\n\n{head}| --- | --- | --- | --- | --- |\n{''.join(rows)}"


_PAGE_HEAD = f"""\
# The options

Made of their definitions by `make papers`. A flag beats the environment, that beats the
file of `--config` (or `{CONFIG_VARIABLE}`), and that beats the default. In a file,
names may have `_` for `-`; options that are repeatable take one value or a list; in the
environment they take several words. Sizes are bytes or `25M`, times are seconds or
`500ms`, `5m`, `1h`. `smtpd-fork config` prints what is in force, and why;
[the example](../examples/smtpd-fork.toml) has them all.
"""

_PAGE_TAIL = """
## Listeners and handlers in a file

`[[listener]]` is an address in more words: `address` or `path` (a unix socket's), `port`,
`protocol` (`smtp`, `lmtp`), `tls` (`starttls`, offered if there is a certificate; `none`;
`required`; `implicit`, from the first byte) and `proxy` (whether a PROXY header comes first).
`[[handler]]` is a handler: `use`, and `argument` or a list of `arguments`. They stand for
`listen-address` and `handler`, and one of both forms is used in a file.
"""

_LISTENER = """\
# Where to listen. Instead of listen-address, each address may be a table, at the end of the file:
#
# [[listener]]
# address = "0.0.0.0"
# port = 25
# protocol = "smtp"     # or "lmtp"
# tls = "starttls"      # "none", "required", "implicit"
# proxy = false         # whether a PROXY header comes first
#
# And each handler:
#
# [[handler]]
# use = "maildir"
# argument = "/var/mail/incoming\""""


_EXAMPLE_HEAD = f"""\
# Settings of smtpd-fork, for --config. Each line that begins with #: is a default;
# without the mark it is a setting. Flags and the environment win over this file.
# smtpd-fork check --config FILE tells what is wrong with it.

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
    """Return the default as a file has it; where there is none, what a value looks like."""
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


# -- the manual page -------------------------------------------------------------------------------


def manual_page() -> str:
    """Return ``packaging/smtpd-fork.8``, in the macros of man(7)."""
    return "\n".join(_manual_page()) + "\n"


def _manual_page() -> Iterator[str]:
    yield '.\\" Made of the options\' definitions by "make papers".'
    yield '.TH SMTPD-FORK 8 "" "smtpd-fork" "System Manager\'s Manual"'
    yield ".SH NAME"
    yield "smtpd\\-fork \\- SMTP front door: counts sessions, defers or refuses, hands on"
    yield ".SH SYNOPSIS\n.B smtpd\\-fork\n.RI [ options ]"
    for name in SUBCOMMANDS:
        yield f".br\n.B smtpd\\-fork {_roff(name)}\n.RI [ options ]"
    yield f".SH DESCRIPTION\n{_roff(command.help or '')}\n{_roff(command.epilog or '')}"
    yield ".SH COMMANDS"
    yield from _entries(SUMMARIES)
    yield ".SH OPTIONS"
    for section in SECTIONS:
        yield f".SS {section}"
        yield from _entries(
            {
                _flags(
                    option
                ): f"{option.help}{option.default_text and f' [{option.default_text}]'}"
                for option in OPTIONS
                if option.section == section
            }
        )
    yield ".SS Other"
    yield from _entries({"--config FILE": CONFIG_HELP})
    yield ".SH SIGNALS"
    yield from _entries(SIGNALS)
    yield ".SH EXIT STATUS"
    yield from _entries({str(int(status)): meaning for status, meaning in MEANINGS.items()})
    yield ".SH SEE ALSO"
    yield ".BR qpsmtpd\\-forkserver (8),\n.BR systemd.socket (5),\n.BR sysexits.h (3head)"


def _entries(meanings: Mapping[str, str]) -> Iterator[str]:
    """Return a list of terms, each with its meaning."""
    for term, meaning in meanings.items():
        yield f".TP\n.B {_roff(term)}\n{_roff(meaning)}"


SIGNALS = {
    "SIGTERM, SIGINT": "Stop: messages in flight are finished; a second one stops at once.",
    "SIGHUP": "Read the settings, the lists and the certificates again.",
    "SIGUSR2": "Have a new process take over the listening sockets, and end when sessions have.",
}


def _roff(text: str) -> str:
    """Return *text* so that roff takes it as it is."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").strip()
    return "\n".join(
        f"\\&{line}" if line.startswith((".", "'")) else line for line in escaped.splitlines()
    )


# -- all of them -----------------------------------------------------------------------------------


_SETTINGS_HEAD = '''\
"""Settings: the keywords of Server, for type checkers. Made by ``make papers`` of Config."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_fork.config import WhenFull

__all__ = ["Settings"]


class Settings(TypedDict, total=False):
    """The settings by name, as :meth:`smtpd_fork.Config.build` reads them; None is the default.

    What they are stands at :class:`smtpd_fork.Config`.
    """

'''


def settings_module() -> str:
    """Return ``smtpd_fork/settings.py``."""
    hints = get_type_hints(Config)
    lines = [
        f"    {name}: {accepted(name, hints[name])} | None" for name in Config.__struct_fields__
    ]
    return _SETTINGS_HEAD + "\n".join(lines) + "\n"


def accepted(name: str, hint: Any) -> str:
    """Return the type of what a setting may be given as, but for None."""
    if get_origin(hint) is tuple:
        kind = get_args(hint)[0].__name__
        return f"Sequence[{kind}] | {kind}"
    if get_origin(hint) is Literal:
        return f"Literal[{', '.join(json.dumps(value) for value in get_args(hint))}]"
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    if name in READERS:
        kinds.append(str)  # with a unit, or a word
    return " | ".join(kind.__name__ for kind in dict.fromkeys(kinds))


def _filled(text: str, parts: Sequence[tuple[str, Callable[[], str]]]) -> str:
    """Return a page with its generated parts."""
    for pattern, part in parts:
        text = re.sub(pattern, lambda _, part=part: part(), text)  # type: ignore[misc]  # mypy#11846
    return text


def documents() -> dict[Path, str]:
    """Return the text of each generated file, by its path."""
    readme, session = _ROOT / "README.md", _ROOT / "docs/session.md"
    pages = {
        readme: [(rf"{re.escape(_MARK)}\n(?:\|.*\n)*", readme_table)],
        session: [
            (rf"{re.escape(_COMMANDS_MARK)}\n(?:\|.*\n)*", commands_table),
            (rf"{re.escape(_STATES_MARK)}\n(?:```(?s:.*?)```\n)?", states_diagram),
        ],
    }
    return {
        **{path: _filled(path.read_text(), parts) for path, parts in pages.items()},
        _ROOT / "docs/options.md": options_page(),
        _ROOT / "examples/smtpd-fork.toml": example(),
        _ROOT / "packaging/smtpd-fork.8": manual_page(),
        _ROOT / "smtpd_fork/settings.py": settings_module(),
    }


if __name__ == "__main__":
    for path, text in documents().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
