"""Files of /dev/shm for the tests, each with a name of its own; and how they are used."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from pathlib import Path
from typing import Any

import numpy as np

SHM = Path("/dev/shm")


INVALID_ARGS = re.compile(
    r"register_system_shared_memory failed: \[400\] failed to register shared memory region "
    r"'tcm_shm_[0-9a-f_]+': invalid args"
)


class Segments:
    """Makes shared memory as a client does, and forgets none of it."""

    def __init__(self) -> None:
        self.suffix = f"{os.getpid():08x}{secrets.token_hex(2)}"
        self._names: set[str] = set()

    def name(self, label: str) -> str:
        """Return a name that nobody else has."""
        name = f"tcm_{label}_{self.suffix}"
        self._names.add(name)
        return name

    def path(self, label: str) -> Path:
        return SHM / self.name(label)

    def write(self, label: str, values: Any, dtype: Any = np.float32) -> Path:
        """Write values into a file: in place if it is there, and else into a new one."""
        path = self.path(label)
        with path.open("r+b" if path.exists() else "xb") as file:
            file.write(np.asarray(values, dtype).tobytes())
        return path

    def reference(self, label: str, *shape: int, name: str = "x", **changes: Any) -> dict[str, Any]:
        """Refer to a file that holds one FP32 tensor, but for the changes."""
        return {
            "name": name,
            "shm_key": "/" + self.name(label),
            "offset": 0,
            "byte_size": 4 * int(np.prod(shape)),
            "shape": list(shape),
            "dtype": "FP32",
            **changes,
        }

    def close(self) -> None:
        for name in self._names:
            with contextlib.suppress(OSError):
                (SHM / name).unlink()


def total(arrays):
    return {"sum": [float(np.sum(arrays["x"]))]}


def use(raw, *references, model="sum", manager=None, **route):
    """Ask for a run over references; on the transient route if its manager is given."""
    request = {"inputs": list(references)}
    if manager is not None:
        route = {"container_id": manager.transient_route.container_id}
        request["allow_transient"] = True
    return raw.infer(model, request=request, **route)


def refused(answer):
    assert answer["status"] == "FAILED", answer
    return answer["data"]["code"], answer["data"]["message"].partition(" reason=")[2]


def is_invalid_args(answer):
    code, reason = refused(answer)
    return code == "TRITON_SHM_REGISTRATION_FAILED" and INVALID_ARGS.fullmatch(reason) is not None


def maps_of(name):
    """Tell how this process maps a file: as it is, or as one that is deleted."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.partition(f"/dev/shm/{name}")[2].strip() for line in lines if f"/dev/shm/{name}" in line}
