"""Which connections are dead: pings for the manager, and what the system has recorded of its host."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from time import monotonic

from tcm_sync._transport.connection import Connection
from tcm_sync._transport.frames import PING
from tcm_sync._transport.tcp_state import read_tcp_state

TICK = 1.0  # seconds between two looks at the connections that there are

# How many times the ping interval a pong may take. A manager whose event loop is blocked sends none, for 30 s
# if a key server hangs, and no request may be repeated because of that.
_PONG_INTERVALS = 3

CHECK = 2.0  # seconds in which the host of a manager confirms a ping, if it is there
_FIRST_LOOK, _LATER_LOOKS = 0.005, 0.1  # seconds between two looks at a connection that is being checked


class Liveness:
    """Finds dead connections. The reader's thread alone uses it.

    Parameters
    ----------
    ping_interval : float
        Seconds of quiet after which a connection is pinged.
    watch_writing : callable
        Called with a connection and whether its control frames wait for the socket.
    close_dead : callable
        Called with a connection and the reason.
    """

    def __init__(
        self,
        ping_interval: float,
        watch_writing: Callable[[Connection, bool], None],
        close_dead: Callable[[Connection, str], None],
    ) -> None:
        self.ping_interval = ping_interval
        self._watch_writing = watch_writing
        self._close_dead = close_dead
        self._checked: dict[Connection, float] = {}  # those that no call gets for now, and since when

    def look(self, connections: list[Connection], now: float) -> float:
        """Ping those that are quiet, close those that are dead; return when to look again."""
        due = inf
        for connection in connections:
            due = min(due, now + TICK, self._look_at(connection, now))
        for connection, since in list(self._checked.items()):
            due = min(due, self._check(connection, since, now))
        return due

    def _look_at(self, connection: Connection, now: float) -> float:
        state = read_tcp_state(connection.sock)
        if state is not None and state.is_dead:
            reason = f"no sign of life: for {state.silent_for:.0f} s the manager's host confirmed nothing"
            self._close_dead(connection, reason)
            return inf
        interval = self.ping_interval
        if connection.paused:
            return now + interval  # its pongs are not read either
        pinged = connection.pinged_at
        if pinged is not None and connection.last_received < pinged:
            longest = _PONG_INTERVALS * interval
            if now - pinged >= longest:
                silent = now - connection.last_received
                self._close_dead(connection, f"no sign of life: for {silent:.0f} s, not even a pong")
                return inf
            return pinged + longest
        quiet_since = max(connection.last_received, connection.last_sent)
        if connection.sending or now - quiet_since < interval:
            return interval + (now if connection.sending else quiet_since)
        self._watch_writing(connection, connection.ping(now))
        return now + interval

    # --- checks of connections that may be dead ---

    def check(self, connections: list[Connection]) -> None:
        """Find out whether these are dead, which no call gets until then."""
        now = monotonic()
        for connection in connections:
            self._checked[connection] = now
            if not connection.closed:
                connection.queue_control(PING, b"")
                self._watch_writing(connection, connection.flush())

    def _check(self, connection: Connection, since: float, now: float) -> float:
        """See whether a checked connection has answered; return when to see again."""
        if not connection.closed and connection.last_received < since:
            state = read_tcp_state(connection.sock)
            if state is None or not state.acknowledged:
                if now - since < CHECK:
                    return now + min(max(now - since, _FIRST_LOOK), _LATER_LOOKS)
                self._close_dead(
                    connection,
                    f"no sign of life: the manager's host did not confirm a ping within {CHECK:g} s",
                )
        del self._checked[connection]
        if not connection.closed and connection.pool is not None:
            connection.pool.passed_check(connection)
        return inf
