"""Errors of the client, and the state of managers, as HTTP responses: the same for each web framework."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from tcm_sync.client import TcmClient
from tcm_sync.errors import (
    CallTimeoutError,
    ClientClosedError,
    ConfigError,
    ContractError,
    InferenceFailedError,
    InputError,
    MessageTooLargeError,
    ModelFileError,
    PayloadTooLargeError,
    PoolTimeoutError,
    ReentrantCallError,
    ShapeMismatchError,
    StreamTimeoutError,
    TcmError,
    TritonTimeoutError,
)

READY_TIMEOUT = 0.8  # seconds: probes of Kubernetes wait for one second unless they are set otherwise

_log = logging.getLogger("tcm_sync.integrations")

BAD_REQUEST, FAULT, BAD_GATEWAY, UNAVAILABLE, TIMED_OUT = 400, 500, 502, 503, 504

#: Which status errors have: that of the first line with a class of the error.
_STATUS: tuple[tuple[int, tuple[type[TcmError], ...]], ...] = (
    (FAULT, (ClientClosedError, ConfigError, ModelFileError, ReentrantCallError)),
    (
        BAD_REQUEST,
        (ContractError, InputError, MessageTooLargeError, PayloadTooLargeError, ShapeMismatchError),
    ),
    (TIMED_OUT, (CallTimeoutError, StreamTimeoutError, TritonTimeoutError)),
    (UNAVAILABLE, (PoolTimeoutError,)),
)

#: What users of the service read. Details name machines, so they go to the log alone.
_TEXTS = {
    BAD_GATEWAY: "The inference failed.",
    UNAVAILABLE: "The inference service is unavailable at the moment. Try again later.",
    TIMED_OUT: "The inference took too long.",
}


class Response(NamedTuple):
    """A response: its status, its headers besides Content-Type, and its body, which is sent as JSON."""

    status: int
    headers: dict[str, str]
    body: dict[str, Any]


def status_of(error: TcmError) -> int:
    """Return the HTTP status for an error: 400, 500, 502, 503 or 504.

    500 is for mistakes of the service itself, which a web framework reports better than a response can.
    """
    for status, kinds in _STATUS:
        if isinstance(error, kinds):
            return status
    if isinstance(error, InferenceFailedError) and error.max_batch_size is not None:
        return BAD_REQUEST
    return UNAVAILABLE if error.retriable else BAD_GATEWAY


def response_to(error: TcmError) -> Response | None:
    """Return the response to a request whose inference failed, and log the error with its details.

    Parameters
    ----------
    error : TcmError
        The failure.

    Returns
    -------
    Response or None
        None if it is a mistake of the service itself, which should be raised.
    """
    status = status_of(error)
    if status == FAULT:
        return None
    level = logging.INFO if status == BAD_REQUEST else logging.WARNING
    # Its text, not the error: a record that is kept would keep the frames of the traceback.
    _log.log(level, "answered %s: %s: %s", status, type(error).__name__, str(error))
    body = {
        "type": type(error).__name__,
        "code": error.code,
        "message": error.message if status == BAD_REQUEST else _TEXTS[status],
        "retriable": status == UNAVAILABLE,
    }
    headers = {}
    if status == UNAVAILABLE:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after or 1.0)))
    return Response(status, headers, {"error": body})


def readiness_of(clients: Mapping[str, TcmClient], timeout: float) -> Response:
    """Return the response of a readiness probe: 200 if the manager of each client is ready, else 503.

    Parameters
    ----------
    clients : mapping of str to TcmClient
        The clients by name.
    timeout : float
        Seconds for all of them together, since they are asked at the same time.
    """
    if len(clients) == 1:
        answers = [client.ready(timeout=timeout) for client in clients.values()]
    else:
        with ThreadPoolExecutor(max(1, len(clients))) as pool:
            answers = list(pool.map(lambda client: client.ready(timeout=timeout), clients.values()))
    for name, answer in zip(clients, answers, strict=True):
        if not answer.ok:
            _log.warning("not ready: the manager of client %r: %s", name, answer.explanation)
    ok = all(answer.ok for answer in answers)
    body = {
        "status": "ready" if ok else "not ready",
        "managers": {name: answer.status for name, answer in zip(clients, answers, strict=True)},
    }
    return Response(200 if ok else UNAVAILABLE, {}, body)
