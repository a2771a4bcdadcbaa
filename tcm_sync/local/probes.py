"""The manager's answers over HTTP: readiness and metrics (docs/wire.rst, "Endpoints")."""

from __future__ import annotations

import ipaddress
import logging
import secrets
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from tcm_sync.local.cloud import Cloud
    from tcm_sync.local.stats import LocalStats

logger = logging.getLogger("tcm_sync.local")


def readiness(cloud: Cloud, probe: Callable[[], object] | None) -> tuple[int, dict[str, Any]]:
    """Answer ``/ready``, regardless of whether the manager is draining.

    Returns
    -------
    int
        The HTTP status.
    dict
        The body.
    """
    try:
        if probe is not None:
            probe()
    except Exception:  # the user's function may raise anything
        error_id = secrets.token_hex(16)
        logger.exception("the readiness probe failed (error_id %s)", error_id)
        reason = {"reason": "readiness_probe_failed", "detail": "internal_error", "error_id": error_id}
        return 503, {"status": "not_ready", **reason}
    servers = cloud.servers
    healthy = [server for server in servers if server.answers]
    triton = {"registered": len(servers), "healthy": len(healthy)}
    if servers:
        over_grpc = sum(server.grpc for server in healthy)
        triton |= {"healthy_http": len(healthy) - over_grpc, "healthy_grpc": over_grpc}
    if servers and not healthy:
        return 503, {"status": "not_ready", "triton": triton}
    return 200, {"status": "ready", "triton": triton}


def may_read_metrics(address: str, forwarded_for: str | None) -> bool:
    """Return whether a caller has a loopback or private address; a proxy on this host may state another."""
    caller = ipaddress.ip_address(address)
    if forwarded_for is not None and caller.is_loopback:
        try:
            caller = ipaddress.ip_address(forwarded_for.partition(",")[0].strip())
        except ValueError:
            return False
    return caller.is_loopback or caller.is_private


def metrics(stats: LocalStats) -> str:
    """Write the metrics for Prometheus: one of the real manager's."""
    name = "tcm_ws_connections_total"
    return (
        f"# HELP {name} Total WebSocket connections accepted\n"
        f"# TYPE {name} counter\n"
        f"{name} {float(stats.connections)}\n"
    )
