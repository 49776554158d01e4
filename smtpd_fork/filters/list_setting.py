"""ListSetting: a setting with several values, which may be read from files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from smtpd_fork.filters.rule_file import RuleFile
from smtpd_fork.setting_types import SettingError, names_a_file

__all__ = ["ListSetting"]

T = TypeVar("T")


class ListSetting(Generic[T]):
    """Values, and files with one value per line.

    A string that is not a valid value, but has a slash, is the name of a file.

    :param name: the name of the setting
    :param parse: a function that parses a value, and raises ValueError
    :ivar files: the files that the setting names
    :raises SettingError: a string is neither a valid value nor the name of a file
    """

    def __init__(self, name: str, values: Sequence[str] | str, parse: Callable[[str], T]) -> None:
        self._parse = parse
        self._values: list[T] = []
        self.files: list[RuleFile] = []
        for value in [values] if isinstance(values, str) else values:
            try:
                self._values.append(parse(value))
            except ValueError as error:
                if not names_a_file(value):
                    raise SettingError(name, value, str(error)) from None
                self.files.append(RuleFile(value))

    def __bool__(self) -> bool:
        return bool(self._values or self.files)

    @property
    def values(self) -> Sequence[T]:
        """The values in the setting itself, without those of the files."""
        return self._values

    def read(self) -> Iterator[T]:
        """Yield all values; read the files again. Blocks.

        :raises HandlerError: a file cannot be read, or has a line that is not a valid value
        """
        yield from self._values
        for file in self.files:
            for number, rule in file.rules():
                text = rule.partition("#")[0].strip(" \t\r")
                try:
                    yield self._parse(text)
                except ValueError as error:
                    raise file.error(number, text, error) from None
