"""Managers and clients for the tests of what connects to other programs and libraries."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tcm_sync import Route, TcmClient
from tcm_sync.local.digits import load_samples, model_file

from ..helpers.fixtures import *  # noqa: F403
from ..helpers.manager_fixtures import *  # noqa: F403
from ..helpers.waiting import GUARD
from .web_servers import free_port

BIN = Path(sys.executable).parent


@pytest.fixture
def digits_manager(serve):
    """The manager of the services in examples/."""
    with model_file() as path:
        yield serve({"digits": path}, workers=8)


@pytest.fixture
def serve_web(tmp_path):
    """Start servers in a folder, and end them with all of their processes."""
    started = []

    def start(command, folder, variables):
        port = free_port()
        log = (tmp_path / f"log-{len(started)}").open("w+b")
        server = subprocess.Popen(
            [BIN / command[0], *(part.replace("PORT", str(port)) for part in command[1:])],
            cwd=folder,
            env={**variables, "BIND": f"127.0.0.1:{port}", "PYTHONUNBUFFERED": "1"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        server.port = port
        server.log = lambda: Path(log.name).read_text()
        started.append((server, log))
        return server

    yield start
    for server, log in started:
        sys.stderr.write(server.log())
        if server.poll() is None:
            server.send_signal(signal.SIGTERM)
        try:
            server.wait(GUARD)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
            pytest.fail(f"the server did not end:\n{server.log()}")
        finally:
            log.close()


@pytest.fixture
def expected(digits_manager):
    """The right answer to each number."""
    with TcmClient(digits_manager.uri, route=Route("local")) as client:
        return [
            client.infer("digits", {"image": sample.image.reshape(1, -1)}).tolist()
            for sample in load_samples()
        ]
