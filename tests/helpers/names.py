"""Names of tests that are the same in every process: no addresses of objects."""

from __future__ import annotations

import re


def steady(value: object) -> str:
    """Return the repr without the address in it."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
