"""A Flask service that recognises handwritten digits: ``GET /digits?number=3`` takes the third sample."""

import os

from flask import Flask, request

from tcm_sync.integrations.flask import Tcm, current_tcm, health
from tcm_sync.local.digits import load_samples

SAMPLES = load_samples()

app = Flask(__name__)
app.config.update(
    TCM_WS_URI=os.environ["TCM_WS_URI"],
    TCM_CONTAINER_ID=os.environ.get("TCM_CONTAINER_ID", "local"),
    TCM_REQUEST_TIMEOUT=20,
    TCM_HANDLE_ERRORS=True,
)
tcm = Tcm(app)
app.register_blueprint(health)


@app.get("/digits")
def digits():
    """Recognise an image."""
    sample = SAMPLES[request.args.get("number", type=int) % len(SAMPLES)]
    return current_tcm.infer("digits", {"image": sample.image.reshape(1, -1)}).tolist()
