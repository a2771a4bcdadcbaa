"""The client in an event loop: threads and futures of its own, which the loop awaits."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tcm_sync import BatchPolicy, InferenceFailedError
from tcm_sync.local import ModelFailure

from ..helpers.waiting import GUARD, wait_for, wait_until


@pytest.fixture
def go_on():
    """What the model waits for: a test may clear it."""
    event = threading.Event()
    event.set()
    return event


@pytest.fixture
def manager(serve, go_on):
    def double(arrays):
        wait_for(go_on)
        if 999 in arrays["x"]:
            raise ModelFailure("TRITON_INFERENCE_FAILED", "unlucky")
        return {"y": arrays["x"] * 2}

    return serve({"double": double}, workers=8)


@pytest.fixture
def client(manager, connect):
    return connect(manager, pool_size=4)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 2 * GUARD))


def calls_of(client):
    model = client.model("double", batch=BatchPolicy(max_size=32, max_wait=0.004))
    return {
        "to_thread": lambda x: asyncio.to_thread(client.infer, "double", {"x": [x]}),
        "submit": lambda x: asyncio.wrap_future(client.submit("double", {"x": [x]})),
        "submit_sample": lambda x: asyncio.wrap_future(model.submit_sample({"x": x})),
    }


CALLS = pytest.mark.parametrize("call", ["to_thread", "submit", "submit_sample"])


@CALLS
def test_200_calls_of_one_loop_return_each_its_own_and_the_loop_continues(client, call, go_on):
    ask = calls_of(client)[call]
    go_on.clear()

    async def main():
        turns, finished = 0, asyncio.Event()

        async def count():
            nonlocal turns
            while not finished.is_set():
                turns += 1
                if turns > 10:
                    go_on.set()  # the model waits for the loop, which therefore runs other tasks
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        results = await asyncio.gather(*(ask(float(number)) for number in range(200)))
        threads = sum(thread.name == "tcm-sync-worker" for thread in threading.enumerate())
        finished.set()
        await counting
        return results, threads

    results, threads = run(main())
    assert [result["y"].item() for result in results] == [2.0 * number for number in range(200)]
    assert threads <= 4, "as many calls at a time as connections"


@CALLS
def test_an_error_is_raised_where_it_is_awaited(client, call):
    async def main():
        with pytest.raises(InferenceFailedError, match="unlucky"):
            await calls_of(client)[call](999.0)

    run(main())


@pytest.mark.parametrize("kind", ["submit", "submit_sample"])
def test_a_cancelled_call_that_runs_ends_in_the_background_and_disturbs_nobody(client, gated, kind):
    model = client.model("gated", batch=BatchPolicy(max_size=4, max_wait=0.0))

    async def main():
        reports = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
        ask = model.submit_sample if kind == "submit_sample" else model.submit
        futures = [ask({"x": [number]}) for number in (1, 2)]
        tasks = [asyncio.wrap_future(future) for future in futures]
        await asyncio.to_thread(wait_until, lambda: futures[0].running() and futures[1].running())
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        gated.open_all()
        assert (await tasks[1])["y"].item() == 2
        assert (await asyncio.to_thread(futures[0].result, GUARD))["y"].item() == 1
        await asyncio.sleep(0)  # what the first future's callback put into the loop
        return reports

    assert run(main()) == []


@pytest.mark.parametrize("kind", ["submit", "submit_sample"])
def test_a_timeout_of_the_loop_cancels_what_has_not_begun(client, manager, gated, kind):
    model = client.model("gated", batch=BatchPolicy(max_size=4, max_wait=GUARD))

    async def main():
        ask = model.submit_sample if kind == "submit_sample" else model.submit
        held = [client.submit("gated", {"x": [number]}) for number in range(4)]  # all of the threads
        future = ask({"x": [7]})
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(future), 0.01)
        assert future.cancelled()
        gated.open_all()
        results = await asyncio.gather(*map(asyncio.wrap_future, held))
        assert [result["y"].item() for result in results] == [0, 1, 2, 3]

    run(main())
    assert manager.stats().executions["gated"] == 4, "what was cancelled was not sent"
