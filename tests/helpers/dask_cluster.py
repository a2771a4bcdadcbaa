"""A cluster of Dask, its scheduler and its worker processes apart from the tests.

``python dask_cluster.py WORKERS`` prints the address of the scheduler, and ends with its standard input.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def running_cluster(workers: int) -> Iterator[str]:
    """Start a cluster, give the address of its scheduler, and end it."""
    command = [sys.executable, __file__, str(workers)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = process.stdout.readline().strip()
            assert address, "the cluster has not started"
            yield address
        finally:
            process.stdin.close()  # it then ends
            process.wait()


def main() -> None:
    import dask
    from distributed import LocalCluster

    # Imported before a worker is ready, so that no test waits for it.
    dask.config.set({"distributed.worker.preload": ["dask.dataframe", "tcm_sync.integrations.dask"]})
    with LocalCluster(
        n_workers=int(sys.argv[1]),
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        worker_dashboard_address="127.0.0.1:0",
    ) as cluster:
        print(cluster.scheduler_address, flush=True)  # noqa: T201
        sys.stdin.read()


if __name__ == "__main__":
    main()
