"""`TcmInstrumentor`: spans and metrics of all clients of the process for OpenTelemetry, made from events.

Install it with the extra ``opentelemetry``. ``opentelemetry-instrument`` finds it by itself. Names are those
of the semantic conventions for RPC; what they have no name for begins with ``tcm.``. docs/monitoring.rst
lists them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from tcm_sync._tracebacks import shortened

try:
    from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]
    from opentelemetry.instrumentation.utils import is_instrumentation_enabled
    from opentelemetry.metrics import Meter, get_meter
    from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, get_tracer
except ImportError as error:
    raise shortened(
        ImportError(
            "tcm_sync.integrations.opentelemetry needs OpenTelemetry: pip install 'tcm-sync[opentelemetry]'"
        )
    ) from error

from tcm_sync.events import (
    AttemptFailed,
    BatchSent,
    CallFinished,
    ConnectionClosed,
    ConnectionOpened,
    Listener,
    add_listener,
    remove_listener,
)

__all__ = ["TcmInstrumentor"]

_SCHEMA = "https://opentelemetry.io/schemas/1.39.0"
#: The upper bounds, in seconds, that the conventions recommend.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)

_Attributes = dict[str, str | int | float]


class TcmInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Makes a client span for each call of each client, those that exist already too, and metrics.

    A span is made when its call has ended, with the times at which it began and ended, as a child of the
    span in which the call was begun, also for `submit` and `map`. It holds no tensors and no texts of errors.

    ``instrument()`` takes ``tracer_provider`` and ``meter_provider`` in place of the global ones, and
    ``uninstrument()`` ends it.
    """

    _listener: Listener | None = None

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return what must be installed: nothing but this package.

        Returns
        -------
        collection of str
            It is empty.
        """
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        name = "tcm_sync"
        tracer = get_tracer(name, tracer_provider=kwargs.get("tracer_provider"), schema_url=_SCHEMA)
        meter = get_meter(name, meter_provider=kwargs.get("meter_provider"), schema_url=_SCHEMA)
        self._listener = _Reporter(tracer, meter)
        add_listener(self._listener)

    def _uninstrument(self, **kwargs: Any) -> None:  # noqa: ARG002
        if self._listener is not None:
            remove_listener(self._listener)
        self._listener = None


class _Reporter(Listener):
    """Makes spans and metrics of events; it runs in the context in which the call was begun."""

    def __init__(self, tracer: Tracer, meter: Meter) -> None:
        self._tracer = tracer
        self._failed: dict[int, list[AttemptFailed]] = {}  # by call, until it ends
        self._open: set[str] = set()  # uuids of the sockets that are counted
        self._duration = meter.create_histogram(
            "rpc.client.call.duration",
            unit="s",
            description="Measures the duration of an outgoing Remote Procedure Call (RPC).",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._sockets = meter.create_up_down_counter(
            "tcm.client.open_sockets", unit="{socket}", description="Sockets that are open."
        )
        self._samples = meter.create_histogram(
            "tcm.client.batch.samples", unit="{sample}", description="Samples of a batch."
        )

    def attempt_failed(self, event: AttemptFailed) -> None:
        self._failed.setdefault(event.call_id, []).append(event)

    def call_finished(self, event: CallFinished) -> None:
        failed = self._failed.pop(event.call_id, [])
        if not is_instrumentation_enabled():
            return
        attributes: _Attributes = {
            "rpc.system.name": "tcm",
            "rpc.method": f"tcm/{event.kind}",
            **_server(event.manager),
            "tcm.model.name": event.model_name,
        }
        if event.error is not None:
            attributes["error.type"] = event.code or event.error
            if event.code is not None and event.code != event.error:
                attributes["rpc.response.status_code"] = event.code
        self._duration.record(event.seconds, attributes)
        self._make_span(event, failed, attributes)

    def _make_span(self, event: CallFinished, failed: list[AttemptFailed], attributes: _Attributes) -> None:
        span = self._tracer.start_span(
            f"tcm/{event.kind}",
            kind=SpanKind.CLIENT,
            attributes=attributes,
            start_time=_nanoseconds(event.at - event.seconds),
        )
        if span.is_recording():
            span.set_attributes(_details(event))
            for attempt in failed:
                facts: _Attributes = {
                    "tcm.attempt": attempt.attempt,
                    "error.type": attempt.code,
                    "tcm.uuid": attempt.uuid,
                }
                span.add_event("tcm.attempt", facts, _nanoseconds(attempt.at))
            if event.error is None and event.attempts:
                span.add_event("tcm.attempt", {"tcm.attempt": event.attempts}, _nanoseconds(event.at))
            if event.error is not None:
                span.set_status(Status(StatusCode.ERROR))
        span.end(_nanoseconds(event.at))

    def connection_opened(self, event: ConnectionOpened) -> None:
        self._open.add(event.uuid)
        self._sockets.add(1, {**_server(event.manager), "tcm.pool": event.pool})

    def connection_closed(self, event: ConnectionClosed) -> None:
        if event.uuid in self._open:  # it was opened since this listens
            self._open.remove(event.uuid)
            self._sockets.add(-1, {**_server(event.manager), "tcm.pool": event.pool})

    def batch_sent(self, event: BatchSent) -> None:
        self._samples.record(event.size, {"tcm.model.name": event.model_name})


def _server(manager: str) -> _Attributes:
    """Return the attributes that name the manager."""
    host, colon, port = manager.rpartition(":")
    if not colon or not port.isdigit():
        return {"server.address": manager.strip("[]")}
    return {"server.address": host.strip("[]"), "server.port": int(port)}


def _details(event: CallFinished) -> _Attributes:
    """Return what a span has and a metric has not."""
    route = {
        "tcm.container_id": event.container_id,
        "tcm.vm_ip": event.vm_ip,
        "tcm.vm_id": event.vm_id,
        "tcm.batch.samples": event.batch_size,
    }
    return {
        **{name: value for name, value in route.items() if value is not None},
        "tcm.attempts": event.attempts,
        "tcm.transport": event.transport,
        "tcm.request.bytes": event.bytes_sent,
        "tcm.response.bytes": event.bytes_received,
        **{f"tcm.seconds.{each}": getattr(event.phases, each) for each in event.phases.__struct_fields__},
    }


def _nanoseconds(at: float) -> int:
    return int(at * 1e9)
