"""Histograms of latencies, in microseconds."""

from __future__ import annotations

from typing import Any

from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

_LOWEST, _HIGHEST = 1, 3_600_000_000  # microseconds that there is room for


def new_histogram(digits: int) -> Any:
    """Return an empty HDR histogram that keeps so many significant digits."""
    return HdrHistogram(_LOWEST, _HIGHEST, digits)


def record(histogram: Any, seconds: float) -> None:
    """Record a latency."""
    histogram.record_value(min(max(round(seconds * 1e6), _LOWEST), _HIGHEST))
