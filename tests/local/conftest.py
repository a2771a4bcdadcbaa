"""Fixtures that make managers, and connections to them, and take them away again."""

from __future__ import annotations

import pytest

from tcm_sync.local import LocalManager, server

from .raw import Gated, Raw, echo


@pytest.fixture
def gated():
    """A model that the test lets go; let go at the end in any case."""
    model = Gated()
    yield model
    model.open_all()


@pytest.fixture
def serve(gated, monkeypatch):
    """Start managers with models ``echo`` and ``gated``, scheduled at once unless the test says otherwise."""
    monkeypatch.setattr(server, "CLOSE_PATIENCE", 0.2)  # the raw client answers no close while nobody reads
    managers = []

    def start(models=None, **settings):
        settings.setdefault("tick", 0)
        manager = LocalManager({"echo": echo, "gated": gated, **(models or {})}, **settings)
        managers.append(manager)
        manager.start()
        return manager

    yield start
    gated.open_all()
    for manager in managers:
        manager.kill()
        manager.stop()


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
