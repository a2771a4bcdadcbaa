"""Measure how fast a model answers: ``bench``."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tcm_sync.cli.bodies import read_inputs
from tcm_sync.cli.failures import FAILED, INTERRUPTED, UNREACHABLE, CommandError
from tcm_sync.cli.infer import DTYPE, INPUT, TRANSIENT
from tcm_sync.cli.options import Command, Session
from tcm_sync.settings import BatchPolicy

if TYPE_CHECKING:
    from collections.abc import Callable

    from tcm_sync.cli.report import Report
    from tcm_sync.client import TcmClient

_SILENCE = 5.0  # seconds without an answer after which the run ends if /health does not answer either
_THREADS, _OPEN_THREADS, _BATCHES = 4, 64, 4

_SECONDS = click.FloatRange(0, min_open=True)

#: How a run ended, if it did not end by its plan.
_ENDS = {
    INTERRUPTED: "interrupted before its end",
    UNREACHABLE: "ended early, since the manager was unreachable",
}


@dataclass(frozen=True)
class _Plan:
    """What to do, in seconds, and calls at a time."""

    threads: int
    rate: float | None
    batch: int | None
    warm_up: float
    duration: float


@click.command("bench", cls=Command)
@click.argument("model_name", metavar="MODEL")
@INPUT
@DTYPE
@click.option(
    "--onnx", metavar="FILE.onnx", help="Make the inputs from the model's file, in place of --input."
)
@click.option("--threads", type=click.IntRange(1, 1024), help="Calls at a time, at most.")
@click.option(
    "--rate",
    metavar="N",
    type=click.FloatRange(0, 1e6, min_open=True),
    help="Open loop: so many requests a second, each measured from when it was due.",
)
@click.option(
    "--duration", metavar="SECONDS", type=_SECONDS, default=10.0, show_default=True, help="How long."
)
@click.option(
    "--warm-up",
    metavar="SECONDS",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="Before that, uncounted.",
)
@click.option(
    "--batch",
    metavar="N",
    type=click.IntRange(1),
    help="Inputs are single samples: put up to N of them into one message.",
)
@click.option(
    "--report",
    "report_file",
    metavar="FILE.html",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write charts and figures to this file too; it needs no network to be looked at.",
)
@TRANSIENT
@click.pass_obj
def bench(
    session: Session,
    model_name: str,
    inputs: tuple[str, ...],
    datatypes: tuple[str, ...],
    onnx: str | None,
    threads: int | None,
    rate: float | None,
    duration: float,
    warm_up: float,
    batch: int | None,
    report_file: Path | None,
    allow_transient: bool,
) -> int:
    """Call a model for a while, and report throughput and latency.

    Closed loop: each of --threads calls again when it has its answer, so that a stall of the manager delays
    the requests that would show it. Open loop (--rate): requests are due at a steady rate, and latency counts
    from when they were due, so that a stall shows in every request that it delays.
    """
    arrays = _inputs(session, inputs, datatypes, onnx, samples=batch is not None)
    if threads is None:
        threads = _OPEN_THREADS if rate is not None else _THREADS if batch is None else _BATCHES * batch
    plan = _Plan(threads, rate, batch, warm_up, duration)
    report = None if report_file is None else _report(session, report_file)
    with session.client(routed=True) as client:
        policy = None if batch is None else BatchPolicy(max_size=batch)
        model = client.model(model_name, allow_transient=allow_transient, batch=policy)
        ask = model.infer if batch is None else model.infer_sample
        measured, code, reason = _measure(client, lambda: ask(arrays), plan, report)
    figures = {"model_name": model_name, "threads": threads, "rate": rate, "batch": batch, **measured}
    if session.as_json:
        session.output.json(figures)
    else:
        _print(session, figures)
    why = "" if reason is None else f": {reason}"
    if report is not None:
        report.write(figures, _settings(session, plan, arrays), _ENDS.get(code, "") + why)
    if code == UNREACHABLE:
        raise CommandError(f"the manager is unreachable, no answer for {_SILENCE:g} s{why}", code)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code == FAILED:
        failed = sum(figures["errors"].values())
        which = (
            f"{failed:,} of {failed + figures['answered']:,} requests"
            if figures["answered"]
            else "every request"
        )
        raise CommandError(f"{which} failed", code)
    return code


def _inputs(
    session: Session, inputs: tuple[str, ...], datatypes: tuple[str, ...], onnx: str | None, *, samples: bool
) -> dict[str, Any]:
    if bool(inputs) == (onnx is not None):
        raise click.UsageError("give either --input or --onnx")
    if onnx is None:
        return read_inputs(session, inputs, datatypes, samples=samples)
    from tcm_sync.models import analyze, sample_inputs

    arrays = sample_inputs(analyze(onnx).signature)
    return {name: array[0] if samples else array for name, array in arrays.items()}


def _report(session: Session, file: Path) -> Report:
    """Make the report, which fails at once where it could not be written at the end."""
    from tcm_sync.cli.report import Report

    return Report(file, session)


def _measure(
    client: TcmClient, call: Callable[[], object], plan: _Plan, report: Report | None
) -> tuple[dict[str, Any], int, str | None]:
    """Run the load, and return what it measured, the exit status, and why the manager is lost, if it is."""
    from tcm_sync.cli.load import ClosedLoop, Load, OpenLoop
    from tcm_sync.cli.output import working

    call()  # a wrong request or an unreachable manager fails here, before the load starts
    rate, duration = plan.rate, plan.duration
    with contextlib.nullcontext() if report is None else report.sampling(plan.warm_up + duration):
        start = time.monotonic()
        since, end = start + plan.warm_up, start + plan.warm_up + duration
        pace = ClosedLoop(end) if rate is None else OpenLoop(start, end, rate, since)
        timeline = None if report is None else report.timeline(since, duration)
        load = Load(call, plan.threads, pace, since, timeline)
        watch = _Watch(client, since)
        try:
            with working(f"{duration:g} s, after {plan.warm_up:g} s of warming up"):
                load.run(watch.check)
        except KeyboardInterrupt:
            watch.code = INTERRUPTED
        seconds = max(0.0, time.monotonic() - since)
    stats = client.stats().since(watch.before)
    load.is_manager_lost = watch.code == UNREACHABLE
    client.close()  # ends the calls under way, if the run ends early
    load.stop()
    total = load.total()
    if report is not None:
        report.latencies = total.latencies
    figures = {
        "seconds": round(seconds, 3),
        "answered": total.answered,
        "per_second": round(total.answered / seconds, 1) if seconds else 0.0,
        "latency_ms": total.milliseconds(),
        "errors": dict(total.errors),
        "unsent": total.unsent,
        "repeats": dict(stats.repeats),
        "bytes_sent": stats.bytes_sent,
        "bytes_received": stats.bytes_received,
        "bytes_shared": stats.shm_sent_bytes,
    }
    code = watch.code or (FAILED if total.errors or not total.answered else 0)
    return figures, code, watch.reason


class _Watch:
    """Watch a load while it runs: when counting begins, and whether the manager still answers."""

    def __init__(self, client: TcmClient, since: float) -> None:
        self._client = client
        self._since = since
        self._is_counting = time.monotonic() >= since
        self.before = client.stats()
        self.code = 0
        self.reason: str | None = None  # of a manager that is lost

    def check(self, silence: float) -> bool:
        """Return whether to end the run, after so many seconds without an answer."""
        if not self._is_counting and time.monotonic() >= self._since:
            self._is_counting, self.before = True, self._client.stats()
        if silence > _SILENCE and not self._client.health(timeout=1.0):
            self.code, self.reason = UNREACHABLE, self._client.ready(timeout=1.0).detail
        return self.code != 0


def _print(session: Session, found: dict[str, Any]) -> None:
    how = "closed loop" if found["rate"] is None else f"open loop, {found['rate']:g} a second"
    batch = "" if found["batch"] is None else f", batches of up to {found['batch']}"
    facts = {
        found["model_name"]: f"{how}, {found['threads']} threads{batch}",
        "answered": f"{found['answered']:,} in {found['seconds']:.1f} s, {found['per_second']:,.1f} a second",
        "errors": _counts(found["errors"]),
        "repeats": _counts(found["repeats"]),
        "bytes": ", ".join(f"{found[f'bytes_{how}']:,} {how}" for how in ("sent", "received", "shared")),
        "unsent": f"{found['unsent']:,} were due, but no thread was free" if found["unsent"] else None,
    }
    session.output.pairs(facts | {name: f"{value:,.1f} ms" for name, value in found["latency_ms"].items()})


def _settings(session: Session, plan: _Plan, arrays: dict[str, Any]) -> dict[str, object]:
    """Return what was run, for the head of a report."""
    inputs = ", ".join(f"{name}: {array.dtype}{list(array.shape)}" for name, array in arrays.items())
    return {
        "load": "closed loop" if plan.rate is None else f"open loop, {plan.rate:g} requests a second",
        "threads": plan.threads,
        "samples in a message": "one request each" if plan.batch is None else f"up to {plan.batch}",
        "duration": f"{plan.duration:g} s, after {plan.warm_up:g} s of warming up",
        "inputs": inputs,
        **session.shown_arguments(),
    }


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items()) or "none"
