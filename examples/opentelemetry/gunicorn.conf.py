"""Settings of gunicorn for the service beside it. ``preload_app = False`` works in the same way."""

import os

from export import start_export  # now, since a worker that imports it misses signals meanwhile

bind = os.environ.get("BIND", "127.0.0.1:8080")
worker_class = "gthread"
workers = 2
threads = 4
preload_app = True
timeout = 30


def post_fork(server: object, worker: object) -> None:  # noqa: ARG001
    """Export from each worker: its spans, and sums without those of the master."""
    start_export()
