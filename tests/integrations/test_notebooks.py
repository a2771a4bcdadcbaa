"""Clients in notebooks, in one real kernel: failures, interrupts, what cells show, and cells run again."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

import nbformat
import pytest

from ..helpers.kernel import Kernel, shown

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits.ipynb"

SETUP = """
import threading, time
from pathlib import Path
from tcm_sync import AuthContext, InputError, TcmClient
from tcm_sync.local import LocalManager

started, go_on = Path({started!r}), threading.Event()

def slow(inputs):
    started.touch()
    go_on.wait(30)
    return {{"y": inputs["x"]}}

def word(inputs):
    yield "word"
    yield None

def broken():
    yield {{"x": [1]}}
    raise RuntimeError("of the user")

def create_slowly():
    manager.delay_next(3600, kind="management")

    def watch():
        while manager.faults_left:
            time.sleep(0.001)
        started.touch()

    threading.Thread(target=watch).start()
    parts = {{"openstack": {{}}, "docker": {{}}, "minio": {{}}, "triton": {{"model_name": "echo"}}}}
    return client.create(**parts, progress=True)

models = {{"slow": slow, "word": word, "echo": lambda inputs: {{"y": inputs["x"]}}}}
manager = LocalManager(models, tick=0).start()
client = TcmClient(manager.uri, route=manager.route, retry=None)
result = client.infer("echo", {{"x": [1]}})
transient = {{"container_id": "local-transient", "allow_transient": True}}
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    kernel = Kernel()
    try:
        kernel.start()
        kernel.started = tmp_path_factory.mktemp("kernel") / "started"
        setup = kernel.run(SETUP.format(started=str(kernel.started)))
        assert setup == [], shown(setup)
        yield kernel
    finally:
        kernel.stop()


@pytest.fixture
def fails(kernel):
    """Run a cell that fails, and return what it shows."""

    def run(source):
        outputs = kernel.run(textwrap.dedent(source))
        assert outputs[-1].output_type == "error", shown(outputs)
        return shown(outputs[-1:])

    return run


# --- failures ---


def frames_of(text):
    """Return the functions and cells that a traceback shows, in its order."""
    return re.findall(r"^ *(?:Cell|File) .*$", text, re.M)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ('client.infer("echo", {"x": [object()]})', "InputError"),
        ('client.infer("none", {"x": [1]})', "InferenceFailedError"),
        ('client.submit("none", {"x": [1]}).result()', "InferenceFailedError"),
        ('list(client.map("none", [{"x": [1]}]))', "InferenceFailedError"),
        ('client.model("none").infer({"x": [1]})', "InferenceFailedError"),
        ('TcmClient("http://nowhere")', "ConfigError"),
        ('result["none"]', "KeyError"),
        ('result.as_numpy("none")', "KeyError"),
        (
            '(words := client.stream("word", {"text": ["a"]}, **transient), list(words), next(words))',
            "StopIteration",
        ),
        ("manager.start()", "RuntimeError"),
    ],
)
def test_a_refusal_shows_its_message_and_the_lines_of_the_user(fails, call, error):
    text = fails(f"def of_the_user():\n    return {call}\nof_the_user()")
    assert re.match(rf"{error}(: .+)?\n", text)
    assert text.count(f"{error}: ") <= 1
    frames = frames_of(text)
    assert len(frames) == 2, text
    assert "of_the_user()" in frames[1]
    assert re.search(r"\[left out: \d+ frames? inside tcm_sync; %xmode Verbose shows all\]$", text)


def test_the_error_behind_an_error_is_shown_with_the_lines_of_the_user(fails):
    text = fails(
        """
        def token():
            raise KeyError("no token today")
        TcmClient(manager.uri, AuthContext(token=token), route=manager.route).infer("echo", {"x": [1]})
        """
    )
    assert text.startswith("AuthenticationError: the token callable raised KeyError")
    assert len(frames_of(text)) == 1, text


