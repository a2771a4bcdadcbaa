"""What processes hold at a moment, and whether that grows."""

from __future__ import annotations

import os
from pathlib import Path

WARM_UP = 0.4
#: How much each figure may grow after the warm-up in addition to a tenth, since all depend on random sizes
#: and on how many connections there are at a moment. A `LocalManager` also remembers each uuid for 900 s and
#: the last 10,000 uuids, which are some MB; the rest of what it grows by is room that malloc keeps.
SLACK = {"client MB": 10, "client fds": 40, "client maps": 60, "manager MB": 15, "manager fds": 40}
SLACK |= {"manager maps": 60, "files": 60, "/dev/shm MB": 40, "proxy MB": 20}


def held(pid: int) -> tuple[float, int, int]:
    """Return the MB of memory of its own, the descriptors and the maps of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    anonymous = int(status.partition("RssAnon:")[2].split()[0])
    maps = Path(f"/proc/{pid}/maps").read_text().count("\n")
    return anonymous / 1024, len(os.listdir(f"/proc/{pid}/fd")), maps


def files_of(pids: list[int]) -> list[str]:
    """Return the names of what some processes have in /dev/shm."""
    ours = tuple(f"tcm_{pid}_" for pid in pids)
    return [name for name in os.listdir("/dev/shm") if name.startswith(ours)]


def sample(clients: list[int], manager: int, proxy: int) -> dict[str, float]:
    """Return what the manager, the proxy and, on average, the clients hold."""
    each = [held(pid) for pid in clients]
    memory, descriptors, maps = held(manager)
    found = os.statvfs("/dev/shm")
    return {
        "client MB": sum(one[0] for one in each) / len(each),
        "client fds": sum(one[1] for one in each) / len(each),
        "client maps": sum(one[2] for one in each) / len(each),
        "manager MB": memory,
        "manager fds": descriptors,
        "manager maps": maps,
        "files": len(files_of(clients)),
        "/dev/shm MB": (found.f_blocks - found.f_bfree) * found.f_frsize / 1e6,
        "proxy MB": held(proxy)[0],
    }


def table(samples: list[dict[str, float]], lines: int = 10) -> list[str]:
    """Write some of the samples as a table."""
    step = max(1, len(samples) // lines)
    rows = ["".join(f"{name:>14}" for name in samples[0])] if samples else []
    return rows + ["".join(f"{value:14.1f}" for value in one.values()) for one in samples[::step]]


def grown(samples: list[dict[str, float]]) -> list[str]:
    """List what has grown between the first and the second half of the samples after the warm-up.

    For memory the minima are compared, since reading large JSON makes peaks; for the rest the maxima, since
    the manager holds almost nothing after a restart.
    """
    after = samples[int(len(samples) * WARM_UP) :]
    early, late = after[: len(after) // 2], after[len(after) // 2 :]
    lines = []
    for name, slack in SLACK.items() if early else ():
        bound = min if name.endswith(" MB") and name != "/dev/shm MB" else max
        before, now = bound(each[name] for each in early), bound(each[name] for each in late)
        if now > before * 1.1 + slack:
            lines.append(f"{name} grew from {before:.1f} to {now:.1f}")
    return lines
