"""Which calls go through shared memory, which as JSON, which not at all, and what `explain` says of it."""

from __future__ import annotations

import json
import re
import resource
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tcm_sync import (
    InferenceInput,
    InputError,
    MessageTooLargeError,
    RetryPolicy,
    Route,
    SharedMemoryRegistrationError,
    SharedMemoryUnavailableError,
    SHMReference,
)
from tcm_sync import _ttl_cache as ttl_cache
from tcm_sync._calls import chunked
from tcm_sync._shm import policy as module
from tcm_sync._shm.policy import WORTH_SHARING
from tcm_sync._shm.segment import Space
from tcm_sync._tensors import outputs
from tcm_sync._ttl_cache import TtlCache
from tcm_sync.local.mapping import is_usable

from ..helpers.segments import total
from ..helpers.waiting import end

pytestmark = pytest.mark.skipif(not is_usable(), reason="there is no /dev/shm here")

FLOATS = WORTH_SHARING // 4
WORTH, TOO_FEW = np.ones(FLOATS, np.float32), np.ones(FLOATS - 1, np.float32)
LIMIT = 2**20
TOO_MANY = np.zeros(LIMIT, np.float32)  # for a message


@pytest.fixture
def manager(serve):
    return serve({"sum": total}, max_message_bytes=LIMIT)


@pytest.fixture
def client_of(client_of):
    """Make clients whose messages may be as large as the manager's."""
    return lambda manager, **settings: client_of(manager, **{"max_message_bytes": LIMIT, **settings})


@pytest.fixture
def client(client_of, manager):
    return client_of(manager)


def way(client, x=WORTH, **how):
    """Ask, check the answer, and say which way it went, and why."""
    before = client.stats()
    found = client.infer("sum", {"x": x}, **how)["sum"].item()
    assert found == np.sum(x, dtype=np.float64)
    after = client.stats().since(before)
    assert after.shm_sends + sum(after.shm_declined.values()) <= 1
    return "shm" if after.shm_sends else ", ".join(after.shm_declined) or "json"


# --- auto ---


def test_what_is_worth_it_is_shared_and_what_is_not_is_not(client):
    assert way(client, WORTH) == "shm"
    assert way(client, TOO_FEW) == "json"
    assert client.explain({"x": WORTH}).startswith(
        "through shared memory: 16,384 bytes, nothing is in the way; as JSON it is "
    )
    told = client.explain({"x": TOO_FEW})
    assert told.startswith("as JSON: as JSON it is ")
    assert told.endswith(", and 16,380 bytes of tensors are too few to be worth sharing")
    size = int(re.search(r"it is ([\d,]+) bytes", told)[1].replace(",", ""))
    before = client.stats()
    client.infer("sum", {"x": TOO_FEW})
    assert 0 < client.stats().since(before).bytes_sent - size < 150  # the envelope, and a frame


