"""How many rows a request may have, as learned from the refusals of larger ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tcm_sync.errors import InferenceFailedError, MessageTooLargeError, PayloadTooLargeError

if TYPE_CHECKING:
    from tcm_sync.errors import TcmError
    from tcm_sync.settings import Route

    Target = tuple[Route, str]

_MOST_TARGETS = 256  # routes and models that are remembered


class Limits:
    """What is known of each route and model. Each of its steps is one atomic operation of a dict."""

    def __init__(self) -> None:
        self._rows: dict[Target, int] = {}
        self._bytes: dict[Target, int] = {}  # of arrays: a payload budget

    def rows(self, target: Target, row_bytes: int) -> int | None:
        """Return the most rows that a request may have, None if that is not known.

        Parameters
        ----------
        target : (Route, str)
            The route and the model.
        row_bytes : int
            Bytes of one row in the arrays.
        """
        if not self._rows and not self._bytes:
            return None
        most, budget = self._rows.get(target), self._bytes.get(target)
        if budget is None:
            return most
        fitting = max(1, budget // max(1, row_bytes))
        return fitting if most is None else min(most, fitting)

    def learn(self, target: Target, error: TcmError, rows: int, row_bytes: int) -> int | None:
        """Learn from the refusal of so many rows, and return how many to send in their place.

        Returns
        -------
        int or None
            Fewer rows than were refused; None if the failure has another reason, or one row was refused.
        """
        if rows < 2:
            return None
        if isinstance(error, InferenceFailedError) and error.max_batch_size is not None:
            most = _remember(self._rows, target, min(error.max_batch_size, rows - 1))
        elif isinstance(error, PayloadTooLargeError):
            if error.estimated_bytes and error.limit_bytes:
                budget = rows * row_bytes * error.limit_bytes // error.estimated_bytes
                most = _remember(self._bytes, target, budget) // max(1, row_bytes)
            else:
                most = _remember(self._rows, target, rows // 2)
        elif isinstance(error, MessageTooLargeError) and error.size is None:
            # A limit that was stated holds for every message of the client: the rows' text decides.
            most = rows if error.limit is not None else _remember(self._rows, target, rows // 2)
        else:
            return None
        return max(1, min(most, rows - 1))


def _remember(known: dict[Target, int], target: Target, limit: int) -> int:
    """Keep the lower limit."""
    if target not in known and len(known) >= _MOST_TARGETS:
        known.clear()
    known[target] = limit = min(limit, known.get(target, limit))
    return limit
