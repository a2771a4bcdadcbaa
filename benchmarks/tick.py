"""What the client adds to the manager's own tick of 10 ms: calls in a closed loop, beside bare loops.

They call a `LocalManager` with its real scheduler. Each call of a loop takes one tick, so added time is seen
only where it makes the loop miss a tick, or wake late for the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import bare
from manager import Manager, local_manager
from runner import Plan, Row, alternate, each_took, ratios
from threads import crew

TURN = 1.0  # seconds: a hundred ticks


def rows(plan: Plan) -> Iterator[Row]:
    """Measure one thread, and as many threads as the pool has sockets."""
    with local_manager(plan.core) as manager:
        yield row(plan, manager, "1 thread", 1)
        yield row(plan, manager, "4 threads", 4)


def row(plan: Plan, manager: Manager, who: str, threads: int) -> Row:
    """Have our threads and as many bare loops take turns."""
    with ExitStack() as stack:
        client = stack.enter_context(bare.our_client(manager.uri, route=manager.route))
        loops = [stack.enter_context(bare.plain_socket(manager.uri, manager.route)) for _ in range(threads)]
        works = {"ours": crew([bare.our_infer(client)] * threads), "bare": crew(loops)}
        rates = list(alternate(works, plan, min(TURN, plan.seconds)))
    return Row(
        f"time of a call on the 10 ms tick / a plain socket's, {who}",
        ratios(rates, "bare", "ours"),
        most=1.03,
        detail=f"a call, of all threads together: {each_took(rates)}",
    )
