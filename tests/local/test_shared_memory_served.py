"""Shared memory as `LocalManager` serves it: what the recordings do not show by themselves."""

from __future__ import annotations

import os

import numpy as np
import pytest

from tcm_sync.local import MappedMemory, regions, shared_memory
from tcm_sync.local.mapping import DIRECTORY, is_usable

from ..helpers.raw_connection import tensor
from ..helpers.segments import SHM, is_invalid_args, maps_of, refused, total, use
from ..helpers.served_models import add_sub_onnx

pytestmark = pytest.mark.skipif(not is_usable(), reason="there is no /dev/shm here")


@pytest.fixture
def kept_arrays():
    return []


@pytest.fixture
def manager(serve, kept_arrays):
    """A manager whose models are a sum, one that keeps what it is given, and one in ONNX."""

    def keep(arrays):
        kept_arrays.append(arrays["x"])
        return {}

    return serve({"sum": total, "keep": keep, "add_sub": add_sub_onnx()})


@pytest.fixture
def raw(manager, dial):
    return dial(manager, "u")


NOT_FOUND = "TRITON_SHM_UNAVAILABLE", "Shared memory key not found: '{}'"
# Granted or not


def test_a_manager_without_it_grants_none_and_says_so(serve, dial, segments):
    raw = dial(serve({"sum": total}, shm=False))
    segments.write("a", [1.0])
    assert raw.auth("u", capability=["shm", "json"])["payload"] == {"capability": ["json"]}
    answer = use(raw, segments.reference("a", 1))
    assert refused(answer) == ("TRITON_SHM_UNAVAILABLE", "this local manager has no shared memory")


def test_a_manager_on_a_machine_without_it_grants_none(serve, dial, monkeypatch):
    monkeypatch.setattr("tcm_sync.local.server.is_usable", lambda: False)
    assert dial(serve()).auth("u", capability=["shm"])["payload"] == {"capability": ["json"]}


def test_a_triton_with_a_dev_shm_of_its_own_refuses_every_registration(serve, dial, segments):
    raw = dial(serve({"sum": total}, triton_shm=False), "u")
    for label in "ab":
        segments.write(label, [1.0])
        code, reason = refused(use(raw, segments.reference(label, 1)))
        assert code == "TRITON_SHM_REGISTRATION_FAILED"
        assert reason.endswith(f"[500] Unable to open shared memory region: '/{segments.name(label)}'")


# What a model sees


def test_a_file_that_the_manager_may_not_open_is_refused_as_triton_does(raw, segments, monkeypatch):
    """As where the manager runs as another user. A client then sends JSON."""
    segments.write("a", [1.0])
    path, real = str(segments.path("a")), os.open

    def denied(name, *how, **more):
        if name == path:
            raise PermissionError(13, "Permission denied", name)
        return real(name, *how, **more)

    monkeypatch.setattr(os, "open", denied)
    code, reason = refused(use(raw, segments.reference("a", 1)))
    assert code == "TRITON_SHM_REGISTRATION_FAILED"
    assert reason.endswith(f"[500] Unable to open shared memory region: '/{segments.name('a')}'")
    monkeypatch.undo()
    assert use(raw, segments.reference("a", 1))["status"] == "COMPLETED"


def test_a_manager_that_can_start_no_cleanup_process_refuses_the_registration(raw, segments, monkeypatch):
    def none_left():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    segments.write("a", [1.0])
    monkeypatch.setattr(shared_memory, "_start_cleanup_process", none_left)
    code, _ = refused(use(raw, segments.reference("a", 1)))
    assert code == "TRITON_SHM_REGISTRATION_FAILED"


def test_a_model_is_given_the_very_memory_and_cannot_write_to_it(raw, segments, kept_arrays):
    segments.write("a", [1.0, 2.0])
    assert use(raw, segments.reference("a", 1, 2), model="keep")["status"] == "COMPLETED"
    segments.write("a", [3.0, 4.0])
    [array] = kept_arrays
    assert array.tolist() == [[3.0, 4.0]]
    assert not array.flags.writeable


@pytest.mark.parametrize(
    ("dtype", "datatype"),
    [(np.bool_, "BOOL"), (np.uint8, "UINT8"), (np.int64, "INT64"), (np.float16, "FP16")],
)
def test_every_datatype_of_fixed_size_arrives_as_it_was(raw, segments, kept_arrays, dtype, datatype):
    values = np.array([[0, 1], [1, 0]], dtype)
    segments.write("a", values, dtype)
    reference = segments.reference("a", 2, 2, byte_size=values.nbytes, dtype=datatype)
    assert use(raw, reference, model="keep")["status"] == "COMPLETED"
    [array] = kept_arrays
    assert array.dtype == dtype
    assert array.tolist() == values.tolist()


def test_an_onnx_model_reads_it(raw, segments):
    segments.write("a", [1.0, 2.0])
    segments.write("b", [10.0, 20.0])
    inputs = [segments.reference("a", 1, 2, name="INPUT0"), segments.reference("b", 1, 2, name="INPUT1")]
    answer = use(raw, *inputs, model="add_sub")
    assert answer["data"] == {"SUM": [[11.0, 22.0]], "DIFF": [[-9.0, -18.0]]}


