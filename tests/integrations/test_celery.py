"""Celery with a real broker: workers of the example's app, with processes and with threads."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tcm_sync.local import ModelFailure
from tcm_sync.local.digits import load_samples, model_file

from ..helpers.served_models import Gated
from ..helpers.waiting import GUARD, wait_until
from .web_servers import environment, free_port

pytestmark = pytest.mark.needs_debian("redis-server")

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples" / "celery"


@pytest.fixture
def broker(tmp_path):
    """The URL of a redis-server of these tests' own."""
    port = free_port()
    program = shutil.which("redis-server")
    assert program, "redis-server is not installed"
    options = {"bind": "127.0.0.1", "port": port, "save": "", "dir": tmp_path}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    process = subprocess.Popen([program, *words], stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_until(lambda: process.poll() is not None or answers(port), "redis-server answers")
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        end(process)


def answers(port):
    try:
        with socket.create_connection(("127.0.0.1", port), GUARD) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"
    except ConnectionError:
        return False


def end(process):
    """Have a program end, and wait until it has."""
    process.terminate()
    try:
        process.wait(GUARD)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.wait(GUARD)


class Flaky:
    """A model that fails for the first calls with some inputs."""

    def __init__(self):
        self.calls = Counter()

    def __call__(self, arrays):
        number = int(arrays["x"].flat[0])
        self.calls[number] += 1
        if number == 7 and self.calls[number] > 2:
            return arrays
        raise ModelFailure("TRITON_MODEL_MISSING" if number == 9 else "TRITON_OVERLOADED", "not now")


class Worker:
    """A worker of two processes or threads, and what it runs on."""

    def __init__(self, pool, broker, manager, log):
        self.pool, self.broker, self.log = pool, broker, log
        paths = [str(EXAMPLE), str(HERE), os.environ["PYTHONPATH"]]
        variables = {"REDIS_URL": broker, "PYTHONPATH": os.pathsep.join(paths)}
        words = ["--pool", pool, "--concurrency", "2", "--hostname", "w@localhost", "--loglevel", "INFO"]
        words += ["--without-gossip", "--without-mingle"]  # there are no other workers
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "celery", "--app", "celery_tasks", "worker", *words],
                stdout=file,
                stderr=file,
                env=environment(manager, **variables),
                start_new_session=True,
            )

    def do(self, *tasks):
        """Send tasks, each a name and arguments, and return what the caller gets."""
        program = [sys.executable, str(HERE / "celery_sender.py"), self.broker]
        done = subprocess.run(
            program, input=json.dumps(tasks), capture_output=True, text=True, timeout=2 * GUARD, check=False
        )
        assert done.returncode == 0, done.stderr + self.log.read_text()
        return json.loads(done.stdout)


@pytest.fixture
def start(broker, serve, tmp_path):
    """Start workers, which are ended in the end."""
    with model_file() as digits, contextlib.ExitStack() as stack:

        def start(pool):
            flaky, held = Flaky(), Gated()
            manager = serve({"digits": digits, "flaky": flaky, "held": held}, workers=8)
            worker = Worker(pool, broker, manager, tmp_path / "log")
            worker.flaky, worker.held = flaky, held
            stack.callback(end, worker.process)
            stack.callback(held.open_all)
            wait_until(
                lambda: worker.process.poll() is not None or b" ready." in worker.log.read_bytes(),
                "the worker is ready",
            )
            assert worker.process.poll() is None, worker.log.read_text()
            return worker

        yield start


def check_results(outcomes):
    assert [result for _, _, result in outcomes] == [[number] for number in range(len(outcomes))]


def check_retries(worker, passed, lasting, fatal):
    """Check what became of a task that failed twice, one that always fails, and one that is not retried."""
    assert passed == {"x": [7]}
    assert "not now" in lasting.pop("text")
    assert lasting == {"error": "TritonOverloadedError", "code": "TRITON_OVERLOADED", "retriable": True}
    assert (fatal["error"], fatal["retriable"]) == ("ModelMissingError", False)
    assert worker.flaky.calls == {7: 3, 8: 6, 9: 1}


def test_processes_have_a_client_each_retry_what_passes_and_continue_after_a_soft_time_limit(start):
    worker = start("prefork")
    wheres = [("where", number) for number in range(60)]
    *outcomes, passed, lasting, fatal, limited = worker.do(
        *wheres, *(("infer", "flaky", number) for number in (7, 8, 9)), ("limited",)
    )
    check_results(outcomes)
    pids = {pid for pid, _, _ in outcomes}
    assert len(pids) == 2
    assert worker.process.pid not in pids
    assert max(opened for _, opened, _ in outcomes) == 1, "the tasks of a process share a connection"

    check_retries(worker, passed, lasting, fatal)
    assert limited == "interrupted"
    check_results(worker.do(*(("where", number) for number in range(10))))
    end(worker.process)
    assert worker.process.returncode == 0, worker.log.read_text()


def test_threads_share_a_client_and_results_and_errors_are_json(start):
    worker = start("threads")
    digits = load_samples()
    images = [digit.image.tolist() for digit in digits]
    found, *outcomes, passed, lasting, fatal = worker.do(
        ("tasks.digits", images),
        *(("where", number) for number in range(60)),
        *(("infer", "flaky", number) for number in (7, 8, 9)),
    )
    assert [row.index(max(row)) for row in found["probabilities"]] == [digit.label for digit in digits]
    check_results(outcomes)
    assert {pid for pid, _, _ in outcomes} == {worker.process.pid}
    assert max(opened for _, opened, _ in outcomes) <= 2

    check_retries(worker, passed, lasting, fatal)
    end(worker.process)
    assert worker.process.returncode == 0, worker.log.read_text()
