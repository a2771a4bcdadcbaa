"""Settings of gunicorn for the service beside it. ``preload_app = False`` works in the same way."""

import os

bind = os.environ.get("BIND", "127.0.0.1:8080")
worker_class = "gthread"
workers = 2
threads = 4
preload_app = True
timeout = 30


def post_fork(server: object, worker: object) -> None:  # noqa: ARG001
    """Export from each worker: threads and sums of the master are not to be in them."""
    from export import start_export

    start_export()