def test_it_is_the_sum_of_the_tensors_that_counts(client, serve, client_of):
    manager = serve({"sums": lambda arrays: {"n": [len(arrays)]}})
    client = client_of(manager)
    half = np.ones(FLOATS // 2, np.float32)
    client.infer("sums", {"a": half, "b": half})
    assert client.stats().shm_sends == 1
    client.infer("sums", {"a": half, "b": half[:-1]})
    assert client.stats().shm_sends == 1
    client.infer("sums", {f"x{number}": np.ones(FLOATS // 32, np.float32) for number in range(32)})
    assert client.stats().shm_sends == 2


def test_what_does_not_fit_a_message_is_shared_however_small_that_is(client_of, serve):
    client = client_of(serve({"sum": total}), max_message_bytes=400)
    few = np.ones(200)
    assert way(client, few) == "shm"
    told = client.explain({"x": few})
    assert told.startswith(
        "through shared memory: 1,600 bytes, nothing is in the way; it cannot go as JSON ("
    )
    assert "max_message_bytes is 400" in told


def test_an_infinity_is_shared_however_small_its_tensor_is(client):
    found = client.infer("sum", {"x": np.array([1.0, np.inf])})["sum"]
    assert np.isnan(found.item()), "a reply is JSON"
    assert client.stats().shm_sends == 1
    told = client.explain({"x": np.array([1.0, np.inf])})
    assert told.startswith("through shared memory: 16 bytes")
    assert "an infinity, which has no form in JSON" in told


def test_bytes_have_no_fixed_size(serve, client_of):
    manager = serve({"count": lambda arrays: {"n": [arrays["x"].size]}})
    client = client_of(manager)
    words = np.array(["word"] * 5000)
    assert client.infer("count", {"x": words})["n"].item() == 5000
    assert client.stats().shm_declined == {"no fixed size": 1}
    assert 'and no fixed size: input "x" is BYTES' in client.explain({"x": words})
    assert client.explain({"x": words}).startswith("as JSON: ")


def test_one_input_that_cannot_be_shared_keeps_all_from_it(serve, client_of):
    manager = serve({"count": lambda arrays: {"n": [arrays["words"].size, arrays["x"].size]}})
    client = client_of(manager)
    found = client.infer("count", {"x": WORTH, "words": ["a", "b"]})
    assert found["n"].tolist() == [2, FLOATS]
    assert client.stats().shm_declined == {"no fixed size": 1}


def test_an_empty_tensor_has_no_file(serve, client_of):
    manager = serve({"count": lambda arrays: {"n": [array.size for array in arrays.values()]}})
    client = client_of(manager)
    inputs = {"x": WORTH, "none": np.zeros((1, 0), np.float32)}
    assert client.infer("count", inputs)["n"].tolist() == [FLOATS, 0]
    assert client.stats().shm_declined == {"empty": 1}
    assert 'and empty: input "none" has no elements' in client.explain(inputs)


def test_a_route_without_an_address_is_not_known_to_be_here(client_of, manager):
    client = client_of(manager, route=Route("local"))
    assert way(client) == "elsewhere"
    assert "and elsewhere: the route has no vm_ip" in client.explain({"x": WORTH})
    assert way(client, vm_ip="127.0.0.1") == "shm"


def test_an_address_of_another_machine_is_not_here(client_of, serve):
    manager = serve({"sum": total}, vm_ip="192.0.2.7", max_message_bytes=LIMIT)
    client = client_of(manager)
    assert way(client) == "elsewhere"
    assert "and elsewhere: vm_ip 192.0.2.7 is not an address of this machine" in client.explain({"x": WORTH})
    assert way(client, transport="shm") == "shm", "siblings may share /dev/shm"


def test_a_manager_on_another_machine_is_not_here(client_of, manager, monkeypatch):
    monkeypatch.setattr("tcm_sync._transport.connection.is_local", lambda sock: False)
    client = client_of(manager)
    assert way(client) == "elsewhere"
    assert "and elsewhere: the manager is not on this machine" in client.explain({"x": WORTH})
    assert way(client, transport="shm") == "shm"


def test_a_manager_that_grants_none_gets_none(client_of, serve):
    client = client_of(serve({"sum": total}, shm=False, max_message_bytes=LIMIT))
    assert client.explain({"x": WORTH}).startswith("through shared memory"), "it is not asked yet"
    assert way(client) == "not granted"
    assert "and not granted: the manager did not grant shm" in client.explain({"x": WORTH})


def test_it_can_be_switched_off(client_of, manager, ours):
    client = client_of(manager, shm="off")
    assert way(client) == "switched off"
    assert "and switched off: the client was made with shm='off'" in client.explain({"x": WORTH})
    assert manager.stats().connected == 1
    assert client._core.runtime.pool.any_open().capability == {"json"}
    assert ours() == set()


def test_another_system_takes_json(client, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert way(client) == "not supported"
    assert "and not supported: shared memory needs Linux, and this is darwin" in client.explain({"x": WORTH})


def test_it_is_looked_at_for_each_attempt_on_its_own_socket(client_of, manager, monkeypatch):
    """The manager is started anew without shared memory while a client has tensors for it."""
    client = client_of(manager)
    assert way(client) == "shm"
    end(manager, "stop", client)
    object.__setattr__(manager._settings, "shm", False)
    manager.start()
    assert way(client) == "not granted"


# --- asked for, or refused ---


def test_json_can_be_asked_for(client, ours):
    assert way(client, transport="json") == "json"
    assert client.explain({"x": WORTH}, transport="json").endswith(", and transport='json' says so")
    assert ours() == set()


def test_json_that_is_asked_for_is_an_error_where_it_cannot_be(client):
    with pytest.raises(MessageTooLargeError) as caught:
        client.infer("sum", {"x": TOO_MANY}, transport="json")
    assert "shared memory" not in caught.value.message
    with pytest.raises(InputError, match="infinity"):
        client.infer("sum", {"x": [np.inf]}, transport="json")
    assert client.explain({"x": TOO_MANY}, transport="json").startswith(
        "not at all: transport='json' says so; it cannot go as JSON (the message has"
    )


def test_shared_memory_can_be_asked_for_whatever_the_size(client):
    assert way(client, np.ones(1), transport="shm") == "shm"
    assert client.explain({"x": np.ones(1)}, transport="shm").startswith("through shared memory: 8 bytes, ")


@pytest.mark.parametrize("transport", ["SHM", "", None, 1, "tcp"])
def test_there_is_no_other_way(client, transport):
    for call in (client.infer, client.submit, client.map):
        with pytest.raises(InputError, match="transport must be 'auto', 'json' or 'shm'"):
            call("sum", {"x": WORTH} if call != client.map else [{"x": WORTH}], transport=transport)
    with pytest.raises(InputError, match="transport must be"):
        client.explain({"x": WORTH}, transport=transport)


@pytest.mark.parametrize(
    ("x", "settings", "told"),
    [
        (["a"], {}, 'no fixed size: input "x" is BYTES'),
        (np.zeros((1, 0)), {}, 'empty: input "x" has no elements'),
        (WORTH, {"shm": "off"}, "switched off: the client was made with shm='off'"),
    ],
)
def test_what_cannot_be_shared_is_refused_before_anything_is_sent(client_of, manager, x, settings, told):
    client = client_of(manager, **settings)
    with pytest.raises(InputError, match="transport='shm' cannot be: ") as caught:
        client.infer("sum", {"x": x}, transport="shm")
    assert told in caught.value.message
    assert client.explain({"x": x}, transport="shm").startswith(f"not at all: {told}")
    assert client.stats().messages_sent == 0


def test_what_a_socket_does_not_allow_is_refused_and_the_socket_stays(client_of, serve):
    client = client_of(serve({"sum": total}, shm=False))
    for _ in range(2):
        with pytest.raises(SharedMemoryUnavailableError, match="not granted: the manager did not grant shm"):
            client.infer("sum", {"x": WORTH}, transport="shm")
    assert client.explain({"x": WORTH}, transport="shm") == (
        "not at all: not granted: the manager did not grant shm"
    )
    stats = client.stats()
    assert (stats.messages_sent, stats.sockets, stats.sockets_opened, stats.repeats) == (0, 1, 1, {})


@pytest.mark.parametrize("make", ["submit", "map"])
def test_submit_and_map_take_it_too(client, make):
    for transport, sends in [("json", 0), ("auto", 1), ("shm", 2)]:
        if make == "submit":
            result = client.submit("sum", {"x": WORTH}, transport=transport).result()
        else:
            [result] = client.map("sum", [{"x": WORTH}], transport=transport)
        assert result["sum"].item() == FLOATS
        assert client.stats().shm_sends == sends


def test_a_map_reports_what_cannot_be_shared_as_the_failure_of_that_call(client):
    inputs = [{"x": WORTH}, {"x": ["a"]}, {"x": WORTH}]
    found = list(client.map("sum", inputs, transport="shm", on_error="return"))
    assert [type(each).__name__ for each in found] == ["InferResult", "InputError", "InferResult"]


# --- both reasons ---


@pytest.mark.parametrize(
    ("x", "kind", "text"),
    [(TOO_MANY, MessageTooLargeError, "max_message_bytes"), (np.array([np.inf]), InputError, "infinity")],
    ids=["too large", "infinity"],
)
@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"shm": "off"}, "switched off: the client was made with shm='off'"),
        ({"shm_max_pinned": 1}, "pinned: "),
        ({"route": Route("local")}, "elsewhere: the route has no vm_ip"),
    ],
    ids=["off", "pinned", "elsewhere"],
)
def test_what_cannot_be_sent_in_either_way_is_reported_with_both_reasons(
    client_of, manager, x, kind, text, settings, why
):
    client = client_of(manager, **settings)
    with pytest.raises(kind, match="; and shared memory cannot be used either: ") as caught:
        client.infer("sum", {"x": x})
    assert text in caught.value.message
    assert why in caught.value.message
    told = client.explain({"x": x})
    assert told.startswith(f"not at all: {why}")
    assert text in told
    assert client.stats().messages_sent == 0


def test_what_a_socket_does_not_allow_is_reported_with_both_reasons(client_of, serve):
    client = client_of(serve({"sum": total}, shm=False))
    with pytest.raises(MessageTooLargeError, match="cannot be used either: not granted: ") as caught:
        client.infer("sum", {"x": TOO_MANY})
    assert "max_message_bytes" in str(caught.value)
    assert client.stats().messages_sent == 0


# --- what may be pinned ---


def test_over_the_budget_auto_declines_and_shm_refuses(client_of, manager, ours):
    client = client_of(manager, shm_max_pinned=2 * WORTH.nbytes)
    other = np.ones(FLOATS + 1, np.float32)
    assert way(client, WORTH) == "shm"
    assert way(client, other) == "pinned"
    assert way(client, WORTH) == "shm", "what is pinned already is used again"
    with pytest.raises(
        SharedMemoryUnavailableError, match=r"cannot go .*: pinned: .*shm_max_pinned \(32,768"
    ):
        client.infer("sum", {"x": other}, transport="shm")
    assert client.stats().shm_pinned == WORTH.nbytes
    told = client.explain({"x": other})
    assert "and pinned: servers keep 16,384 bytes mapped, and may keep 32,768" in told
    assert client.explain({"x": other}, transport="shm").startswith("not at all: pinned: ")
    assert len(ours()) == 1


def test_calls_that_fail_pin_what_they_had(client_of, manager, ours):
    client = client_of(manager, shm_max_pinned=3 * WORTH.nbytes)
    for _ in range(3):
        with pytest.raises(Exception, match="no_such"):
            client.infer("no_such", {"x": WORTH})
    assert client.stats().shm_pinned == 3 * WORTH.nbytes
    assert way(client) == "pinned"
    assert ours() == set()


def test_of_two_inputs_the_first_is_given_back_when_there_is_none_for_the_second(client_of, serve, ours):
    manager = serve({"sums": lambda arrays: {name: [float(array.sum())] for name, array in arrays.items()}})
    client = client_of(manager, shm_max_pinned=WORTH.nbytes)
    for _ in range(2):
        client.infer("sums", {"a": WORTH, "b": 2 * WORTH})
    assert client.stats().shm_declined == {"pinned": 2}
    assert len(ours()) == 1
    client.infer("sums", {"a": WORTH})
    assert client.stats().shm_sends == 1


def test_a_quarter_of_the_directory_may_be_pinned_by_default(client, client_of, manager, monkeypatch):
    way(client)
    from tcm_sync._shm.segment import directory_space

    assert client._core.shm._arena.max_pinned == directory_space().size // 4


def test_a_full_directory_is_a_reason(client, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    assert way(client) == "no room"
    with pytest.raises(SharedMemoryUnavailableError, match="no room: /dev/shm has no 16,384 bytes"):
        client.infer("sum", {"x": WORTH}, transport="shm")
    with pytest.raises(MessageTooLargeError, match=r"max_message_bytes.* cannot be used either: no room: "):
        client.infer("sum", {"x": TOO_MANY})


def test_a_directory_that_is_nearly_full_is_reported(client, monkeypatch):
    monkeypatch.setattr("tcm_sync._shm.arena.directory_space", lambda: Space(2**30, 5, has_inodes=True))
    assert "and no room: /dev/shm has no 16,384 bytes (5 are free)" in client.explain({"x": WORTH})


def test_a_directory_that_goes_away_is_a_reason_before_and_after_the_first_call(
    client_of, manager, monkeypatch
):
    def gone(path):
        raise FileNotFoundError(2, "No such file or directory", path)

    for is_first in (True, False):
        client = client_of(manager)
        if not is_first:
            assert way(client) == "shm"
        with monkeypatch.context() as patch:
            patch.setattr("os.statvfs", gone)
            assert way(client, np.ones(WORTH.size + 1)) == "not made"
            with pytest.raises(InputError, match=r"^no shared memory: not made: "):
                client.empty_shared(5, np.uint8)
        assert way(client, np.ones(WORTH.size + 1)) == "shm"


# --- a server that cannot be told ---


class Clock:
    """A clock that goes when it is told."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    return clock


@pytest.fixture
def blind(serve):
    """A manager whose Triton has a /dev/shm of its own."""
    return serve({"sum": total}, triton_shm=False, max_message_bytes=LIMIT)


def test_it_is_tried_with_two_segments_and_then_goes_as_json(client_of, blind, ours):
    client = client_of(blind)
    assert client.infer("sum", {"x": WORTH})["sum"].item() == FLOATS
    stats = client.stats()
    assert (stats.shm_sends, stats.messages_sent, stats.repeats) == (2, 3, {})
    assert stats.shm_declined == {"refused": 1}
    assert stats.shm_pinned == 2 * WORTH.nbytes
    assert ours() == set()


def test_it_works_without_repeats_too(client_of, blind):
    client = client_of(blind, retry=None)
    assert client.infer("sum", {"x": WORTH})["sum"].item() == FLOATS


def test_the_route_is_remembered_with_the_reason_and_nothing_is_tried_meanwhile(client_of, blind, clock):
    client = client_of(blind)
    client.infer("sum", {"x": WORTH})
    for _ in range(3):
        assert way(client) == "refused"
    told = client.explain({"x": WORTH})
    assert "and refused: [TritonThread] TRITON_SHM_REGISTRATION_FAILED" in told
    assert told.endswith("(tried again after a pause of 5 s)")
    with pytest.raises(
        MessageTooLargeError, match=r"max_message_bytes.*; and shared memory cannot be used either"
    ):
        client.infer("sum", {"x": TOO_MANY})
    assert client.stats().shm_sends == 2


def test_the_pause_doubles_up_to_ten_minutes_and_is_forgotten_when_it_works(client_of, blind, clock):
    client = client_of(blind)
    pauses = []
    for _ in range(9):
        before = client.stats().shm_sends
        client.infer("sum", {"x": WORTH})
        assert client.stats().shm_sends == before + 2
        began = clock.now
        told = client.explain({"x": WORTH})
        pause = float(told.rpartition("a pause of ")[2].removesuffix(" s)"))
        clock.now = began + pause - 0.1
        assert way(client) == "refused"
        clock.now = began + pause
        pauses.append(pause)
    assert pauses == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 600.0, 600.0]
    blind._regions._other_directory = False
    assert way(client) == "shm"
    assert client._core.shm._pauses == {}


def test_calls_that_fail_together_make_one_pause(client_of, blind, clock):
    client = client_of(blind, pool_size=4)
    with ThreadPoolExecutor(4) as threads:
        for _ in threads.map(lambda _: client.infer("sum", {"x": WORTH}), range(16)):
            pass
    assert client.explain({"x": WORTH}).endswith("(tried again after a pause of 5 s)")


def test_other_routes_are_not_held_to_it(client_of, blind, clock):
    client = client_of(blind)
    client.infer("sum", {"x": WORTH})
    blind._regions._other_directory = False
    assert way(client) == "refused"
    assert way(client, vm_id="another") == "shm"


def test_asked_for_it_is_tried_all_the_same_and_is_an_error(client_of, blind, clock):
    client = client_of(blind)
    for _ in range(2):
        with pytest.raises(SharedMemoryRegistrationError, match="Unable to open shared memory region"):
            client.infer("sum", {"x": WORTH}, transport="shm")
    assert client.stats().shm_sends == 4


def test_a_message_that_does_not_fit_reports_both_reasons_after_the_trying(client_of, blind):
    client = client_of(blind)
    with pytest.raises(
        MessageTooLargeError, match=r"max_message_bytes.*cannot be used either: refused: "
    ) as caught:
        client.infer("sum", {"x": TOO_MANY})
    assert "Unable to open shared memory region" in caught.value.message
    assert client.stats().shm_sends == 2


# --- allow_transient ---


@pytest.fixture
def transient(manager):
    route = manager.transient_route
    return {"container_id": route.container_id, "vm_ip": route.vm_ip, "allow_transient": True}


def test_a_transient_route_takes_json_unless_asked(client, transient):
    assert way(client, **transient) == "transient"
    told = client.explain({"x": WORTH}, **transient)
    assert (
        "and transient: with allow_transient a key works only once; transport='shm' uses it nevertheless"
        in told
    )
    told = client.explain({"x": WORTH}, transport="shm", **transient)
    assert told.startswith("through shared memory: ")


def test_asked_for_each_call_has_a_fresh_segment(client, transient, ours):
    for number in range(5):
        assert way(client, WORTH + number, transport="shm", **transient) == "shm"
        assert ours() == set()
    assert client.stats().shm_pinned == 5 * WORTH.nbytes


def test_an_array_of_shared_memory_has_a_fresh_segment_too(client, transient, ours):
    x = client.empty_shared(FLOATS, np.float32)
    for number in range(3):
        x[:] = number
        assert way(client, x, transport="shm", **transient) == "shm"
    assert len(ours()) == 1, "its own, which nobody was told of"
    assert way(client, x) == "shm"
    assert client.stats().shm_pinned == 4 * WORTH.nbytes


def test_each_attempt_has_a_fresh_segment(serve, client_of):
    from tcm_sync.local import ModelFailure

    failures = [ModelFailure("TRITON_TIMEOUT", "late") for _ in range(2)]

    def late(arrays):
        if failures:
            raise failures.pop()
        return total(arrays)

    manager = serve({"sum": late})
    client = client_of(manager, retry=RetryPolicy(initial=0.0, maximum=0.0))
    route = manager.transient_route
    found = client.infer(
        "sum",
        {"x": WORTH},
        container_id=route.container_id,
        vm_ip=route.vm_ip,
        allow_transient=True,
        transport="shm",
    )
    assert found["sum"].item() == FLOATS
    assert client.stats().shm_sends == 3


# --- streams, pipelines and a user's own ---


def test_a_stream_has_its_inputs_in_the_message(serve, client_of):
    manager = serve({"talk": lambda arrays: iter([str(arrays["x"].sum()), None])}, max_message_bytes=LIMIT)
    client = client_of(manager)
    route = manager.transient_route
    where = {"container_id": route.container_id, "vm_ip": route.vm_ip, "allow_transient": True}
    with client.stream("talk", {"x": WORTH}, **where) as chunks:
        assert list(chunks) == [str(float(FLOATS))]
    with pytest.raises(MessageTooLargeError):
        client.stream("talk", {"x": TOO_MANY}, **where)
    with pytest.raises(InputError):
        client.stream("talk", [SHMReference("x", "a", 4, [1], "FP32")], **where)
    assert client.stats().shm_sends == 0


def test_a_pipeline_has_its_inputs_in_the_message(client):
    found = client.pipeline([{"model_name": "sum", "inputs": {"x": WORTH}}])
    assert found["sum"]["sum"].item() == FLOATS
    for x, kind in [(TOO_MANY, MessageTooLargeError), (np.array([np.inf]), InputError)]:
        with pytest.raises(kind):
            client.pipeline([{"model_name": "sum", "inputs": {"x": x}}])
    with pytest.raises(InputError):
        client.pipeline([{"model_name": "sum", "inputs": [SHMReference("x", "a", 4, [1], "FP32")]}])
    assert client.stats().shm_sends == 0


@pytest.fixture
def chunks(serve, client_of):
    """Send a batch to a model that returns it, and return the rows and the way of each message."""

    def run(x, *, shm=True, **how):
        seen = []

        def echo(arrays):
            seen.append(len(arrays["x"]))
            return {"y": arrays["x"]}

        client = client_of(serve({"echo": echo}, shm=shm), max_message_bytes=65_536)
        for _ in range(2):  # the second time it is known what the manager grants
            seen.clear()
            before = client.stats()
            found = client.infer_chunked("echo", {"x": x}, output_dtypes=x.dtype, **how)["y"]
            assert np.array_equal(found, x)
        after = client.stats().since(before)
        assert not after.failures
        return sorted(seen, reverse=True), after.shm_sends

    return run


BATCH = np.random.default_rng(5).random((10, FLOATS), np.float32)  # of which a message carries a row as JSON


@pytest.mark.parametrize(
    ("how", "rows", "shared"),
    [
        ({}, [4, 4, 2], 3),  # 4 bytes of text are the least of a float
        ({"rows": 7}, [7, 3], 2),
        ({"rows": 1}, [1] * 10, 10),
        ({"transport": "shm"}, [4, 4, 2], 3),
        ({"transport": "json"}, [1] * 10, 0),
    ],
    ids=str,
)
def test_chunks_of_a_batch_are_shared_where_that_is_worth_it(chunks, how, rows, shared):
    assert chunks(BATCH, **how) == (rows, shared)


def test_chunks_that_are_too_few_to_be_worth_sharing_are_not(chunks):
    assert chunks(BATCH[:, : FLOATS // 10 - 1]) == ([10], 0)
    assert chunks(BATCH[:, :100], rows=2, transport="shm") == ([2] * 5, 5)
    rows, shared = chunks(np.ones((2**15 + 50, 1), np.uint8))
    assert (rows, shared) == ([2**15, 50], 1)


def test_shared_chunks_are_never_more_than_those_of_json(chunks):
    short = np.tile([0, 1], 40_000).reshape(-1, 1)  # 2 bytes of text each, and 8 in memory
    shared, sends = chunks(short)
    as_json, none = chunks(short, transport="json")
    assert (len(shared), sends, none) == (3, 3, 0)
    assert len(shared) <= len(as_json)


def test_rows_that_fit_no_message_are_shared(chunks):
    assert chunks(np.arange(4 * 20_000.0).reshape(4, 20_000)) == ([1] * 4, 4)


def test_chunks_have_an_eighth_of_the_largest_reply(serve, client_of):
    seen = []

    def echo(arrays):
        seen.append(arrays["x"].nbytes)
        return {"y": arrays["x"]}

    client = client_of(serve({"echo": echo}), max_message_bytes=2**26, max_reply_bytes=800_000)
    x = np.random.default_rng(5).random((100_000, 1), np.float32)
    assert np.array_equal(client.infer_chunked("echo", {"x": x}, output_dtypes=np.float32)["y"], x)
    assert seen == [100_000] * 4
    assert client.stats().shm_sends == 4


def test_chunks_go_as_json_where_the_manager_grants_no_shared_memory(chunks):
    assert chunks(BATCH, shm=False) == ([1] * 10, 0)


def test_it_is_found_once_that_the_chunks_of_a_batch_cannot_be_shared(serve, client_of):
    client = client_of(serve({"echo": lambda arrays: arrays}, shm=False), max_message_bytes=65_536)
    client.open(wait=True)
    client.infer_chunked("echo", {"x": BATCH})
    assert client.stats().shm_declined == {"not granted": 1}


def test_rows_of_many_inputs_go_as_json_and_are_looked_at_once_a_message(serve, client_of, monkeypatch):
    taken = []

    def take(tensors, start, stop):
        taken.append((start, stop))
        return rows_of(tensors, start, stop)

    rows_of = chunked._rows_of
    monkeypatch.setattr(chunked, "_rows_of", take)
    client = client_of(serve({"echo": lambda arrays: arrays}), max_message_bytes=65_536)
    client.open(wait=True)
    inputs = {f"x{number}": np.arange(2000.0) + number for number in range(17)}
    found = client.infer_chunked("echo", inputs, rows=100)
    assert all((found[name] == inputs[name]).all() for name in inputs)
    assert client.stats().shm_segments == 0
    # The first message was looked at for shared memory, and nothing for it again.
    assert sorted(taken) == [(0, 100), *((start, start + 100) for start in range(0, 2000, 100))]


def test_chunks_that_must_be_shared_and_cannot_be_are_refused(client, manager):
    words = np.array([["word"]] * 5000, object)
    with pytest.raises(InputError, match=r"^transport='shm' cannot be: no fixed size: "):
        client.infer_chunked("sum", {"x": words}, transport="shm")
    assert "sum" not in manager.stats().executions


def test_chunks_for_which_no_file_can_be_made_are_cut_again(serve, client_of):
    client = client_of(
        serve({"echo": lambda arrays: arrays}), max_message_bytes=65_536, shm_max_pinned=100_000
    )
    found = client.infer_chunked("echo", {"x": np.tile(BATCH, (3, 1))}, output_dtypes=np.float32)["x"]
    assert np.array_equal(found, np.tile(BATCH, (3, 1)))
    stats = client.stats()
    assert stats.shm_pinned <= 100_000
    assert set(stats.shm_declined) == {"pinned"}
    with pytest.raises(
        MessageTooLargeError, match=r"^rows 0 to 9: .*shared memory cannot be used either: pinned"
    ):
        client.infer_chunked("echo", {"x": BATCH}, rows=10)


def executed(*, answer):
    """Make a model that answers with some outputs, and the list of the rows that it was run on."""
    rows: list[float] = []

    def model(arrays):
        rows.extend(arrays["x"][:, 0].tolist())
        return answer(arrays["x"])

    return model, rows


@pytest.mark.parametrize("retry", [None, RetryPolicy(resend_lost=False)])
def test_shared_chunks_whose_reply_is_too_large_do_not_run_twice_unless_the_policy_allows_it(
    serve, client_of, retry
):
    model, ran = executed(answer=lambda x: {"y": np.tile(x, 400)})
    client = client_of(serve({"wide": model}), max_message_bytes=65_536, max_reply_bytes=300_000, retry=retry)
    x = np.arange(20_000, dtype=np.float32).reshape(-1, 1)
    with pytest.raises(MessageTooLargeError, match=r"^rows 0 to [\d,]+: the reply has at least ") as caught:
        client.infer_chunked("wide", {"x": x}, concurrency=1)
    assert caught.value.outcome_unknown
    assert client.stats().shm_sends >= 1
    assert len(ran) == len(set(ran)) > 1


def test_shared_chunks_whose_reply_is_too_large_are_cut_again(serve, client_of):
    model, ran = executed(answer=lambda x: {"y": np.tile(x, 40)})
    client = client_of(serve({"wide": model}), max_message_bytes=65_536, max_reply_bytes=300_000)
    x = np.random.default_rng(5).random((9_000, 1), np.float32)
    found = client.infer_chunked("wide", {"x": x}, output_dtypes=np.float32)["y"]
    assert np.array_equal(found, np.tile(x, 40))
    ran.clear()
    found = client.infer_chunked("wide", {"x": x}, output_dtypes=np.float32)["y"]
    assert np.array_equal(found, np.tile(x, 40))
    assert sorted(ran) == sorted(x[:, 0].tolist()), "what is learned is kept: no row ran twice"


def test_shared_chunks_whose_reply_cannot_be_decoded_for_want_of_memory_are_not_sent_again(
    serve, client_of, monkeypatch
):
    model, ran = executed(answer=lambda x: {"y": x})
    client = client_of(serve({"echo": model}), max_message_bytes=65_536)

    def out_of_memory(*_):
        raise MemoryError

    monkeypatch.setattr(outputs, "_arrays", out_of_memory)
    x = np.arange(9_000, dtype=np.float32).reshape(-1, 1)
    with pytest.raises(
        MessageTooLargeError, match=r"^rows 0 to [\d,]+: there is not enough memory"
    ) as caught:
        client.infer_chunked("echo", {"x": x})
    assert caught.value.outcome_unknown
    assert client.stats().shm_sends >= 1
    assert len(ran) == len(set(ran)) > 1


def test_a_batch_of_many_inputs_has_them_in_the_message(serve, client_of):
    client = client_of(serve({"echo": lambda arrays: arrays}))
    many = {f"x{number}": BATCH[:, number].repeat(100) for number in range(17)}
    found = client.infer_chunked("echo", many, output_dtypes=np.float32)
    assert all(np.array_equal(found[name], many[name]) for name in many)
    assert client.stats().shm_sends == 0
    del many["x0"]
    client.infer_chunked("echo", many)
    assert client.stats().shm_sends == 1


def test_a_users_own_file_is_referred_to_as_he_says(client, manager, segments, ours):
    path = segments.write("mine", [1.0, 2.0])
    mine = SHMReference("x", path.name, 8, [2], "FP32")
    for how in ({}, {"transport": "shm"}, {"transport": "json"}):
        assert client.infer("sum", [mine], **how)["sum"].item() == 3.0
    segments.write("mine", [5.0, 2.0])
    assert client.submit("sum", [mine]).result()["sum"].item() == 7.0
    assert [result["sum"].item() for result in client.map("sum", [[mine], [mine]])] == [7.0, 7.0]
    assert manager.shared_memory.keys == (f"/{path.name}",)
    assert client.explain([mine]) == "by reference, as the inputs themselves say"
    assert path.exists()
    assert ours() == set()
    assert client.stats().shm_sends == 0


def test_a_refusal_of_a_users_own_file_is_his(client, segments):
    with pytest.raises(SharedMemoryUnavailableError, match="Shared memory key not found"):
        client.infer("sum", [SHMReference("x", segments.name("none"), 8, [2], "FP32")])
    stats = client.stats()
    assert (stats.messages_sent, stats.shm_declined) == (1, {})
    assert way(client) == "shm", "it says nothing of ours"


@pytest.mark.parametrize("other", [{"name": "y", "shape": [1], "datatype": "FP32", "data": [1.0]}, WORTH])
def test_they_are_not_mixed(client, other):
    with pytest.raises(InputError, match="by reference or none"):
        client.infer("sum", [SHMReference("x", "a", 8, [2], "FP32"), other])
    with pytest.raises(InputError, match="SHMReference"):
        client.infer("sum", {"x": SHMReference("x", "a", 8, [2], "FP32"), "y": WORTH})
    assert client.stats().messages_sent == 0


# --- explain ---


def test_explain_refuses_what_cannot_be_sent_at_all(client):
    with pytest.raises(InputError, match="no inputs"):
        client.explain({})
    with pytest.raises(InputError, match="there is no route"):
        type(client)("ws://127.0.0.1:1/ws").explain({"x": WORTH})


def test_explain_opens_no_socket_and_sends_nothing(client, manager):
    for transport in ("auto", "json", "shm"):
        client.explain({"x": WORTH}, transport=transport)
    assert manager.stats().connections == 0
    client.infer("sum", {"x": WORTH})
    client.explain({"x": WORTH})
    assert manager.stats().messages == 1


def test_what_explain_says_is_what_happens(client, client_of, manager):
    """The words and the ways agree over inputs and transports."""
    inputs = [WORTH, TOO_FEW, TOO_MANY, np.array([np.inf]), np.array(["a"]), np.zeros((1, 0))]
    clients = [client, client_of(manager, shm="off"), client_of(manager, route=Route("local"))]
    for client in clients:
        client.open()
        for x in inputs:
            for transport in ("auto", "json", "shm"):
                told = client.explain({"x": x}, transport=transport)
                before = client.stats()
                try:
                    client.infer("sum", {"x": x}, transport=transport)
                except (InputError, MessageTooLargeError, SharedMemoryUnavailableError):
                    assert told.startswith("not at all"), told
                except Exception:  # noqa: BLE001 - the model cannot add texts
                    assert told.startswith("as JSON"), told
                else:
                    shared = client.stats().since(before).shm_sends
                    assert told.startswith("through shared memory" if shared else "as JSON"), told


def test_a_stated_datatype_decides(serve, client_of):
    manager = serve({"sum": total})
    client = client_of(manager)
    item = InferenceInput("x", [FLOATS], "FP32", [1.0] * FLOATS)
    assert client.explain([item]).startswith("through shared memory: 16,384 bytes")
    assert client.infer("sum", [item])["sum"].item() == FLOATS
    assert client.stats().shm_sends == 1


def test_figures_of_what_was_declined_are_plain(client_of, manager):
    client = client_of(manager, shm="off")
    way(client)
    assert json.loads(json.dumps(dict(client.stats().shm_declined))) == {"switched off": 1}
    assert "not shared: switched off 1" in repr(client.stats())


# --- what is found out in a bad moment ---


def test_shared_memory_comes_back_when_there_are_descriptors_again(client_of, manager, monkeypatch):
    monkeypatch.setattr(module, "_own_addresses", TtlCache(30.0))
    client = client_of(manager)
    client.infer("sum", {"x": TOO_FEW})  # the connection is open
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # no further descriptor can be opened
    try:
        told = client.explain({"x": WORTH})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "not checked: whether vm_ip 127.0.0.1 is an address of this machine" in told
    assert way(client) == "shm"


def test_an_address_that_this_machine_gets_later_is_noticed(client, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(ttl_cache, "monotonic", lambda: now[0])
    monkeypatch.setattr(module, "_own_addresses", TtlCache(30.0))
    monkeypatch.setattr(module, "is_own_address", lambda _: False)
    assert way(client) == "elsewhere"
    monkeypatch.setattr(module, "is_own_address", lambda _: True)
    now[0] += 31.0
    assert way(client) == "shm"
