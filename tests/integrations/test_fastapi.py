"""The example of FastAPI, under a real uvicorn, with a real manager."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tcm_sync.local import LocalManager
from tcm_sync.local.digits import load_samples, model_file

from ..helpers.waiting import GUARD
from .web_servers import environment, free_port, get

EXAMPLE = Path(__file__).parents[2] / "examples" / "fastapi"


@pytest.fixture
def manager():
    with model_file() as digits, LocalManager({"digits": digits}, tick=0, workers=8) as manager:
        yield manager


@pytest.fixture
def service(manager):
    """The service under uvicorn: its port."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "service:app", "--port", str(port), "--log-level", "warning"],
        cwd=EXAMPLE,
        env=environment(manager),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert get(port, "/readyz") == {"status": "ready"}
        yield port
        process.terminate()
        _, said = process.communicate(timeout=GUARD)
        assert said == "", "no warning, and no error at its end"
    finally:
        process.kill()
        process.communicate()


def test_concurrent_requests_share_batches_and_failures_are_answered(service, manager):
    digits = load_samples() * 10
    asyncio.run(check_concurrent_requests(service, digits))
    assert manager.stats().executions["digits"] < len(digits), "requests shared batches"
    with httpx.Client(base_url=f"http://127.0.0.1:{service}", timeout=GUARD) as http:
        check_failures(http, manager)


async def check_concurrent_requests(port, digits):
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=GUARD) as http:
        bodies = [{"image": digit.image.tolist()} for digit in digits]
        answers = await asyncio.gather(*(http.post("/digits", json=body) for body in bodies))
    assert [answer.status_code for answer in answers] == [200] * len(digits)
    rows = [answer.json()["probabilities"] for answer in answers]
    assert [row.index(max(row)) for row in rows] == [digit.label for digit in digits]


def check_failures(http, manager):
    body = {"image": [0.0] * 64}
    assert http.post("/digits", json={"image": [0.0] * 63}).status_code == 422, "FastAPI's own check"
    manager.fail_next("TRITON_OVERLOADED", times=4)
    answer = http.post("/digits", json=body)
    assert (answer.status_code, answer.json()) == (503, {"error": "TritonOverloadedError"})
    assert int(answer.headers["Retry-After"]) >= 1
    manager.fail_next("TRITON_MODEL_MISSING")
    assert http.post("/digits", json=body).status_code == 502
    assert len(http.post("/digits", json=body).json()["probabilities"]) == 10
