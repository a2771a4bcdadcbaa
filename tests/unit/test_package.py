"""The shape of the package: which way imports point, what is public, what an import costs, what pickles."""

from __future__ import annotations

import builtins
import configparser
import gc
import json
import pickle
import pickletools
import pydoc
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import tcm_sync
from tcm_sync import TcmClient, errors
from tcm_sync._calls.core import Core
from tcm_sync._pool.turn_file import TurnFile
from tcm_sync.events._watch import Watch
from tcm_sync.local.mapping import Mapping
from tcm_sync.settings import Route

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tcm_sync"
MODULES = sorted(PACKAGE.rglob("*.py"))


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def requirements(text: str) -> dict[str, str]:
    """Map each distribution to its version specifier: ``{"numpy": ">=1.26"}``."""
    found = {}
    for line in text.splitlines():
        if line and not line.startswith(("#", "tcm-sync[")):
            name, specifier = re.fullmatch(r"([\w-]+)(?:\[\w+\])?(.*)", line).groups()
            found[name] = specifier
    return found


def test_public_names_are_sorted_complete_and_importable() -> None:
    names = tcm_sync.__all__
    assert names == sorted(set(names), key=lambda name: (not name.isupper(), name)), "constants first"
    submodules = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in MODULES}
    # pytest adds names with @ to the modules of packages that have a plugin
    public = {name for name in vars(tcm_sync) if not name.startswith(("_", "@"))}
    assert public - submodules - {"annotations"} == set(names)


@pytest.mark.parametrize(
    "name", [name for name in tcm_sync.__all__ if isinstance(getattr(tcm_sync, name), type)]
)
def test_help_explains_every_public_class(name: str) -> None:
    assert f"class {name}(" in pydoc.render_doc(getattr(tcm_sync, name), renderer=pydoc.plaintext)


def test_every_error_is_public() -> None:
    assert {kind.__name__ for kind in every_error()} <= set(tcm_sync.__all__)


PROBE = """
import json, os, sys, threading

def descriptors():
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except OSError:  # the descriptor of the listing
            pass
    return found

loaded, open_before = set(sys.modules), descriptors()
import tcm_sync
opened = {number: to for number, to in descriptors().items() if number not in open_before}
print(json.dumps({
    "modules": [name for name, module in sys.modules.items()
                if name not in loaded and getattr(module, "__spec__", None)],
    "threads": [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()],
    "opened": opened,
}))
"""


@pytest.fixture(scope="module")
def fresh_import() -> dict[str, Any]:
    """What ``import tcm_sync`` did to an interpreter of its own."""
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    done = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_import_starts_no_thread_and_opens_nothing(fresh_import: dict[str, Any]) -> None:
    assert fresh_import["threads"] == []
    # The library of ctypes, which numpy imports, may keep its own file open.
    assert [path for path in fresh_import["opened"].values() if "libffi" not in path] == []


def test_import_loads_the_core_dependencies_alone(fresh_import: dict[str, Any]) -> None:
    loaded = {name.split(".")[0] for name in fresh_import["modules"]}
    foreign = {name for name in loaded - sys.stdlib_module_names if not name.startswith("_")}
    core = {"tcm_sync", "numpy", "msgspec", "orjson", "websocket"}
    # onnx is imported where ONNX files are read, and tenacity where a call fails
    # msgspec and websocket-client import these where they are installed
    assert foreign - {"typing_extensions", "python_socks"} == core


def test_import_does_not_load_the_local_manager(fresh_import: dict[str, Any]) -> None:
    assert "tcm_sync.client" in fresh_import["modules"]
    assert not [name for name in fresh_import["modules"] if name.startswith("tcm_sync.local")]


def every_error() -> list[type[errors.TcmError]]:
    return [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.TcmError) and kind.__module__ == errors.__name__
    ]


def fields_of(kind: type[errors.TcmError]) -> set[str]:
    return {name for base in kind.__mro__ for name in vars(base).get("__annotations__", {})}


