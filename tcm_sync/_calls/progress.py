"""Showing that time passes, and how much is done and failed, with tqdm."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tcm_sync._arguments import check_flag
from tcm_sync._handlers import Suppress
from tcm_sync._tracebacks import shortened_errors
from tcm_sync.errors import ConfigError

if TYPE_CHECKING:
    from typing import Self

# As tqdm's own, but with items a second also where an item takes longer than that.
_TIME = "{desc}: {elapsed}"
_COUNT = "{desc}: {n_fmt}{unit} [{elapsed}, {rate_noinv_fmt}{postfix}]"
_SHARE = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"


class Progress:
    """A progress bar on the standard error or in a notebook: of time, or of a number of items.

    Parameters
    ----------
    title : str
        What is in progress.
    shown : bool
        Whether to show the bar.
    unit : str, optional
        What the items are that it counts, in the plural; without it, it shows only the time.
    total : int, optional
        The number of items, if it is known.

    Raises
    ------
    ConfigError
        If `shown` is True and tqdm is not installed.
    """

    def __init__(self, title: str, *, shown: bool, unit: str | None = None, total: int | None = None) -> None:
        self.shown = check_flag("progress", shown)
        self._bar: Any = None
        self._failed = 0
        self._make: Callable[[], Any] = lambda: None
        if self.shown:
            try:
                with shortened_errors:  # it takes a second, in which a cell may be interrupted
                    from tqdm.auto import tqdm
            except ImportError:
                raise ConfigError("progress=True needs tqdm: pip install 'tcm-sync[progress]'") from None
            quiet = type("tqdm", (tqdm,), {"monitor_interval": 0})  # which starts no thread
            form = _TIME if unit is None else _COUNT if total is None else _SHARE
            self._make = lambda: quiet(desc=title, total=total, unit=f" {unit}", bar_format=form)

    def update(self, done: int = 0, *, failed: int = 0) -> None:
        """Show the time as it is now, so many more as done, and so many of these as failed."""
        if self._bar is not None:
            with Suppress(OSError, ValueError):  # the output is closed: that is not a failure
                if failed:
                    self._failed += failed
                    self._bar.set_postfix_str(f"{self._failed:,} failed", refresh=False)
                self._bar.update(done) if done else self._bar.refresh()

    def __enter__(self) -> Self:
        with shortened_errors:
            self._bar = self._make()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            with Suppress(OSError, ValueError):
                self._bar.close()
                # In a notebook a bar without a total would become green.
                mark = getattr(self._bar, "disp", None)
                if mark is not None and kind is not None and kind is not GeneratorExit:
                    mark(bar_style="danger", check_delay=False)
