"""One small call after another, in one thread: against bare loops, and against tcm-client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import bare
from bare import ARRAY, Infer
from runner import Plan, Row, Work, again, alternate, each_took, instant_server, ratios

#: The bare loops, and the goal for our rate as a fraction of theirs.
LOOPS = {
    "websocket-client, msgspec": (bare.websocket_client, 1.15),
    "websocket-client tuned, msgspec": (bare.tuned_websocket_client, None),
    "plain socket, our frames, msgspec": (bare.plain_socket, 0.75),
}


def rows(plan: Plan) -> Iterator[Row]:
    """Measure all contenders in turns."""
    with instant_server(plan) as port:
        uri = bare.address(port)
        yield from against_loops(plan, uri)
        yield from against_peer(plan, uri)


def asking(infer: Infer, batch: int = 20) -> Work:
    """Check the answer, and return work that repeats the small call."""
    bare.check(infer)
    return again(lambda: infer(ARRAY), batch)


def against_loops(plan: Plan, uri: str) -> Iterator[Row]:
    """Divide our rate by that of each bare loop."""
    with ExitStack() as stack:
        works = {
            "ours": asking(bare.our_infer(stack.enter_context(bare.our_client(uri)))),
            **{name: asking(stack.enter_context(loop(uri))) for name, (loop, _) in LOOPS.items()},
        }
        rates = list(alternate(works, plan))
    for name, (_, least) in LOOPS.items():
        took = each_took([{key: each[key] for key in ("ours", name)} for each in rates])
        yield Row(f"one thread, small infer / bare {name}", ratios(rates, "ours", name), least, detail=took)


def against_peer(plan: Plan, uri: str) -> Iterator[Row]:
    """Divide our rate by that of tcm-client: with a connection for each call, and on one connection."""
    import peer

    with bare.our_client(uri) as client, peer.kept(uri) as kept:
        works = {
            "ours": asking(bare.our_infer(client)),
            "tcm-client": asking(peer.connecting(uri), batch=1),
            "kept": kept,
        }
        rates = list(alternate(works, plan))
    for name, what, least in (
        ("tcm-client", "infer, which connects each time", 13),
        ("kept", "async, connection kept", 1.1),
    ):
        took = each_took([{key: each[key] for key in ("ours", name)} for each in rates])
        yield Row(
            f"one thread, small infer / tcm-client {what}", ratios(rates, "ours", name), least, detail=took
        )
