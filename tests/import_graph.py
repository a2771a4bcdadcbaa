"""Which file of the package imports which: ``python tests/import_graph.py`` prints layers and counts.

Three kinds of imports: at the top of a module, inside a function, and for type checkers alone.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PACKAGE = Path(__file__).parents[1] / "tcm_sync"

Kind = Literal["top", "function", "typing"]


@dataclass(frozen=True)
class Import:
    """One import of one module of the package by another, both as dotted names below ``tcm_sync``."""

    importer: str
    imported: str
    kind: Kind


def modules() -> dict[str, Path]:
    """Map the dotted name of each module below ``tcm_sync`` to its file; "" is the package itself."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts).removesuffix("__init__").removesuffix(".")] = path
    return found


def room_of(module: str) -> str:
    """Return the top-level part of the package that a module belongs to."""
    return module.split(".", 1)[0]


def imports() -> list[Import]:
    """Return every import between modules of the package."""
    known = modules()
    return [
        Import(importer, imported, kind)
        for importer, path in known.items()
        for imported, kind in _imports_of(ast.parse(path.read_text(encoding="utf-8")), "top", known)
        if imported != importer
    ]


def _imports_of(node: ast.AST, kind: Kind, known: Mapping[str, Path]) -> Iterator[tuple[str, Kind]]:
    for child in ast.iter_child_nodes(node):
        inner = kind
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            inner = "typing"
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and kind == "top":
            inner = "function"
        if isinstance(child, ast.Import):
            names = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: imports in this package are absolute"
            names = [f"{child.module}.{alias.name}" for alias in child.names]
        else:
            names = []
        for name in names:
            if name.split(".")[0] == "tcm_sync":
                yield _module_of(name, known), inner
        yield from _imports_of(child, inner, known)


def _module_of(name: str, known: Mapping[str, Path]) -> str:
    """Return the module that holds a dotted name: itself, or the one that it is imported from."""
    below = name.removeprefix("tcm_sync").removeprefix(".")
    while below not in known:
        below = below.rpartition(".")[0]
    return below


def cycles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the groups of nodes that can reach one another (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(edges.get(node, ())):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for node in sorted(edges):
        if node not in index:
            visit(node)
    return groups


def floors(edges: Mapping[str, set[str]], nodes: set[str]) -> dict[str, int]:
    """Give each node of a graph without cycles a floor: one above the highest that it imports."""
    found: dict[str, int] = {}

    def floor(node: str) -> int:
        if node not in found:
            found[node] = 1 + max((floor(other) for other in edges.get(node, ())), default=-1)
        return found[node]

    for node in nodes:
        floor(node)
    return found


def graph(
    found: list[Import], kinds: tuple[Kind, ...] = ("top", "function", "typing"), *, rooms: bool = False
) -> dict[str, set[str]]:
    """Make a graph of imports of some kinds, by file or by room; the package's ``__init__`` is left out."""
    edges: dict[str, set[str]] = defaultdict(set)
    for each in found:
        ends = (each.importer, each.imported)
        importer, imported = map(room_of, ends) if rooms else ends
        if each.kind in kinds and "" not in (importer, imported) and importer != imported:
            edges[importer].add(imported)
    return edges


def main() -> None:
    """Print the layers, and what the imports between them come to."""
    found = imports()
    by_room = graph(found, ("top", "function"), rooms=True)
    floor_of = floors(by_room, {room_of(module) for module in modules()} - {""})
    for floor in sorted(set(floor_of.values())):
        print(f"{floor:3} {', '.join(sorted(room for room in floor_of if floor_of[room] == floor))}")
    arrows = sum(map(len, by_room.values()))
    print(f"{len(floor_of)} rooms, {len(set(floor_of.values()))} floors, {arrows} arrows")
    groups = cycles(graph(found))
    print(f"{len(groups)} cycles of files")
    for group in groups:
        print("  " + ", ".join(group))


if __name__ == "__main__":
    main()
