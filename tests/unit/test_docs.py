"""The README and the documentation say what is true: their code runs, and their tables are the code's."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import tcm_sync
from tcm_sync import TcmClient, errors
from tcm_sync._calls.stream_call import StreamCall
from tcm_sync._environment import settings_from_env
from tcm_sync.local import LocalManager
from tcm_sync.local.digits import model_file

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.rst"))]


class Block(NamedTuple):
    """A piece of code in a page, and the line that it starts on."""

    line: int
    code: str


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(path: Path, language: str) -> list[Block]:
    """Find the code blocks of a Markdown or reStructuredText page."""
    text = text_of(path)
    pattern = (
        rf"^```{language}\n(.*?)^```$"
        if path.suffix == ".md"
        else rf"^\.\. code-block:: {language}\n\n((?: {{3}}.*\n|\n)+)"
    )
    return [
        Block(text.count("\n", 0, match.start(1)) + 1, textwrap.dedent(match.group(1)))
        for match in re.finditer(pattern, text, re.M | re.S if path.suffix == ".md" else re.M)
    ]


def promised_output(code: str) -> list[str]:
    """Return what the comments behind ``print(...)`` say that it prints."""
    return re.findall(r"^ *print\(.*\)  # (.+)$", code, re.M)


def bard(inputs: dict[str, Any]) -> Iterator[str]:
    """Stream the words, and just end."""
    yield from inputs["text"][0].split()


def poet(inputs: dict[str, Any]) -> Iterator[str | None]:
    """Stream the words, and the end."""
    yield from bard(inputs)
    yield None


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let silence count only behind the bard's last word: before it, the machine was busy."""
    advance, patience = StreamCall.advance, StreamCall._silence_left

    def listen(call: StreamCall) -> object:
        call.heard = advance(call)
        return call.heard

    monkeypatch.setattr(StreamCall, "advance", listen)
    monkeypatch.setattr(
        StreamCall,
        "_silence_left",
        lambda call: patience(call) if getattr(call, "heard", "") == "not" else None,
    )


@pytest.fixture
def manager() -> Iterator[LocalManager]:
    """The manager that the pages talk to: on a port of its own, and by the routes that they name."""
    with (
        model_file() as path,
        LocalManager(
            models={"digits": path, "bard": bard, "poet": poet},
            container_id="ctr-9",
            transient_container_id="ctr-10",
            vm_ip="192.0.2.7",
            tick=0,
        ) as manager,
    ):
        yield manager


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    "path", [page for page in PAGES if blocks(page, "python")], ids=lambda path: path.name
)
def test_the_examples_of_a_page_run(
    path: Path, manager: LocalManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TCM_WS_URI", manager.uri)
    monkeypatch.setenv("TCM_CONTAINER_ID", manager.route.container_id)
    namespace = {"__name__": "example"}
    printed = io.StringIO()
    promised = []
    for line, code in blocks(path, "python"):
        here = code.replace("ws://localhost:8000/ws", manager.uri)
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * (line - 1) + here, path, "exec"), namespace)
        promised += promised_output(code)
    assert [line for line in printed.getvalue().splitlines() if line in promised] == promised


def test_a_newcomer_reads_three_sentences_then_the_two_commands() -> None:
    head, _, _ = text_of(README).partition("\n## ")
    description = head.split("\n\n")[1]
    assert len(re.findall(r"\.(?:\s|$)", description)) == 3
    demo, tests = (block.code.strip() for block in blocks(README, "sh")[:2])
    assert head.index(demo) < head.index(tests)
    for command in (demo, tests):
        makes, *_ = command.splitlines()
        assert makes.endswith(" || python3 -m venv --clear .venv")
        assert command.count("&&") == 1, "one block is one command"
    assert demo.endswith(".venv/bin/python -m tcm_sync.local.demo")
    assert tests.endswith(".venv/bin/python -m pytest -n 2 --dist worksteal")


def test_ci_runs_the_commands_of_the_readme() -> None:
    script = text_of(ROOT / ".ci" / "run")
    assert "/^```/" in script, "it reads them out of README.md"
    assert re.findall(r"^run_readme (\d)$", script, re.M) == ["1", "2"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_the_readme_has_every_default_of_the_client() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", text_of(README), re.M)
    table = {name: eval(value, {"RetryPolicy": tcm_sync.RetryPolicy}) for name, value in rows}
    parameters = inspect.signature(TcmClient).parameters
    limits = {
        name: parameter.default
        for name, parameter in parameters.items()
        if isinstance(parameter.default, int | float | tcm_sync.RetryPolicy) or name in table
    }
    assert table == limits


def test_the_readme_has_every_variable() -> None:
    read = set(re.findall(r"TCM_[A-Z_]*[A-Z]", inspect.getsource(settings_from_env)))
    read |= {f"TCM_CLIENT_{name}" for name in ("UUID", "TOKEN", "SUB", "TENANT_ID", "ROLES")}
    section = text_of(README).split("## Settings from the environment")[1].split("\n## ")[0]
    assert set(re.findall(r"`(TCM_\w+)`", section)) == read - {"TCM_CLIENT"}


def rst_rows(text: str) -> list[list[str]]:
    """Return the cells of every ``list-table`` row in a piece of reStructuredText."""
    rows = re.findall(r"^   \* - (.*(?:\n     .*)*)", text, re.M)
    return [[" ".join(cell.split()) for cell in re.split(r"\n     - ", row)] for row in rows]


def sections(page: str) -> dict[str, str]:
    """Map the titles of a page under docs/ to what stands below them, down to the next title of any level."""
    parts = re.split(r"^([^\n]+)\n([-=~])\2{2,}\n", text_of(ROOT / "docs" / page), flags=re.M)
    return dict(zip(parts[1::3], parts[3::3], strict=True))


def test_the_page_on_errors_reports_each_of_them_and_what_is_repeated() -> None:
    rows = rst_rows(sections("errors.rst")["Which error, when, and what to do"])[1:]
    documented = {name: row[3] for row in rows for name in re.findall(r"``(\w+Error)``", row[0])}
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.TcmError)
    ]
    assert set(documented) == {kind.__name__ for kind in kinds} - {"TcmError"}
    for kind in kinds:
        if kind.retriable:
            assert not documented[kind.__name__].startswith("no"), kind


