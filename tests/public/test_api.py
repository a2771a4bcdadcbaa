"""The public API is the one in api.txt: a change of it shows in a diff, and is never an accident."""

from __future__ import annotations

import difflib

import pytest

import tcm_sync
import tcm_sync.local
import tcm_sync.models

from .api import SNAPSHOT, snapshot

COMMAND = "python tests/public/api.py"


def test_the_public_api_is_that_of_the_snapshot():
    expected = SNAPSHOT.read_text(encoding="utf-8").splitlines()
    changes = list(
        difflib.unified_diff(expected, snapshot().splitlines(), "api.txt", "tcm_sync", n=1, lineterm="")
    )
    if changes:
        pytest.fail(
            "\n".join(["the public API has changed:", *changes, f"if that is meant, run: {COMMAND}"]),
            pytrace=False,
        )


@pytest.mark.parametrize(
    ("package", "names"),
    [
        ("tcm_sync", tcm_sync.__all__),
        ("tcm_sync.local", tcm_sync.local.__all__),
        ("tcm_sync.models", tcm_sync.models.__all__),
    ],
)
def test_the_snapshot_has_every_public_name(package, names):
    found = snapshot().partition(f"# {package}\n")[2].partition("\n#")[0]
    for name in names:
        assert f"{name}(" in found or f"{name}:" in found or f"{name} =" in found
