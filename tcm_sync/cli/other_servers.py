"""Find out what answers at an address in place of a manager: Triton itself, or a web server."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from tcm_sync._wire.quote import quote


@dataclass(frozen=True)
class Answer:
    """What came back for a GET request."""

    status: int
    body: bytes = b""
    server: str | None = None
    date: str | None = None


def describe_server(get: Callable[[str], Answer]) -> str | None:
    """Describe the server that answers, and what to change; None if nothing shows it.

    Parameters
    ----------
    get : callable
        Asks for a path, and raises OSError, HTTPException or ValueError if no answer comes.
    """
    health = _ask(get, "/health")
    if health.status == 200 and isinstance(_read(health).get("status"), str):
        return (
            "a manager answers at this address: the path of --uri must end with /ws, and is usually /ws alone"
        )
    about = _read(_ask(get, "/v2"))
    if about.get("name") == "triton":
        version = about.get("version")
        which = f" {quote(version)}" if isinstance(version, str) else ""
        return f"Triton{which} itself answers: --uri must be the manager's address"
    ready = _ask(get, "/v2/health/ready")
    if ready.status == 200 and not ready.body:  # a page that a server has for every path has a body
        return "Triton itself seems to answer: --uri must be the manager's address"
    if health.server is not None:
        return (
            f"a web server answers ({quote(health.server)}): is --uri the manager's address, and does the "
            "server pass that path on to it?"
        )
    return None


def is_http_2(error: Exception) -> bool:
    """Whether the answer began with a frame of HTTP/2, as Triton's gRPC port answers."""
    return isinstance(error, http.client.BadStatusLine) and "\\x00\\x00" in repr(error)


def _ask(get: Callable[[str], Answer], path: str) -> Answer:
    try:
        return get(path)
    except (OSError, http.client.HTTPException, ValueError):
        return Answer(0)


def _read(answer: Answer) -> dict[str, object]:
    try:
        read = msgspec.json.decode(answer.body) if answer.status == 200 else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        read = None
    return read if isinstance(read, dict) else {}
