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

from smtpd_fork.cli.command import SUBCOMMANDS, SUMMARIES, command
from smtpd_fork.cli.config_file import key_of
from smtpd_fork.cli.given import CONFIG_VARIABLE
from smtpd_fork.cli.options import OPTIONS, SECTIONS, format_setting
from smtpd_fork.cli.show import toml
from smtpd_fork.config import READERS, Config, DaemonConfig
from smtpd_fork.errors import MEANINGS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_fork.cli.options import SettingOption

__all__ = ["documents", "example", "manual_page", "options_page", "readme_table", "settings_module"]

_ROOT = Path(__file__).parents[2]

_MARK = "<!-- options: make papers -->"

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


def options_page() -> str:
    """Return ``docs/options.md``."""
    return "\n".join(_options_page())


def _options_page() -> Iterator[str]:
    yield "# The options"
    yield ""
    yield (
        "Made of their definitions by `make papers`. A flag beats the environment, that beats the\n"
        f"file of `--config` (or `{CONFIG_VARIABLE}`), and that beats the default. In a file,\n"
        "names may have `_` for `-`; options that are repeatable take one value or a list; in the\n"
        "environment they take several words. Sizes are bytes or `25M`, times are seconds or\n"
        "`500ms`, `5m`, `1h`. `smtpd-fork config` prints what is in force, and why;\n"
        "[the example](../examples/smtpd-fork.toml) has them all."
    )
    for section in SECTIONS:
        yield ""
        yield f"## {section}"
        yield ""
        yield "| option | in a file | environment | default | meaning |"
        yield "| --- | --- | --- | --- | --- |"
        for option in OPTIONS:
            if option.section == section:
                table, key = key_of(str(option.name))
                place = f"{table}.{key}" if table else key
                yield (
                    f"| `{_flags(option)}` | `{place}` | `{option.envvar}` "
                    f"| {option.default_text} | {_quoted(option.help or '')} |"
                )
    yield ""
    yield "## Listeners and handlers in a file"
    yield ""
    yield _TABLES
    yield ""


_TABLES = """\
`[[listener]]` is an address in more words: `address` or `path` (a unix socket's), `port`,
`protocol` (`smtp`, `lmtp`), `tls` (`starttls`, offered if there is a certificate; `none`;
`required`; `implicit`, from the first byte) and `proxy` (whether a PROXY header comes first).
`[[handler]]` is a handler: `use`, and `argument` or a list of `arguments`. They stand for
`listen-address` and `handler`, and one of both forms is used in a file."""

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


def example() -> str:
    """Return ``examples/smtpd-fork.toml``: every setting, commented out, with its default."""
    return "\n".join(_example())


def _example() -> Iterator[str]:
    yield "# Settings of smtpd-fork, for --config. Each line that begins with #: is a default;"
    yield "# without the mark it is a setting. Flags and the environment win over this file."
    yield "# smtpd-fork check --config FILE tells what is wrong with it."
    yield ""
    yield from _LISTENER.splitlines()
    for table in ("", "tls", "gate"):
        if table:
            yield ""
            yield f"[{table}]"
        section = ""
        for option in OPTIONS:
            if key_of(str(option.name))[0] != table:
                continue
            if option.section != section:
                section = option.section
                yield ""
                yield f"# -- {section} ".ljust(_WIDTH, "-")
            yield ""
            yield from _wrapped(option.help or "", "# ")
            yield f"#: {key_of(str(option.name))[1]} = {_example_value(option)}"
    yield ""


def _example_value(option: SettingOption) -> str:
    """Return the default as a file has it; where there is none, what a value looks like."""
    field = next(f for f in msgspec.structs.fields(DaemonConfig) if f.name == option.name)
    if field.default is msgspec.NODEFAULT or field.default is None:
        word = option.default_text or "none"
        return f"{toml(option.metavar or '')}  # default: {word}"
    if field.default == ():
        word = option.default_text or "none"
        return f"[]  # each {option.metavar}; default: {word}"
    return toml(format_setting(field.name, field.default))


def _wrapped(text: str, front: str) -> list[str]:
    wrapped = click.formatting.wrap_text(text, _WIDTH - len(front))
    return [f"{front}{line}" for line in wrapped.splitlines()]


# -- the manual page -------------------------------------------------------------------------------


def manual_page() -> str:
    """Return ``packaging/smtpd-fork.8``, in the macros of man(7)."""
    return "\n".join(_manual_page()) + "\n"


def _manual_page() -> Iterator[str]:
    yield '.\\" Made of the options\' definitions by "make papers".'
    yield '.TH SMTPD-FORK 8 "" "smtpd-fork" "System Manager\'s Manual"'
    yield ".SH NAME"
    yield "smtpd\\-fork \\- SMTP front door: counts sessions, defers or refuses, hands on"
    yield ".SH SYNOPSIS"
    yield ".B smtpd\\-fork"
    yield ".RI [ options ]"
    for name in SUBCOMMANDS:
        yield ".br"
        yield f".B smtpd\\-fork {_roff(name)}"
        yield ".RI [ options ]"
    yield ".SH DESCRIPTION"
    yield _roff(command.help or "")
    yield _roff(command.epilog or "")
    yield ".SH COMMANDS"
    for name in SUBCOMMANDS:
        yield ".TP"
        yield f".B {_roff(name)}"
        yield _roff(SUMMARIES[name])
    yield ".SH OPTIONS"
    for section in SECTIONS:
        yield f".SS {section}"
        for option in OPTIONS:
            if option.section == section:
                yield ".TP"
                yield f".B {_roff(_flags(option))}"
                default = f" [{option.default_text}]" if option.default_text else ""
                yield _roff(f"{option.help}{default}")
    yield ".SS Other"
    yield ".TP"
    yield f".B {_roff('--config FILE')}"
    yield "Take settings from FILE, TOML; flags and the environment win."
    yield ".SH SIGNALS"
    for name, meaning in SIGNALS.items():
        yield ".TP"
        yield f".B {name}"
        yield _roff(meaning)
    yield ".SH EXIT STATUS"
    for status, meaning in MEANINGS.items():
        yield ".TP"
        yield f".B {int(status)}"
        yield _roff(meaning)
    yield ".SH SEE ALSO"
    yield ".BR qpsmtpd\\-forkserver (8),"
    yield ".BR systemd.socket (5),"
    yield ".BR sysexits.h (3head)"


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


def documents() -> dict[Path, str]:
    """Return the text of each generated file, by its path."""
    readme = (_ROOT / "README.md").read_text()
    table = re.compile(rf"{re.escape(_MARK)}\n(?:\|.*\n)*")
    return {
        _ROOT / "README.md": table.sub(lambda _: readme_table(), readme),
        _ROOT / "docs/options.md": options_page(),
        _ROOT / "examples/smtpd-fork.toml": example(),
        _ROOT / "packaging/smtpd-fork.8": manual_page(),
        _ROOT / "smtpd_fork/settings.py": settings_module(),
    }


if __name__ == "__main__":
    for path, text in documents().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