def test_the_page_on_errors_reports_every_field_that_all_have() -> None:
    rows = rst_rows(sections("errors.rst")["Attributes of an error"])[1:]
    assert {name for row in rows for name in re.findall(r"``(\w+)``", row[0])} == set(
        errors.TcmError.__annotations__
    )


def test_the_reference_has_everything_public() -> None:
    named = re.findall(r"^\.\. autoclass:: (\w+)(?:\(\))?$", text_of(ROOT / "docs" / "reference.rst"), re.M)
    elsewhere = {
        "ERROR_CODES",
        "Inputs",
        "KNOWN_FAULTS",
        "RETRIABLE",
        "UNSET",
        *(name for name in tcm_sync.__all__ if name.endswith("Error")),
    }
    assert sorted(named) == sorted(set(tcm_sync.__all__) - elsewhere)


def test_the_readme_reports_every_error_that_is_not_of_triton() -> None:
    section = text_of(README).split("## Errors")[1].split("\n## ")[0]
    direct = {kind.__name__ for kind in errors.TcmError.__subclasses__()}
    of_the_local_manager = {"ModelFileError"}
    assert direct - of_the_local_manager <= set(re.findall(r"`(\w+Error)`", section))


def test_the_page_on_the_wire_has_the_table_of_codes() -> None:
    rows = rst_rows(sections("wire.rst")["Error codes"])[1:]
    table = {code.strip("`"): (error.strip("`"), retriable == "yes") for code, error, retriable in rows}
    assert table == {code: (rule.error.__name__, rule.retriable) for code, rule in errors.ERROR_CODES.items()}


def test_what_the_source_cites_is_there() -> None:
    citations = set()
    for path in (ROOT / "tcm_sync").rglob("*.py"):
        source = " ".join(text_of(path).replace("#", " ").split())
        citations |= set(re.findall(r"docs/(\w+\.rst), \"([^\"]+)\"", source))
        for page in re.findall(r"docs/(\w+\.rst)", source):
            assert (ROOT / "docs" / page).exists()
    assert ("wire.rst", "Error codes") in citations
    for page, title in sorted(citations):
        assert title in sections(page), f"docs/{page} has no section {title!r}"


@pytest.mark.parametrize(
    "path", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name
)
def test_links_to_files_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text_of(path)):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize(
    "path", [ROOT / "docs" / "architecture.rst", ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name
)
def test_files_that_a_page_for_contributors_names_exist(path: Path) -> None:
    text = text_of(path)
    named = set(
        re.findall(r"(?<![\w/.])\.?[\w-]+(?:/[\w-]*)*(?:\.(?:py|rst|md|txt|jsonl|cfg)|/)(?![\w/])", text)
    )
    named = {name for name in named if "NAME" not in name}
    assert len(named) > 20
    for name in sorted(named):
        assert any((root / name).exists() for root in (ROOT, ROOT / "tcm_sync")), name


def test_the_page_on_architecture_has_every_package_and_is_linked() -> None:
    text = text_of(ROOT / "docs" / "architecture.rst")
    for package in {path.parent.name for path in (ROOT / "tcm_sync").glob("*/__init__.py")}:
        assert f"``{package}/``" in text, package
    for page in (README, ROOT / "CONTRIBUTING.md"):
        assert "(docs/architecture.rst)" in text_of(page)
    assert re.search(r"^   architecture$", text_of(ROOT / "docs" / "index.rst"), re.M)


def test_the_page_on_architecture_names_the_threads_as_they_are_named() -> None:
    source = "".join(text_of(path) for path in (ROOT / "tcm_sync").glob("_*/*.py"))
    source += "".join(text_of(path) for path in (ROOT / "tcm_sync").glob("*.py"))
    named = set(re.findall(r"^   \* - ``(tcm-sync-\w+)``", text_of(ROOT / "docs" / "architecture.rst"), re.M))
    started = set(re.findall(r'"(tcm-sync-[a-z]+)"', source))
    assert named == started
