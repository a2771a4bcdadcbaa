"""The public API as text, so that a breaking change shows in a diff.

``python tests/public/api.py`` writes ``tests/public/api.txt``; a test compares it with the package.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import griffe

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SNAPSHOT = Path(__file__).with_name("api.txt")
PACKAGES = ("tcm_sync", "tcm_sync.compat", "tcm_sync.events", "tcm_sync.local", "tcm_sync.models")
WIDTH = 110
STARS = {"variadic positional": "*", "variadic keyword": "**"}


def snapshot() -> str:
    """Return every public name with its signature, as the source has them: nothing is imported."""
    package = griffe.load("tcm_sync", search_paths=[ROOT], docstring_parser="numpy", resolve_aliases=True)
    lines: list[str] = []
    for name in PACKAGES:
        module = package if name == "tcm_sync" else package[name.removeprefix("tcm_sync.")]
        lines.append(f"# {name}")
        for public in module.exports:
            lines += _describe(module[str(public)], "")
        lines.append("")
    return "\n".join(lines)


def _describe(found: griffe.Object | griffe.Alias, indent: str) -> Iterator[str]:
    target = found.final_target if found.is_alias else found
    if target.is_class:
        bases = ", ".join(str(base) for base in target.bases)
        yield f"{indent}class {found.name}({bases})"
        public = [member for name, member in _members(target).items() if name == "__init__" or name[0] != "_"]
        # Fields stay in their order, which is that of positional arguments where a class is a Struct.
        for member in sorted(public, key=lambda each: each.name if each.is_function else ""):
            yield from _describe(member, indent + "    ")
    elif target.is_function:
        yield from _function(target, indent)
    else:
        annotation = "" if target.annotation is None else f": {target.annotation}"
        is_shown = "class-attribute" in target.labels or (
            "module-attribute" in target.labels and not annotation
        )
        value = f" = {target.value}" if is_shown and target.value is not None else ""
        yield f"{indent}{found.name}{annotation}{value}"


def _members(kind: griffe.Class) -> dict[str, griffe.Object | griffe.Alias]:
    """Return a class's own functions and attributes, and those of its bases that are not public."""
    found: dict[str, griffe.Object | griffe.Alias] = {}
    for base in reversed(kind.resolved_bases):
        if base.path.startswith("tcm_sync.") and base.name not in kind.package.exports:
            found |= _members(base)
    found |= {name: each for name, each in kind.members.items() if each.is_function or each.is_attribute}
    return found


def _function(function: griffe.Function, indent: str) -> Iterator[str]:
    kinds = sorted(function.labels & {"classmethod", "staticmethod", "property"})
    for each in function.overloads or [function]:
        yield from _signature(each, indent + "".join(f"{kind} " for kind in kinds))


def _signature(function: griffe.Function, before: str) -> Iterator[str]:
    """Write a signature on one line, or one parameter a line where that would be too long."""
    parameters = list(_parameters(function))
    head, tail = f"{before}def {function.name}(", ")"
    if function.returns is not None:
        tail += f" -> {function.returns}"
    line = head + ", ".join(parameters) + tail
    if len(line) <= WIDTH:
        yield line
        return
    indent = " " * (len(before) - len(before.lstrip()))
    yield head
    yield from (f"{indent}    {each}," for each in parameters)
    yield indent + tail


def _parameters(function: griffe.Function) -> Iterator[str]:
    star = False
    for each in function.parameters:
        if each.name in ("self", "cls"):
            continue
        if each.kind is griffe.ParameterKind.keyword_only and not star:
            star = True
            yield "*"
        star = star or each.kind is griffe.ParameterKind.var_positional
        text = STARS.get(each.kind.value, "") + each.name
        if each.annotation is not None:
            text += f": {each.annotation}"
        if each.default is not None and each.kind.value not in STARS:
            text += f" = {each.default}"
        yield text


if __name__ == "__main__":
    SNAPSHOT.write_text(snapshot(), encoding="utf-8")
    sys.stdout.write(f"wrote {SNAPSHOT.relative_to(ROOT)}\n")
