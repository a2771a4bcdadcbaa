"""Showing that time passes, with tqdm."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from tcm_sync.errors import ConfigError

if TYPE_CHECKING:
    from typing import Self


class Progress:
    """The time that something has taken, on the standard error or in a notebook.

    Parameters
    ----------
    title : str
        What takes time.
    shown : bool
        Whether to show it at all.

    Raises
    ------
    ConfigError
        It is to be shown, and tqdm is not installed.
    """

    def __init__(self, title: str, *, shown: bool) -> None:
        self.shown = shown
        self._bar: Any = None
        if shown:
            try:
                from tqdm.auto import tqdm
            except ImportError:
                raise ConfigError("progress=True needs tqdm: pip install 'tcm-sync[progress]'") from None
            quiet = type("tqdm", (tqdm,), {"monitor_interval": 0})  # which starts no thread
            self._bar = quiet(desc=title, bar_format="{desc}: {elapsed}")

    def update(self) -> None:
        """Show the time as it is now."""
        self._bar.refresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
