"""Serve a `LocalManager` in the foreground, until SIGINT or SIGTERM: ``python -m tcm_sync.local``."""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import sys
import time
from typing import TYPE_CHECKING, TextIO

from tcm_sync.errors import TcmError
from tcm_sync.local.manager import LocalManager

if TYPE_CHECKING:
    from collections.abc import Sequence

_LINGER = 0.5  # what the recorded manager takes to end when it is idle


def _named_file(text: str) -> tuple[str, str]:
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE")
    return name, file


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tcm_sync.local",
        description="Serve ONNX models as a Triton Client Manager does, and do management jobs in a cloud "
        "that is not there. For laptops and tests only.",
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
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=8000, help="port; 0 is any free one (default: %(default)s)"
    )
    parser.add_argument(
        "--token",
        action="append",
        help="a token that clients may use (may be repeated; default: nobody needs one)",
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
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None, out: TextIO, err: TextIO) -> int:
    """Serve until a signal comes.

    Returns
    -------
    int
        The exit status.
    """
    options = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        manager = LocalManager(
            dict(options.model),
            host=options.host,
            port=options.port,
            tokens=options.token,
            tick=options.tick,
            workers=options.workers,
            stream_timeout=options.stream_timeout,
            on_cloud_step=lambda _: time.sleep(options.step_seconds),
            linger=_LINGER,
        )
        _serve(manager, out)
    except (TcmError, OSError) as exc:
        print(f"{type(exc).__name__}: {exc}", file=err)
        return 1
    return 0


def _serve(manager: LocalManager, out: TextIO) -> None:
    try:
        # Both raise KeyboardInterrupt here, also where a shell has started us with SIGINT ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        manager.start()
        route = manager.route
        print(
            f"serving {manager.uri} (container {route.container_id}, vm_ip {route.vm_ip})",
            file=out,
            flush=True,
        )
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)
        manager.stop()
    except KeyboardInterrupt:  # while starting, or asked twice
        manager.kill()


if __name__ == "__main__":
    sys.exit(main(None, sys.stdout, sys.stderr))
