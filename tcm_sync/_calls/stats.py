"""What a client tells of itself: counters and gauges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import asdict

from tcm_sync._arguments import check_flag
from tcm_sync._calls.caller import Caller
from tcm_sync._process import notice_fork

if TYPE_CHECKING:
    from tcm_sync._pool.runtime import Runtime

_WIDTH = 79  # of a line of the repr


class ClientStats(Struct, frozen=True):
    """What a client has done since it was made, or since its counters were last reset, and how it is now.

    Mappings count by what is named; what is not in them has not happened.

    Attributes
    ----------
    seconds : float
        How long it has counted.
    calls, successes : int
        Calls that ended, and ended well. A batch of samples is one call. A stream counts when it begins.
    failures : mapping of str to int
        Calls that failed, and streams that failed later, by the manager's code or else by the error's class.
    repeats : mapping of str to int
        Attempts that were repeated, by why.
    streams : int
        Streams that began.
    batch_sizes : mapping of int to int
        Batches of `Model.infer_sample`, by how many samples were in them.
    sockets_opened : int
    sockets_closed : mapping of str to int
        By why.
    shm_sends, shm_sent_bytes : int
        Attempts whose tensors went through shared memory, and the bytes of those.
    shm_declined : mapping of str to int
        Calls whose tensors were large enough for it, or had to, and did not, by why.
    uuids : int
        How many the manager was told: each slows it until it is forgotten (docs/wire.rst, "Timing").
    waits, wait_seconds : int, float
        Calls that waited for a socket, and for how long in all.
    gate_waits, gate_wait_seconds : int, float
        The same before a gate that was shut after a failure.
    messages_sent, messages_received, bytes_sent, bytes_received : int
        Of authenticated sockets, frame headers included in the bytes.
    late, unknown, advisories : int
        Replies that nobody waited for any more, messages of an unknown type, and how often the manager said
        that it delays a request.
    alerts : mapping of str to int
        The manager's alerts, by their kind.
    sockets, busy, waiting, open_streams : int
        Now: open sockets, those with a call under way, calls that wait for one, and streams.
    shm_segments, shm_bytes : int
        Now: files in shared memory, and their bytes.
    shm_pinned : int
        Now: bytes that servers were made to keep mapped, also of files that are unlinked.
    requests_at_once : int or None
        Now: how many requests may be under way, where the manager had too much to do a while ago.
    messages_per_second : int or None
        Now: the limit of a socket, stated or learned.
    tenant_messages_per_second : float or None
        Now: what the client sends at most, since the manager refused a message over its tenant's limit.
    gates : mapping of str to str
        Now: what is shut, and why.
    """

    seconds: float
    calls: int
    successes: int
    failures: Mapping[str, int]
    repeats: Mapping[str, int]
    streams: int
    batch_sizes: Mapping[int, int]
    shm_sends: int
    shm_sent_bytes: int
    shm_declined: Mapping[str, int]
    sockets_opened: int
    sockets_closed: Mapping[str, int]
    uuids: int
    waits: int
    wait_seconds: float
    gate_waits: int
    gate_wait_seconds: float
    messages_sent: int
    messages_received: int
    bytes_sent: int
    bytes_received: int
    late: int
    unknown: int
    advisories: int
    alerts: Mapping[str, int]
    # Gauges.
    sockets: int = 0
    busy: int = 0
    waiting: int = 0
    open_streams: int = 0
    shm_segments: int = 0
    shm_bytes: int = 0
    shm_pinned: int = 0
    requests_at_once: int | None = None
    messages_per_second: int | None = None
    tenant_messages_per_second: float | None = None
    gates: Mapping[str, str] = {}

    def since(self, earlier: ClientStats) -> ClientStats:
        """Return these figures with those of `earlier` taken off; what is of now stays.

        Parameters
        ----------
        earlier : ClientStats
            Of the same client.
        """
        then = asdict(earlier)
        return ClientStats(
            **{
                name: value if name in _GAUGES else _less(value, then[name])
                for name, value in asdict(self).items()
            }
        )

    def __repr__(self) -> str:
        samples = sum(size * times for size, times in self.batch_sizes.items())
        batches = sum(self.batch_sizes.values())
        waited = f"{self.waits:,} times {self.wait_seconds:,.3g} s for a socket"
        at_gates = f"{self.gate_waits:,} times {self.gate_wait_seconds:,.3g} s at gates"
        sent = f"{self.messages_sent:,} messages, {_bytes(self.bytes_sent)}"
        received = f"{self.messages_received:,}, {_bytes(self.bytes_received)}"
        now = f"{self.sockets} open, {self.busy} busy, {self.waiting} calls wait"
        lines = [
            f"<ClientStats of {self.seconds:,.1f} s: {self.calls:,} calls, {self.successes:,} of them good",
            f"  sockets: {now}; {self.sockets_opened:,} opened",
            f"  waited: {waited}, {at_gates}",
            f"  sent: {sent}; received: {received}",
            f"  unasked: {self.late} late, {self.unknown} unknown, {self.advisories} advisories",
        ]
        counted = {
            "failures": self.failures,
            "repeats": self.repeats,
            "closed": self.sockets_closed,
            "alerts": self.alerts,
            "not shared": self.shm_declined,
        }
        lines += [f"  {what}: {_most(kinds)}" for what, kinds in counted.items() if kinds]
        if batches:
            lines.append(f"  batches: {batches:,} of {samples / batches:.1f} samples in the mean")
        if self.shm_sends:
            lines.append(
                f"  shared: {self.shm_sends:,} sends, {_bytes(self.shm_sent_bytes)}; {self.shm_segments} "
                f"segments, {_bytes(self.shm_bytes)}, {_bytes(self.shm_pinned)} pinned"
            )
        if self.streams:
            lines.append(f"  streams: {self.streams:,} begun, {self.open_streams} open")
        limits = {"requests at once": self.requests_at_once, "messages a second": self.messages_per_second}
        if self.tenant_messages_per_second is not None:
            lines.append(f"  at most {self.tenant_messages_per_second:.3g} messages a second of all sockets")
        lines += [f"  at most {limit} {what}" for what, limit in limits.items() if limit is not None]
        lines += [f"  {name} gate {state}" for name, state in self.gates.items()]
        return "\n".join(line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…" for line in lines) + ">"


_GAUGES = frozenset(
    (
        "sockets",
        "busy",
        "waiting",
        "open_streams",
        "shm_segments",
        "shm_bytes",
        "shm_pinned",
        "requests_at_once",
        "messages_per_second",
        "tenant_messages_per_second",
        "gates",
    )
)


class Stats(Caller):
    """The client's `stats`."""

    def stats(self, *, reset: bool = False) -> ClientStats:
        """Return what the client has counted, and how it is.

        A forked child counts for itself, from nothing.

        Parameters
        ----------
        reset : bool
            Whether to count from nothing after this, for everybody who asks.

        Returns
        -------
        ClientStats
            A copy, which changes no more.
        """
        notice_fork()
        reset = check_flag("reset", reset)
        with self._lock:
            now = ClientStats(**self._read(self._runtime))
            earlier = self._counted_from
            if reset:
                self._counted_from = now
        return now if earlier is None else now.since(earlier)

    def _read(self, runtime: Runtime | None) -> dict[str, Any]:
        """Return all figures by name."""
        counts = self._counts
        figures = counts.read()
        if runtime is None:
            pools = [pool.read(()) for pool in counts.pools]
        else:
            pools = [runtime.pool.read(), runtime.management.read()]
            limits = runtime.pool.limits()
            names = ("requests_at_once", "messages_per_second", "tenant_messages_per_second")
            figures.update(zip(names, limits, strict=True))
            figures["gates"] = runtime.gates()
        for name in pools[0]:
            figures[name] = pools[0][name] + pools[1][name]
        figures.update(self._sharing.read())
        figures["successes"] = figures["calls"] - sum(figures["failures"].values())
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in figures.items()}


def _less(value: Any, then: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: count - then.get(key, 0) for key, count in value.items() if count > then.get(key, 0)}
    return value - then


def _most(counted: Mapping[str, int]) -> str:
    """Name what was counted, the most frequent first."""
    return ", ".join(f"{kind} {times:,}" for kind, times in Counter(counted).most_common())


def _bytes(count: float) -> str:
    power = 0
    while count >= 1000 and power < 4:
        count, power = count / 1000, power + 1
    return f"{count:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
