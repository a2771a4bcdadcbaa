"""Limits: how often a window lets something happen, and what LocalManager refuses."""

from __future__ import annotations

import pytest

from tcm_sync.local.limits import SlidingWindow, TokenBucket

from ..helpers.raw_connection import tensor
from ..helpers.waiting import wait_until


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def refused_at(rate: float, limit: int, seconds: float) -> int | None:
    """Send at a steady rate, and return which message is the first to be refused."""
    clock = Clock()
    window = SlidingWindow(limit, 1.0, clock=clock)
    for number in range(int(rate * seconds)):
        clock.now = number / rate
        if not window.admit():
            return number + 1
    return None


def test_a_burst_is_cut_at_the_limit():
    assert refused_at(rate=1000, limit=20, seconds=1) == 21


def test_a_rate_below_the_limit_is_never_refused():
    assert refused_at(rate=19, limit=20, seconds=60) is None


def test_the_window_slides():
    clock = Clock()
    window = SlidingWindow(2, 1.0, clock=clock)
    admitted = []
    for clock.now in (0.0, 0.9, 0.95, 1.0, 1.5, 1.95):
        admitted.append(window.admit())
    assert admitted == [True, True, False, True, False, True]


def test_no_limit_is_no_limit():
    window, bucket = SlidingWindow(None, 1.0), TokenBucket(None)
    assert all(window.admit() and bucket.admit() for _ in range(10_000))


@pytest.mark.parametrize(
    ("rate", "seconds", "refused"), [(20, 60, None), (22, 6, None), (30, 6, 59), (100, 1, 25)]
)
def test_a_tenants_bucket_of_20_refuses_what_was_recorded(rate, seconds, refused):
    """``limit.tenant.budget``: at 20 and 22 a second nothing in 6 s, at 30 number 59, at 100 number 25."""
    clock = Clock()
    bucket = TokenBucket(20, clock=clock)
    for number in range(rate * seconds):
        clock.now = number / rate
        if not bucket.admit():
            assert number + 1 == refused
            return
    assert refused is None


def test_time_fills_a_bucket_once_however_often_it_is_asked():
    clock = Clock()
    bucket = TokenBucket(10, clock=clock)
    assert all(bucket.admit() for _ in range(10))
    clock.now = 0.06
    assert not any(bucket.admit() for _ in range(5)), "0.6 of an event is none"
    clock.now = 0.12
    assert [bucket.admit() for _ in range(2)] == [True, False]


def test_a_bucket_holds_no_more_than_its_size_however_long_it_rests():
    clock = Clock()
    bucket = TokenBucket(3, clock=clock)
    clock.now = 100.0
    assert [bucket.admit() for _ in range(5)] == [True, True, True, False, False]
    clock.now = 100.5  # what was refused has cost nothing
    assert [bucket.admit() for _ in range(2)] == [True, False]


@pytest.mark.usefixtures("one_second")
def test_the_message_limit_is_each_connections_own(serve, dial):
    manager = serve(messages_per_second=2)
    connections = [dial(manager, f"u-{number}") for number in range(4)]
    for raw in connections:
        for _ in range(2):
            raw.ask_info()
            assert raw.receive()["type"] == "info_response"


@pytest.mark.usefixtures("one_second")
def test_the_tenant_limit_counts_all_connections_of_the_tenant(serve, dial):
    manager = serve(tenant_messages_per_second=2)
    first, second, third = (dial(manager, uuid) for uuid in ("a", "b", "c"))
    for raw in (first, second):
        assert raw.infer("echo", tensor([1.0]))["status"] == "COMPLETED"
    third.ask("echo", tensor([1.0]))
    assert third.receive()["payload"] == {
        "code": "BACKPRESSURE_TENANT_LIMIT_REACHED",
        "message": "Tenant quota exceeded (messages per second).",
    }
    assert third.wait_for_close() == 1008


@pytest.mark.usefixtures("one_second")
def test_tenants_of_different_tokens_have_a_limit_each(serve, dial):
    claims = {name: {"tenant_id": name, "roles": ["inference"]} for name in ("one", "two")}
    manager = serve(tenant_messages_per_second=1, tokens=claims)
    for token in ("one", "two"):
        raw = dial(manager, token, token=token)
        assert raw.infer("echo", tensor([1.0]))["status"] == "COMPLETED"


def test_a_message_of_exactly_the_limit_passes(serve, dial):
    manager = serve(max_message_bytes=200)
    raw = dial(manager, "u")
    raw.send('{"uuid": "u", "type": "info", "payload": {"action": "queue_stats"}}'.ljust(200))
    assert raw.receive()["type"] == "info_response"


def test_the_limit_of_a_message_is_in_bytes_of_utf8(serve, dial):
    manager = serve(max_message_bytes=200)
    raw = dial(manager, "u")
    raw.send({"uuid": "u", "type": "info", "payload": {"action": "é" * 20}})  # escaped: six bytes each
    assert raw.receive()["payload"]["request_type"] == "é" * 20
    text = '{"uuid": "u", "type": "info", "payload": {"action": "' + "é" * 80 + '"}}'
    assert len(text) < 200 < len(text.encode())
    raw.send(text)
    assert raw.receive()["payload"] == {"message": "Message too large (>200 bytes)"}
    assert raw.wait_for_close() == 1009