def facts_of(error: BaseException) -> tuple[Any, ...]:
    """Return what distinguishes two errors; those in the history too, since errors compare by identity."""
    fields = dict(vars(error))
    history = [facts_of(earlier) for earlier in fields.pop("history", ())]
    return type(error), str(error), error.args, fields, history


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_an_error_survives_pickle_with_every_field(kind: type[errors.TcmError]) -> None:
    earlier = errors.ConnectFailedError("no route to host", attempts=1, uuid="tcm-sync-1")
    values = {
        "code": "TRITON_ERROR",
        "retriable": not kind.retriable,
        "retry_after": 2.5,
        "history": (earlier, errors.TcmError("second")),
        "outcome_unknown": True,
        "model_name": "digits",
        "route": Route("ctr-9", vm_ip="10.0.0.7"),
        "uuid": "tcm-sync-2",
        "elapsed": 1.25,
    }
    fields = {name: values.get(name, 7) for name in fields_of(kind)}
    assert set(values) < set(fields)
    error = kind("it failed", **fields)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        copy = pickle.loads(pickle.dumps(error, protocol))
        assert facts_of(copy) == facts_of(error)
        for name, value in fields.items():
            if name != "history":
                assert getattr(copy, name) == value
    assert all(part in str(error) for part in ("it failed", "digits", "ctr-9", "tcm-sync-2", "7 attempts"))


def test_an_error_that_says_nothing_more_is_its_message() -> None:
    assert str(errors.InputError("x must be an array")) == "x must be an array"
    with pytest.raises(TypeError, match="has no field 'colour'"):
        errors.InputError("x", colour="red")


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    tree = errors.__doc__.split("Every class survives")[0]
    named = re.findall(r"[├└]── (.+)|│   (\w+Error.*)|^    (TcmError)$", tree, re.M)
    text = "\n".join("".join(parts) for parts in named)
    drawn = re.findall(r"\b(\w+Error)\b(?: \((\w+Error)\))?", text)
    assert sorted(name for name, _ in drawn) == sorted(kind.__name__ for kind in every_error())
    for name, other_base in drawn:
        bases = getattr(errors, name).__bases__
        builtin = [base.__name__ for base in bases if base.__module__ == builtins.__name__]
        assert [base for base in builtin if base != "Exception"] == ([other_base] if other_base else [])
    retriable, fatal = re.search(r"TritonTimeoutError.*\(retriable\)", tree, re.S), "(fatal)"
    groups = dict.fromkeys(re.findall(r"\w+Error", retriable.group()), True)
    groups |= dict.fromkeys(re.findall(r"\w+Error", tree[retriable.end() : tree.index(fatal)]), False)
    assert groups == {name: getattr(errors, name).retriable for name in groups}
    assert groups.keys() <= {rule.error.__name__ for rule in errors.ERROR_CODES.values()}


def test_the_table_of_codes_agrees_with_the_classes() -> None:
    assert {rule.error for rule in errors.ERROR_CODES.values()} < set(every_error())
    for code, rule in errors.ERROR_CODES.items():
        assert rule.error.retriable is rule.retriable, code
    with pytest.raises(TypeError):
        errors.ERROR_CODES["TRITON_ERROR"] = None


def test_settings_of_the_project_are_written_once() -> None:
    tomllib = pytest.importorskip("tomllib", reason="came with Python 3.11")
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(pyproject) == {"build-system", "tool"}, "the metadata is in setup.cfg"
    assert "setuptools" not in pyproject["tool"]
    sections = set(setup_cfg().sections())
    assert {name.split(".")[0] for name in sections} == {"metadata", "options"}, "tools are in pyproject.toml"
    assert sections >= {"metadata", "options", "options.extras_require"}
    others = {"setup.py", "pytest.ini", "tox.ini", "mypy.ini", "ruff.toml", ".coveragerc", "requirements.txt"}
    assert not [name for name in others if (ROOT / name).exists()]


def test_every_floor_is_among_the_lowest_tested_versions() -> None:
    config = setup_cfg()
    floors = requirements(config["options"]["install_requires"])
    for extra in (
        "cli",
        "dask",
        "django",
        "flask",
        "frames",
        "local",
        "opentelemetry",
        "progress",
        "prometheus",
        "proxy",
        "report",
    ):
        floors |= requirements(config["options.extras_require"][extra])
    of_tests = requirements(config["options.extras_require"]["test"])
    floors |= {library: of_tests[library] for library in ("pandas", "polars", "pyarrow")}  # users bring them
    assert all(specifier.startswith(">=") for specifier in floors.values())
    lowest = requirements((ROOT / "tests" / "lowest.txt").read_text(encoding="utf-8"))
    release = {name: specifier.removeprefix(">=").split(".") for name, specifier in floors.items()}
    exact = {name: specifier.removeprefix("==").split(".") for name, specifier in lowest.items()}
    assert {name: parts[: len(release[name])] for name, parts in exact.items()} == release


