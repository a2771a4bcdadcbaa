"""Alerts and other messages that answer nothing: counted by kind, logged once a minute, and bounded."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from tcm_sync._logs import flush
from tcm_sync._transport import unsolicited as module
from tcm_sync._transport.counters import Counts
from tcm_sync._transport.unsolicited import UnsolicitedMessages
from tcm_sync._wire.messages import Alert

TIMEOUT = 30.0
CONNECTION = SimpleNamespace(uuid="u-1")


@pytest.fixture
def unsolicited():
    messages = UnsolicitedMessages(Counts())
    messages.counts = messages._counts
    return messages


def test_alerts_are_counted_by_kind_and_logged_once_a_minute_each(unsolicited, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "tcm_sync.reader")
    now = [1000.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    for kind, passes in (("a", 0.0), ("b", 0.0), ("a", 59.9), ("a", 0.1), ("b", 0.0)):
        now[0] += passes
        unsolicited.alert(CONNECTION, Alert(error_type=kind, message=f"of {kind}"))
    assert unsolicited.counts.alerts == {"a": 3, "b": 2}
    assert flush(TIMEOUT)
    said = [record.getMessage() for record in caplog.records]
    assert [text.split(": ")[2] for text in said] == ["a", "b", "a", "b"]


def test_the_manager_may_name_64_kinds_of_alerts_and_the_others_count_together(unsolicited):
    for number in range(70):
        unsolicited.alert(CONNECTION, Alert(error_type=f"kind {number}", message=""))
    unsolicited.alert(CONNECTION, Alert(error_type="kind 5", message=""))
    alerts = unsolicited.counts.alerts
    assert alerts["kind 5"] == 2
    assert alerts["kind 63"] == 1
    assert alerts["others"] == 6
    assert len(alerts) == 65


def test_delays_are_counted_for_the_call_that_waits(unsolicited):
    waiting = SimpleNamespace(advisories=0)
    unsolicited.delay(CONNECTION, waiting)
    unsolicited.delay(CONNECTION, None)
    assert waiting.advisories == 1
    assert unsolicited.counts.advisories == 2
