"""The cost of one call as the sockets of a client grow: one thread calls, the other sockets are idle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import bare
from idle import fill
from roundtrip import asking
from runner import Plan, Row, alternate, each_took, instant_server, ratios

NUMBERS = (1, 8, 64)


def rows(plan: Plan) -> Iterator[Row]:
    """Have clients with few and with many sockets take turns."""
    numbers = [min(number, plan.size(64, 8)) for number in NUMBERS]
    with instant_server(plan) as port, ExitStack() as stack:
        works = {}
        for name, number in zip(NUMBERS, numbers, strict=True):
            client = stack.enter_context(bare.our_client(bare.address(port), pool_size=number))
            fill(client, number)
            works[str(name)] = asking(bare.our_infer(client))
        rates = list(alternate(works, plan))
    yield Row(
        "cost of one call with 64 sockets open / with 1",
        ratios(rates, "1", "64"),
        most=1.1,
        detail=f"sockets: {each_took(rates)}",
    )
