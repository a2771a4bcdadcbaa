"""Fixtures that make managers, and connections to them, and take them away again."""

from __future__ import annotations

import contextlib
import math
import os
from functools import partial

import pytest

from tcm_sync import TcmClient
from tcm_sync._ttl_cache import TtlCache
from tcm_sync.local import LocalManager, core, server, session
from tcm_sync.local.limits import SlidingWindow, TokenBucket

from .peer_scripts import ROUTE
from .raw_connection import Raw
from .segments import Segments
from .served_models import Gated, Steps, Talker, echo
from .waiting import GUARD


@pytest.fixture
def gated():
    """A model that the test lets go; let go at the end in any case."""
    model = Gated()
    yield model
    model.open_all()


@pytest.fixture
def talker():
    """A model that streams, and may be held by the test; let go at the end in any case."""
    model = Talker()
    yield model
    model.go_on()


@pytest.fixture
def steps():
    """What records the steps of management jobs, and may hold them; released at the end in any case."""
    recorded = Steps()
    yield recorded
    recorded.release()


@pytest.fixture
def serve(gated, talker, steps, monkeypatch):
    """Start managers with models ``echo``, ``gated`` and ``llm``, with no pauses unless the test says so."""
    monkeypatch.setattr(server, "CLOSE_TIMEOUT", 0.2)  # the raw client answers no close while nobody reads
    ours = {"echo": echo, "gated": gated, "llm": talker}
    managers = []

    def start(models=None, **settings):
        settings = {"tick": 0, "on_cloud_step": steps, **settings}
        given = models or {}  # which go first, and before ours of the same name
        manager = LocalManager({**given, **ours, **given}, **settings)
        managers.append(manager)
        manager.start()
        return manager

    yield start
    gated.open_all()
    talker.go_on()
    steps.release()
    for manager in managers:
        manager.kill()
        manager.stop()


@pytest.fixture
def one_second(monkeypatch):
    """Have all messages come within one second, as the limits of managers see it."""
    monkeypatch.setattr(session, "SlidingWindow", partial(SlidingWindow, clock=lambda: 0.0))
    monkeypatch.setattr(core, "TokenBucket", partial(TokenBucket, clock=lambda: 0.0))
    # A bucket is dropped after a second of the real clock, when it would be full by its own.
    monkeypatch.setattr(core, "TtlCache", lambda _, most: TtlCache(math.inf, most))


@pytest.fixture
def dial():
    """Open connections, authenticated if a uuid is given."""
    connections = []

    def open_connection(manager, uuid=None, context=None, **payload):
        raw = Raw(manager, context)
        connections.append(raw)
        if uuid is not None:
            assert raw.auth(uuid, **payload)["type"] == "auth.ok"
        return raw

    yield open_connection
    for raw in connections:
        raw.close()


@pytest.fixture
def client_of():
    """Make clients of managers and scripted peers, which are closed in the end."""
    with contextlib.ExitStack() as stack:

        def make(manager, **settings):
            usual = {"route": getattr(manager, "route", ROUTE), "timeout": GUARD}
            client = TcmClient(manager.uri, **{**usual, **settings})
            stack.callback(client.close)
            return client

        yield make


@pytest.fixture
def connect(client_of):
    return client_of


@pytest.fixture
def segments():
    """Make files in shared memory without the client, which are taken away in the end."""
    files = Segments()
    yield files
    files.close()


@pytest.fixture
def ours():
    """Tell which files in shared memory clients of this process have made."""
    return lambda: {name for name in os.listdir("/dev/shm") if name.startswith(f"tcm_{os.getpid()}_")}
