"""A Celery worker whose tasks run inferences: retried while the manager is busy, results as JSON.

Start a broker, a manager and a worker, each in a terminal of its own with these variables, and send a task::

    export TCM_WS_URI=ws://localhost:8000/ws TCM_CONTAINER_ID=local
    redis-server --port 6379
    tcm-sync serve --digits
    celery --app tasks worker --pool prefork --concurrency 4
    python -c "import tasks; print(tasks.digits.delay([[0.0] * 64]).get(timeout=60))"
"""

import os

import numpy as np
from celery import Celery, Task

import tcm_sync

REDIS = os.environ.get("REDIS_URL", "redis://localhost:6379/0")

app = Celery("tasks", broker=REDIS, backend=REDIS)
app.conf.update(
    task_acks_late=True,  # a task whose worker process dies is run again
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    task_soft_time_limit=60,  # longer than the client's timeout
    task_time_limit=90,
    result_expires=3600,
)

# One client per process: each process of the pool opens its own connections with its first call.
client = tcm_sync.TcmClient.from_env()


class Inference(Task):
    """A task that is retried after errors that pass with time."""

    autoretry_for = tcm_sync.RETRIABLE
    max_retries = 5
    retry_backoff = True  # pauses of up to 1, 2, 4 ... seconds
    retry_backoff_max = 30


@app.task(base=Inference)
def digits(images: list[list[float]]) -> dict[str, list[object]]:
    """Return the probabilities of the digits in images of 8 x 8 pixels."""
    return client.infer("digits", {"image": np.array(images, np.float32)}).tolist()
