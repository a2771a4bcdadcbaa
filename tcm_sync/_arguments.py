"""Check the texts, choices, flags and numbers that callers pass."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeGuard

import numpy as np

from tcm_sync._numbers import as_number, as_whole, shown
from tcm_sync._texts import text_fault
from tcm_sync.errors import ConfigError, InputError

Kind = type[ConfigError] | type[InputError]


def check_text(name: str, value: object, kind: Kind = ConfigError) -> str:
    """Return a value as a plain str if it is a non-empty text that UTF-8 can encode.

    Subclasses such as numpy's str are converted, since the JSON encoders refuse them.

    Raises
    ------
    ConfigError or InputError
        It is something else. The message begins with the name.
    """
    if fault := text_fault(name, value):
        raise kind(fault)
    return value if type(value) is str else str.__str__(value)


def check_texts(name: str, values: object, example: str, kind: Kind = ConfigError) -> tuple[str, ...]:
    """Return a collection of such texts as a tuple.

    Raises
    ------
    ConfigError or InputError
        It is something else. The message begins with the name.
    """
    if not isinstance(values, Collection) or not is_iterable(values):
        raise kind(f"{name} must be a collection of texts such as {example}, not {shown(values)}")
    return tuple([check_text(name, value, kind) for value in values])


def is_iterable(value: object) -> TypeGuard[Iterable[Any]]:
    """Return whether a value is a collection of items: not a text, buffer, mapping or 0-d array."""
    if isinstance(value, (str, bytes, bytearray, memoryview, Mapping)) or getattr(value, "shape", None) == ():
        return False
    return isinstance(value, Iterable)


def check_choice(name: str, value: object, choices: tuple[str, ...], kind: Kind = InputError) -> None:
    """Refuse a value that is not one of the choices.

    Raises
    ------
    ConfigError or InputError
        The message begins with the name.
    """
    if not isinstance(value, str) or value not in choices:
        *others, last = map(repr, choices)
        raise kind(f"{name} must be {', '.join(others)} or {last}, not {shown(value)}")


def check_flag(name: str, value: object, kind: Kind = InputError) -> bool:
    """Return a bool, a numpy bool or an int as a bool; None is False.

    Raises
    ------
    ConfigError or InputError
        It is something else, such as the text "false". The message begins with the name.
    """
    if value is None or isinstance(value, (int, np.bool_)):
        return bool(value)
    raise kind(f"{name} must be True or False, not {shown(value)}")


def check_whole(name: str, value: object, least: int = 1, kind: Kind = ConfigError) -> int:
    """Return a whole number of at least `least` as int.

    Raises
    ------
    ConfigError or InputError
        It is something else. The message begins with the name.
    """
    number = as_whole(value)
    if number is None or number < least:
        raise kind(f"{name} must be a whole number of at least {least}, not {shown(value)}")
    return number


def check_seconds(name: str, value: object) -> float:
    """Return a positive, finite number as int or float.

    Raises
    ------
    ConfigError
        It is something else.
    """
    number = as_number(value)
    if number is None or not 0 < number <= sys.float_info.max:
        raise ConfigError(f"{name} must be a positive, finite number, not {shown(value)}")
    return number


def check_count(name: str, value: object) -> int:
    """Return a whole number of at least 1 as int.

    Raises
    ------
    ConfigError
        It is something else.
    """
    number = check_whole(name, value)
    if number > sys.maxsize:
        raise ConfigError(f"{name} must be at most {sys.maxsize:,}, not {shown(value)}")
    return number
