"""Metrics of a client without `tcm_sync.integrations.prometheus`: no durations, and for one process alone."""

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily


class ClientCollector:
    def __init__(self, client, registry):
        self.client = client
        registry.register(self)

    def describe(self):
        return []

    def collect(self):
        stats = self.client.stats()
        for name, text in (
            ("calls", "Calls that have ended."),
            ("successes", "Calls that have succeeded."),
            ("gate_waits", "Calls that were held back."),
            ("sockets_opened", "Sockets that were opened."),
        ):
            yield CounterMetricFamily(f"tcm_{name}", text, getattr(stats, name))
        for name, text in (("sockets", "Open sockets."), ("waiting", "Calls that wait for a socket.")):
            yield GaugeMetricFamily(f"tcm_{name}", text, getattr(stats, name))
