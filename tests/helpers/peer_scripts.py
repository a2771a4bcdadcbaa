"""What the peer tests have in common: a client for a peer, scripts, and what every error is held to."""

from __future__ import annotations

import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tcm_sync import AuthContext, RetryPolicy, Route, TcmClient
from tcm_sync._deadline import Deadline
from tcm_sync._pool.call import Call

from .peer_connection import TIMEOUT
from .waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .peer_connection import PeerConnection
    from .scripted_peer import ScriptedPeer

TOKEN = "tok-4711-never-to-be-shown"
ROUTE = Route("c1", "127.0.0.1")
#: The default policy with pauses that a test need not wait for.
SHORT_PAUSES = RetryPolicy(initial=0.01, maximum=0.02)


def connect(peer: ScriptedPeer, **settings: Any) -> TcmClient:
    """Make a client for a peer. Its deadline is a hang guard unless the test sets it."""
    usual = {"auth": AuthContext(token=TOKEN, roles=("inference",)), "route": ROUTE, "timeout": TIMEOUT}
    return TcmClient(peer.uri, **{**usual, "retry": SHORT_PAUSES, **settings})


def ask(client: TcmClient, value: float = 1.0, **how: Any) -> float:
    """Ask for a number, which an echoing peer sends back."""
    return client.infer("m", {"x": np.array([[value]])}, **how)["y"].item()


def ask_many(client: TcmClient, values: Iterable[float], threads: int) -> list[float]:
    """Ask for many numbers from many threads at once; the answers in the order of the values."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda value: ask(client, value), values))


@contextmanager
def background(call: Callable[[], Any]) -> Iterator[Callable[[], Any]]:
    """Run a call in a thread of its own; what is yielded waits for its result."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(call)
        yield lambda: future.result(TIMEOUT)


@contextmanager
def timing_out(ready: Callable[[], Any], attempt: int = 1) -> Iterator[None]:
    """Have the next call run out of time in one of its attempts, though not before something is true."""
    receive = Call.receive
    attempts = itertools.count(1)
    with pytest.MonkeyPatch.context() as patch:

        def receive_and_time_out(call: Call, *how: Any) -> Any:
            if next(attempts) < attempt:
                return receive(call, *how)
            patch.undo()
            wait_until(ready)
            call.deadline = Deadline(0.01)
            return receive(call, *how)

        patch.setattr(Call, "receive", receive_and_time_out)
        yield


@contextmanager
def failing(kind: type[Exception], *words: str) -> Iterator[pytest.ExceptionInfo[Any]]:
    """Expect exactly this class, these words in its message, and the token nowhere in it."""
    with pytest.raises(kind) as caught:
        yield caught
    error = caught.value
    assert type(error) is kind
    for word in words:
        assert word in str(error)
    for failure in _chain(error):
        assert TOKEN not in f"{failure} {failure!r} {vars(failure)}"
    assert len(getattr(error, "history", ())) < 50
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Go through the error, its causes, and the failures before it."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        failure = waiting.pop()
        if failure is not None and id(failure) not in seen:
            seen.add(id(failure))
            yield failure
            waiting += [failure.__cause__, failure.__context__, *getattr(failure, "history", ())]


def echo_once(connection: PeerConnection) -> None:
    """Answer one request with its own first input."""
    payload = connection.recv_request()
    connection.reply({"y": payload["request"]["inputs"][0]["data"]})


def echo(connection: PeerConnection) -> None:
    """Welcome the client and answer every request with its own first input."""
    connection.welcome()
    while True:
        echo_once(connection)
