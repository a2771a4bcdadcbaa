"""Settings of gunicorn: ``cd examples/prometheus && PROMETHEUS_MULTIPROC_DIR=/tmp/metrics gunicorn``."""

import os
from pathlib import Path

from prometheus_client import multiprocess

wsgi_app = "service:app"
bind = os.environ.get("BIND", "127.0.0.1:8080")
worker_class = "gthread"
workers = 2
threads = 4
preload_app = True  # the client and its listener may be made before the fork


def on_starting(server: object) -> None:  # noqa: ARG001
    """Remove the metrics of an earlier run."""
    for path in Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob("*.db"):
        path.unlink()


def child_exit(server: object, worker: object) -> None:  # noqa: ARG001
    """Take the gauges of a worker that has ended out of the sums."""
    multiprocess.mark_process_dead(worker.pid)  # type: ignore[attr-defined]
