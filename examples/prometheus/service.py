"""A service with several worker processes whose metrics Prometheus scrapes.

mkdir -p /tmp/metrics
cd examples/prometheus && PROMETHEUS_MULTIPROC_DIR=/tmp/metrics gunicorn
"""

import os

import numpy as np
from flask import Flask, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest, multiprocess

from tcm_sync import TcmClient
from tcm_sync.events import add_listener
from tcm_sync.integrations.prometheus import PrometheusListener

app = Flask(__name__)
client = TcmClient.from_env()
add_listener(PrometheusListener())


@app.get("/classify")
def classify() -> dict[str, object]:
    """Classify an image without content, and name the process that did."""
    result = client.infer("digits", {"image": np.zeros((1, 64), np.float32)})
    return {"probabilities": result["probabilities"].tolist(), "pid": os.getpid()}


@app.get("/metrics")
def metrics() -> Response:
    """Return the metrics of all workers."""
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
