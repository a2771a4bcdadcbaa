"""Query the manager's state: ``queue-stats``, ``info``, ``health`` and ``ready``."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from tcm_sync.cli.bodies import read_body
from tcm_sync.cli.failures import UNREACHABLE, CommandError
from tcm_sync.cli.options import Command, Session
from tcm_sync.errors import CallTimeoutError

if TYPE_CHECKING:
    from tcm_sync.client import TcmClient

_PROBE_TIMEOUT = 5.0  # seconds for /health and /ready


@click.command("queue-stats", cls=Command)
@click.option("--repeat", type=click.IntRange(1), default=1, help="Ask so often, and report the latencies.")
@click.option("--concurrency", type=click.IntRange(1, 64), default=1, help="Requests at the same time.")
@click.pass_obj
def queue_stats(session: Session, repeat: int, concurrency: int) -> None:
    """Show how many users and jobs the manager has."""
    with session.client() as client:
        if repeat > 1:
            _print_times(session, _times(client, repeat, concurrency), concurrency)
            return
        counts = asdict(client.queue_stats())
    if session.as_json:
        session.output.json(counts)
        return
    output = session.output
    rows = []
    for kind in ("inference", "management", "info"):
        names = (
            f"{kind}_users",
            f"{kind}_total_queued",
            f"executor_{kind}_pending",
            f"executor_{kind}_available",
        )
        rows.append((kind, *(counts[name] for name in names)))
    rows.append(("all", counts["total_users"], counts["total_queued"], "", ""))
    output.table(("", "users", "queued", "waiting", "more accepted"), rows)
    if counts["extra"]:
        output.pairs(counts["extra"])


def _times(client: TcmClient, repeat: int, concurrency: int) -> list[float]:
    def ask(_: int) -> float:
        start = time.perf_counter()
        client.queue_stats()
        return time.perf_counter() - start

    with ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(ask, range(repeat)))


def _print_times(session: Session, times: list[float], concurrency: int) -> None:
    latencies = {"avg": float(np.mean(times))}
    latencies |= {f"p{rank}": float(np.percentile(times, rank)) for rank in (50, 95, 99)}
    if session.as_json:
        summary = {"requests": len(times), "concurrency": concurrency, "latency_seconds": latencies}
        session.output.json({"queue_stats_summary": summary})
        return
    facts: dict[str, Any] = {"requests": len(times), "at a time": concurrency}
    session.output.pairs(facts | {name: f"{seconds * 1e3:.1f} ms" for name, seconds in latencies.items()})


@click.command("info", cls=Command)
@click.argument("action")
@click.option("--set", "fields", metavar="KEY=VALUE", multiple=True, help="A field of the question.")
@click.pass_obj
def info(session: Session, action: str, fields: tuple[str, ...]) -> None:
    """Ask the manager about itself, and show what it answers."""
    payload = read_body(session, None, fields, reserved=("self", "action", "timeout"))
    with session.client() as client:
        data = client.info(action, **payload)
    if session.as_json:
        session.output.json(data)
    else:
        session.output.pairs(data)


@click.command("health", cls=Command)
@click.pass_obj
def health(session: Session) -> int:
    """Ask whether the manager's process answers."""
    with session.client(opened=False) as client:
        ok = client.health(timeout=session.timeout or _PROBE_TIMEOUT)
        uri = session.shown_uri
    if session.as_json:
        session.output.json({"ok": ok})
    elif ok:
        session.output.line(f"ok: {uri}", "green")
    else:
        raise CommandError(
            f"{uri} is unhealthy or unreachable; 'tcm-sync doctor' looks for the reason", UNREACHABLE
        )
    return 0 if ok else UNREACHABLE


@click.command("ready", cls=Command)
@click.option(
    "--wait",
    metavar="SECONDS",
    type=click.FloatRange(0, min_open=True),
    help="Wait up to so long until it is ready.",
)
@click.pass_obj
def ready(session: Session, wait: float | None) -> int:
    """Ask whether the manager can serve, or wait until it can."""
    from tcm_sync.cli.output import working

    with session.client(opened=False) as client:
        if wait is None:
            answer = client.ready(timeout=session.timeout or _PROBE_TIMEOUT)
        else:
            try:
                with working(f"waiting for {session.shown_uri}"):
                    answer = client.wait_until_ready(wait)
            except CallTimeoutError as error:
                if not session.as_json:
                    raise CommandError(error.message, UNREACHABLE) from error
                answer = client.ready(timeout=_PROBE_TIMEOUT)
    if session.as_json:
        session.output.json({name: value for name, value in asdict(answer).items() if name != "raw"})
    elif answer.ok:
        session.output.line(answer.explanation, "green")
    else:
        raise CommandError(f"{answer.explanation}; --wait 60 waits for it", UNREACHABLE)
    return 0 if answer.ok else UNREACHABLE
