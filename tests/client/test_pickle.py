"""Clients, results and errors cross from one process to another."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import pickle
import subprocess
import sys

import numpy as np
import pytest

import tcm_sync
from tcm_sync import AuthContext, InferenceFailedError, Route, TcmError

_numbers = itertools.count(1)


def ask(client):
    number = next(_numbers)
    assert client.infer("echo", {"x": [number]})["x"].tolist() == [number]


def every_error():
    public = vars(tcm_sync).values()
    kinds = [kind for kind in public if isinstance(kind, type) and issubclass(kind, TcmError)]
    facts = {"code": "X", "attempts": 2, "model_name": "m", "route": Route("c"), "elapsed": 1.5}
    return [kind("it failed", history=(TcmError("before"),), **facts) for kind in kinds]


@pytest.mark.parametrize(
    "method",
    # The server of "forkserver" would outlive the test: that method has a test of its own.
    [method for method in multiprocessing.get_all_start_methods() if method != "forkserver"],
)
# From Python 3.12 on, forking beside other threads is warned of; the test is that it works.
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_multiprocessing_pool_takes_a_client_and_returns_its_results_and_errors(serve, client_of, method):
    manager = serve()
    client = client_of(manager)
    ask(client)
    infer = functools.partial(client.infer, "echo")
    errors = every_error()
    with multiprocessing.get_context(method).Pool(2) as pool:
        results = pool.map(infer, [{"x": [number]} for number in range(40)], chunksize=10)
        assert [result["x"].tolist() for result in results] == [[number] for number in range(40)]
        with pytest.raises(InferenceFailedError, match="unknown model") as caught:
            pool.apply(client.infer, ("nobody", {"x": [1]}))
        assert caught.value.model_name == "nobody"
        assert caught.value.code == "TRITON_INFERENCE_FAILED"
        for error in errors:
            with pytest.raises(TcmError) as caught:
                pool.apply(exec, (f"import pickle; raise pickle.loads({pickle.dumps(error)})",))
            assert type(caught.value) is type(error)
            assert str(caught.value) == str(error)
            assert {**vars(caught.value), "history": ()} == {**vars(error), "history": ()}
            assert str(caught.value.history[0]) == "before"
        pool.close()
        pool.join()
    ask(client)
    assert len(set(manager.stats().uuids)) == len(manager.stats().uuids) > 2


_FORKSERVER = """
import multiprocessing
from tcm_sync import TcmClient
from tcm_sync.local import LocalManager

def double(inputs):
    return {"y": inputs["x"] * 2}

def call(client, number):
    with client:
        return client.infer("double", {"x": [number]})["y"].tolist()

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    with LocalManager({"double": double}) as manager, TcmClient(manager.uri, route=manager.route) as client:
        client.open()
        with context.Pool(2) as pool:
            print(pool.starmap(call, [(client, number) for number in range(3)]))
"""


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="there is none")
def test_a_process_of_a_forkserver_takes_a_client(tmp_path):
    """In a process of its own: the server that makes the others ends with it."""
    program = tmp_path / "program.py"
    program.write_text(_FORKSERVER)
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[[0], [2], [4]]\n", "")


def test_a_pickled_client_is_a_client_of_its_own(serve, client_of):
    manager = serve()
    client = client_of(manager, pool_size=2, auth=AuthContext(uuid="mine", roles=("inference",)))
    ask(client)
    copy = pickle.loads(pickle.dumps(client))
    ask(copy)
    client.close()
    ask(copy)
    assert pickle.dumps(copy) == pickle.dumps(client)
    copy.close()
    with pickle.loads(pickle.dumps(client)) as third:
        ask(third)  # a client that was closed travels as its settings too
    assert all(uuid.startswith("mine-") for uuid in manager.stats().uuids)


def test_a_result_survives_pickle(serve, client_of):
    result = client_of(serve()).infer("echo", {"x": np.eye(2), "t": ["a", "b"]}, output_dtypes={"x": "f4"})
    copy = pickle.loads(pickle.dumps(result))
    assert list(copy) == list(result)
    assert all(np.array_equal(copy[name], result[name]) for name in result)
    assert copy["x"].dtype == np.float32
    assert (copy.model_name, copy.attempts, copy.elapsed) == ("echo", 1, result.elapsed)
    assert copy.raw == result.raw


def test_a_copy_is_open_whose_last_other_copy_is_closed_while_it_is_made(serve, client_of, monkeypatch):
    client = client_of(serve())
    join = tcm_sync.client.core_of

    def join_and_close_the_other(*arguments):
        core = join(*arguments)
        client.close()
        return core

    monkeypatch.setattr("tcm_sync.client.core_of", join_and_close_the_other)
    with pickle.loads(pickle.dumps(client)) as copy:
        ask(copy)
