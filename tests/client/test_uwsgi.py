"""uWSGI, which loads an application in its master process and forks without Python's hooks."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ..helpers.waiting import GUARD

UWSGI = Path(sys.executable).with_name("uwsgi")

pytestmark = pytest.mark.skipif(not UWSGI.exists(), reason="pyuwsgi is for Linux alone")

APPLICATION = """
import json, os
from urllib.parse import parse_qs

from tcm_sync import Route, TcmClient

client = TcmClient(os.environ["MANAGER"], route=Route("local"), timeout=30.0)
assert client.infer("echo", {"x": [1]})["x"].tolist() == [1]

def application(environ, start_response):
    number = int(parse_qs(environ["QUERY_STRING"])["number"][0])
    answer = [os.getpid(), client.infer("echo", {"x": [number]})["x"].tolist()]
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]
"""


def ask(port, number):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/?number={number}", timeout=GUARD) as reply:
        return json.load(reply)


def test_workers_call_with_a_client_that_was_opened_in_the_master(serve, tmp_path):
    manager = serve(workers=8)
    (tmp_path / "application.py").write_text(APPLICATION)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.set_inheritable(True)
        port = listener.getsockname()[1]
        command = [UWSGI, "--http-socket", f"fd://{listener.fileno()}", "--master", "--processes", "2"]
        command += ["--enable-threads", "--threads", "2", "--need-app", "--wsgi-file", "application.py"]
        command += ["--pythonpath", os.pathsep.join(map(str, filter(None, sys.path)))]
        with (tmp_path / "log").open("wb") as log:
            uwsgi = subprocess.Popen(
                [*command, "--die-on-term"],
                cwd=tmp_path,
                env={**os.environ, "MANAGER": manager.uri},
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
            )
        try:
            workers = set()  # uWSGI does not end one that gets the signal while it starts
            until = time.monotonic() + GUARD
            while len(workers) < 2:
                with ThreadPoolExecutor(4) as pool:
                    answers = list(pool.map(lambda number: ask(port, number), range(40)))
                assert [answer for _, answer in answers] == [[number] for number in range(40)]
                workers |= {pid for pid, _ in answers}
                assert time.monotonic() < until, workers
            assert uwsgi.pid not in workers
            assert manager.stats().lost_replies == 0
            assert len(manager.stats().uuids) > len(workers)
        except BaseException:
            sys.stderr.write((tmp_path / "log").read_text())
            raise
        finally:
            uwsgi.send_signal(signal.SIGTERM)
            uwsgi.wait(GUARD)
