"""The files that GitHub and pre-commit read have the form that those expect."""

from __future__ import annotations

import configparser
import os
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = [
    path for path in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")) if path.name != "config.yml"
]
FIELDS = {"textarea", "input", "dropdown", "checkboxes", "markdown"}


def read(path: Path) -> dict:
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def name_of(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", WORKFLOWS, ids=name_of)
def test_a_workflow_has_events_and_jobs_whose_steps_do_one_thing_each(path):
    workflow = read(path)
    assert workflow["name"]
    assert workflow[True]  # YAML 1.1 reads the key `on` as a truth value
    jobs = workflow["jobs"]
    for job in jobs.values():
        assert job["runs-on"]
        assert ("uses" in job) != ("steps" in job)
        assert set([job["needs"]] if isinstance(job.get("needs"), str) else job.get("needs", ())) <= set(jobs)
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)


@pytest.mark.parametrize("path", WORKFLOWS, ids=name_of)
def test_what_a_workflow_runs_of_this_repository_can_be_executed(path):
    runs = [step.get("run", "") for job in read(path)["jobs"].values() for step in job["steps"]]
    scripts = {found for run in runs for found in re.findall(r"(?:^|\s)(\.ci/\S+)", run)}
    assert scripts
    for script in scripts:
        assert os.access(ROOT / script, os.X_OK)


def test_the_checks_run_on_every_python_that_setup_cfg_lists():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = re.findall(r"Python :: (3\.\d+)$", config["metadata"]["classifiers"], re.MULTILINE)
    matrix = read(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["checks"]["strategy"]["matrix"]
    assert set(matrix["python"]) >= set(listed)  # texts: the number 3.10 is 3.1


@pytest.mark.parametrize("path", FORMS, ids=name_of)
def test_an_issue_form_asks_with_fields_that_github_has(path):
    form = read(path)
    assert form["name"]
    assert form["description"]
    identifiers = []
    for field in form["body"]:
        assert field["type"] in FIELDS
        assert field["attributes"]["value" if field["type"] == "markdown" else "label"]
        if field["type"] in ("dropdown", "checkboxes"):
            assert field["attributes"]["options"]
        if field["type"] != "markdown":
            identifiers.append(field["id"])
    assert len(set(identifiers)) == len(identifiers) > 0


def test_issue_forms_may_be_left_out_or_not():
    assert isinstance(read(ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml")["blank_issues_enabled"], bool)


def test_every_pre_commit_hook_runs_what_is_installed_in_the_environment():
    repositories = read(ROOT / ".pre-commit-config.yaml")["repos"]
    hooks = [hook for repository in repositories for hook in repository["hooks"]]
    assert {repository["repo"] for repository in repositories} == {"local"}
    assert len({hook["id"] for hook in hooks}) == len(hooks) > 0
    for hook in hooks:
        assert hook["name"]
        assert hook["language"] == "system"
        assert hook["entry"].startswith(".venv/bin/")
