"""`ClientStats`: what a client has counted, and how it is shown as text and in a notebook."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from tcm_sync._numbers import plural
from tcm_sync._tables import html_table

_WIDTH = 79  # of a line of the repr

# The fields that are of now. All others have counted since the client was made.
_GAUGES = frozenset(
    (
        "calls_per_second",
        "seconds_per_call",
        "sockets",
        "busy",
        "waiting",
        "open_streams",
        "shm_segments",
        "shm_bytes",
        "shm_pinned",
        "turn_processes",
        "requests_at_once",
        "messages_per_second",
        "tenant_messages_per_second",
        "gates",
    )
)


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
        Batches of `Model.infer_sample` and `Model.submit_sample`, by how many samples were in them.
    sockets_opened : int
    sockets_closed : mapping of str to int
        By why.
    shm_sends, shm_sent_bytes : int
        Attempts whose tensors went through shared memory, and the bytes of those.
    shm_declined : mapping of str to int
        Calls whose tensors were large enough for it, or had to, and did not, by why.
    uuids : int
        How many the manager was sent: each slows it until it has expired there (docs/wire.rst, "Timing").
    waits, wait_seconds : int, float
        Calls that waited for a socket, and for how long in all.
    gate_waits, gate_wait_seconds : int, float
        The same before a gate that was shut after a failure.
    turn_waits, turn_wait_seconds : int, float
        The same for a turn to send, since others had requests at the manager's scheduler.
    messages_sent, messages_received, bytes_sent, bytes_received : int
        Of authenticated sockets, frame headers included in the bytes.
    late, unknown, advisories : int
        Replies that arrived after their call had ended, messages of an unknown type, and messages in which
        the manager reported that it delays a request.
    alerts : mapping of str to int
        The manager's alerts, by their kind.
    calls_per_second, seconds_per_call : float
        Now: how many calls ended a second in the last minute, and how long each of them took in the mean.
    sockets, busy, waiting, open_streams : int
        Now: open sockets, those with a call under way, calls that wait for one, and streams.
    shm_segments, shm_bytes : int
        Now: files in shared memory, and their bytes.
    shm_pinned : int
        Now: bytes that servers were made to keep mapped, also of files that are unlinked.
    turn_processes : int
        Now: processes of this host that share turns with this one, and this one; 0 before the first turn.
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
    turn_waits: int
    turn_wait_seconds: float
    messages_sent: int
    messages_received: int
    bytes_sent: int
    bytes_received: int
    late: int
    unknown: int
    advisories: int
    alerts: Mapping[str, int]
    # Gauges.
    calls_per_second: float = 0.0
    seconds_per_call: float = 0.0
    sockets: int = 0
    busy: int = 0
    waiting: int = 0
    open_streams: int = 0
    shm_segments: int = 0
    shm_bytes: int = 0
    shm_pinned: int = 0
    turn_processes: int = 0
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

        Returns
        -------
        ClientStats
            What has happened in between.
        """
        then = asdict(earlier)
        return ClientStats(
            **{
                name: value if name in _GAUGES else _difference(value, then[name])
                for name, value in asdict(self).items()
            }
        )

    def __repr__(self) -> str:
        lines = [
            f"<ClientStats of {self.seconds:,.1f} s: {self.calls:,} calls, {self.successes:,} of them good",
            f"  last minute: {self.calls_per_second:,.3g} calls/s of {self.seconds_per_call * 1e3:,.3g} ms",
            *self._traffic_lines(),
            *self._count_lines(),
            *self._limit_lines(),
        ]
        return "\n".join(line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…" for line in lines) + ">"

    def _traffic_lines(self) -> Iterator[str]:
        """Yield lines that are always shown, and that of turns where there are any."""
        now = f"{self.sockets} open, {self.busy} busy; calls waiting: {self.waiting}"
        yield f"  sockets: {now}; {self.sockets_opened:,} opened"
        for_sockets = f"{plural(self.waits, 'time')} {self.wait_seconds:,.3g} s for a socket"
        at_gates = f"{plural(self.gate_waits, 'time')} {self.gate_wait_seconds:,.3g} s at gates"
        yield f"  waited: {for_sockets}, {at_gates}"
        sent = f"{self.messages_sent:,} messages, {_bytes(self.bytes_sent)}"
        yield f"  sent: {sent}; received: {self.messages_received:,}, {_bytes(self.bytes_received)}"
        yield f"  unasked: {self.late} late, {self.unknown} unknown, {self.advisories} advisories"
        if self.turn_processes:
            for_turns = f"{plural(self.turn_waits, 'time')} {self.turn_wait_seconds:,.3g} s for one"
            shared = "1 process" if self.turn_processes == 1 else f"shared by {self.turn_processes} processes"
            yield f"  turns: {shared}; {for_turns}"

    def _count_lines(self) -> Iterator[str]:
        """Yield lines of what has happened, where anything has."""
        counted = {
            "failures": self.failures,
            "repeats": self.repeats,
            "closed": self.sockets_closed,
            "alerts": self.alerts,
            "not shared": self.shm_declined,
        }
        yield from (f"  {what}: {_by_frequency(kinds)}" for what, kinds in counted.items() if kinds)
        if batches := sum(self.batch_sizes.values()):
            samples = sum(size * times for size, times in self.batch_sizes.items())
            yield f"  batches: {batches:,} of {samples / batches:.1f} samples in the mean"
        if self.shm_sends:
            sends = f"{self.shm_sends:,} sends, {_bytes(self.shm_sent_bytes)}"
            segments = f"{self.shm_segments} segments, {_bytes(self.shm_bytes)}"
            yield f"  shared: {sends}; {segments}, {_bytes(self.shm_pinned)} pinned"
        if self.streams:
            yield f"  streams: {self.streams:,} begun, {self.open_streams} open"

    def _limit_lines(self) -> Iterator[str]:
        """Yield lines of the limits and the gates that hold calls back now."""
        if self.tenant_messages_per_second is not None:
            yield f"  at most {self.tenant_messages_per_second:.3g} messages a second of all sockets"
        if self.requests_at_once is not None:
            yield f"  at most {self.requests_at_once} requests at once"
        if self.messages_per_second is not None:
            yield f"  at most {self.messages_per_second} messages a second"
        yield from (f"  {name} gate {state}" for name, state in self.gates.items())

    def _repr_html_(self) -> str:
        """Show what has happened, and how it is now, as a table in a notebook."""
        title = f"ClientStats of {self.seconds:,.1f} s"
        return html_table(title, (), [(name.replace("_", " "), text) for name, text in self._table()])

    def _table(self) -> Iterator[tuple[str, str]]:
        """Yield the names and texts of all that is not 0, none or empty."""
        for name, value in asdict(self).items():
            if name == "seconds" or not value:
                continue
            if name == "gates":
                yield name, ", ".join(f"{gate} {state}" for gate, state in value.items())
            elif name == "batch_sizes":
                yield "batches", _by_frequency({f"of {size:,}:": times for size, times in value.items()})
            elif isinstance(value, Mapping):
                yield name, _by_frequency(value)
            elif name.endswith("_bytes") or name.startswith("bytes_"):
                yield name, _bytes(value)
            else:
                yield name, f"{value:,}" if isinstance(value, int) else f"{value:,.3g}"


def _difference(value: Any, then: Any) -> Any:
    """Subtract an earlier count, or earlier counts by name."""
    if isinstance(value, Mapping):
        return {key: count - then.get(key, 0) for key, count in value.items() if count > then.get(key, 0)}
    return value - then


def _by_frequency(counted: Mapping[str, int]) -> str:
    """Name what was counted, the most frequent first."""
    return ", ".join(f"{kind} {times:,}" for kind, times in Counter(counted).most_common())


def _bytes(count: float) -> str:
    power = 0
    while count >= 1000 and power < 4:
        count, power = count / 1000, power + 1
    return f"{count:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