def test_errors_that_are_each_others_cause_are_shown_once(fails):
    text = fails(
        """
        first, second = InputError("first"), InputError("second")
        first.__cause__, second.__cause__ = second, first
        raise InputError("third") from first
        """
    )
    assert re.findall(r"^InputError: (\w+)$", text, re.M) == ["third", "first", "second"]


def test_an_error_that_was_shown_still_has_what_it_was_raised_in(kernel):
    source = """
    import traceback
    try:
        try:
            {}["gone"]
        except KeyError:
            raise InputError("not sent")
    except InputError as error:
        error._render_traceback_()
        whole = "".join(traceback.format_exception(error))
    "KeyError: 'gone'" in whole
    """
    assert shown(kernel.run(textwrap.dedent(source))) == "True"


def test_an_error_of_the_user_that_passes_through_a_call_shows_the_lines_of_the_user(fails):
    text = fails('list(client.map("echo", broken()))')
    assert text.startswith("RuntimeError: of the user")
    _, generator = frames_of(text)
    assert 'list(client.map("echo", broken()))' in text
    assert "in broken()" in generator


def test_an_error_that_ipython_shows_in_short_can_be_pickled_and_copied(kernel):
    source = """
    import copy, pickle
    try:
        result["none"]
    except KeyError as error:
        copies = [pickle.loads(pickle.dumps(error)), copy.deepcopy(error)]
        alike = [(type(each), each.args) == (KeyError, error.args) for each in copies]
    alike
    """
    assert shown(kernel.run(textwrap.dedent(source))) == "[True, True]"


@pytest.mark.parametrize(
    "call",
    [
        'client.infer("none", {"x": array})',
        'client.infer("echo", Unreadable(x=array))',
        'list(client.map("echo", breaks(array)))',
        'client.infer_chunked("echo", {"x": array, "y": Unreadable()}, rows=1)',
        "result[array.tobytes()]",
    ],
)
def test_an_error_that_is_dropped_keeps_no_arrays(kernel, call):
    source = f"""
    import gc, weakref
    import numpy as np

    class Unreadable(dict):
        def items(self):
            raise RuntimeError("of the user")
        __array__ = items

    def breaks(array):
        yield {{"x": array}}
        raise RuntimeError("of the user")

    def of_the_user():
        array = np.ones(1000)
        kept = weakref.ref(array)
        try:
            {call}
        except Exception as error:
            name = type(error).__name__
        return name, kept

    gc.collect()
    gc.disable()
    try:
        name, kept = of_the_user()
        freed = kept() is None
    finally:
        gc.enable()
    name, freed
    """
    name, freed = ast.literal_eval(shown(kernel.run(textwrap.dedent(source))[-1:]))
    assert name in ("InferenceFailedError", "RuntimeError", "InputError", "KeyError")
    assert freed


def test_an_error_of_the_user_can_be_read_from_its_pickle_without_this_package(kernel):
    source = """
    import pickle
    try:
        list(client.map("echo", broken()))
    except RuntimeError as error:
        error.of_the_user = 7
        pickled = pickle.dumps(error)
    copy = pickle.loads(pickled)
    b"tcm_sync" in pickled, type(copy).__name__, copy.args, vars(copy)
    """
    shown_copy = "(False, 'RuntimeError', ('of the user',), {'of_the_user': 7})"
    assert shown(kernel.run(textwrap.dedent(source))) == shown_copy


def test_xmode_verbose_shows_every_frame(kernel, fails):
    kernel.run("%xmode Verbose")
    try:
        text = fails('TcmClient("http://nowhere")')
    finally:
        kernel.run("%xmode Context")
    assert len(frames_of(text)) > 2
    assert "left out" not in text


# --- interrupts ---


