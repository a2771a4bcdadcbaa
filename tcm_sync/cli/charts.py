"""Draw a run of ``bench``: over time, and the distribution of its latencies."""

from __future__ import annotations

import io
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

try:
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
except ImportError:
    raise ImportError("--report needs matplotlib: pip install 'tcm-sync[report]'") from None

from tcm_sync._secrets import hide
from tcm_sync.cli.output import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

    from tcm_sync.cli.timeline import Sample, Timeline

_INK = "#010203"  # stands for the colour of the page's text, which is not known here
_BLUE, _ORANGE, _RED, _GREEN, _GREY = "#4a90d9", "#e08a1e", "#d9534f", "#4aa564", "#8a8f98"
_ERRORS = (_RED, _ORANGE, "#a06cd5", "#b8860b", _GREY)  # the last is of all other codes
_RANKS = (50.0, 90.0, 99.0, 99.9, 99.99, 99.999)
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched, and is small
    "svg.hashsalt": "tcm-sync",
    "text.parse_math": False,  # a code or a name may contain a dollar sign
    "font.size": 9.0,
    "font.family": "sans-serif",
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _INK,
    "grid.alpha": 0.12,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
}
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def draw(latencies: Any, timeline: Timeline, samples: Sequence[Sample], seconds: float, *, queue: str) -> str:
    """Draw all charts of a run.

    Parameters
    ----------
    latencies : HdrHistogram
        All latencies, in microseconds.
    timeline : Timeline
        What happened when.
    samples : sequence of Sample
        The manager's queue.
    seconds : float
        How long the run took.
    queue : str
        What is written in the chart of the queue if there are no samples.

    Returns
    -------
    str
        An SVG element, whose text and lines have the colour of the text around it.
    """
    with mpl.rc_context():
        mpl.rcdefaults()  # in place of the user's own style
        mpl.rcParams.update(_SETTINGS)
        figure = Figure(figsize=(10, 10), layout="constrained")
        parts: Any = figure.subfigures(2, height_ratios=[2.6, 1.0], hspace=0.04)
        over_time, distribution = parts
        axes = over_time.subplots(3, sharex=True, height_ratios=[1.2, 1.0, 1.0])
        _draw_latency(axes[0], timeline)
        _draw_rate(axes[1], timeline, seconds)
        _draw_queue(axes[2], samples, timeline.since, seconds, queue)
        axes[2].set_xlim(0.0, max(seconds, timeline.width))
        axes[2].set_xlabel("time since counting began (s)")
        histogram, percentiles = distribution.subplots(1, 2)
        _draw_histogram(histogram, latencies)
        _draw_percentiles(percentiles, latencies)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata=_NO_METADATA)
    text = file.getvalue()
    return text[text.index("<svg") :].replace(_INK, "currentColor")


# --- over time ---


def _draw_latency(axes: Axes, timeline: Timeline) -> None:
    axes.set_title(f"Latency of the requests that were due in each {timeline.width:g} s")
    axes.set_ylabel("latency (ms)")
    slots = sorted((number, slot) for number, slot in timeline.slots.items() if _count(slot.latencies))
    if not slots:
        _write_note(axes, "no request was answered")
        return
    numbers = range(slots[0][0], slots[-1][0] + 1)
    found = dict(slots)
    highest, middle = 0.0, []
    for label, rank, color, style in (
        ("maximum", 100.0, _GREY, ":"),
        ("p99", 99.0, _RED, "-"),
        ("p90", 90.0, _ORANGE, "-"),
        ("p50", 50.0, _BLUE, "-"),
    ):
        values = [_percentile(found[each].latencies, rank) if each in found else np.nan for each in numbers]
        highest, middle = max(highest, np.nanmax(values)), values
        times = [(number + 0.5) * timeline.width for number in numbers]
        axes.plot(times, values, style, color=color, label=label, linewidth=1.4, marker=".", markersize=4)
    if highest > 20 * float(np.nanmedian(middle)):
        axes.set_yscale("log")
        axes.set_ylabel("latency (ms, logarithmic)")
        _set_decades(axes.yaxis)
    else:
        axes.set_ylim(bottom=0.0)
    axes.yaxis.set_major_formatter(_plain())
    _legend(axes)


def _draw_rate(axes: Axes, timeline: Timeline, seconds: float) -> None:
    axes.set_title(f"Answers and failed requests, in each {timeline.width:g} s")
    axes.set_ylabel("requests a second")
    numbers = [each for each in sorted(timeline.slots) if _length(timeline, each, seconds) > 0.0]
    if not numbers:
        _write_note(axes, "no request was answered")
        return
    places = [each * timeline.width for each in numbers]
    lengths = np.array([_length(timeline, each, seconds) for each in numbers])
    bottom = np.zeros(len(numbers))
    totals: Counter[str] = sum((timeline.slots[each].errors for each in numbers), Counter())
    series = [("answers", _BLUE, np.array([timeline.slots[each].answered for each in numbers]))]
    kinds = [code for code, _ in totals.most_common()]
    named, others = kinds[: len(_ERRORS) - 1], kinds[len(_ERRORS) - 1 :]
    for codes, label, color in (
        *(((code,), _short(code), color) for code, color in zip(named, _ERRORS, strict=False)),
        (others, "other errors", _ERRORS[-1]),
    ):
        failed = [sum(timeline.slots[each].errors[code] for code in codes) for each in numbers]
        if any(failed):
            series.append((label, color, np.array(failed)))
    for label, color, counts in series:
        heights = counts / lengths
        axes.bar(places, heights, lengths * 0.92, bottom, align="edge", color=color, label=label)
        bottom += heights
    axes.yaxis.set_major_formatter(_plain())
    _legend(axes)


