"""Write a run of ``bench`` as one HTML file, which needs neither a network nor scripts."""

from __future__ import annotations

import html
import os
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import click

from tcm_sync._secrets import hide
from tcm_sync.cli.failures import USAGE, CommandError
from tcm_sync.cli.files import write_whole
from tcm_sync.cli.timeline import QueueSampler, Timeline
from tcm_sync.cli.versions import versions

if TYPE_CHECKING:
    from tcm_sync.cli.options import Session

_PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { color-scheme: light dark; --text: #1f2328; --page: #ffffff; --line: #d0d7de; --soft: #59636e; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --page: #0d1117; --line: #30363d; --soft: #9198a1; }
}
body { max-width: 66rem; margin: 2rem auto; padding: 0 1rem; color: var(--text); background: var(--page);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin-bottom: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 0.5rem; }
p { margin: 0.2rem 0; color: var(--soft); }
dl.tiles { display: flex; flex-wrap: wrap; gap: 0.75rem; margin: 1.25rem 0; }
dl.tiles div { flex: 1 1 7rem; border: 1px solid var(--line); border-radius: 6px; padding: 0.5rem 0.75rem; }
dl.tiles dt { color: var(--soft); font-size: 0.85rem; }
dl.tiles dd { margin: 0; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.tables { display: flex; flex-wrap: wrap; gap: 0 3rem; }
.tables section { flex: 1 1 18rem; min-width: 0; }
.charts { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 0.15rem 1rem 0.15rem 0;
  border-bottom: 1px solid var(--line); font-weight: normal; overflow-wrap: anywhere; }
th { color: var(--soft); min-width: 7rem; }
td.number { text-align: right; padding-right: 0; white-space: nowrap; font-variant-numeric: tabular-nums; }
svg { width: 100%; min-width: 38rem; height: auto; margin-top: 1rem; }
</style>
</head>
<body>
<h1>$title</h1>
<p>$subtitle</p>
<dl class="tiles">$tiles</dl>
<div class="charts">$charts</div>
<div class="tables">
<section><h2>Latency</h2>$latency</section>
<section><h2>Requests</h2>$requests</section>
</div>
<h2>Settings and versions</h2>
$settings
</body>
</html>
""")


class Report:
    """The report of a run. What it needs is checked when it is made, before the run.

    Parameters
    ----------
    path : Path
        The file, which is written at the end.
    session : Session
        The manager, whose queue is sampled.

    Attributes
    ----------
    latencies : HdrHistogram
        All latencies, in microseconds; the run sets it.

    Raises
    ------
    CommandError
        matplotlib is missing.
    click.UsageError
        The file cannot be written.
    """

    def __init__(self, path: Path, session: Session) -> None:
        try:
            from tcm_sync.cli import charts
        except ImportError as error:
            raise CommandError(str(error), USAGE) from None
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise click.UsageError(
                f"--report: {str(path)!r} cannot be written: does its folder exist, and is it writable?"
            )
        self.latencies: Any
        self._draw = charts.draw
        self._path = path
        self._session = session
        self._started = datetime.now().astimezone()
        self._queue: QueueSampler
        self._timeline: Timeline

    def sampling(self, duration: float) -> QueueSampler:
        """Sample the manager's queue while the context lasts, for so many seconds."""
        from tcm_sync.client import TcmClient

        client = TcmClient(**{**self._session.arguments(), "pool_size": 1, "retry": None})
        self._queue = QueueSampler(client, duration)
        return self._queue

    def timeline(self, since: float, duration: float) -> Timeline:
        """Return where the load is to record when things happened."""
        self._timeline = Timeline(since, duration)
        return self._timeline

    def write(self, figures: Mapping[str, Any], settings: Mapping[str, object], end: str) -> None:
        """Write the file.

        Parameters
        ----------
        figures : mapping
            What ``--json`` prints.
        settings : mapping
            What was run, by name.
        end : str
            How it ended, if not by its plan.

        Raises
        ------
        CommandError
            It cannot be written. A file that was there before is unchanged.
        """
        queue, seconds = self._queue, figures["seconds"]
        charts = self._draw(
            self.latencies,
            self._timeline,
            queue.samples,
            seconds,
            queue=queue.reason or "the run was too short for a sample",
        )
        latency = {name: f"{value:,.3f} ms" for name, value in figures["latency_ms"].items()}
        page = _PAGE.substitute(
            title=_safe(f"Benchmark of {figures['model_name']}"),
            subtitle=_safe(f"{self._started:%Y-%m-%d %H:%M:%S %z}, {seconds:.1f} s{end and ', ' + end}"),
            tiles=_tiles(figures),
            charts=charts,
            latency=_table(latency, "number") if latency else "<p>no request was answered</p>",
            requests=_table(_requests(figures, queue), "number"),
            settings=_table({**settings, "versions": ", ".join(versions())}),
        )
        text = page.encode(errors="xmlcharrefreplace")
        write_whole(self._path, lambda file: file.write(text))


def _tiles(figures: Mapping[str, Any]) -> str:
    latency = figures["latency_ms"]
    shown = {
        "answers a second": f"{figures['per_second']:,.1f}",
        "answered": f"{figures['answered']:,}",
        "failed": f"{sum(figures['errors'].values()):,}",
        **{name: f"{latency[name]:,.1f} ms" for name in ("p50", "p99", "max") if name in latency},
    }
    return "".join(
        f"<div><dt>{_safe(name)}</dt><dd>{_safe(value)}</dd></div>" for name, value in shown.items()
    )


def _requests(figures: Mapping[str, Any], queue: QueueSampler) -> dict[str, str]:
    counts = {
        "answered": figures["answered"],
        **{f"failed: {code}": count for code, count in Counter(figures["errors"]).most_common()},
        **{f"repeated: {code}": count for code, count in Counter(figures["repeats"]).most_common()},
        "not sent, since no thread was free": figures["unsent"],
        "bytes sent": figures["bytes_sent"],
        "bytes received": figures["bytes_received"],
        "bytes through shared memory": figures["bytes_shared"],
        "samples of the manager's queue": len(queue.samples),
    }
    if queue.failed:
        counts[f"failed samples: {queue.reason}"] = queue.failed
    return {name: f"{count:,}" for name, count in counts.items()}


def _table(facts: Mapping[str, object], kind: str = "text") -> str:
    rows = (
        f'<tr><th scope="row">{_safe(name)}</th><td class="{kind}">{_safe(value)}</td></tr>'
        for name, value in facts.items()
    )
    return f"<table><tbody>{''.join(rows)}</tbody></table>"


def _safe(value: object) -> str:
    return html.escape(hide(str(value)))
