"""What IPython shows of an error: what failed, and then the lines of the user, not those of this package."""

from __future__ import annotations

import contextlib
import re
import sys
import traceback
from collections.abc import Iterator
from itertools import groupby
from types import TracebackType
from typing import Any, TypeVar

_US = "tcm_sync"
# Whose frames are left out where they stand beside those of this package: what it calls, and what calls it.
_BESIDE_US = frozenset(
    {_US, "dask", "distributed", "narwhals", "numpy", "onnx", "onnxruntime", "pandas", "polars", "pyarrow"}
    | {"tenacity", "tqdm", "websocket", "websockets"}
    | sys.stdlib_module_names
)
_SHORTENED = ("Context", "Plain")  # of the modes of %xmode; users who choose another one want all of it
_COLOUR = re.compile(r"\x1b\[[\d;]*m")

Error = TypeVar("Error", bound=BaseException)


def shortened(error: Error) -> Error:
    """Return an error that is not of this package, shown by IPython as those of this package are.

    That is for what passes through this package, such as a KeyboardInterrupt, and for errors such as KeyError
    that it raises itself. Outside of IPython nothing changes.
    """
    if _shell() is not None and not hasattr(error, "_render_traceback_"):
        with contextlib.suppress(AttributeError, TypeError):  # a class of the user that takes no attributes
            error.__dict__ = _Attributes(vars(error), _render_traceback_=_shown_last)
    return error


class _Attributes(dict[str, Any]):
    """The attributes of an error; its pickle is without what is for IPython, and so needs no tcm_sync.

    ImportError and AttributeError pickle a copy of the attributes, which has it.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, ({name: value for name, value in self.items() if value is not _shown_last},)


def _shown_last() -> list[str]:
    """Return the lines that IPython is to show of the error that it is about to show.

    IPython notes which one that is. An error that had a reference to itself here would keep its traceback,
    and the arrays in the frames of that, until the garbage collector runs.
    """
    last: BaseException | None = getattr(sys, "last_value", None)
    error = last if getattr(last, "_render_traceback_", None) is _shown_last else sys.exc_info()[1]
    return traceback.format_exception(error) if error is None else shown_by_ipython(error)


class _ShortenedErrors:
    """A context from which all errors go on as `shortened` ones."""

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if error is not None and kind is not GeneratorExit:
            shortened(error)


shortened_errors = _ShortenedErrors()


def _shell() -> Any:
    """Return the IPython that runs here, or None."""
    find = getattr(sys.modules.get("IPython"), "get_ipython", None)  # it may be about to be imported
    return None if find is None else find()


def shown_by_ipython(error: BaseException) -> list[str]:
    """Return the lines that IPython is to show of an error.

    In the default mode of ``%xmode`` the message comes first, and the frames inside this package are left
    out. Only what is shown differs: the traceback stays whole for logs, debuggers and ``%xmode Verbose``.
    """
    shell = _shell()
    if shell is None:
        return traceback.format_exception(error)
    formatter = shell.InteractiveTB
    if formatter.mode not in _SHORTENED:
        lines: list[str] = formatter.structured_traceback(type(error), error, error.__traceback__)
        return lines
    lines = _shortened(formatter, error)
    before, seen = error, {id(error)}
    while (cause := _cause(before)) is not None and id(cause) not in seen:
        seen.add(id(cause))
        how = "was caused by" if before.__cause__ is cause else "happened while this was handled"
        lines += [f"\nThe {type(before).__name__} above {how}:\n", *_shortened(formatter, cause)]
        before = cause
    return lines


def _shortened(formatter: Any, error: BaseException) -> list[str]:
    """Return the message of one error and the frames that are not inner ones."""
    kept, left_out = _split(error.__traceback__)
    with _alone(error):
        message = formatter.get_exception_only(type(error), error)
        lines = formatter.structured_traceback(type(error), error, kept) if kept is not None else []
    if _plain(lines[-len(message) :]) == _plain(message):
        del lines[-len(message) :]
    if left_out:
        frames = "frame" if left_out == 1 else "frames"
        lines.append(f"[left out: {left_out} {frames} inside tcm_sync; %xmode Verbose shows all]")
    return [*message, *lines]


def _plain(lines: list[str]) -> list[str]:
    """Return lines without their colours."""
    return [_COLOUR.sub("", line).strip() for line in lines]


def _split(tb: TracebackType | None) -> tuple[TracebackType | None, int]:
    """Return a traceback without the inner frames, and how many those are."""
    outer: list[TracebackType] = []
    left_out = 0
    for beside_us, run in groupby(_all(tb), lambda each: _package(each) in _BESIDE_US):
        together = list(run)
        if beside_us and any(_package(each) == _US for each in together):
            left_out += len(together)
        else:
            outer += together
    kept: TracebackType | None = None
    for each in reversed(outer):
        kept = TracebackType(kept, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return kept, left_out


def _all(tb: TracebackType | None) -> Iterator[TracebackType]:
    while tb is not None:
        yield tb
        tb = tb.tb_next


def _package(tb: TracebackType) -> str:
    return str(tb.tb_frame.f_globals.get("__name__")).partition(".")[0]


def _cause(error: BaseException) -> BaseException | None:
    """Return the error that Python reports together with this one."""
    if error.__cause__ is not None or error.__suppress_context__:
        return error.__cause__
    return error.__context__


@contextlib.contextmanager
def _alone(error: BaseException) -> Iterator[None]:
    """Have an error shown without those that it is chained to."""
    cause, suppressed = error.__cause__, error.__suppress_context__
    error.__cause__ = None  # which hides the context, too
    try:
        yield
    finally:
        error.__cause__, error.__suppress_context__ = cause, suppressed
