"""``doctor``: check the connection to the manager step by step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import click

from tcm_sync._secrets import hide
from tcm_sync.cli.checks import Checks, Finding, Skipped, StepFailedError
from tcm_sync.cli.options import Command, Session
from tcm_sync.cli.output import Output

_STEP_TIMEOUT = 5.0  # seconds

_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}


@dataclass(frozen=True)
class Step:
    """A step, and the names of the steps that must have succeeded before it."""

    name: str
    check: Callable[[Checks], Finding]
    needs: tuple[str, ...] = ()


STEPS = (
    Step("settings", Checks.settings),
    Step("name resolution", Checks.name_resolution, ("settings",)),
    Step("TCP", Checks.tcp, ("name resolution",)),
    Step("TLS", Checks.tls, ("TCP",)),
    Step("health", Checks.health, ("TCP", "TLS")),
    Step("ready", Checks.ready, ("health",)),
    Step("WebSocket", Checks.websocket, ("TCP", "TLS", "health")),
    Step("authentication", Checks.authentication, ("WebSocket",)),
    Step("capability", Checks.capability, ("authentication",)),
    Step("shared memory", Checks.shared_memory),
    Step("round trip", Checks.round_trip, ("authentication",)),
    Step("clock", Checks.clock, ("health",)),
    Step("versions", Checks.versions),
)


@dataclass(frozen=True)
class Outcome:
    """The result of a step."""

    name: str
    status: str
    seconds: float
    detail: str
    advice: str | None = None
    code: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "detail", hide(self.detail))
        if self.advice is not None:
            object.__setattr__(self, "advice", hide(self.advice))


@click.command("doctor", cls=Command)
@click.pass_obj
def doctor(session: Session) -> int:
    """Check the connection to the manager step by step, and print what to do."""
    return run_checks(session)


def run_checks(session: Session) -> int:
    """Run the steps, print what they found, and return the exit status."""
    output = session.output
    checks = Checks(session, session.timeout or _STEP_TIMEOUT)
    outcomes: dict[str, Outcome] = {}
    try:
        for step in STEPS:
            outcomes[step.name] = outcome = _run(step, checks, outcomes)
            if not session.as_json:
                _print(output, outcome)
    finally:
        checks.close()
    code = next((outcome.code for outcome in outcomes.values() if outcome.code), 0)
    todo = [f"{each.name}: {each.advice}" for each in outcomes.values() if each.advice is not None]
    if session.as_json:
        steps = [{k: v for k, v in asdict(each).items() if k != "code"} for each in outcomes.values()]
        output.json({"ok": code == 0, "steps": steps, "todo": todo})
        return code
    output.line()
    output.line("To do:" if todo else "Nothing to do.", "bold")
    for line in todo:
        output.line(f"- {line}")
    return code


def _run(step: Step, checks: Checks, outcomes: dict[str, Outcome]) -> Outcome:
    failed = [name for name in step.needs if outcomes[name].code or outcomes[name].status == "blocked"]
    if failed:
        return Outcome(step.name, "blocked", 0.0, f"after {failed[0]}")
    start = time.perf_counter()
    try:
        finding = step.check(checks)
    except Skipped as reason:
        return Outcome(step.name, "skipped", 0.0, str(reason))
    except StepFailedError as error:
        seconds = time.perf_counter() - start
        return Outcome(step.name, "failed", seconds, str(error), error.advice, error.code)
    return Outcome(step.name, finding.status, time.perf_counter() - start, finding.detail, finding.advice)


def _print(output: Output, outcome: Outcome) -> None:
    took = f"{outcome.seconds * 1e3:.1f} ms" if outcome.status not in ("skipped", "blocked") else ""
    line = f"{outcome.status:<8} {outcome.name:<16} {took:>10}  {outcome.detail}"
    output.line(line, _STYLES.get(outcome.status, "dim"))
