"""Showing that time passes and work gets done, with tqdm."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tcm_sync._arguments import check_flag
from tcm_sync._handlers import Suppress
from tcm_sync.errors import ConfigError

if TYPE_CHECKING:
    from typing import Self


class Progress:
    """A progress bar on the standard error or in a notebook: of time, or of a number of items.

    Parameters
    ----------
    title : str
        What is in progress.
    shown : bool
        Whether to show the bar.
    counted : bool
        Whether it counts items; otherwise it shows only the time.
    total : int, optional
        The number of items, if it is known.

    Raises
    ------
    ConfigError
        If `shown` is True and tqdm is not installed.
    """

    def __init__(self, title: str, *, shown: bool, counted: bool = False, total: int | None = None) -> None:
        self.shown = check_flag("progress", shown)
        self._bar: Any = None
        self._make: Callable[[], Any] = lambda: None
        if self.shown:
            try:
                from tqdm.auto import tqdm
            except ImportError:
                raise ConfigError("progress=True needs tqdm: pip install 'tcm-sync[progress]'") from None
            quiet = type("tqdm", (tqdm,), {"monitor_interval": 0})  # which starts no thread
            how = {"total": total} if counted else {"bar_format": "{desc}: {elapsed}"}
            self._make = lambda: quiet(desc=title, **how)

    def update(self, done: int = 0) -> None:
        """Show the time as it is now, and so many more as done."""
        if self._bar is not None:
            with Suppress(OSError, ValueError):  # the output is closed: that is not a failure
                self._bar.update(done) if done else self._bar.refresh()

    def __enter__(self) -> Self:
        self._bar = self._make()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            with Suppress(OSError, ValueError):
                self._bar.close()
