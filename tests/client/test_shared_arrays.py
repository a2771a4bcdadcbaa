"""Arrays that live in shared memory: filled and sent without a copy, and copied wherever that cannot be."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tcm_sync import CallTimeoutError, ClientClosedError, InferenceError, InferenceInput, InputError
from tcm_sync._shm.segment import segment_of
from tcm_sync.local.mapping import is_usable

from ..helpers.peer_scripts import timing_out
from ..helpers.segments import total
from ..helpers.waiting import GUARD, end, wait_until
from .test_fork import forks, in_child

pytestmark = pytest.mark.skipif(not is_usable(), reason="there is no /dev/shm here")

SHAPE = 40, 250
SIZE = 10_000


@pytest.fixture
def manager(serve):
    return serve({"sum": total})


@pytest.fixture
def client(connect, manager):
    return connect(manager, retry=None)


def make(client, fill=1.0, dtype=np.float64):
    array = client.empty_shared(SHAPE, dtype)
    array[:] = fill
    return array


def copies(client, x, **how):
    """Ask, check the answer, and count the segments that were made beside the array's own."""
    before = client.stats()
    assert client.infer("sum", {"x": x}, **how)["sum"].item() == np.sum(x, dtype=np.float64)
    after = client.stats()
    assert after.shm_sends - before.shm_sends == 1
    return after.shm_segments - before.shm_segments


def used(client, manager, x, **how):
    """Ask for it, and return whether the manager read the array's own file."""
    before = set(manager.shared_memory.keys)
    copies(client, x, **how)
    own = f"/{segment_of(x).name}"
    new = set(manager.shared_memory.keys) - before
    assert new <= {own} or own not in new
    return own in manager.shared_memory.keys and not new - {own}


# --- made ---


def test_it_is_an_array_of_zeros(client, ours):
    x = client.empty_shared((2, 3), np.float32)
    assert type(x) is np.ndarray
    assert (x.shape, x.dtype, x.flags.c_contiguous, x.flags.writeable) == ((2, 3), np.float32, True, True)
    assert not x.any()
    assert ours() == {segment_of(x).name}
    assert client.stats().shm_bytes == 24


@pytest.mark.parametrize("shape", [5, (5,), [5], np.array([5]), (np.int64(5),), np.int64(5)])
def test_its_shape_may_be_said_in_the_usual_ways(client, shape):
    assert client.empty_shared(shape, "u1").shape == (5,)


@pytest.mark.parametrize("dtype", ["?", "i1", "i8", "u2", "f2", "f4", "f8", float, np.int32], ids=str)
def test_its_dtype_may_be_any_of_the_wire(client, dtype):
    assert client.empty_shared(3, dtype).dtype == np.dtype(dtype)


@pytest.mark.parametrize("dtype", ["U4", "S4", object, "c16", ">f4", "M8[s]", "f16", [("a", "f4")]], ids=str)
def test_what_the_wire_has_no_fixed_size_for_is_refused(client, dtype):
    with pytest.raises(InputError, match="dtype must be of numbers or bool in native byte order"):
        client.empty_shared(3, dtype)


@pytest.mark.parametrize("shape", [(), 0, (2, 0), -1, (2, -1), 2.5, "ab", None, (2, "a"), (2.0,)])
def test_a_shape_that_cannot_be_is_refused(client, shape):
    with pytest.raises(InputError, match="shape must"):
        client.empty_shared(shape, np.float32)


def test_more_than_there_is_room_for_is_refused(client, ours):
    with pytest.raises(InputError, match="no shared memory: no room: "):
        client.empty_shared(2**50, np.uint8)
    assert ours() == set()


def test_a_closed_client_makes_none(client):
    client.close()
    with pytest.raises(ClientClosedError):
        client.empty_shared(3, np.float32)


