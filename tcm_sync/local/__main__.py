"""Serve a `LocalManager` in the foreground, until SIGINT or SIGTERM: ``python -m tcm_sync.local``."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from tcm_sync.errors import TcmError
from tcm_sync.local.digits import model_file
from tcm_sync.local.fault_texts import PLAN_HELP, plan_text
from tcm_sync.local.manager import LocalManager

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_LINGER = 0.5  # seconds that the recorded manager takes to end when it is idle


def _named_file(text: str) -> tuple[str, str]:
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE")
    return name, file


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tcm_sync.local",
        description="Serve ONNX models as a Triton Client Manager does, and do management jobs in a "
        "simulated cloud. For laptops and tests only.",
        epilog="SIGINT or SIGTERM ends it as the manager ends: running requests are finished and answered.",
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        type=_named_file,
        metavar="NAME=FILE",
        help="an ONNX file and what requests call it (may be repeated)",
    )
    parser.add_argument(
        "--digits",
        action="store_true",
        help="also serve the classifier of handwritten digits that this package includes, as 'digits'",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=8000, help="port; 0 is any free one (default: %(default)s)"
    )
    parser.add_argument(
        "--container-id",
        default="local",
        help="the id of the container where the models run (default: %(default)s)",
    )
    parser.add_argument(
        "--token",
        action="append",
        help="a token that clients may use (may be repeated; default: no token is needed)",
    )
    parser.add_argument(
        "--tick",
        type=float,
        default=0.010,
        help="seconds between the scheduler's wakes (default: %(default)s)",
    )
    parser.add_argument("--workers", type=int, default=5, help="inferences at a time (default: %(default)s)")
    parser.add_argument(
        "--stream-timeout",
        type=float,
        default=120.0,
        help="seconds that a stream may take (default: %(default)s)",
    )
    parser.add_argument(
        "--step-seconds",
        type=float,
        default=0.0,
        help="seconds that each step of a management job takes (default: %(default)s)",
    )
    parser.add_argument("--fail", action="append", default=[], metavar="FAULT", help=PLAN_HELP)
    parser.add_argument("--no-shm", action="store_true", help="grant no shared memory")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None, out: TextIO, err: TextIO) -> int:
    """Serve until a signal comes.

    Returns
    -------
    int
        The exit status.
    """
    options = vars(_parse(arguments))
    models, tokens = dict(options.pop("model")), options.pop("token")
    try:
        serve(models, out, tokens=tokens, shm=not options.pop("no_shm"), **options)
    except TcmError as exc:
        print(f"{type(exc).__name__}: {exc}", file=err)
        return 1
    except OSError as exc:
        print(f"reading or writing failed: {exc}", file=err)
        return 1
    return 0


def serve(
    models: Mapping[str, str],
    out: TextIO,
    *,
    digits: bool = False,
    step_seconds: float = 0.0,
    fail: Sequence[str] = (),
    as_json: bool = False,
    **settings: Any,
) -> None:
    """Serve until a signal comes, then drain; a second signal ends it at once.

    Parameters
    ----------
    models : mapping of str to str
        ONNX files by name.
    out : file
        Gets a line with the address once the manager serves.
    digits : bool
        Whether the classifier of this package is served too, as ``digits``.
    step_seconds : float
        Seconds that each step of a management job takes.
    fail : sequence of str
        Faults of the first inferences, as `plan_text` takes them.
    as_json : bool
        Whether that line is JSON.
    **settings
        Other arguments of `LocalManager`.

    Raises
    ------
    TcmError, OSError
        The manager cannot be started.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with model_file() as classifier:
        if digits:
            models = {"digits": str(classifier), **models}
        manager = LocalManager(
            models, on_cloud_step=lambda _: time.sleep(step_seconds), linger=_LINGER, **settings
        )
        for fault in fail:
            plan_text(manager, fault)
        _run(manager, out, as_json=as_json)


def _run(manager: LocalManager, out: TextIO, *, as_json: bool) -> None:
    """Run a manager until a signal comes."""
    try:
        # Both raise KeyboardInterrupt, also if a shell has started this process with SIGINT ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        manager.start()
        print(_where(manager, as_json=as_json), file=out, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)
        manager.stop()
    except KeyboardInterrupt:  # while starting, or a second signal
        manager.kill()


def _where(manager: LocalManager, *, as_json: bool) -> str:
    uri, route, transient = manager.uri, manager.route, manager.transient_route
    if not as_json:
        return f"serving {uri} (container {route.container_id}, vm_ip {route.vm_ip})"
    where = {"uri": uri, "container_id": route.container_id, "vm_ip": route.vm_ip}
    return json.dumps({**where, "transient_container_id": transient.container_id}, separators=(",", ":"))


if __name__ == "__main__":
    sys.exit(main(None, sys.stdout, sys.stderr))
