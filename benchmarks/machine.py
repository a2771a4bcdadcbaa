"""The commit and the machine that figures were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = ("msgspec", "numpy", "orjson", "websocket-client", "tcm-client")


def commit() -> str:
    """Return the commit, and whether something was changed since; a source without git has none."""
    try:
        name = git("rev-parse", "--short=10", "HEAD")
        changed = git("status", "--porcelain", "--", "tcm_sync")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + (" with changes" if changed else "")


def git(*command: str) -> str:
    """Run git on this source."""
    run = ["git", "-C", str(Path(__file__).parents[1]), *command]
    return subprocess.check_output(run, text=True, stderr=subprocess.DEVNULL).strip()


def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def description() -> dict[str, str]:
    """Describe this machine, its system and its software."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "commit": commit(),
        "processor": f"{processor()}, {os.cpu_count()} cores, {memory:.0f} GB",
        "system": f"{platform.system()} {platform.release()}, {' '.join(platform.libc_ver())}",
        "python": platform.python_version(),
        "libraries": ", ".join(f"{name} {installed(name)}" for name in LIBRARIES),
        "load": f"{os.getloadavg()[0]:.1f} at the start",
    }


def installed(name: str) -> str:
    """Return the version of a library, if there is one."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def stamp() -> str:
    """Return the line on a plot that names the commit and the machine."""
    found = description()
    return f"commit {found['commit']}; {found['processor']}; {found['system']}; Python {found['python']}"
