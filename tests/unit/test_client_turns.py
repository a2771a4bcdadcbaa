"""The turns of a client: by tenant, a few of them, and none where there are none to take."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tcm_sync._deadline import Deadline
from tcm_sync._endpoint import Endpoint
from tcm_sync._pool import client_turns
from tcm_sync._pool.client_turns import ClientTurns

ENDPOINT = Endpoint.parse("ws://turns.example:8000/ws")


def connection(tenant):
    return SimpleNamespace(tenant=tenant)


@pytest.fixture
def turns():
    made = ClientTurns(ENDPOINT, 5, 2.0)
    yield made
    made.close()


def test_each_tenant_has_turns_of_its_own(turns):
    one, other = turns.join(connection("a")), turns.join(connection("b"))
    assert one is not other
    assert turns.join(connection("a")) is one
    assert turns.by_tenant == {"a": one, "b": other}


def test_a_client_of_many_tenants_keeps_the_turns_of_the_last_ones(turns, monkeypatch):
    monkeypatch.setattr(client_turns, "_MAX_TENANTS", 3)
    for tenant in "abcdef":
        turns.join(connection(tenant))
        assert len(turns.by_tenant) <= 3
    assert list(turns.by_tenant) == ["d", "e", "f"]


def test_a_client_without_turns_takes_none():
    assert ClientTurns(ENDPOINT, None, None).join(connection("a")) is None


def test_a_closed_client_keeps_none(turns):
    turns.close()
    turns.join(connection("a"))
    assert turns.by_tenant == {}


def test_a_call_waits_for_its_turn_until_its_deadline_or_as_long_as_is_set(turns):
    assert 1.0 < turns.deadline(Deadline(None)).remaining() <= 2.0
    assert turns.deadline(Deadline(0.5)).remaining() <= 0.5
    unlimited = Deadline(None)
    assert ClientTurns(ENDPOINT, 5, None).deadline(unlimited) is unlimited
