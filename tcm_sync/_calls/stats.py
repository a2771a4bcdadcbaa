"""`stats`: the counters and gauges of a client."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from tcm_sync._arguments import check_flag
from tcm_sync._process import notice_fork
from tcm_sync.stats import ClientStats

if TYPE_CHECKING:
    from tcm_sync._calls.core import Core


def stats(core: Core, *, reset: bool) -> ClientStats:
    """Return what a client has counted, and how it is."""
    notice_fork()
    reset = check_flag("reset", reset)
    with core.lock:
        now = ClientStats(**_figures(core))
        earlier = core.stats_at_reset
        if reset:
            core.stats_at_reset = now
    return now if earlier is None else now.since(earlier)


def _figures(core: Core) -> dict[str, Any]:
    """Return all figures by name."""
    counts, runtime = core.counts, core.runtime
    figures = counts.read()
    if runtime is None:
        pools = [pool.read(()) for pool in counts.pools]
    else:
        pools = [runtime.pool.read(), runtime.management.read()]
        limits = runtime.pool.limits.read()
        names = ("requests_at_once", "messages_per_second", "tenant_messages_per_second")
        figures.update(zip(names, limits, strict=True))
        figures["gates"] = runtime.shut_gates()
        figures["turn_processes"] = runtime.turns.processes()
    for name in pools[0]:
        figures[name] = pools[0][name] + pools[1][name]
    figures.update(core.shm.read())
    figures["successes"] = figures["calls"] - sum(figures["failures"].values())
    return {name: dict(value) if isinstance(value, Counter) else value for name, value in figures.items()}