def test_there_is_none_where_there_is_no_shared_memory(client, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(InputError, match="no shared memory: not supported: shared memory needs Linux"):
        client.empty_shared(3, np.float32)


# --- sent ---


def test_nothing_is_copied(client, manager):
    x = make(client)
    for fill in range(5):
        x[:] = fill
        assert used(client, manager, x)
    stats = client.stats()
    assert (stats.shm_segments, stats.shm_pinned, stats.shm_sends) == (1, x.nbytes, 5)


def test_nothing_is_copied_where_each_call_names_the_same_route(client, manager):
    x = make(client)
    route = manager.route
    for _ in range(3):
        assert copies(client, x, container_id=route.container_id, vm_ip=route.vm_ip, vm_id=route.vm_id) == 0


@pytest.mark.parametrize(
    "whole",
    [
        lambda x: x[:],
        lambda x: x.reshape(100, 100),
        lambda x: x.ravel(),
        lambda x: x.view(np.uint8),
        lambda x: x[:, :, None],
        lambda x: x.T.T,
        lambda x: np.asarray(memoryview(x)),
    ],
    ids=["slice", "reshape", "ravel", "dtype", "axis", "transposed twice", "memoryview"],
)
def test_a_view_of_the_whole_is_not_copied(client, manager, whole):
    x = make(client)
    assert used(client, manager, whole(x))


def test_a_stated_input_is_not_copied(client, manager):
    x = make(client)
    item = InferenceInput("x", [100, 100], "FP64", x.ravel())
    assert client.infer("sum", [item])["sum"].item() == SIZE
    assert manager.shared_memory.keys == (f"/{segment_of(x).name}",)


@pytest.mark.parametrize(
    "part",
    [
        lambda x: x[1:],
        lambda x: x[:, :-1],
        lambda x: x.T,
        lambda x: x[::-1],
        lambda x: x.astype(np.float32),
        lambda x: np.asfortranarray(x),
    ],
    ids=["rows", "columns", "transposed", "reversed", "cast", "order"],
)
def test_anything_else_is_copied(client, manager, part):
    x = make(client)
    x[:] = np.arange(SIZE).reshape(SHAPE)
    assert copies(client, part(x)) == 1
    assert f"/{segment_of(x).name}" not in manager.shared_memory.keys
    assert used(client, manager, x), "the whole is as good as ever"


def test_given_twice_in_one_call_it_is_copied_for_the_second(serve, connect):
    manager = serve({"sums": lambda arrays: {name: [float(array.sum())] for name, array in arrays.items()}})
    client = connect(manager)
    x = make(client)
    found = client.infer("sums", {"a": x, "b": x})
    assert (found["a"].item(), found["b"].item()) == (SIZE, SIZE)
    assert len(manager.shared_memory.keys) == 2


def test_used_twice_at_once_it_is_copied_for_the_second(client, manager, gated):
    x = make(client, 7.0)
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(client.infer, "gated", {"x": x})
        wait_until(lambda: manager.stats().executions.get("gated"), "the first runs")
        assert copies(client, x) == 1
        gated.open_all()
        assert first.result(GUARD)["y"].sum() == 7 * SIZE
    assert used(client, manager, x)


def test_two_threads_that_use_it_at_once_get_right_answers(client):
    x = make(client, 3.0)
    meeting = threading.Barrier(4)

    def ask(_):
        meeting.wait(GUARD)
        return [client.infer("sum", {"x": x})["sum"].item() for _ in range(50)]

    with ThreadPoolExecutor(4) as threads:
        assert {each for answers in threads.map(ask, range(4)) for each in answers} == {3.0 * SIZE}


def test_on_another_route_it_is_copied(client, manager):
    x = make(client)
    assert used(client, manager, x)
    assert copies(client, x, vm_id="another") == 1
    assert used(client, manager, x), "its own route has it as ever"


def test_by_another_client_it_is_copied(client, connect, manager):
    other = connect(manager)
    assert copies(other, make(client)) == 1


def test_too_small_to_be_worth_it_it_goes_as_json(client):
    x = client.empty_shared(3, np.float64)
    assert client.infer("sum", {"x": x})["sum"].item() == 0.0
    assert client.stats().shm_sends == 0


def test_over_the_budget_it_goes_as_json_and_is_logged_once(connect, manager, caplog):
    client = connect(manager, shm_max_pinned=100, max_message_bytes=2**20)
    for _ in range(3):
        assert client.infer("sum", {"x": client.empty_shared(5000, np.float64)})["sum"].item() == 0.0
    assert client.stats().shm_declined == {"pinned": 3}
    (record,) = [record for record in caplog.records if record.name == "tcm_sync.shm"]
    assert (record.levelname, "go as JSON" in record.message, "pinned: " in record.message) == (
        "WARNING",
        True,
        True,
    )


# --- afterwards ---


def is_of_use_and_copied_from_now_on(client, x):
    for fill in (5.0, 6.0):
        x[:] = fill
        assert (x == fill).all()
        copies(client, x)
    assert client.stats().shm_segments == 1, "one copy, used again; its own is gone"


def test_after_a_timeout_it_is_of_use_and_copied(client, manager, gated, ours):
    x = make(client.open(), 7.0)
    with pytest.raises(CallTimeoutError), timing_out(lambda: manager.stats().executions.get("gated")):
        client.infer("gated", {"x": x})
    assert ours() == set()
    is_of_use_and_copied_from_now_on(client, x)
    gated.open_all()


def test_after_a_failed_reply_it_is_of_use_and_copied(client, ours):
    x = make(client)
    with pytest.raises(InferenceError):
        client.infer("no_such", {"x": x})
    assert ours() == set()
    is_of_use_and_copied_from_now_on(client, x)


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_after_a_restart_of_the_manager_it_is_of_use_and_copied(connect, manager, ours, how):
    client = connect(manager)
    x = make(client)
    assert used(client, manager, x)
    end(manager, how, client)
    manager.start()
    is_of_use_and_copied_from_now_on(client, x)


def test_one_that_the_last_manager_never_saw_is_not_copied_after_a_restart(connect, manager):
    client = connect(manager)
    x = make(client)
    client.infer("sum", {"x": np.ones(SIZE)})
    end(manager, "stop", client)
    manager.start()
    assert used(client, manager, x)


def test_the_file_goes_with_the_last_view(client, ours):
    x = make(client)
    view = x[3:5]
    del x
    gc.collect()
    assert len(ours()) == 1
    del view
    gc.collect()
    assert ours() == set()


def test_closing_unlinks_it_and_leaves_it_of_use(client, ours):
    x = make(client)
    view = x[1:]
    client.close()
    assert ours() == set()
    x += 1
    assert view.sum() == 2 * (SIZE - 250)


def test_it_outlives_the_client(connect, manager):
    x = make(connect(manager))
    gc.collect()
    x += 1
    assert x.sum() == 2 * SIZE


@pytest.mark.parametrize("way", [lambda x: pickle.loads(pickle.dumps(x)), copy.copy, copy.deepcopy, np.copy])
def test_a_copy_is_a_plain_array(client, way):
    x = make(client)
    other = way(x)
    assert segment_of(other) is None
    assert (other == x).all()
    other[:] = 2
    assert x.sum() == SIZE


def test_a_pickled_client_brings_no_segment(client):
    client.infer("sum", {"x": make(client)})
    with pickle.loads(pickle.dumps(client)) as other:
        assert other.stats().shm_segments == 0
        assert copies(other, np.ones(SIZE)) == 1


@forks
def test_in_a_forked_child_it_is_copied(client, manager, ours):
    x = make(client)
    assert used(client, manager, x)

    def child():
        made = copies(client, x), copies(client, 2 * x)
        client.close()
        return made

    assert in_child(child) == (1, 0)
    assert ours() == {segment_of(x).name}
    assert used(client, manager, x)


SEGFAULT = """
import gc, sys
import numpy as np
from tcm_sync import Route, TcmClient

client = TcmClient(sys.argv[1], route=Route("local", "127.0.0.1"))
arrays = [client.empty_shared((100, 100), np.float64) for _ in range(5)]
views = [arrays[0][5:], arrays[1].T, memoryview(arrays[2]), arrays[3].ravel()[::-1]]
for array in arrays:
    array[:] = 1.0
    assert client.infer("sum", {"x": array})["sum"].item() == 10_000
client.close()
del client, array
arrays[4][:] = 7
del arrays[:4]
gc.collect()
assert views[0].sum() == 9_500 and views[1].sum() == 10_000 and views[3].sum() == 10_000
views[0][:] = 2.0
views[1] += 1
views[2][0, 0] = 9.0
assert views[2][0, 0] == 9.0 and arrays[0].sum() == 70_000
print("alive", flush=True)
kept = sys.modules["kept"] = views  # until the interpreter is gone
"""


def test_what_is_kept_after_the_closing_never_crashes(manager, ours):
    command = [sys.executable, "-X", "dev", "-X", "faulthandler", "-c", SEGFAULT, manager.uri]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3 * GUARD)
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")


def test_there_are_none_where_shared_memory_is_switched_off(serve, connect, ours):
    client = connect(serve(), shm="off")
    with pytest.raises(InputError, match=r"^no shared memory: switched off"):
        client.empty_shared((4,), np.float32)
    assert not ours()
