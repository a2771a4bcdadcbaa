"""Read tensors and bodies of requests from the command line and from files."""

from __future__ import annotations

import io
import math
import tokenize
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
import msgspec
import numpy as np

from tcm_sync._tensors import InferenceInput, check_inputs

if TYPE_CHECKING:
    from tcm_sync.cli.options import Session

_NUMPY = b"\x93NUMPY"


def read_inputs(
    session: Session, given: Sequence[str], datatypes: Sequence[str], *, samples: bool = False
) -> dict[str, np.ndarray[Any, Any]]:
    """Read the tensors of ``--input``, with the datatypes of ``--dtype``.

    Parameters
    ----------
    session : Session
        Reads files.
    given : sequence of str
        ``NAME=FILE.npy``, ``NAME=@FILE`` (.npy or JSON), ``NAME=-`` (the same from the standard input), or
        ``NAME=JSON``.
    datatypes : sequence of str
        ``NAME=DATATYPE``, or a datatype for all.
    samples : bool
        Whether they will be stacked before they are sent, so that 0-d ones are allowed.
    """
    values = {}
    for text in given:
        name, value = split(text, "--input", "NAME=VALUE")
        if name in values:
            raise click.UsageError(f"--input {name}: given twice")
        values[name] = _value(session, name, value)
    wanted = _datatypes(datatypes, values)
    return {name: _array(name, value, wanted.get(name), samples) for name, value in values.items()}


def split(text: str, option: str, form: str) -> tuple[str, str]:
    """Split ``NAME=VALUE``."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.UsageError(f"{option}: {text!r:.80} is not {form}")
    return name, value


def _value(session: Session, name: str, text: str) -> Any:
    what = f"--input {name}"
    if not (text == "-" or text.startswith("@") or text.endswith(".npy")):
        return _json(
            text.encode(errors="surrogateescape"),
            what,
            " nor FILE.npy, @FILE or -; a text is '[\"...\"]'",
        )
    raw = session.read(text.removeprefix("@"), what)
    if not raw.startswith(_NUMPY):
        return _json(raw, what, " nor a .npy file")
    try:
        return np.load(io.BytesIO(raw), allow_pickle=False)
    except (
        *(ValueError, EOFError, OSError, TypeError, SyntaxError, MemoryError, RecursionError),
        tokenize.TokenError,  # before Python 3.12
    ) as error:
        raise click.UsageError(f"{what}: {text!r:.80} is not a readable .npy file: {error}") from error


def _json(raw: bytes, what: str, otherwise: str) -> Any:
    try:
        value = msgspec.json.decode(raw)
        return _with_nan(value) if b"null" in raw else value
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise click.UsageError(f"{what}: neither JSON{otherwise} ({error})") from error


def _with_nan(value: Any) -> Any:
    """Read null as NaN, as the wire and the JSON of outputs have it."""
    if isinstance(value, list):
        return [_with_nan(item) for item in value]
    return math.nan if value is None else value


def _datatypes(given: Sequence[str], names: Collection[str]) -> dict[str, str]:
    found = {}
    for text in given:
        if "=" not in text:
            found.update(dict.fromkeys(names, text))
            continue
        name, datatype = split(text, "--dtype", "NAME=DATATYPE")
        if name not in names:
            raise click.UsageError(f"--dtype {name}: there is no --input of that name")
        found[name] = datatype
    return found


def _array(name: str, value: Any, datatype: str | None, samples: bool) -> np.ndarray[Any, Any]:
    array = check_inputs({name: value}, scalars=samples)[0].array
    if datatype is None:
        return array
    flat = array.reshape(-1)
    stated = InferenceInput(name, flat.shape, datatype, flat)
    return check_inputs([stated])[0].array.reshape(array.shape)


def output_dtypes(given: Sequence[str]) -> Any:
    """Read the values of ``--output-dtype``: dtypes by name, or one for all."""
    from tcm_sync._tensors import DATATYPES

    found: dict[str, Any] = {}
    for text in given:
        name, equals, datatype = text.rpartition("=")
        known = DATATYPES.get(datatype)
        if known is None or (equals and not name):
            raise click.UsageError(f"--output-dtype: {text!r:.80}: the datatypes are {', '.join(DATATYPES)}")
        if not equals and len(given) == 1:
            return known.dtype
        if not equals:
            raise click.UsageError(f"--output-dtype {datatype} is for all outputs, so give it once and alone")
        found[name] = known.dtype
    return found or None


def read_body(
    session: Session, file: str | None, fields: Sequence[str], *, reserved: Collection[str]
) -> dict[str, Any]:
    """Read the body of a request from a YAML or JSON file, and add single fields.

    Parameters
    ----------
    session : Session
        Reads the file.
    file : str or None
        ``-`` is the standard input.
    fields : sequence of str
        ``KEY.KEY=VALUE``: the value is JSON, or else a text.
    reserved : collection of str
        Keys that have their own option or argument on the command line.
    """
    body: dict[str, Any] = {}
    if file is not None:
        found = _yaml(session.read(file, "--file"), file)
        if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
            raise click.UsageError(f"--file: {file!r} must hold an object with texts as keys")
        body = dict(found)
    for text in fields:
        path, value = split(text, "--set", "KEY.KEY=VALUE")
        _put(body, path.split("."), _json_or_text(value), path)
    for name in reserved:
        if name in body:
            raise click.UsageError(f"the body must not hold {name!r}: give it on the command line")
    return body


def _yaml(raw: bytes, file: str) -> Any:
    """Read YAML, of which JSON is a part."""
    import yaml

    try:
        return yaml.safe_load(raw)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, LookupError, AttributeError) as error:
        raise click.UsageError(f"--file: {file!r} is neither YAML nor JSON: {error}") from error


def _json_or_text(value: str) -> Any:
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return value


def _put(body: dict[str, Any], keys: Sequence[str], value: Any, path: str) -> None:
    *above, last = keys
    for key in above:
        inner = body.get(key, {})
        if not isinstance(inner, Mapping):
            raise click.UsageError(f"--set {path}: {key!r} is not an object")
        body[key] = dict(inner)
        body = body[key]
    if not all(keys):
        raise click.UsageError(f"--set: {path!r} has an empty key")
    body[last] = value
