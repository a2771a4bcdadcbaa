"""Tasks for the tests of Celery, on the app and the client of the example."""

from __future__ import annotations

import os

from celery.exceptions import SoftTimeLimitExceeded
from tasks import Inference, app, client


@app.task(name="where")
def where(number: int) -> tuple[int, int, list[int]]:
    """Return the process, the connections that its client has opened, and what the model returned."""
    result = client.infer("echo", {"x": [number]})["x"].tolist()
    return os.getpid(), client.stats().sockets_opened, result


@app.task(name="infer", base=Inference, retry_jitter=False, retry_backoff=False, default_retry_delay=0)
def infer(model: str, number: int) -> dict[str, list[int]]:
    """Run a model, without attempts of the client's own."""
    return client.with_options(retry=None).infer(model, {"x": [number]}).tolist()


@app.task(name="limited", soft_time_limit=1)
def limited() -> str:
    """Run a model that does not answer, until the limit interrupts it."""
    try:
        client.infer("held", {"x": [0]})
    except SoftTimeLimitExceeded:
        return "interrupted"
    return "answered"
