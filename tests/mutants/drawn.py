"""Mutants that cosmic-ray makes, drawn by a seed.

cosmic-ray itself runs every mutant against one command. Here its operators make the mutants, a seed draws
some, and each runs against the test files nearest to it. First a place is drawn and then what is done there:
or most would be a sum or a comparison that is changed in twenty ways which every test finds.
"""

from __future__ import annotations

import ast
import difflib
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .nearest import NEAREST, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cosmic_ray.operators.operator import Operator

    from .copies import Copy, Outcome

EQUIVALENT = Path(__file__).parent / "equivalent.txt"

Place = tuple[int, int]  # line, column


@dataclass(frozen=True)
class Drawn:
    """One change of one module."""

    module: str
    line: int
    before: str
    after: str
    text: str

    @property
    def name(self) -> str:
        """What it is called in reports: it stays the same when lines above it change."""
        return f"{self.module} || {self.before} || {self.after}"

    @property
    def what(self) -> str:
        """Where it is, and what is done."""
        return f"{self.module}:{self.line}: {self.before}  ->  {self.after}"

    def try_in(self, copy: Copy, time_left: Callable[[], float]) -> Outcome:
        """Change the module in a copy, and run the test files nearest to it."""
        copy.write(self.module, self.text)
        try:
            return copy.run(nearest(self.module), time_left())
        finally:
            copy.restore([self.module])


def draw(root: Path, count: int, seed: int, modules: str = "") -> list[Drawn]:
    """Draw so many mutants of the modules that have nearest tests and begin with `modules`."""
    dice = random.Random(seed)
    places = [
        (module, place, changes)
        for module in sorted(NEAREST)
        if module.startswith(modules)
        for place, changes in sorted(_places(root / module).items())
    ]
    dice.shuffle(places)
    drawn: list[Drawn] = []
    for module, place, changes in places:
        if len(drawn) == count:
            break
        operator, occurrence = dice.choice(changes)
        drawn.extend(_mutate(root, module, place, operator, occurrence))
    return drawn


def _operators() -> Iterator[Operator]:
    from cosmic_ray import plugins

    for name in sorted(plugins.operator_names()):
        kind = plugins.get_operator(name)
        if not kind.arguments():
            yield kind()


def _places(path: Path) -> dict[Place, list[tuple[Operator, int]]]:
    """Find each place of a module that can be changed, with the operators that can do it."""
    from cosmic_ray.ast import ast_nodes, get_ast_from_path

    nodes = list(ast_nodes(get_ast_from_path(path)))
    unused = _annotations(path.read_text(encoding="utf-8"))
    places: dict[Place, list[tuple[Operator, int]]] = {}
    for operator in _operators():
        found = [span for node in nodes for span in operator.mutation_positions(node)]
        for occurrence, (start, _) in enumerate(found):
            if not any(first <= start < last for first, last in unused):
                places.setdefault(start, []).append((operator, occurrence))
    return places


def _annotations(text: str) -> list[tuple[Place, Place]]:
    """Find what no program runs: annotations, and what is for type checkers alone."""
    found: list[ast.expr | ast.stmt] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            found.append(node.annotation)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns is not None:
            found.append(node.returns)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            found.append(node)
    return [
        ((node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0)) for node in found
    ]


def _mutate(root: Path, module: str, place: Place, operator: Operator, occurrence: int) -> Iterator[Drawn]:
    from cosmic_ray.mutating import mutate_code

    text = (root / module).read_text(encoding="utf-8")
    changed = mutate_code(text, operator, occurrence)
    if changed is None or changed == text:
        return
    try:
        compile(changed, module, "exec")
    except SyntaxError:  # no test is needed to find it
        return
    lines = [
        line
        for line in difflib.ndiff(text.splitlines(), changed.splitlines())
        if line.startswith(("- ", "+ "))
    ]
    before, after = (
        " ".join(line[2:].strip() for line in lines if line.startswith(sign)) or "(nothing)" for sign in "-+"
    )
    yield Drawn(module, place[0], before, after, changed)


def read_equivalent(path: Path = EQUIVALENT) -> dict[str, str]:
    """Read which mutants cannot be killed, and why: ``module || line || changed line || reason``."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            module, before, after, reason = line.split(" || ")
            found[f"{module} || {before} || {after}"] = reason
    return found
