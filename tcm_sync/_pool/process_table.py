"""The table of turns that this process has open: one for all its clients."""

from __future__ import annotations

import os
import weakref
from time import monotonic_ns

from tcm_sync._locks import RLock
from tcm_sync._logs import Log
from tcm_sync._pool.turn_file import TableBusyError, TableDeletedError, TableError
from tcm_sync._pool.turn_table import Table
from tcm_sync._process import register_hooks

log = Log("tcm_sync.pool", queued=True)

_OPENED_AGAIN_NS = 60 * 10**9  # after which a table that could not be used is tried again


class ProcessTable:
    """Opens the table when it is first needed, and again in a forked child and for another user id.

    Those who use the table keep it open; it is closed with the last of them.
    """

    def __init__(self) -> None:
        self._lock = RLock()  # guards what follows
        self._table: weakref.ref[Table] | None = None
        self._opened_by: tuple[int, int, str] | None = None  # process, user and folder
        self._not_before = 0  # when a table that failed is tried again
        register_hooks(self)

    def get(self) -> Table | None:
        """Return the table, or None if there is none now.

        Raises
        ------
        TableBusyError
            It is not open yet, and its lock is taken.
        """
        wanted = (os.getpid(), os.geteuid(), folder())
        with self._lock:
            if self._opened_by != wanted:
                self._opened_by = wanted
                self._table, self._not_before = None, 0
            table = None if self._table is None else self._table()
            if table is None and monotonic_ns() >= self._not_before:
                try:
                    table = Table(wanted[2])
                except TableBusyError:  # as where many processes start at once; the next call opens it
                    raise
                except TableError as error:
                    self.failed(error)
                else:
                    self._table = weakref.ref(table)
            return table

    def failed(self, error: TableError) -> None:
        """Continue without the table for a while, and log why, once."""
        with self._lock:
            self._table = None
            if isinstance(error, TableDeletedError):
                return  # a new one is opened at once
            if self._not_before == 0:
                log.info("the processes of this host take no turns at the manager: %s", str(error))
            self._not_before = monotonic_ns() + _OPENED_AGAIN_NS

    def after_fork(self) -> None:
        """Leave behind a lock that another thread of the parent may have held."""
        self._lock = RLock()

    def at_exit(self) -> None:
        """Do nothing: the records of this process end by their times."""


def folder() -> str:
    """Return the folder of the table: ``TCM_TURNS_DIR``, or this user's in /dev/shm."""
    return os.environ.get("TCM_TURNS_DIR") or f"/dev/shm/tcm_turns_{os.geteuid()}"  # noqa: S108 - checked
