"""The versions of what a command runs on."""

from __future__ import annotations

import platform
import ssl
import sys
from importlib.metadata import version

_DISTRIBUTIONS = "tcm-sync", "numpy", "msgspec", "websocket-client"


def versions() -> list[str]:
    """Return names with versions, as a bug report or a benchmark should state them."""
    return [
        *(f"{name} {version(name)}" for name in _DISTRIBUTIONS),
        f"Python {sys.version.split()[0]}",
        ssl.OPENSSL_VERSION.rsplit(" ", 3)[0],
        platform.system(),
    ]
