"""Messages of the manager that answer no request: alerts, delays, and types that this version lacks."""

from __future__ import annotations

from math import inf
from time import monotonic

from tcm_sync._logs import Log
from tcm_sync._transport.connection import Connection
from tcm_sync._transport.counters import Counts
from tcm_sync._transport.replies import Future
from tcm_sync._wire.messages import Alert, Unknown
from tcm_sync._wire.quote import quote

log = Log("tcm_sync.reader", queued=True)

_ALERT_INTERVAL = 60.0  # seconds between two alerts of a kind in the log
_MAX_KINDS = 64  # that are counted apart: the manager names them


class UnsolicitedMessages:
    """Counts them, and logs alerts. Only the reader uses it, so it needs no lock.

    Parameters
    ----------
    counts : Counts
        The client's.
    """

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._logged_at: dict[str, float] = {}  # by the kind of alert

    def alert(self, connection: Connection, alert: Alert) -> None:
        """Log an alert, once a kind and a minute."""
        kind = quote(alert.error_type or "none")
        if kind not in self._logged_at and len(self._logged_at) >= _MAX_KINDS:
            kind = "others"
        self._counts.alerts[kind] += 1
        now = monotonic()
        if now - self._logged_at.get(kind, -inf) < _ALERT_INTERVAL:
            return
        self._logged_at[kind] = now
        log.warning(
            "%s: alert from the manager: %s: %s (further ones of this kind are logged once a minute)",
            connection.uuid,
            kind,
            quote(alert.message),
        )

    def unknown(self, connection: Connection, message: Unknown) -> None:
        """Count a message of a type that is not known."""
        self._counts.unknown += 1
        log.debug("%s: message of unknown type %s", connection.uuid, quote(message.type))

    def delay(self, connection: Connection, waiting: Future | None) -> None:
        """Count that the manager delays a request, whose reply still comes."""
        self._counts.advisories += 1
        if waiting is not None:
            waiting.advisories += 1
        log.debug("%s: the manager delays the request", connection.uuid)
