"""The environment of this process without what a user may have set for clients."""

from __future__ import annotations

import os


def variables_of_users() -> list[str]:
    """Return the names of the ``TCM_`` variables that are set, those of the tests themselves excepted."""
    return [name for name in os.environ if name.startswith("TCM_") and not _is_of_tests(name)]


def without_settings(**added: str) -> dict[str, str]:
    """Return the environment without those variables, and with `added`."""
    left_out = variables_of_users()
    return {name: value for name, value in os.environ.items() if name not in left_out} | added


def _is_of_tests(name: str) -> bool:
    return name.startswith("TCM_TESTS_") or name == "TCM_TURNS_DIR"