def test_what_is_not_finite_arrives(raw, segments, kept_arrays):
    segments.write("a", [np.nan, np.inf])
    use(raw, segments.reference("a", 2), model="keep")
    np.testing.assert_array_equal(kept_arrays[0], [np.nan, np.inf])


def test_tensors_in_the_message_are_lost_beside_a_reference(serve, dial, segments):
    names = []
    raw = dial(serve({"note": lambda arrays: names.extend(arrays) or {}}), "u")
    segments.write("a", [1.0])
    use(raw, tensor([1.0], name="json"), segments.reference("a", 1, name="shared"), model="note")
    assert names == ["shared"]


def test_a_tensor_need_not_fit_the_budget_of_a_message(serve, dial, segments):
    raw = dial(serve({"sum": total}, max_payload_bytes=100), "u")
    segments.write("a", [1.0] * 1000)
    assert use(raw, segments.reference("a", 1000))["data"] == {"sum": [1000.0]}


# What is refused


@pytest.mark.parametrize(
    "key", ["", "/", "name", "/..", "/../shm/name", "/a/b", "/a\0b", "/" + 300 * "x", "/no_such_file"]
)
def test_what_names_no_file_of_dev_shm_is_not_found(raw, segments, key):
    code, reason = refused(use(raw, segments.reference("a", 1, shm_key=key)))
    assert (code, reason) == (NOT_FOUND[0], NOT_FOUND[1].format(key))


@pytest.mark.parametrize(
    "make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/etc/passwd", path)], ids=["dir", "pipe", "link"]
)
def test_what_is_no_file_is_not_found(raw, segments, make):
    path = segments.path("a")
    make(path)
    try:
        assert refused(use(raw, segments.reference("a", 1)))[0] == "TRITON_SHM_UNAVAILABLE"
    finally:
        os.rmdir(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@pytest.mark.parametrize("floats", [0, 1])
def test_a_file_that_is_too_short_is_refused_and_not_read(raw, manager, segments, floats):
    segments.write("a", [1.0] * floats)
    assert is_invalid_args(use(raw, segments.reference("a", 2)))
    assert manager.shared_memory == MappedMemory()


def test_an_empty_region_is_refused(raw, segments):
    segments.write("a", [1.0])
    assert is_invalid_args(use(raw, segments.reference("a", 0)))


def test_a_file_that_was_cut_short_since_is_refused_and_not_read(raw, segments):
    path = segments.write("a", [1.0, 2.0])
    assert use(raw, segments.reference("a", 2))["data"] == {"sum": [3.0]}
    os.truncate(path, 0)
    assert is_invalid_args(use(raw, segments.reference("a", 2)))


def test_a_file_that_was_made_again_shorter_is_not_looked_at_either(raw, segments):
    path = segments.write("a", [1.0, 2.0])
    use(raw, segments.reference("a", 2))
    path.unlink()
    segments.write("a", [9.0])
    assert use(raw, segments.reference("a", 2))["data"] == {"sum": [3.0]}


def test_an_offset_within_the_region_is_refused_too(raw, segments):
    segments.write("a", [1.0] * 4)
    code, reason = refused(use(raw, segments.reference("a", 2, offset=4)))
    assert code == "TRITON_INFERENCE_FAILED"
    assert reason.startswith(
        "SHM infer call failed: [400] Invalid offset + byte size for shared memory region"
    )


def test_a_shape_that_does_not_make_the_bytes_is_refused(raw, segments):
    segments.write("a", [1.0] * 4)
    code, reason = refused(use(raw, segments.reference("a", 2, byte_size=16)))
    assert code == "TRITON_INFERENCE_FAILED"
    assert reason == (
        "SHM infer call failed: [400] [request id: <id_unknown>] input byte size mismatch for input 'x' "
        "for model 'sum'. Expected 8, got 16"
    )


def test_an_unknown_model_is_refused_after_the_registration(raw, manager, segments):
    segments.write("a", [1.0])
    _, reason = refused(use(raw, segments.reference("a", 1), model="nobody"))
    assert reason == "SHM infer call failed: [404] Request for unknown model: 'nobody' is not found"
    assert manager.shared_memory.keys == ("/" + segments.name("a"),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"byte_size": None}, "Missing required field 'request.inputs[0].byte_size'"),
        ({"dtype": None}, "Missing required field 'request.inputs[0].dtype'"),
        ({"byte_size": -4}, "Field 'request.inputs[0].byte_size' must be a number of bytes"),
        ({"offset": 0.5}, "Field 'request.inputs[0].offset' must be a number of bytes"),
        ({"shape": [-1]}, "Field 'request.inputs[0].shape' must be a list of sizes"),
        ({"dtype": "BF16"}, "Unsupported datatype 'BF16' of input 'x'"),
    ],
)
def test_a_reference_without_the_form_of_one_is_refused(raw, segments, change, message):
    assert use(raw, segments.reference("a", 1, **change))["data"] == message


