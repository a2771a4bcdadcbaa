"""Encode values of users' own forms as JSON, and refuse those that JSON would change or lose."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from tcm_sync._numbers import as_number, shown
from tcm_sync.errors import InputError

_MAX_DEPTH = 100
_BITS = 64


def plain_json(value: Mapping[str, object]) -> bytes:
    """Write an object as JSON text.

    Raises
    ------
    InputError
        A value in it has no form in JSON, or would be changed; the message names its path.
    """
    _check(value, "", 0)
    return json.dumps(value, separators=(",", ":"), default=_as_builtin).encode()


def _as_builtin(value: object) -> object:
    number = as_number(value)
    if number is not None:
        return number
    return dict(value) if isinstance(value, Mapping) else list(value)  # type: ignore[call-overload]


def _check(value: object, path: str, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise InputError(f"{path[:80]}...: nested more than {_MAX_DEPTH} deep")
    number = as_number(value)
    if number is not None:  # numbers of numpy and other libraries are checked as Python's
        value = number
    if isinstance(value, int) and value.bit_length() > _BITS:
        raise InputError(f"{path}: an integer of over {_BITS} bits")
    if value is None or isinstance(value, int):  # a bool is one
        return
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InputError(f"{path}: a text with a lone surrogate, which UTF-8 cannot carry") from None
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"{path}: {value} has no form in JSON")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InputError(f"{path or 'the request'}: the key {shown(key)} is not a str")
            _check(key, f"{path}: the key", depth)
            _check(item, f"{path}.{key}" if path else key, depth + 1)
    elif isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        for place, item in enumerate(value):
            _check(item, f"{path}[{place}]", depth + 1)
    else:
        raise InputError(f"{path}: a {type(value).__name__} has no form in JSON")
