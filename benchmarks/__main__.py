"""The table of benchmarks: `python -m benchmarks [NAME ...]`; `benchmarks/README.md` has the rest."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import runpy
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # the files here import each other, and run as scripts too

from machine import description  # noqa: E402
from runner import Plan, Row, pin  # noqa: E402

#: The subjects of the table: modules whose function `rows` yields the rows.
SUBJECTS = (
    "roundtrip",
    "threads",
    "image",
    "reply",
    "batching",
    "stream",
    "memory",
    "imports",
    "idle",
    "sockets",
    "tick",
)


def rows_of(name: str, plan: Plan) -> Iterator[Row]:
    """Measure one subject, and print on the standard error how long that took."""
    start = time.perf_counter()
    yield from importlib.import_module(name).rows(plan)
    print(f"{name} took {time.perf_counter() - start:.0f} s", file=sys.stderr)


def spread(row: Row) -> str:
    """Write the lowest and the highest figure."""
    return f"{row.figure:.3g}{row.unit} ({min(row.figures):.3g} to {max(row.figures):.3g})"


def as_text(row: Row) -> str:
    """Write a row of the table, and its details on a line below."""
    line = f"{row.what}\n    {spread(row):28} {row.goal:18} {row.verdict}"
    return line.rstrip() + (f"\n    {row.detail}" if row.detail else "")


def as_json(row: Row) -> dict[str, Any]:
    """Convert a row to types that JSON has."""
    return {
        "what": row.what,
        "unit": row.unit,
        "figure": row.figure,
        "figures": list(row.figures),
        "least": row.least,
        "most": row.most,
        "passed": row.passed,
        "verdict": row.verdict,
        "told": row.detail,
    }


def as_rst(rows: list[Row], plan: Plan, machine: dict[str, str]) -> str:
    """Write the table for the documentation."""
    lines = [
        *(f":{name}: {value}" for name, value in machine.items()),
        f":rounds: {plan.rounds}, of {plan.seconds:g} s for each contender",
        "",
        ".. list-table::",
        "   :header-rows: 1",
        "   :widths: 34 20 12 14 20",
        "",
    ]
    cells = [("what", "median (lowest to highest)", "goal", "verdict", "made of")]
    cells += [(row.what, spread(row), row.goal, row.verdict, row.detail) for row in rows]
    for first, *others in cells:
        lines += [f"   * - {first}", *(f"     - {other}".rstrip() for other in others)]
    return "\n".join(lines) + "\n"


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the table of benchmarks, or some of its subjects.",
        epilog="Every other file of this folder can be run by its name too, followed by its own options.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SUBJECTS))
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="the same as NAME")
    parser.add_argument("--rounds", type=int, help="how often each is measured (5)")
    parser.add_argument("--seconds", type=float, help="for each contender in each round (2)")
    parser.add_argument(
        "--short",
        action="store_true",
        help="everything with tiny sizes: tests that it runs",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rst", type=Path, metavar="FILE", help="write the table for the documentation too")
    parser.add_argument("--list", action="store_true", help="name the subjects, and end")
    options = parser.parse_args()
    if unknown := set(options.names + options.only) - set(SUBJECTS):
        parser.error(f"no subject: {', '.join(sorted(unknown))}")
    return options


def main() -> None:
    """Measure the chosen subjects, and report whether goals are reached. A missed goal is not a failure."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in SUBJECTS and (HERE / f"{name}.py").exists():
        sys.argv[1:] = sys.argv[2:]
        runpy.run_path(str(HERE / f"{name}.py"), run_name="__main__")
        return
    options = arguments()
    if options.short:
        print("short: this only tests that everything runs; the figures mean nothing", file=sys.stderr)
    if options.list:
        print(*SUBJECTS, sep="\n")
        return
    rounds, seconds = (1, 0.1) if options.short else (5, 2.0)
    machine = description()
    plan = Plan(options.rounds or rounds, options.seconds or seconds, options.short, pin())
    logging.getLogger("tcm_sync").setLevel(logging.ERROR)  # else it warns of large pools
    rows = []
    for name in options.names + options.only or SUBJECTS:
        for row in rows_of(name, plan):
            rows.append(row)
            print("" if options.json else as_text(row), end="" if options.json else "\n", flush=True)
    if options.json:
        table = {
            "machine": machine,
            "rounds": plan.rounds,
            "short": plan.short,
            "rows": [as_json(row) for row in rows],
        }
        print(json.dumps(table, indent=1))
    if options.rst:
        options.rst.write_text(as_rst(rows, plan, machine), encoding="utf-8")


if __name__ == "__main__":
    main()
