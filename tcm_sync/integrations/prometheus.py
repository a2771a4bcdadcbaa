"""`PrometheusListener`: metrics of clients for Prometheus, fed by events.

Install it with the extra ``prometheus``. docs/monitoring.rst shows how it is used, also with several worker
processes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import NamedTuple

from tcm_sync._tracebacks import shortened

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Gauge, Histogram
    from prometheus_client import Counter as PrometheusCounter
except ImportError as error:
    raise shortened(
        ImportError(
            "tcm_sync.integrations.prometheus needs prometheus_client: pip install 'tcm-sync[prometheus]'"
        )
    ) from error

from tcm_sync.events import (
    AttemptFailed,
    BatchSent,
    CallFinished,
    CallStarted,
    ConnectionClosed,
    ConnectionOpened,
    GateOpened,
    GateShut,
    Listener,
    Phases,
    WaitFinished,
    WaitStarted,
)

__all__ = ["PrometheusListener"]

#: Upper bounds in seconds. The scheduler of a manager passes requests on every 15 ms.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128)
_PHASES = Phases.__struct_fields__
_MAX_SERIES = 1000  # combinations of labels whose metrics are kept after they were looked up


class _CallSeries(NamedTuple):
    """What calls with the same labels are counted in, kept because ``labels()`` is slow."""

    seconds: Histogram
    phases: tuple[Histogram, ...]  # in the order of _PHASES
    sent: PrometheusCounter
    received: PrometheusCounter


class PrometheusListener(Listener):
    """Keeps metrics of the clients that it listens to; one for each registry.

    It works with the multi-process mode of prometheus_client (``PROMETHEUS_MULTIPROC_DIR``). Gauges are sums
    over the processes that live (``livesum``): each counts its own calls and sockets, and what a process had
    ends with it.

    Parameters
    ----------
    registry : prometheus_client.CollectorRegistry
        Where the metrics are registered.
    buckets : sequence of float
        Upper bounds of the histograms of durations, in seconds.
    """

    def __init__(
        self, registry: CollectorRegistry = REGISTRY, *, buckets: Sequence[float] = _SECONDS
    ) -> None:
        def counter(name: str, text: str, *labels: str) -> PrometheusCounter:
            return PrometheusCounter(name, text, labels, registry=registry)

        def seconds(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(name, text, labels, registry=registry, buckets=buckets)

        def gauge(name: str, text: str, *labels: str) -> _Gauge:
            return _Gauge(Gauge(name, text, labels, registry=registry, multiprocess_mode="livesum"))

        self._seconds = seconds(
            "tcm_call_seconds", "Calls, by their seconds in all.", "kind", "model", "outcome"
        )
        self._phases = seconds(
            "tcm_call_phase_seconds",
            "Seconds of a call in each phase; socket and turn are waits.",
            "phase",
            "model",
            "outcome",
        )
        self._failures = counter("tcm_call_failures_total", "Calls that failed.", "kind", "model", "code")
        self._attempts = counter(
            "tcm_attempt_failures_total", "Attempts that failed, repeated or not.", "model", "code"
        )
        self._repeats = counter("tcm_repeats_total", "Attempts after the first of a call.", "model")
        self._sent = counter("tcm_sent_bytes_total", "Bytes of requests.", "model", "transport")
        self._received = counter("tcm_received_bytes_total", "Bytes of replies.", "model")
        self._in_progress = gauge("tcm_calls_in_progress", "Calls that have begun and not ended.", "kind")
        self._waiting = gauge(
            "tcm_calls_waiting", "Calls that wait for a socket, a turn or a gate.", "manager", "wait"
        )
        self._sockets = gauge("tcm_sockets", "Open sockets.", "manager", "pool")
        self._opened = counter("tcm_sockets_opened_total", "Sockets that were opened.", "manager", "pool")
        self._closed = counter(
            "tcm_sockets_closed_total", "Sockets that were closed.", "manager", "pool", "reason"
        )
        self._shut = gauge("tcm_gate_shut", "Gates that hold calls back after a failure.", "manager", "gate")
        self._shuttings = counter(
            "tcm_gate_shuttings_total", "How often calls were held back.", "manager", "gate", "code"
        )
        self._batches = Histogram(
            "tcm_batch_samples",
            "Batches, by their samples.",
            ["model"],
            registry=registry,
            buckets=_SAMPLES,
        )
        self._series_of = lru_cache(_MAX_SERIES)(self._look_up_series)

    def _look_up_series(self, kind: str, model: str, outcome: str, transport: str) -> _CallSeries:
        return _CallSeries(
            self._seconds.labels(kind, model, outcome),
            tuple([self._phases.labels(phase, model, outcome) for phase in _PHASES]),
            self._sent.labels(model, transport),
            self._received.labels(model),
        )

    def call_started(self, event: CallStarted) -> None:
        """Count a call under way.

        Parameters
        ----------
        event : CallStarted
            Its record.
        """
        self._in_progress.add(event.call_id, event.kind)

    def call_finished(self, event: CallFinished) -> None:
        """Count a call, its failure, repeats, seconds and bytes.

        Parameters
        ----------
        event : CallFinished
            Its record.
        """
        model = event.model_name
        outcome = "ok" if event.error is None else "error"
        self._in_progress.remove(event.call_id)
        self._waiting.remove(event.call_id)  # if an interrupt kept the end of its wait from being reported
        series = self._series_of(event.kind, model, outcome, event.transport)
        series.seconds.observe(event.seconds)
        for phase, histogram in zip(_PHASES, series.phases, strict=True):
            histogram.observe(getattr(event.phases, phase))
        series.sent.inc(event.bytes_sent)
        series.received.inc(event.bytes_received)
        if event.error is not None:
            self._failures.labels(event.kind, model, event.code).inc()
        if event.attempts > 1:
            self._repeats.labels(model).inc(event.attempts - 1)

    def wait_started(self, event: WaitStarted) -> None:
        """Count a call that waits.

        Parameters
        ----------
        event : WaitStarted
            Its record.
        """
        self._waiting.add(event.call_id, event.manager, event.wait)

    def wait_finished(self, event: WaitFinished) -> None:
        """Count a call that waits no more.

        Parameters
        ----------
        event : WaitFinished
            Its record.
        """
        self._waiting.remove(event.call_id)

    def attempt_failed(self, event: AttemptFailed) -> None:
        """Count a failed attempt.

        Parameters
        ----------
        event : AttemptFailed
            Its record.
        """
        self._attempts.labels(event.model_name, event.code).inc()

    def connection_opened(self, event: ConnectionOpened) -> None:
        """Count an open socket.

        Parameters
        ----------
        event : ConnectionOpened
            Its record.
        """
        self._opened.labels(event.manager, event.pool).inc()
        self._sockets.add(event.uuid, event.manager, event.pool)

    def connection_closed(self, event: ConnectionClosed) -> None:
        """Count a closed socket, by what its reason begins with.

        Parameters
        ----------
        event : ConnectionClosed
            Its record.
        """
        self._closed.labels(event.manager, event.pool, event.reason.partition(":")[0]).inc()
        self._sockets.remove(event.uuid)

    def gate_shut(self, event: GateShut) -> None:
        """Note that a gate is shut.

        Parameters
        ----------
        event : GateShut
            Its record.
        """
        self._shuttings.labels(event.manager, event.gate, event.code).inc()
        self._shut.add(event.gate_id, event.manager, event.gate)

    def gate_opened(self, event: GateOpened) -> None:
        """Note that a gate is open.

        Parameters
        ----------
        event : GateOpened
            Its record.
        """
        self._shut.remove(event.gate_id)

    def batch_sent(self, event: BatchSent) -> None:
        """Count a batch by its size.

        Parameters
        ----------
        event : BatchSent
            Its record.
        """
        self._batches.labels(event.model_name).observe(event.size)


class _Gauge:
    """A gauge of how many there are of something, which counts those whose beginning was reported.

    So what had begun before this listened changes nothing when it ends. A forked child begins at zero, and
    not with what its parent has.
    """

    def __init__(self, gauge: Gauge) -> None:
        self._series_of = lru_cache(_MAX_SERIES)(gauge.labels)
        self._labels: dict[Hashable, tuple[str, ...]] = {}  # of each that is there
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._pid = os.getpid()

    def add(self, key: Hashable, *labels: str) -> None:
        """Count one more under these labels alone."""
        self.remove(key)
        self._labels[key] = labels
        self._change(labels, 1)

    def remove(self, key: Hashable) -> None:
        """Count one no more, if it was."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._labels.clear()
            for labels, count in self._counts.items():
                self._change(labels, -count)
        gone = self._labels.pop(key, None)
        if gone is not None:
            self._change(gone, -1)

    def _change(self, labels: tuple[str, ...], amount: int) -> None:
        self._counts[labels] += amount
        self._series_of(*labels).set(self._counts[labels])
