"""Runs the tests against bugs made on purpose, each in a copy of the tree: `python -m tests.mutants --help`.

The exit status is 1 if a planted bug survives or its patch does not apply, or if fewer of the drawn mutants
are killed than `MIN_KILLED`, those listed as equivalent not counted.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from math import inf
from pathlib import Path
from queue import SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING

from . import drawn, planted
from .copies import KILLED, NOT_APPLICABLE, SURVIVED, UNFINISHED, Copy, Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    Mutant = drawn.Drawn | planted.Planted

ROOT = Path(__file__).resolve().parents[2]
MIN_KILLED = 0.85
#: Seconds for the test files of one mutant.
ONE_MUTANT = 60.0


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Run what the command line asks for."""
    asked = _parse(arguments)
    bugs = planted.read_all(root / "tests" / "mutants" / "planted")
    if asked.check:
        return _check(bugs, root)
    seed = random.SystemRandom().randrange(10**6) if asked.seed is None else asked.seed
    mutants: list[Mutant]
    if asked.random:
        mutants = [*drawn.draw(root, asked.random, seed, asked.modules)]
    else:
        mutants = [bug for bug in bugs if not asked.names or bug.name in asked.names]
        if unknown := set(asked.names) - {bug.name for bug in mutants}:
            sys.exit(f"there is no patch {', '.join(sorted(unknown))}")
        if asked.draw:
            mutants = random.Random(seed).sample(mutants, min(asked.draw, len(mutants)))
    if asked.random or asked.draw:
        print(f"{len(mutants)} mutants drawn by --seed={seed}", flush=True)
    if asked.list:
        print(*(f"{mutant.name}: {mutant.what}" for mutant in mutants), sep="\n")
        return 0
    outcomes = _run(mutants, root, asked.seconds, asked.workers, asked.report)
    return _summary(outcomes, asked.random > 0)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="patches of tests/mutants/planted, without .patch; all")
    parser.add_argument("--check", action="store_true", help="only see whether every patch applies")
    parser.add_argument("--list", action="store_true", help="only print what would be run")
    parser.add_argument("--draw", type=int, default=0, metavar="N", help="so many of the patches")
    parser.add_argument("--random", type=int, default=0, metavar="N", help="so many mutants by cosmic-ray")
    parser.add_argument("--modules", default="", help="with --random: of modules that begin with this")
    parser.add_argument("--seed", type=int, help="what --draw and --random draw by")
    parser.add_argument("--seconds", type=float, default=inf, help="end after that time, whatever is left")
    parser.add_argument("--workers", type=int, default=2, help="copies that are worked in at a time")
    parser.add_argument("--report", type=Path, help="append outcomes; leave out mutants that have one there")
    return parser.parse_args(arguments)


def _check(bugs: list[planted.Planted], root: Path) -> int:
    problems = [
        f"{bug.name}: {problem}" for bug in bugs if (problem := planted.apply(bug.path, root, "--check"))
    ]
    print(*problems, f"{len(bugs) - len(problems)} of {len(bugs)} patches apply", sep="\n")
    return 1 if problems else 0


def _run(
    mutants: Sequence[Mutant], root: Path, seconds: float, workers: int, report: Path | None
) -> dict[Mutant, Outcome]:
    """Run each mutant, on so many threads with a copy each."""
    ends = monotonic() + seconds
    known = _read_report(report)
    outcomes = {mutant: known[mutant.name] for mutant in mutants if mutant.name in known}

    def time_left() -> float:
        return min(ONE_MUTANT, max(0.0, ends - monotonic()))

    def run(mutant: Mutant) -> None:
        if time_left() == 0.0:
            outcomes[mutant] = Outcome(UNFINISHED, "the time was over")
            return
        copy = copies.get()
        try:
            outcome = copy.confirm(mutant.try_in(copy, time_left), time_left())
        finally:
            copies.put(copy)
        if time_left() == 0.0 and outcome.verdict != SURVIVED:
            outcome = Outcome(UNFINISHED, "the time was over", outcome.seconds)
        outcomes[mutant] = outcome
        print(
            f"{outcome.verdict:12} {outcome.seconds:5.1f} s  {mutant.what}\n{'':21} {outcome.by}", flush=True
        )
        if report is not None and outcome.verdict in (KILLED, SURVIVED):
            with report.open("a", encoding="utf-8") as file:
                print(json.dumps([mutant.name, outcome.verdict, outcome.by, outcome.seconds]), file=file)

    with tempfile.TemporaryDirectory(prefix="tcm-mutants-") as folder:
        copies: SimpleQueue[Copy] = SimpleQueue()
        for number in range(workers):
            copies.put(Copy(root, Path(folder, str(number))))
        with ThreadPoolExecutor(workers) as threads:
            list(threads.map(run, [mutant for mutant in mutants if mutant not in outcomes]))
    return outcomes


def _read_report(report: Path | None) -> dict[str, Outcome]:
    if report is None or not report.exists():
        return {}
    lines = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    return {name: Outcome(*outcome) for name, *outcome in lines}


def _summary(outcomes: dict[Mutant, Outcome], at_random: bool) -> int:
    equivalent = drawn.read_equivalent() if at_random else {}
    counts = Counter(
        "equivalent" if outcome.verdict == SURVIVED and mutant.name in equivalent else outcome.verdict
        for mutant, outcome in outcomes.items()
    )
    print(", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())))
    if counts[NOT_APPLICABLE]:
        return 1
    if not at_random:
        return 1 if counts[SURVIVED] else 0
    judged = counts[KILLED] + counts[SURVIVED]
    print(
        f"{counts[KILLED] / judged:.1%} of those that are not equivalent are killed" if judged else "none ran"
    )
    return 1 if judged and counts[KILLED] < MIN_KILLED * judged else 0


if __name__ == "__main__":
    sys.exit(main())
