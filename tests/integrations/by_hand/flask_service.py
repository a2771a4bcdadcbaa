"""The Flask service of docs/deploying.rst without `tcm_sync.integrations.flask`."""

import math
import time

import numpy as np
from flask import Flask, g, request

from tcm_sync import RETRIABLE, TcmClient, TcmError, errors

WRONG_INPUT = (
    errors.InputError,
    errors.ContractError,
    errors.ShapeMismatchError,
    errors.MessageTooLargeError,
    errors.PayloadTooLargeError,
)

app = Flask(__name__)
client = TcmClient.from_env()


@app.before_request
def start_deadline():
    g.until = time.monotonic() + 20


@app.errorhandler(TcmError)
def respond(error):
    body = {"error": {"type": type(error).__name__, "code": error.code, "retriable": error.retriable}}
    if isinstance(error, WRONG_INPUT):
        body["error"]["message"] = error.message
        return body, 400
    app.logger.warning("%s", error)
    if isinstance(error, RETRIABLE):
        return body, 503, {"Retry-After": str(math.ceil(error.retry_after or 1))}
    return body, 504 if isinstance(error, TimeoutError) else 502


@app.get("/healthz")
def healthz():
    return {"status": "ok"}


@app.get("/readyz")
def readyz():
    answer = client.ready(timeout=0.8)
    return {"status": answer.status}, 200 if answer.ok else 503


@app.post("/digits")
def digits():
    image = np.asarray(request.json["image"], np.float32)
    left = max(0.001, g.until - time.monotonic())
    return client.infer("digits", {"image": image}, timeout=left).tolist()
