"""Checks that are run by hand: `pipx run nox` runs those of .ci/run, `nox --list` shows the others.

All but `newest` and `oldest` install what constraints.txt has locked.
"""

from __future__ import annotations

import nox

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False  # its last lines say which Python was not there
nox.options.sessions = ["tests", "newest", "lint", "types", "docs"]

LOCK = {"PIP_CONSTRAINT": "constraints.txt", "PIP_BUILD_CONSTRAINT": "constraints.txt"}


def install(session: nox.Session, extras: str) -> None:
    session.install("--editable", f".[{extras}]", env=LOCK)


@nox.session(python=["3.10", "3.11", "3.12", "3.13", "3.14"])
def tests(session: nox.Session) -> None:
    """Run the tests with each Python that is there."""
    install(session, "bench,test")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def newest(session: nox.Session) -> None:
    """Run unit, wire and peer tests with the newest release of everything."""
    session.run(".ci/newest.py", "python", external=True)


@nox.session(python="3.10")
def oldest(session: nox.Session) -> None:
    """Run the tests with the oldest releases that setup.cfg allows."""
    session.install("--editable", ".[test]", "--constraint", "tests/lowest.txt")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Look for mistakes and for another layout than ruff's."""
    install(session, "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types, and what type checkers make of users' programs."""
    install(session, "lint,test")
    session.run("mypy")
    session.run("python", "-m", "pytest", "tests/typing")


@nox.session
def coverage(session: nox.Session) -> None:
    """Run the tests and report which lines they reach; less than the floor in pyproject.toml fails."""
    install(session, "bench,test")
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *session.posargs)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session
def mutants(session: nox.Session) -> None:
    """Run the tests against every planted bug; with `--random 300`, against mutants by cosmic-ray."""
    install(session, "bench,test")
    session.install("cosmic-ray==8.7.0")  # another release might draw other mutants by the same seed
    session.run("python", "-m", "tests.mutants", *session.posargs)


@nox.session
def interleavings(session: nox.Session) -> None:
    """Run the pool under 100,000 interleavings of its threads."""
    install(session, "test")
    session.run("python", "-m", "tests.helpers.pool_model", *session.posargs)


@nox.session
def secrets(session: nox.Session) -> None:
    """Run the tests with marked secrets in every client, and look for the marks in all that was written."""
    install(session, "bench,test")
    session.run("python", "-m", "tests.helpers.marked_secrets", *(session.posargs or ["tests"]))


@nox.session
def api(session: nox.Session) -> None:
    """Write the snapshot of the public API anew, after a change of it that is meant."""
    install(session, "test")
    session.run("python", "tests/public/api.py")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error."""
    install(session, "cli,dask,docs,local,opentelemetry,prometheus")
    session.run("sphinx-build", "-W", "--keep-going", "-n", "-q", "docs", "docs/_build")


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Measure; positional arguments are those of `python -m benchmarks`."""
    install(session, "bench,test")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Read mutated frames, messages, HTTP answers and files; an argument is the number for each (20000)."""
    install(session, "test")
    number, *options = session.posargs or ["20000"]
    session.run("python", "-m", "pytest", "tests/fuzz", *options, env={"TCM_FUZZ_EXAMPLES": number})


@nox.session
def audit(session: nox.Session) -> None:
    """Look up the locked releases in the databases of known vulnerabilities."""
    session.install("pip-audit")
    session.run("pip-audit", "--requirement", "constraints.txt", "--no-deps", "--disable-pip")


@nox.session
def bandit(session: nox.Session) -> None:
    """Look for insecure code: beside ruff's rules S, which are bandit's, with a reason for each exception."""
    session.install("bandit")
    expected = (
        "B103,B108"  # /dev/shm, and files there that a group may share; -ll: of medium severity or higher
    )
    session.run("bandit", "--quiet", "--recursive", "-ll", f"--skip={expected}", "tcm_sync")
