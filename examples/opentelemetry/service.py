"""A Flask service whose requests and calls are traced: ``GET /digits?number=3`` takes the third sample.

::

    cd examples/opentelemetry && gunicorn service:app
"""

from flask import Flask, request
from opentelemetry.instrumentation.flask import FlaskInstrumentor

from tcm_sync.integrations.flask import Tcm, current_tcm
from tcm_sync.integrations.opentelemetry import TcmInstrumentor
from tcm_sync.local.digits import load_samples

SAMPLES = load_samples()

app = Flask(__name__)
app.config.update(TCM_REQUEST_TIMEOUT=20, TCM_HANDLE_ERRORS=True)
tcm = Tcm(app)
# Before or after the fork: nothing is exported until a process has providers (export.py).
TcmInstrumentor().instrument()
FlaskInstrumentor().instrument_app(app)


@app.get("/digits")
def digits():
    """Recognise an image."""
    sample = SAMPLES[request.args.get("number", type=int) % len(SAMPLES)]
    return current_tcm.infer("digits", {"image": sample.image.reshape(1, -1)}).tolist()
