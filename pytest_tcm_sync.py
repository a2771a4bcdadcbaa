"""The pytest plugin of tcm_sync: a manager, clients and faults for tests, and a check for open clients.

It stands beside the package because pytest imports it in every run, and the package takes numpy. Nothing of
`tcm_sync` is imported until a test uses a fixture or the strict mode (docs/testing.rst).
"""

from __future__ import annotations

import linecache
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

    from tcm_sync import TcmClient
    from tcm_sync._calls.core import Core
    from tcm_sync.local import LocalManager

_MARKS = (
    "tcm_manager(models=None, **settings): models and other arguments for the LocalManager of tcm_manager",
    "tcm_client(**settings): arguments for the TcmClient of tcm_client",
    "tcm_strict(enabled=True): fail the test if it leaves a TcmClient open",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the ini options."""
    parser.addini("tcm_strict", "fail each test that leaves a TcmClient open", type="bool", default=False)
    parser.addini("tcm_hide_frames", "leave tcm_sync's frames out of tracebacks", type="bool", default=True)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marks."""
    for mark in _MARKS:
        config.addinivalue_line("markers", mark)


# --- fixtures ---


@pytest.fixture
def tcm_models() -> Mapping[str, Any]:
    """Return the models that `tcm_manager` serves, by name: none, until a project overrides it."""
    return {}


@pytest.fixture
def tcm_manager(request: pytest.FixtureRequest, tcm_models: Mapping[str, Any]) -> Iterator[LocalManager]:
    """Run a `LocalManager` for this test alone, on a free port.

    It serves the models of `tcm_models` and those of the mark ``tcm_manager``, whose other arguments are its
    settings. Requests do not wait for a tick, unless the mark says so.
    """
    from tcm_sync.local import LocalManager

    settings = _arguments_of(request, "tcm_manager")
    models = {**tcm_models, **settings.pop("models", {})}
    manager = LocalManager(models, **{"tick": 0, **settings})
    manager.start()
    yield manager
    manager.kill()
    manager.stop()


@pytest.fixture
def tcm_client(request: pytest.FixtureRequest, tcm_manager: LocalManager) -> Iterator[TcmClient]:
    """Make a `TcmClient` of `tcm_manager`, with its route and a timeout of 10 s, and close it after the test.

    The mark ``tcm_client`` has further arguments.
    """
    from tcm_sync import TcmClient

    usual = {"route": tcm_manager.route, "timeout": 10.0}
    with TcmClient(tcm_manager.uri, **{**usual, **_arguments_of(request, "tcm_client")}) as client:
        yield client


@pytest.fixture
def tcm_env(monkeypatch: pytest.MonkeyPatch, tcm_manager: LocalManager) -> LocalManager:
    """Set the variables by which ``TcmClient.from_env()`` connects to `tcm_manager`, and return that."""
    route = tcm_manager.route
    monkeypatch.setenv("TCM_WS_URI", tcm_manager.uri)
    monkeypatch.setenv("TCM_CONTAINER_ID", route.container_id)
    monkeypatch.setenv("TCM_VM_IP", str(route.vm_ip))
    return tcm_manager


@pytest.fixture
def tcm_django(tcm_manager: LocalManager) -> Iterator[LocalManager]:
    """Let all clients of a Django project's setting ``TCM`` use `tcm_manager`, and return that."""
    from tcm_sync.integrations.django.test import clients_at

    with clients_at(tcm_manager):
        yield tcm_manager


@pytest.fixture
def tcm_faults(request: pytest.FixtureRequest, tcm_manager: LocalManager) -> Iterator[LocalManager]:
    """Return `tcm_manager` for its faults, and fail the test if it plans one that no request takes."""
    failed_before = request.session.testsfailed
    yield tcm_manager
    left = tcm_manager.faults_left
    tcm_manager.clear_faults()
    if left and request.session.testsfailed == failed_before:
        pytest.fail(f"no request has taken the planned faults {', '.join(left)}", pytrace=False)


def _arguments_of(request: pytest.FixtureRequest, name: str) -> dict[str, Any]:
    """Join the arguments of a mark on the module, the class and the test, of which the test's count most."""
    arguments: dict[str, Any] = {}
    for mark in reversed(list(request.node.iter_markers(name))):
        if mark.args:
            raise pytest.UsageError(
                f"the mark {name} takes keyword arguments only, such as {name}(timeout=1)"
            )
        models = {**arguments.get("models", {}), **mark.kwargs.get("models", {})}
        arguments |= mark.kwargs
        if models:
            arguments["models"] = models
    return arguments


# --- tracebacks ---


def _has_ours(excinfo: pytest.ExceptionInfo[BaseException] | None) -> bool:
    frames = () if excinfo is None else excinfo.traceback
    return any(_package(str(entry.frame.f_globals.get("__name__"))) == "tcm_sync" for entry in frames)


def _package(module: str) -> str:
    return module.partition(".")[0]


# Whose frames to hide: always, or in the tracebacks that have frames of the package, which calls these.
_HIDDEN: dict[str, Any] = {"tcm_sync": True, "tenacity": _has_ours, "concurrent": _has_ours}
_looked_at = 0  # modules


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> None:
    """Leave the frames of the package out of tracebacks; ``--full-trace`` shows them.

    pytest looks for ``__tracebackhide__`` among the variables of a frame, and then of its module. It is set
    here and not in each module, since no failure comes before this and modules are added without it.
    """
    global _looked_at
    if len(sys.modules) != _looked_at and item.config.getini("tcm_hide_frames"):
        _looked_at = len(sys.modules)
        for name, module in list(sys.modules.items()):
            if (hidden := _HIDDEN.get(_package(name))) is not None:
                vars(module).setdefault("__tracebackhide__", hidden)


# --- the strict mode ---


class _Made:
    """The clients that a test makes, each with the line that made it; kept, so that none is collected."""

    def __init__(self) -> None:
        self._made: list[tuple[Core, str]] = []

    def __call__(self, core: Core) -> None:
        self._made.append((core, _caller()))

    def __len__(self) -> int:
        return len(self._made)

    def forget_from(self, number: int) -> None:
        """Forget all but the first clients: they are of a fixture that outlives the test."""
        del self._made[number:]

    def left_open(self) -> list[str]:
        """Describe those that are open and whose user has to close them."""
        return [
            f"{core!r}, made at {line}"
            for core, line in self._made
            if core.state.name == "OPEN" and not core.may_be_dropped
        ]


_STRICT = pytest.StashKey[_Made]()
_running: list[_Made] = []  # that of the test that runs, if it is strict


def _is_strict(item: pytest.Item) -> bool:
    mark = item.get_closest_marker("tcm_strict")
    if mark is None:
        return bool(item.config.getini("tcm_strict"))
    return bool(mark.args[0] if mark.args else mark.kwargs.get("enabled", True))


def _caller() -> str:
    """Return the innermost line that is neither of this plugin nor of the package."""
    here = Path(__file__)
    ours = (__file__, f"{here.with_name('tcm_sync')}{os.sep}")
    for frame, number in traceback.walk_stack(None):
        file = frame.f_code.co_filename
        if not file.startswith(ours):
            return f"{file}:{number}: {linecache.getline(file, number).strip()}"
    return "an unknown line"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Record the clients that a strict test makes."""
    if not _is_strict(item):
        return (yield)
    from tcm_sync._calls.copies import recording_clients

    made = item.stash[_STRICT] = _Made()
    _running.append(made)
    try:
        with recording_clients(made):
            return (yield)
    finally:
        _running.remove(made)
        del item.stash[_STRICT]


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
    """Leave out the clients of fixtures that outlive the test."""
    if not _running or fixturedef.scope == "function":
        return (yield)
    made = _running[-1]
    before = len(made)
    try:
        return (yield)
    finally:
        made.forget_from(before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Fail a strict test whose clients are still open when its fixtures have ended."""
    yield
    made = item.stash.get(_STRICT, None)
    if made is not None and (left := made.left_open()):
        pytest.fail("the test left open (close() it, or use with):\n" + "\n".join(left), pytrace=False)
