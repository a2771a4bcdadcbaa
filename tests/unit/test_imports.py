"""Imports point down only: by package and by file, and without a cycle."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parents[1]


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("import_graph", HERE / "import_graph.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


graph = _load()

#: From the lowest to the highest: a module imports from lower layers, and from its own package.
LAYERS = (
    {"_deadline", "_handlers", "_ttl_cache", "_waiting"},
    {"_locks", "_numbers"},
    {"_texts", "_secrets"},
    {"_tables", "_tracebacks"},
    {"_base_error", "_futures"},
    {"errors"},
    {"_process", "_reentry"},
    {"_threads"},
    {"_logs"},
    {"events"},
    {"_arguments", "_endpoint", "_proxy_url", "_secret_texts", "_tls_context", "_wire"},
    {"_tensors", "retry"},
    {"models", "settings"},
    {"_environment", "_transport"},
    {"_pool", "_shm", "results", "stats"},
    {"_calls"},
    {"model"},
    {"client"},
    {"compat", "local"},
    {"cli"},
    {"integrations"},
)
LAYER_OF = {room: layer for layer, rooms in enumerate(LAYERS) for room in rooms}

#: Files that import each other for type checkers alone, or inside a function: there are none.
CYCLES: list[list[str]] = []


@pytest.mark.parametrize(("name", "path"), graph.modules().items(), ids=lambda each: str(each)[-40:])
def test_a_module_says_what_it_is_for(name: str, path: Path) -> None:
    says = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert says.split("\n\n")[0].endswith("."), f"{name}: no sentence for the list of modules"


def test_every_module_has_a_layer() -> None:
    assert {graph.room_of(name) for name in graph.modules()} - {""} == set(LAYER_OF)


def test_imports_that_run_point_down() -> None:
    wrong = [
        f"{each.importer} imports {each.imported}"
        for each in graph.imports()
        if each.kind != "typing" and "" not in (each.importer, each.imported)
        if (own := graph.room_of(each.importer)) != (other := graph.room_of(each.imported))
        if LAYER_OF[other] >= LAYER_OF[own]
    ]
    assert not wrong


def test_the_public_package_is_imported_by_its_users_alone() -> None:
    importers = {graph.room_of(each.importer) for each in graph.imports() if each.imported == ""}
    assert importers <= {"cli", "local", ""}


def test_no_files_import_each_other() -> None:
    found = graph.imports()
    assert graph.cycles(graph.graph(found, ("top",))) == []
    assert sorted(graph.cycles(graph.graph(found))) == CYCLES
