"""Calls from an event loop, and a FastAPI service under real uvicorn."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tcm_sync import CallTimeoutError
from tcm_sync.local.digits import load_samples

from ..helpers.waiting import GUARD
from .web_servers import EXAMPLES, answers_of, end, environment, get, uses_no_manager


def test_many_calls_at_once_use_a_few_threads(serve, client_of):
    client = client_of(serve(), pool_size=3)

    async def main():
        calls = [asyncio.wrap_future(client.submit("echo", {"x": [number]})) for number in range(200)]
        most = sum(thread.name == "tcm-sync-worker" for thread in threading.enumerate())
        return [result["x"].item() for result in await asyncio.gather(*calls)], most

    answers, threads = asyncio.run(main())
    assert answers == list(range(200))
    assert 1 <= threads <= 3, "as many calls at a time as connections"


def test_the_loop_goes_on_while_calls_wait(serve, client_of, gated):
    client = client_of(serve())

    async def main():
        waiting = [
            asyncio.wrap_future(client.submit("gated", {"x": [1]})),
            asyncio.ensure_future(asyncio.to_thread(client.infer, "gated", {"x": [1]})),
        ]
        for _ in range(100):
            await asyncio.sleep(0)
        assert not any(each.done() for each in waiting)
        gated.open_all()
        return [result["y"].tolist() for result in await asyncio.gather(*waiting)]

    assert asyncio.run(main()) == [[1], [1]]


def test_a_task_that_is_cancelled_withdraws_a_call_that_waits(serve, client_of, gated):
    manager = serve()
    client = client_of(manager, pool_size=1)

    async def main():
        running = asyncio.wrap_future(client.submit("gated", {"x": [1]}))
        queued = client.submit("echo", {"x": [2]})
        task = asyncio.ensure_future(asyncio.wait_for(asyncio.wrap_future(queued), GUARD))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert queued.cancelled()
        gated.open_all()
        await running

    asyncio.run(main())
    assert "echo" not in manager.stats().executions


def test_an_error_arrives_where_the_call_is_awaited(serve, client_of, gated):
    client = client_of(serve())

    async def main():
        with pytest.raises(CallTimeoutError):
            await asyncio.wrap_future(client.submit("gated", {"x": [1]}, timeout=0.1))

    asyncio.run(main())


def test_a_fastapi_service_under_uvicorn(digits_manager, expected, serve_web):
    command = ["uvicorn", "--port", "PORT", "service:app"]
    web = serve_web(command, EXAMPLES / "fastapi", environment(digits_manager))
    assert get(web.port, "/readyz") == {"status": "ready"}
    answers = answers_of(web.port, range(100), threads=20)
    assert answers == [(200, expected[number % len(load_samples())]) for number in range(100)]
    end(web)
    uses_no_manager(digits_manager)
