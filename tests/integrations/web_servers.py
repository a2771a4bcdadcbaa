"""Real web servers for the tests: started on a free port, asked, and ended."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

from ..helpers.waiting import GUARD, wait_until

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def free_port():
    """Return a port that nothing listens on, below those that the system gives to sockets without one.

    The server that is to listen there starts later: until then a test that runs beside could be given it.
    """
    while True:
        port = secrets.choice(range(20_000, 32_000))
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def environment(manager, **more):
    """Return the environment of a service that uses a manager."""
    return {**os.environ, "TCM_WS_URI": manager.uri, "TCM_CONTAINER_ID": "local", **more}


def ask(port, path):
    """Return status, headers and body of an answer, also of one that is an error."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=GUARD) as reply:
            return reply.status, reply.headers, json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def get(port, path):
    """Return the body of an answer, once the server answers: it may be starting, or be started again."""
    until = time.monotonic() + GUARD
    while True:
        try:
            status, _, body = ask(port, path)
        except (OSError, HTTPException, ValueError):  # no answer, or the beginning of one
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
        else:
            assert status == 200, (status, body)
            return body


def answers_of(port, numbers, threads=8):
    """Ask for some numbers from several threads, and return status and body of each answer."""

    def one(number):
        status, _, body = ask(port, f"/digits?number={number}")
        return status, body

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, numbers))


def workers_of(server):
    """Return the pids of the workers that a server has forked."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
    return set(map(int, children.read_text().split()))


def is_connected(pid, manager):
    """Return whether a process has a connection to a manager."""
    remote = f":{manager.port:04X}"
    rows = [row.split() for row in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    connected = {f"socket:[{row[9]}]" for row in rows if row[2].endswith(remote) and row[3] == "01"}
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if os.readlink(each) in connected:
                return True
    return False


def end(server):
    """End a server as a deployment does, and see that it ends.

    Only once each worker has answered: uWSGI and gunicorn lose a signal to end one that is still starting.
    """
    server.send_signal(signal.SIGTERM)
    server.wait(GUARD)


def uses_no_manager(manager):
    wait_until(lambda: not manager.stats().connected, "the connections of the service are closed")