def test_the_classifiers_name_the_oldest_python() -> None:
    config = setup_cfg()
    oldest = config["options"]["python_requires"].removeprefix(">=")
    named = re.findall(r"Python :: (3\.\d+)$", config["metadata"]["classifiers"], re.M)
    assert min(named, key=lambda version: int(version.split(".")[1])) == oldest


def picklable() -> dict[str, Any]:
    """Return one of everything that can be pickled, by the name of its class."""
    route = Route("ctr-9", vm_ip="10.0.0.7")
    auth = tcm_sync.AuthContext(token="t" * 20, roles=("inference",))
    retry = tcm_sync.RetryPolicy(3, fatal=("A",))
    client = tcm_sync.TcmClient("ws://h/ws", auth, route=route, retry=retry)
    signature = tcm_sync.ModelSignature(
        (tcm_sync.TensorSpec("x", "FP32", (1,)),), (tcm_sync.TensorSpec("y", "FP32", (1,)),)
    )
    batch = tcm_sync.BatchPolicy(4)
    made = [
        auth,
        route,
        retry,
        batch,
        signature,
        signature.inputs[0],
        tcm_sync.TlsSettings(server_hostname="h"),
        client,
        client.with_options(timeout=1.0, output_dtypes={"y": "f4"}, transport="json"),
        client.model("m", signature=signature, batch=batch, output_dtypes="f4"),
        client.stats(),
        tcm_sync.UNSET,
        tcm_sync.InferenceInput("x", (1,), "FP32", [1.0]),
        tcm_sync.SHMReference("x", "/key", 4, (1,), "FP32"),
        tcm_sync.PipelineStep("m", [1.0]),
        tcm_sync.InferResult("m", {}, b"{}", 1, 0.1),
        tcm_sync.ManagementResult("creation", {}, 1, 0.1),
        tcm_sync.QueueStats(*range(14)),
        tcm_sync.Readiness(ok=True, status="ready"),
        tcm_sync.Deployment("10.0.0.7", "ctr-9", "m", signature),
        *(kind("it failed", route=route) for kind in every_error()),
    ]
    return {type(each).__name__: each for each in made}


def test_everything_public_that_can_be_pickled_is() -> None:
    left_out = {"InferStream"}  # which stays in its process
    public = {name for name in tcm_sync.__all__ if isinstance(getattr(tcm_sync, name), type)}
    assert public - left_out <= set(picklable())


@pytest.mark.parametrize("name", picklable())
def test_pickles_name_public_modules_alone(name: str) -> None:
    """What a program stores or sends survives changes of private modules."""
    original = picklable()[name]
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        pickled = pickle.dumps(original, protocol)
        named = [str(argument) for _, argument, _ in pickletools.genops(pickled) if isinstance(argument, str)]
        assert [each for each in named if each.startswith("tcm_sync._")] == []
        assert type(pickle.loads(pickled)) is type(original)


def test_what_users_meet_is_named_by_a_public_module() -> None:
    named = {getattr(getattr(tcm_sync, name), "__module__", "tcm_sync") for name in tcm_sync.__all__}
    assert not [module for module in named if module.startswith("tcm_sync._")]


def test_a_client_shows_its_users_nothing_that_is_not_for_them() -> None:
    client = tcm_sync.TcmClient("ws://h/ws")
    for shown in (client, client.model("m", container_id="c")):
        documented = {name for name in vars(type(shown)) if not name.startswith("_")}
        assert all(getattr(type(shown), name).__doc__ for name in documented)
        assert {name for name in dir(shown) if not name.startswith("_")} - vars(shown).keys() == documented


def test_the_version_is_that_of_the_installed_package() -> None:
    assert tcm_sync.__version__ == metadata.version("tcm-sync")
    with pytest.raises(AttributeError, match="has no attribute 'version'"):
        tcm_sync.version  # noqa: B018


def test_what_passes_with_time_is_one_tuple():
    kinds = {kind for kind in every_error() if kind.retriable} | {errors.PoolTimeoutError}
    direct = {
        kind for kind in kinds if not any(other is not kind and issubclass(kind, other) for other in kinds)
    }
    assert set(tcm_sync.RETRIABLE) == direct
    assert len(tcm_sync.RETRIABLE) == len(direct)
    assert not issubclass(errors.CallTimeoutError, tcm_sync.RETRIABLE)


@pytest.mark.parametrize("kind", [TcmClient, Core, Watch, TurnFile, Mapping])
def test_what_an_interrupt_kept_from_being_initialised_is_dropped_without_a_failure(kind):
    """A failure in `__del__` would be reported, and fail this test."""
    kind.__new__(kind)
    gc.collect()
