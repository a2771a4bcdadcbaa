"""Write the results of commands: tables for people, a line of JSON for programs."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import orjson
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from tcm_sync._secrets import hide

if TYPE_CHECKING:
    from tcm_sync._tensors import TensorSpec

_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")

_WIDE = 10_000  # columns of output that does not go to a terminal, so that nothing is wrapped or cut


class Output:
    """The standard output.

    Parameters
    ----------
    as_json : bool
        Whether a program reads it.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.is_terminal = sys.stdout.isatty()
        self._console = Console(
            file=sys.stdout,
            highlight=False,
            markup=False,
            emoji=False,
            force_terminal=self.is_terminal,
            width=None if self.is_terminal else _WIDE,
        )

    @property
    def width(self) -> int:
        """Columns that a line may have."""
        return self._console.width

    def json(self, value: object) -> None:
        """Write a line of JSON, in ASCII whatever the locale is. What is not a finite number is null."""
        click.echo(ascii_json(value))
        sys.stdout.flush()

    def text(self, text: str) -> None:
        """Write a text unchanged and at once: in UTF-8 in any locale, escaped only for a terminal."""
        binary = getattr(sys.stdout, "buffer", None)
        if self.is_terminal or binary is None:
            sys.stdout.write(printable(text) if self.is_terminal else text)
        else:
            sys.stdout.flush()  # what was written before goes first
            binary.write(text.encode(errors="backslashreplace"))
        sys.stdout.flush()

    def line(self, text: str = "", style: str = "") -> None:
        """Write a line, without secrets."""
        self._console.print(Text(printable(hide(text)), style=style), soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Write a table, with numbers aligned to the right."""
        table = Table(box=None, pad_edge=False, header_style="bold", show_header=bool(any(columns)))
        for place, name in enumerate(columns):
            numbers = any(isinstance(row[place], (int, float)) for row in rows)
            table.add_column(Text(name), justify="right" if numbers else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(printable(_cell(value))) for value in row))
        with self._console.capture() as capture:
            self._console.print(table)
        for line in capture.get().splitlines():
            click.echo(line.rstrip(), color=True)

    def pairs(self, facts: Mapping[str, object]) -> None:
        """Write names and values, one pair a line."""
        rows = [(name, _cell(value)) for name, value in facts.items() if value is not None]
        self.table(("", ""), rows)

    def outputs(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Write arrays by name."""
        for name, array in arrays.items():
            self.line(f"{name}: {array.dtype}{list(array.shape)}", "bold")
            for line in np.array2string(array, max_line_width=min(self.width, 100)).splitlines():
                self.line(line)


def ascii_json(value: object) -> str:
    """Write a value as JSON of ASCII characters alone."""
    try:
        text = orjson.dumps(value, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY).decode()
    except TypeError:  # an integer over 64 bits, or a name that is not UTF-8
        return json.dumps(_builtin(value), separators=(",", ":"), allow_nan=False)
    return text if text.isascii() else _NOT_ASCII.sub(lambda match: json.dumps(match[0])[1:-1], text)


def _builtin(value: object) -> object:
    """Convert a value to types that json can write; a number that is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(key): _builtin(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, frozenset)):
        return [_builtin(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _builtin(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)


def printable(text: str) -> str:
    """Return a text with control characters escaped, which a terminal would act on."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "surrogatepass").decode()
        for c in text
    )


@contextlib.contextmanager
def working(title: str) -> Iterator[None]:
    """Show a spinner and the elapsed time on the standard error, if it is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    console = Console(stderr=True)
    spinner = SpinnerColumn("dots" if console.encoding.startswith("utf") else "line")
    columns = spinner, TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        progress.add_task(printable(title), total=None)
        yield


def tensor(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return an array in its JSON form."""
    return {"dtype": str(array.dtype), "shape": list(array.shape), "data": array}


def spec(each: TensorSpec) -> dict[str, Any]:
    """Return a declared tensor in its JSON form, with fields that have their default too."""
    return {name: getattr(each, name) for name in each.__struct_fields__}


def _cell(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int):
        return f"{value:,.3g}" if isinstance(value, float) else str(value)
    return f"{value:,}"


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):  # texts, or an order or dtype that orjson does not support
        return value.tolist()
    if isinstance(value, (tuple, frozenset, Mapping)):
        return dict(value) if isinstance(value, Mapping) else list(value)
    return str(value)
