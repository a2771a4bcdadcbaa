"""Loggers whose handlers cannot hurt a call: neither by raising an exception nor by being slow."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import traceback
from functools import partial
from types import TracebackType

from tcm_sync._handlers import is_of_handler
from tcm_sync._locks import OnceEvent, RLock
from tcm_sync._process import register_hooks
from tcm_sync._secrets import hide
from tcm_sync._threads import DaemonThreads

_MAX_WAITING = 1000  # records; where handlers are slower than that, further ones are dropped
_DROPPED = "%d log lines before this one were dropped: the handlers are too slow, or there was no thread"
_EXIT_TIMEOUT = 1.0  # seconds in which handlers write what is left when the process ends


class _Writer:
    """Hands records to their loggers on one daemon thread, in order."""

    def __init__(self) -> None:
        self._renew()
        register_hooks(self)

    def _renew(self) -> None:
        self._threads = DaemonThreads("tcm-sync-log", 1)
        self._lock = RLock()  # guards _waiting and _dropped
        self._waiting = 0
        self._dropped = 0

    def put(self, logger: logging.Logger, record: logging.LogRecord) -> None:
        """Have a record written. It waits for nothing but a thread's start."""
        with self._lock:
            if self._waiting >= _MAX_WAITING:
                self._dropped += 1
                return
            self._waiting += 1
        try:
            self._threads.submit(partial(self._write, logger, record))
        except RuntimeError:  # no thread: the call is more important than its lines
            with self._lock:
                self._waiting -= 1
                self._dropped += 1

    def _write(self, logger: logging.Logger, record: logging.LogRecord) -> None:
        with self._lock:
            self._waiting -= 1
            dropped, self._dropped = self._dropped, 0
        if dropped:
            _handle(logger, _record(logger, logging.WARNING, _DROPPED, (dropped,)), BaseException)
        _handle(logger, record, BaseException)  # whatever it raises, this thread continues

    def flush(self, timeout: float) -> bool:
        """Wait until what was put so far is written, in seconds; whether it is."""
        if threading.current_thread().name == "tcm-sync-log":
            return False
        written = OnceEvent()
        try:
            self._threads.submit(written.set)
        except RuntimeError:  # no thread, so nothing waits for one
            return True
        return written.wait(timeout)

    def after_fork(self) -> None:
        """Leave the parent's records to the parent."""
        self._renew()

    def at_exit(self) -> None:
        """Have written what is left, if the handlers let it."""
        self.flush(_EXIT_TIMEOUT)


_writer = _Writer()


def flush(timeout: float) -> bool:
    """Wait until every line so far is written, in seconds; whether it is."""
    return _writer.flush(timeout)


class Log:
    """A logger for this package's own lines.

    Parameters
    ----------
    name : str
        Of the logger.
    queued : bool
        Whether a daemon thread runs the handlers. Lines of the reader, the pool and the gates are queued,
        since other calls wait for their threads; the lines of one call are written by the thread that makes
        it, where a filter finds the caller's context.
    """

    def __init__(self, name: str, *, queued: bool) -> None:
        self._logger = logging.getLogger(name)
        self._queued = queued

    def debug(self, text: str, *args: object) -> None:
        """Log what helps to find an error."""
        self._log(logging.DEBUG, text, args)

    def info(self, text: str, *args: object) -> None:
        """Log what went as it should."""
        self._log(logging.INFO, text, args)

    def warning(self, text: str, *args: object) -> None:
        """Log what needs attention."""
        self._log(logging.WARNING, text, args)

    def error(self, text: str, *args: object, failure: BaseException | None = None) -> None:
        """Log what must not happen, with the traceback of the `failure` if there is one."""
        self._log(logging.ERROR, text, args, failure)

    def log(self, level: int, text: str, *args: object) -> None:
        """Log at a level that is given."""
        self._log(level, text, args)

    def _log(
        self, level: int, text: str, args: tuple[object, ...], failure: BaseException | None = None
    ) -> None:
        if not self._logger.isEnabledFor(level):
            return
        record = _record(self._logger, level, text, args, failure, depth=3)
        if self._queued:
            _writer.put(self._logger, record)
        else:
            _handle(self._logger, record)


def _record(
    logger: logging.Logger,
    level: int,
    text: str,
    args: tuple[object, ...],
    failure: BaseException | None = None,
    *,
    depth: int = 1,
) -> logging.LogRecord:
    """Make a record of the moment and the thread in which something happened."""
    frame = sys._getframe(depth)  # noqa: SLF001 - documented, and what logging does
    info: tuple[type[BaseException], BaseException, TracebackType | None] | None = None
    if failure is not None:
        info = type(failure), failure, failure.__traceback__
    code = frame.f_code
    shown = tuple(map(_hidden, args))
    record = logger.makeRecord(
        logger.name, level, code.co_filename, frame.f_lineno, text, shown, info, code.co_name
    )
    if failure is not None:
        trace = "".join(traceback.format_exception(failure)).rstrip()
        record.exc_text = hide(trace)  # which formatters show in place of their own
    return record


def _hidden(value: object) -> object:
    """Return an argument of a log line, as a text without secrets if it shows one."""
    if isinstance(value, (int, float)):
        return value
    text = str(value)
    shown = hide(text)
    return value if shown == text else shown


def _handle(logger: logging.Logger, record: logging.LogRecord, kept: type[BaseException] = Exception) -> None:
    """Have the handlers write a record; errors of these kinds are kept from the code that logs."""
    try:
        logger.handle(record)
    except kept as error:
        if is_of_handler(error):  # a signal handler's, which goes up as it is
            raise
        if logging.raiseExceptions and sys.stderr is not None:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(f"a handler of the logger {logger.name!r} raised {error!r}\n")
