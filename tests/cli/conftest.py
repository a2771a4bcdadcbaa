"""Fixtures that run the command: in this process where that will do, in one of its own, or in a terminal."""

from __future__ import annotations

import io
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tcm_sync.cli import main
from tcm_sync.local import LocalManager

from ..helpers.environment import variables_of_users
from ..helpers.fixtures import clock as clock
from ..helpers.fixtures import pauses_take_no_time as pauses_take_no_time
from .models import MODELS

COMMAND = (sys.executable, "-m", "tcm_sync.cli")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    """Take away what the environment may say of a manager, or of colours."""
    for name in (*variables_of_users(), "NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def manager(monkeypatch):
    """A manager that the variables lead to, with models of every kind."""
    with LocalManager(MODELS, tick=0, info={"colour": lambda: {"colour": "blue"}}) as manager:
        monkeypatch.setenv("TCM_WS_URI", manager.uri)
        monkeypatch.setenv("TCM_CONTAINER_ID", manager.route.container_id)
        yield manager


@pytest.fixture
def cli(capsysbinary, monkeypatch):
    """Run the command in this process: its exit status, and what it wrote."""

    def run(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main([str(argument) for argument in arguments])
        out, err = capsysbinary.readouterr()
        return SimpleNamespace(code=code, out=out.decode(errors="replace"), raw=out, err=err.decode())

    return run


@pytest.fixture
def start():
    """Start the command in a process of its own, which is gone in the end."""
    processes = []

    def begin(*arguments, **options):
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [*COMMAND, *map(str, arguments)]
        processes.append(subprocess.Popen(command, **{**pipes, "text": True, **options}))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.communicate()
