"""Many threads with small calls: on as many sockets, and on few, beside as many bare loops."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import bare
from bare import ARRAY, Infer
from runner import Crew, Latencies, Plan, Row, alternate, instant_server

TURN = 0.5  # seconds: long against the time to start the threads


class Round(NamedTuple):
    """The result of one contender in one round."""

    rate: float
    latencies: Latencies

    @property
    def tail(self) -> float:
        """The time of slow calls divided by that of usual ones."""
        return self.latencies.percentile(99) / self.latencies.percentile(50)


def rows(plan: Plan) -> Iterator[Row]:
    """Measure both numbers of threads."""
    with instant_server(plan) as port:
        uri = bare.address(port)
        ours, loops = compete(plan, uri, threads=16, sockets=16)
        yield rate_row("16 threads on 16 sockets / 16 bare loops", ours, loops, least=1.1)
        yield Row(
            "16 threads on 16 sockets: p99/p50 / that of 16 bare loops",
            [mine.tail / theirs.tail for mine, theirs in zip(ours, loops, strict=True)],
            most=1.5,
            detail=f"ours {middle(ours).latencies}; bare {middle(loops).latencies}",
        )
        ours, loops = compete(plan, uri, threads=64, sockets=8)
        yield rate_row("64 threads on 8 sockets / 8 bare loops", ours, loops, least=0.9)
        yield Row(
            "64 threads on 8 sockets: slowest thread / fastest",
            [each.latencies.fairness for each in ours],
            least=0.9,
            detail=f"ours {middle(ours).latencies}; bare {middle(loops).latencies}",
        )


def rate_row(what: str, ours: list[Round], loops: list[Round], least: float) -> Row:
    """Divide our rate by that of the loops, in each round."""
    return Row(
        what,
        [mine.rate / theirs.rate for mine, theirs in zip(ours, loops, strict=True)],
        least,
        detail=f"ours {middle(ours).rate:,.0f}/s, bare {middle(loops).rate:,.0f}/s",
    )


def middle(rounds: list[Round]) -> Round:
    """Return the round with the median rate."""
    return sorted(rounds, key=lambda each: each.rate)[len(rounds) // 2]


def crew(infers: list[Infer]) -> Crew:
    """Give each thread a call of its own."""
    for infer in infers:
        bare.check(infer)
    return Crew([lambda infer=infer: infer(ARRAY) for infer in infers])  # type: ignore[misc]


def compete(plan: Plan, uri: str, threads: int, sockets: int) -> tuple[list[Round], list[Round]]:
    """Have our threads, and as many bare loops as there are sockets, take turns; ours first."""
    with ExitStack() as stack:
        client = stack.enter_context(bare.our_client(uri, pool_size=sockets))
        loops = [stack.enter_context(bare.websocket_client(uri)) for _ in range(sockets)]
        crews = {"ours": crew([bare.our_infer(client)] * threads), "bare": crew(loops)}
        rounds: dict[str, list[Round]] = {name: [] for name in crews}
        for rates in alternate(crews, plan, min(TURN, plan.seconds)):
            for name, members in crews.items():
                rounds[name].append(Round(rates[name], members.take()))
    return rounds["ours"], rounds["bare"]
