"""`with_options`: other defaults on the same sockets."""

from __future__ import annotations

import gc
import os
import pickle
import threading
import warnings

import numpy as np
import pytest

from tcm_sync import CallTimeoutError, ClientClosedError, InputError, RetryPolicy, Route, TcmClient

from ..helpers.waiting import GUARD


@pytest.fixture
def client(serve):
    manager = serve()
    with TcmClient(manager.uri, route=manager.route, timeout=GUARD, pool_size=1) as client:
        yield client


def ask(client, number=1.5, **options):
    return client.infer("echo", {"x": [number]}, **options)["x"]


def test_a_view_uses_the_sockets_of_its_client(client):
    ask(client)
    view = client.with_options(timeout=7.0)
    ask(view)
    ask(view.with_options(retry=None))
    stats = client.stats()
    assert (stats.calls, stats.sockets_opened) == (3, 1)
    assert view.stats().calls == 3


def test_a_view_of_a_view_keeps_what_it_does_not_replace(client):
    policy = RetryPolicy(2)
    view = client.with_options(timeout=7.0, output_dtypes="f4").with_options(retry=policy, timeout=8.0)
    assert (view._defaults.timeout, view._defaults.policy) == (8.0, policy)
    assert ask(view).dtype == np.float32
    assert client._defaults.timeout == GUARD
    assert ask(client).dtype == np.float64


def test_a_view_of_a_subclass_has_the_attributes_of_its_client(serve):
    class Tagged(TcmClient):
        def __init__(self, uri, tag, **settings):
            super().__init__(uri, **settings)
            self.tag = tag

    manager = serve()
    with Tagged(manager.uri, "blue", route=manager.route) as client:
        view = client.with_options(timeout=GUARD)
        assert (type(view), view.tag) == (Tagged, "blue")
        ask(view)


@pytest.mark.parametrize("call", ["infer", "submit", "map", "infer_chunked", "model", "sample", "pipeline"])
def test_every_kind_of_inference_uses_the_options_of_a_view(client, call):
    view = client.with_options(output_dtypes="f4", route=client._defaults.route)
    bare = TcmClient(client._core.settings.uri).with_options(route=Route("nowhere")).with_options(route=None)
    inputs = {"x": np.ones((2, 1))}

    def run(client):
        if call == "submit":
            return client.submit("echo", inputs).result(GUARD)
        if call == "map":
            return next(iter(client.map("echo", [inputs])))
        if call == "model":
            return client.model("echo").infer(inputs)
        if call == "sample":
            return client.model("echo").infer_sample(inputs)
        if call == "pipeline":
            return client.pipeline([{"model_name": "echo", "inputs": inputs}])["echo"]
        return getattr(client, call)("echo", inputs)

    assert run(view)["x"].dtype == np.float32
    with pytest.raises(InputError, match="no route"):
        run(bare)


def test_a_call_has_the_last_word(client):
    view = client.with_options(output_dtypes="f4", timeout=1e-9, transport="json")
    assert ask(view, timeout=GUARD, output_dtypes=None, transport="auto").dtype == np.float64
    with pytest.raises(CallTimeoutError):
        view.with_options(timeout=1e-3).infer("gated", {"x": [1.0]})


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"timeout": 0}, "timeout must be"),
        ({"retry": 3}, "retry must be"),
        ({"route": "ctr"}, "route must be a Route or None, not str"),
        ({"output_dtypes": "no such"}, "output_dtypes"),
        ({"transport": "tcp"}, "transport must be"),
    ],
)
def test_an_option_that_cannot_be_is_refused(client, option, words):
    with pytest.raises(InputError, match=f"^{words}"):
        client.with_options(**option)


def test_closing_a_view_closes_nothing_but_the_view(client):
    view = client.with_options(timeout=7.0)
    model = view.model("echo")
    ask(view)
    view.close()
    view.close()
    for call in (
        lambda: ask(view),
        lambda: model.infer({"x": [1.0]}),
        lambda: model.infer_sample({"x": 1.0}),
    ):
        with pytest.raises(ClientClosedError):
            call()
    ask(client)
    assert client.stats().sockets_opened == 1


def test_closing_the_client_closes_its_views(client):
    view = client.with_options(timeout=7.0)
    ask(view)
    client.close()
    with pytest.raises(ClientClosedError):
        ask(view)
    view.close()


def test_a_view_whose_client_is_no_longer_there_closes_the_sockets(serve):
    manager = serve()
    with TcmClient(manager.uri, route=manager.route).with_options(timeout=GUARD) as view:
        ask(view)
    assert repr(view._core).endswith("closed>")


def test_a_view_that_is_left_open_warns_once_its_client_is_gone(serve):
    manager = serve()
    view = TcmClient(manager.uri, route=manager.route).with_options(timeout=GUARD)
    ask(view)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del view
        gc.collect()
    assert [each.category for each in caught] == [ResourceWarning]


def test_a_view_shows_its_options(client):
    view = client.with_options(timeout=7.0, transport="json")
    assert repr(view) == f"{repr(client)[:-1]}, timeout=7.0, transport='json'>"
    view.close()
    assert repr(view).endswith("closed, timeout=7.0, transport='json'>")


def test_a_view_is_pickled_with_its_options(client):
    view = client.with_options(timeout=7.0, retry=None, output_dtypes={"x": "f4"})
    with pickle.loads(pickle.dumps(view)) as copy:
        assert (copy._defaults.timeout, copy._defaults.policy) == (7.0, None)
        assert ask(copy).dtype == np.float32
        assert client.stats().sockets_opened == 1
    ask(view)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_view_works_on_both_sides_of_a_fork(client):
    view = client.with_options(output_dtypes="f4")
    ask(view)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if ask(view).dtype == np.float32 and client.stats().calls == 1 else 2
            client.close()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert ask(view).dtype == np.float32


# --- copies ---


def test_a_client_that_is_unpickled_a_thousand_times_opens_no_more_sockets_or_threads(client):
    ask(client)
    pickled, threads = pickle.dumps(client), threading.active_count()
    for number in range(1000):
        copy = pickle.loads(pickled)
        if number % 100 == 0:
            ask(copy)
    assert client.stats().sockets_opened == 1
    assert threading.active_count() <= threads  # the one that opened the socket may have ended since


def test_a_task_that_drops_its_copy_leaves_the_sockets_to_the_next_one(serve):
    """As in a worker process, where there is nothing but copies."""
    manager = serve()
    original = TcmClient(manager.uri, route=manager.route, timeout=GUARD)
    pickled = pickle.dumps(original)
    del original
    for _ in range(20):
        ask(pickle.loads(pickled))
    with pickle.loads(pickled) as last:
        assert last.stats().sockets_opened == 1
    assert len(manager.stats().uuids) == 1


def test_the_last_copy_that_is_closed_closes_the_sockets(client):
    ask(client)
    first, second = (pickle.loads(pickle.dumps(client)) for _ in range(2))
    client.close()
    with pytest.raises(ClientClosedError):
        ask(client)
    first.close()
    ask(second)
    assert second.stats().sockets_opened == 1
    core = second._core
    second.close()
    assert repr(core).endswith("closed>")


def test_a_copy_of_a_closed_client_opens_again(client):
    ask(client)
    client.close()
    with pickle.loads(pickle.dumps(client)) as copy:
        ask(copy)
        assert copy.stats().sockets_opened == 1


def test_two_clients_of_one_manager_share_nothing(client):
    other = TcmClient(client._core.settings.uri, route=client._core.settings.route)
    with other:
        ask(client)
        ask(other)
        assert (client.stats().calls, other.stats().calls) == (1, 1)
