"""constraints.txt: what the README's commands and the checks install, whatever is released meanwhile."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .test_package import setup_cfg

ROOT = Path(__file__).parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")


def lock() -> str:
    return (ROOT / "constraints.txt").read_text(encoding="utf-8")


def lines_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def asked_for() -> list[Requirement]:
    """Return what the package, its extras and its build need."""
    config = setup_cfg()
    texts = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    wanted = [Requirement(line) for text in texts for line in lines_of(text)]
    build = re.search(r"^requires = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    wanted += [Requirement(text) for text in re.findall(r'"([^"]+)"', build[1])]
    return [requirement for requirement in wanted if requirement.name != "tcm-sync"]


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_has_one_version_of_all_that_is_asked_for(python: str) -> None:
    here = default_environment() | {"python_version": python, "python_full_version": f"{python}.9"}
    pinned: dict[str, list[str]] = {}
    for requirement in map(Requirement, lines_of(lock())):
        (pin,) = requirement.specifier
        assert pin.operator == "==", f"{requirement} is no pin"
        if requirement.marker is None or requirement.marker.evaluate(here):
            pinned.setdefault(canonicalize_name(requirement.name), []).append(pin.version)
    for wanted in asked_for():
        if wanted.marker is not None and not wanted.marker.evaluate(here):
            continue
        (version,) = pinned[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(version), f"{wanted} is locked at {version}"
    assert all(len(versions) == 1 for versions in pinned.values())


def test_the_head_of_the_lock_is_its_command_and_names_no_machine() -> None:
    head = [line for line in lock().splitlines() if line.startswith("#")]
    assert any("uv pip compile --universal --python-version 3.10 --all-extras" in line for line in head)
    assert not re.search(r"://|[=\s]/|find-links|index", lock())


@pytest.mark.parametrize("extras", ["local", "bench,test"])
def test_the_readmes_commands_install_what_is_locked(extras: str) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    (block,) = [block for block in blocks[:2] if f"'.[{extras}]'" in block]
    # pip 25.3 and newer read the second for the build's own environment, older ones the first
    assert "PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt" in block
