"""Exceptions that come from the user's own code, which ran in the middle of ours."""

from __future__ import annotations

from types import CodeType, FrameType, TracebackType

_VARARGS = 0x04  # of a code's flags: it has a parameter ``*args``


def is_of_handler(error: BaseException) -> bool:
    """Return whether an exception was raised in a signal handler.

    Python runs handlers between two instructions of the main thread, so that what a handler raises appears
    inside whatever call was under way. An alarm's TimeoutError is not a socket's, and goes up as it is.

    A handler is recognized by its arguments, the number of the signal and the frame that was interrupted.
    """
    traceback: TracebackType | None = error.__traceback__
    while traceback is not None:
        if any(isinstance(value, FrameType) for value in _arguments(traceback.tb_frame)):
            return True
        traceback = traceback.tb_next
    return False


def is_of_callee(error: BaseException) -> bool:
    """Return whether an exception was raised in Python code that the catching function called."""
    return error.__traceback__ is not None and error.__traceback__.tb_next is not None


class Suppress:
    """Drop failures of these kinds, as `contextlib.suppress` does, but nothing that a signal handler raised.

    Parameters
    ----------
    *kinds : type
        Of the failures.
    """

    __slots__ = ("_kinds",)

    def __init__(self, *kinds: type[Exception]) -> None:
        self._kinds = kinds

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        return isinstance(error, self._kinds) and not is_of_handler(error)


def _arguments(frame: FrameType) -> tuple[object, ...]:
    """List the positional arguments of a call, those of ``*args`` too."""
    code: CodeType = frame.f_code
    if not code.co_argcount and not code.co_flags & _VARARGS:
        return ()
    values = frame.f_locals
    found = [values.get(name) for name in code.co_varnames[: code.co_argcount]]
    if code.co_flags & _VARARGS:
        rest = values.get(code.co_varnames[code.co_argcount + code.co_kwonlyargcount])
        found += rest if isinstance(rest, tuple) else ()
    if isinstance(values, dict):  # before Python 3.13 a copy that the frame keeps
        for name in [name for name, value in values.items() if isinstance(value, BaseException)]:
            del values[name]  # its traceback has the frame: both would stay until the collector comes
    return tuple(found)