def test_texts_have_no_fixed_size_and_are_not_read(raw, segments):
    code, reason = refused(use(raw, segments.reference("a", 1, dtype="BYTES")))
    assert code == "TRITON_INFERENCE_FAILED"
    assert reason == "this local manager reads no BYTES from shared memory (input 'x')"


def test_a_model_that_fails_is_reported_in_the_words_of_the_call(serve, dial, segments):
    def fail(arrays):
        raise RuntimeError("model says no")

    segments.write("a", [1.0])
    answer = use(dial(serve({"fail": fail}), "u"), segments.reference("a", 1), model="fail")
    assert refused(answer) == ("TRITON_INFERENCE_FAILED", "SHM infer call failed: model says no")


# What is mapped


def descriptors_of(name):
    found = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    return [path for path in found if name in path]


def test_a_registered_file_stays_mapped_when_it_is_unlinked_and_no_descriptor_stays_open(
    raw, manager, segments
):
    path = segments.write("a", [1.0, 2.0])
    use(raw, segments.reference("a", 2))
    assert maps_of(path.name) == {""}
    path.unlink()
    assert maps_of(path.name) == {"(deleted)"}
    assert descriptors_of(path.name) == []
    assert manager.shared_memory == MappedMemory((f"/{path.name}",), 8)
    manager.stop()
    assert maps_of(path.name) == set()
    assert manager.shared_memory == MappedMemory()


def test_the_least_recently_used_of_too_many_goes(raw, manager, segments, monkeypatch):
    monkeypatch.setattr(shared_memory, "MAX_REGIONS", 3)
    for label in "abcad":
        segments.write(label, [1.0])
        assert use(raw, segments.reference(label, 1))["status"] == "COMPLETED"
    assert manager.shared_memory.keys == tuple("/" + segments.name(label) for label in "cad")
    assert maps_of(segments.name("b")) == set()
    segments.write("b", [2.0, 2.0])
    assert use(raw, segments.reference("b", 2))["data"] == {"sum": [4.0]}, "its key is free, for any size"


def test_a_transient_registration_stays_mapped_until_too_many_have_come_and_its_key_taken(
    raw, manager, segments, monkeypatch
):
    monkeypatch.setattr(shared_memory, "MAX_REGIONS", 2)
    for label in "abc":
        segments.write(label, [1.0])
        assert use(raw, segments.reference(label, 1), manager=manager)["status"] == "COMPLETED"
    assert manager.shared_memory.keys == tuple("/" + segments.name(label) for label in "bc")
    for label in "ac":
        code, _ = refused(use(raw, segments.reference(label, 1), manager=manager))
        assert code == "TRITON_SHM_REGISTRATION_FAILED"


def test_the_keys_that_stay_taken_are_not_without_number(raw, manager, segments, monkeypatch):
    monkeypatch.setattr(regions, "MAX_UNREACHABLE", 2)
    monkeypatch.setattr(shared_memory, "MAX_REGIONS", 1)
    for label in "abcd":
        segments.write(label, [1.0])
        assert use(raw, segments.reference(label, 1), manager=manager)["status"] == "COMPLETED"
    assert use(raw, segments.reference("a", 1), manager=manager)["status"] == "COMPLETED"
    assert len(manager._regions._regions) == 3


def test_one_key_may_be_named_twice_by_a_transient_request(serve, dial, segments):
    manager = serve({"add_sub": add_sub_onnx()})
    segments.write("a", [1.0, 2.0])
    inputs = [segments.reference("a", 1, 2, name=name) for name in ("INPUT0", "INPUT1")]
    answer = use(dial(manager, "u"), *inputs, model="add_sub", manager=manager)
    assert answer["data"]["SUM"] == [[2.0, 4.0]]


@pytest.mark.parametrize("action", ["delete_server", "delete_container"])
def test_a_server_that_is_deleted_maps_nothing_and_has_no_key(serve, dial, segments, action):
    manager = serve({"sum": total})
    raw = dial(manager, "u")
    segments.write("a", [1.0, 2.0])
    use(raw, segments.reference("a", 2))
    raw.do_job(action, vm_id="any", container_id=manager.route.container_id)
    assert manager.shared_memory == MappedMemory()
    answer = use(raw, segments.reference("a", 1), manager=manager)
    assert answer["data"] == {"sum": [1.0]}


def test_two_machines_have_a_triton_each(serve, dial, segments):
    manager = serve({"sum": total})
    raw = dial(manager, "u")
    there = raw.do_job("creation", openstack={"name": "vm"})
    segments.write("a", [1.0])
    route = {"vm_ip": there["vm_ip"], "container_id": there["container_id"]}
    for _ in range(2):
        assert use(raw, segments.reference("a", 1))["data"] == {"sum": [1.0]}
        assert use(raw, segments.reference("a", 1), **route)["data"] == {"sum": [1.0]}
    assert manager.shared_memory.mapped_bytes == 8


def test_the_directory_of_the_tests_is_that_of_the_manager():
    assert str(SHM) == DIRECTORY
