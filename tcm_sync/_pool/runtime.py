"""What the calls of one client share in one process: made, started, closed."""

from __future__ import annotations

from tcm_sync._deadline import Deadline
from tcm_sync._handlers import is_of_handler
from tcm_sync._locks import OnceEvent
from tcm_sync._logs import Log
from tcm_sync._pool.attempt import CallSender
from tcm_sync._pool.client_gates import ClientGates
from tcm_sync._pool.client_turns import ClientTurns
from tcm_sync._pool.connector import Connector
from tcm_sync._pool.manager_state import ManagerState
from tcm_sync._pool.pool import Pool
from tcm_sync._reentry import Callers
from tcm_sync._transport.addresses import Addresses
from tcm_sync._transport.counters import Counts, PoolCounts
from tcm_sync._transport.opener import Opener
from tcm_sync._transport.reader import Reader
from tcm_sync.errors import ClientClosedError, ConnectFailedError
from tcm_sync.events._listeners import NO_LISTENERS, Listeners
from tcm_sync.settings import SERVED_A_TICK, Settings

log = Log("tcm_sync.pool", queued=True)


class Runtime:
    """The reader, the pools, the gates and the turns of a client, and what sends calls on them.

    A fork or a closing ends it; it never starts again.

    Parameters
    ----------
    settings : Settings
        The client's.
    counts : Counts
        Where it counts.
    callers : Callers
        The threads that are inside the client.
    addresses : Addresses
        What was learned about the manager's addresses.
    listeners : Listeners
        Who listens to the client.
    """

    def __init__(
        self,
        settings: Settings,
        counts: Counts,
        callers: Callers,
        addresses: Addresses,
        listeners: Listeners = NO_LISTENERS,
    ) -> None:
        self._settings = settings
        self._closed = OnceEvent()
        self._connector = Connector(callers)
        self.opener = Opener(settings, self._connector.opening, counts, addresses)
        endpoint = self.opener.endpoint
        try:
            self.reader = Reader(settings.ping_interval, counts, callers)
        except OSError as error:
            raise ConnectFailedError(f"no descriptors to read sockets with: {error}") from error
        self.manager_state = ManagerState(endpoint.authority, listeners)
        self.pool = self._new_pool("pool_size", settings.pool_size, counts.pools[0])
        self.management = self._new_pool("management_sockets", settings.management_sockets, counts.pools[1])
        self.gates = ClientGates(endpoint.authority, listeners)
        self.turns = ClientTurns(endpoint, settings.turn_count, settings.pool_timeout)
        self.sender = CallSender(
            self.reader,
            self.pool,
            self.management,
            self.gates,
            self.turns,
            self.manager_state.manager_gate,
            counts,
        )
        try:
            self.start_reader()
        except BaseException:
            self.reader.stop()  # an interrupt may have come after its thread was started
            raise

    def start_reader(self) -> None:
        """Start the reader's thread where it does not run: at first, and after it was suspended.

        Raises
        ------
        ConnectFailedError
            There is no thread for it, or no descriptor.
        """
        try:
            self.reader.start()
        except (RuntimeError, OSError) as error:
            if is_of_handler(error):
                raise
            what = "thread" if isinstance(error, RuntimeError) else "descriptors"
            raise ConnectFailedError(f"no {what} to read the sockets with: {error}") from error

    def _new_pool(self, setting: str, size: int, counts: PoolCounts) -> Pool:
        pool = Pool(
            self._settings,
            self.opener,
            self._connector,
            self.reader,
            self.manager_state,
            counts,
            size=size,
            setting=setting,
        )
        self.reader.add_pool(pool)
        if size > SERVED_A_TICK and setting == "pool_size" and self._settings.turn_count is None:
            log.warning(
                '%s=%d with turns="off": the manager serves %d sockets of a tenant at a time, the others '
                "wait, the youngest longest; turns, or a smaller pool whose callers wait here, serve evenly",
                setting,
                size,
                SERVED_A_TICK,
            )
        return pool

    def sleep(self, seconds: float) -> None:
        """Pause before a repeat, or until the client is closed."""
        self._closed.wait(seconds)

    def shut_gates(self) -> dict[str, str]:
        """Describe each gate that is shut; it takes no lock."""
        gates = (self.manager_state.manager_gate, self.manager_state.auth_gate, *self.gates.all())
        texts = ((gate.name, gate.describe()) for gate in gates)
        return {name: text for name, text in texts if text is not None}

    def close(self, timeout: float) -> None:
        """Drain for up to `timeout` seconds, then end all calls and threads. Each step may be repeated."""
        if timeout > 0.0:
            deadline = Deadline(timeout)
            for pool in (self.pool, self.management):
                pool.stop_accepting()
            for pool in (self.pool, self.management):
                pool.drain(deadline)
        self.stop()
        self._connector.join(1.0)
        self.reader.join(10.0)

    def stop(self) -> None:
        """Stop everything, without waiting for it to end."""
        self._closed.set()
        for pool in (self.pool, self.management):
            pool.close(ClientClosedError("the client was closed while the call waited for a socket"))
        self.sender.stream_turns.close()
        self.turns.close()
        self.gates.close()
        self.manager_state.manager_gate.report_end()
        self.manager_state.auth_gate.report_end()
        self._connector.stop()
        self.reader.stop()

    def close_inherited(self) -> None:
        """Close the descriptors that a forked child inherited, without a lock, and nothing else."""
        self.pool.close_inherited()
        self.management.close_inherited()
        self._connector.opening.close_inherited()
        self.reader.close_inherited()