def _length(timeline: Timeline, number: int, seconds: float) -> float:
    """Return how much of a slot was within the run; 0 if too little for a rate, unless there is no other."""
    length = min(timeline.width, seconds - number * timeline.width)
    return length if length > (timeline.width / 4 if number else 0.0) else 0.0


def _draw_queue(axes: Axes, samples: Sequence[Sample], since: float, seconds: float, otherwise: str) -> None:
    axes.set_title("The manager's inference queue, all its clients together")
    axes.set_ylabel("requests")
    times = [each.at - since for each in samples]
    if not any(0.0 <= at <= seconds for at in times):
        _write_note(axes, otherwise)
        return
    room = max(each.room for each in samples)
    for label, color, values in (
        ("not finished", _BLUE, [each.queued + room - each.room for each in samples]),
        ("waiting for a worker", _ORANGE, [each.waiting for each in samples]),
        ("queued at the scheduler", _GREEN, [each.queued for each in samples]),
    ):
        axes.plot(times, values, color=color, label=label, linewidth=1.4, marker=".", markersize=4)
    axes.set_ylim(bottom=0.0, top=None if any(axes.dataLim.intervaly) else 1.0)
    axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
    _legend(axes)


# --- the distribution ---


def _draw_histogram(axes: Axes, latencies: Any) -> None:
    axes.set_title("Histogram")
    axes.set_xlabel("latency (ms)")
    axes.set_ylabel("requests")
    if not _count(latencies):
        _write_note(axes, "no request was answered")
        return
    steps = [  # the iterator gives the same object each time
        (each.value_iterated_to / 1e3, each.count_added_in_this_iter_step)
        for each in latencies.get_recorded_iterator()
    ]
    values, counts = np.array(steps).T
    low, high = float(values[0]), float(values[-1])
    is_wide = high > 20 * low
    edges = np.geomspace(low, high * 1.001, 61) if is_wide else np.linspace(low * 0.99, high * 1.01, 61)
    heights, _ = np.histogram(values, edges, weights=counts)
    axes.bar(edges[:-1], heights, np.diff(edges), align="edge", color=_BLUE)
    if is_wide:
        axes.set_xscale("log")
        axes.set_xlabel("latency (ms, logarithmic)")
        _set_decades(axes.xaxis)
    axes.xaxis.set_major_formatter(_plain())
    axes.yaxis.set_major_formatter(_plain())
    for rank, color in ((50.0, _GREEN), (99.0, _RED)):
        value = _percentile(latencies, rank)
        axes.axvline(value, color=color, linewidth=1.4, label=f"p{rank:g}: {value:,.1f} ms")
    # Above the bars, beside the title: inside, a line may cross its text.
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.2, handlelength=1.2)


def _draw_percentiles(axes: Axes, latencies: Any) -> None:
    axes.set_title("Percentiles of latencies")
    axes.set_xlabel("percentile")
    axes.set_ylabel("latency (ms)")
    count = _count(latencies)
    if not count:
        _write_note(axes, "no request was answered")
        return
    last = max(1.0 - 1.0 / count, 0.5)  # of fewer requests no percentile has a meaning
    ranks = 100.0 * (1.0 - np.geomspace(1.0, 1.0 - last, 200))
    axes.plot(_tail(ranks), [_percentile(latencies, rank) for rank in ranks], color=_BLUE, linewidth=1.8)
    ticks = [rank for rank in _RANKS if rank <= last * 100.0]
    axes.set_xscale("log")
    axes.set_xticks(_tail(np.array(ticks)), [f"{rank:g} %" for rank in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom=0.0)
    axes.yaxis.set_major_formatter(_plain())


def _tail(ranks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return where percentiles stand on their axis, on which 90, 99 and 99.9 are equally far apart."""
    return np.asarray(1.0 / (1.0 - ranks / 100.0))


# --- what they have in common ---


def _count(latencies: Any) -> int:
    return int(latencies.get_total_count())


def _percentile(latencies: Any, rank: float) -> float:
    """Return a percentile in milliseconds."""
    return float(latencies.get_value_at_percentile(rank)) / 1e3


def _plain() -> FuncFormatter:
    """Write numbers without powers of ten."""
    return FuncFormatter(lambda value, _: f"{value:,.10g}")


def _set_decades(axis: Axis) -> None:
    """Write 1, 2 and 5 of each power of ten on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())


def _legend(axes: Axes) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.0)


def _write_note(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, _shown(text), ha="center", va="center", transform=axes.transAxes, wrap=True)
    axes.set_yticks([])


def _short(code: str) -> str:
    text = _shown(code)
    return text if len(text) <= 28 else f"{text[:27]}…"


def _shown(text: str) -> str:
    """Return a text for a chart. Secrets cannot be hidden later: a short one may be a number of a line."""
    return printable(hide(text))