def test_a_first_message_over_the_limit_is_refused_the_same(serve, dial):
    raw = dial(serve(max_message_bytes=200))
    assert raw.auth("u", token="x" * 200)["payload"] == {"message": "Message too large (>200 bytes)"}
    assert raw.wait_for_close() == 1009


def test_fragments_count_together(serve, dial):
    manager = serve(max_message_bytes=200)
    raw = dial(manager, "u")
    raw.send_fragments('{"uuid": "u", "type": "info", ', '"payload": {"action": "queue_stats"}}')
    assert raw.receive()["type"] == "info_response"
    raw.send_fragments(*["x" * 60] * 4)
    assert raw.receive()["payload"] == {"message": "Message too large (>200 bytes)"}
    assert raw.wait_for_close() == 1009


def test_a_message_over_what_the_library_takes_by_default_is_still_refused_in_the_managers_words(serve, dial):
    raw = dial(serve(), "u")
    raw.send("x" * 3 * 2**20)
    assert raw.receive()["payload"] == {"message": "Message too large (>65536 bytes)"}
    assert raw.wait_for_close() == 1009


def test_the_seventh_request_of_a_socket_is_refused_when_its_queue_holds_five(serve, dial, gated):
    manager = serve(workers=1, executor_queue_size=1, queue_size=5)
    raw = dial(manager, "u")
    raw.ask("gated", tensor([0.0]))
    wait_until(lambda: manager.stats().running == 1, "the first runs")
    for number in range(1, 7):
        raw.ask("gated", tensor([float(number)]))
    assert raw.receive()["payload"] == {
        "code": "BACKPRESSURE_QUEUE_FULL",
        "message": "Request dropped due to backpressure (per-user queue full).",
        "dropped_type": "inference",
    }
    for number in range(6):
        gated.open(number)
        assert raw.receive()["payload"]["data"] == {"y": [number]}
    assert manager.stats().nacks == {"BACKPRESSURE_QUEUE_FULL": 1}


def test_a_full_executor_drops_what_the_tick_has_taken(serve, dial, gated):
    manager = serve(executor_queue_size=1)
    first, second = dial(manager, "a"), dial(manager, "b")
    first.ask("gated", tensor([0.0]))
    wait_until(lambda: manager.stats().running, "the executor is full, and no tick takes anything")
    first.ask("gated", tensor([1.0]))
    second.ask("gated", tensor([2.0]))
    wait_until(lambda: manager.stats().waiting == 2, "both wait for the next tick")
    gated.open(0)
    assert second.receive()["payload"] == {
        "code": "BACKPRESSURE_EXECUTOR_FULL",
        "message": "Request dropped due to backpressure (executor full).",
        "dropped_type": "inference",
    }
    gated.open_all()
    assert [first.receive()["payload"]["data"] for _ in range(2)] == [{"y": [0.0]}, {"y": [1.0]}]
    assert second.infer("gated", tensor([2.0]))["data"] == {"y": [2.0]}  # the socket stays


def test_the_payload_budget_is_the_sum_of_the_inputs(serve, dial):
    raw = dial(serve(max_payload_bytes=16), "u")
    two = tensor([1.0, 2.0], name="a"), tensor([1.0, 2.0], name="b")
    assert raw.infer("echo", *two)["status"] == "COMPLETED"
    data = raw.infer("echo", *two, tensor([True], "BOOL", name="c"))["data"]
    assert data["message"].endswith("reason=413 Payload Too Large: estimated_bytes=17 limit_bytes=16")
    assert (data["code"], data["retriable"]) == ("TRITON_INFERENCE_FAILED", False)


def test_a_starved_request_is_announced_as_delayed_just_before_its_turn(serve, dial, gated):
    manager = serve(quantum=1, executor_queue_size=1, advise_after=3)
    old, young = dial(manager, "old"), dial(manager, "young")
    old.ask("gated", tensor([0.0]))
    wait_until(lambda: manager.stats().running, "the executor is full, and no tick takes anything")
    for _ in range(10):  # ten ticks' work
        old.ask("echo", tensor([1.0]))
    young.ask("echo", tensor([2.0]))
    wait_until(lambda: manager.stats().waiting == 11, "all of them wait")
    gated.open_all()
    assert young.receive()["payload"] == {
        "code": "BACKPRESSURE_INSUFFICIENT_BUDGET",
        "message": "Request delayed due to tenant budget (DRR cost-aware fairness).",
        "job_type": "inference",
        "tenant_id": "unknown",
    }
    assert young.receive()["payload"]["data"] == {"x": [2.0]}
    assert [old.receive()["type"] for _ in range(11)] == ["inference"] * 11
    assert manager.stats().nacks == {"BACKPRESSURE_INSUFFICIENT_BUDGET": 1}


@pytest.mark.parametrize("advise_after", [None, 100])
def test_a_delay_is_not_announced_when_it_is_short_or_when_nothing_is(serve, dial, gated, advise_after):
    manager = serve(quantum=1, executor_queue_size=1, advise_after=advise_after)
    old, young = dial(manager, "old"), dial(manager, "young")
    old.ask("gated", tensor([0.0]))
    wait_until(lambda: manager.stats().running, "the executor is full, and no tick takes anything")
    for _ in range(5):
        old.ask("echo", tensor([1.0]))
    young.ask("echo", tensor([2.0]))
    wait_until(lambda: manager.stats().waiting == 6, "all of them wait")
    gated.open_all()
    assert young.receive()["payload"]["data"] == {"x": [2.0]}
    assert manager.stats().nacks == {}