@pytest.mark.parametrize(
    "call",
    [
        'client.infer("slow", {"x": [1]})',
        'client.submit("slow", {"x": [1]}).result()',
        'list(client.map("slow", [{"x": [n]} for n in range(100)], progress=True))',
        'list(client.map("slow", ({"x": [n]} for n in range(100)), ordered=False))',
        'client.infer_chunked("slow", {"x": range(100)}, rows=1)',
        "create_slowly()",
    ],
)
def test_a_client_is_as_before_after_an_interrupt(kernel, call):
    kernel.started.unlink(missing_ok=True)
    interrupted = kernel.run(call, interrupt_when=kernel.started.exists)
    assert interrupted[-1].output_type == "error"
    assert interrupted[-1].ename == "KeyboardInterrupt", shown(interrupted)
    assert not any("tcm_sync" in frame for frame in frames_of(shown(interrupted[-1:])))
    after = """
    go_on.set()
    answer = client.infer("echo", {"x": [7]}, timeout=30)["y"].tolist()
    while client.queue_stats().unfinished("inference"):  # what was given up runs to its end in the manager
        time.sleep(0.01)
    client.close(timeout=30)  # which waits for what is under way
    go_on.clear()
    busy = client.stats().busy
    client = TcmClient(manager.uri, route=manager.route, retry=None)
    answer, busy
    """
    assert shown(kernel.run(textwrap.dedent(after))[-1:]) == "([7], 0)"  # a log line may come before


def test_a_bar_is_green_only_where_nothing_failed(kernel):
    source = """
    from ipywidgets.widgets import widget
    before = list(widget._instances)
    list(client.map("echo", ({"x": [n]} for n in range(3)), progress=True))
    try:
        list(client.map("none", ({"x": [n]} for n in range(3)), progress=True))
    except Exception:
        pass
    bars = [each for name, each in widget._instances.items() if name not in before]
    [each.bar_style for each in bars if hasattr(each, "bar_style")]
    """
    assert shown(kernel.run(textwrap.dedent(source))[-1:]) == "['success', 'danger']"


# --- cells that run again ---


def test_cells_that_make_clients_again_and_again_give_threads_and_sockets_back(kernel):
    kernel.run(
        textwrap.dedent(
            """
            import os, time
            from tcm_sync._transport import reader
            reader._IDLE_SECONDS = 0.05
            for other in [value for value in Out.values() if isinstance(value, TcmClient)]:
                other.close()

            def held():
                threads = [thread.name for thread in threading.enumerate()]
                return threads.count("tcm-sync-reader"), len(os.listdir("/proc/self/fd"))

            before = held()
            """
        )
    )
    for _ in range(20):
        kernel.run(
            "again = TcmClient(manager.uri, route=manager.route, max_idle=0.1)\n"
            'again.infer("echo", {"x": [1]})\nagain'
        )
    waiting = """
    deadline = time.monotonic() + 30
    while (held()[0] > before[0] or held()[1] > before[1]) and time.monotonic() < deadline:
        time.sleep(0.01)
    after = held()
    clients = [value for value in Out.values() if isinstance(value, TcmClient) and value.stats().calls]
    answers = [each.infer("echo", {"x": [7]})["y"].item() for each in clients]
    more = after[0] > before[0] or after[1] > before[1]
    after if more else "no more", len(clients), set(answers), held() > after
    """
    given_back = shown(kernel.run(textwrap.dedent(waiting))[-1:])
    assert given_back == "('no more', 20, {7}, True)"


# --- the example ---


def kinds_of(cell):
    """Return what a cell shows, without the contents, which differ from run to run."""
    return [(each.output_type, sorted(each.get("data", ()))) for each in cell.get("outputs", ())]


def test_the_example_runs_and_shows_what_is_stored_in_it(kernel):
    stored = nbformat.read(EXAMPLE, as_version=4)
    kernel.run("client.close()\nmanager.kill()\nmanager.stop()")
    try:
        fresh = kernel.run_notebook(EXAMPLE)
    finally:
        kernel.run(SETUP.format(started=str(kernel.started)))
    for old, new in zip(stored.cells, fresh.cells, strict=True):
        assert kinds_of(old) == kinds_of(new), new.source
        fails = any(each.output_type == "error" for each in new.get("outputs", ()))
        assert fails == ("raises-exception" in new.metadata.get("tags", [])), shown(new.outputs)
    shown_data = [each.get("data", {}) for cell in fresh.cells for each in cell.get("outputs", ())]
    html = "".join(data.get("text/html", "") for data in shown_data)
    assert html.count("data:image/png;base64,") == 1
