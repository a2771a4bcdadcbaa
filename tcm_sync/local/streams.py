"""Answer inferences that are streams, chunk by chunk (docs/wire.rst, "Streams")."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tcm_sync.local.failures import failed_reply
from tcm_sync.local.injection import NO_FAULT
from tcm_sync.local.requests import DEFAULT_OUTPUT, read_request

if TYPE_CHECKING:
    from collections.abc import Callable

    from tcm_sync.local.injection import Fault
    from tcm_sync.local.outbox import Outbox
    from tcm_sync.local.requests import Find
    from tcm_sync.local.triton import Triton

_HTTP_STATUS = re.compile(r"^\[\d+\] ")  # how Triton's messages begin over HTTP, but not over gRPC


class Streams:
    """Answer requests for streams; safe from any thread.

    A stream ends after the first of these, but only once the model sends no more: the model raised; a chunk
    was not text; the client has disconnected; `timeout` seconds have passed since the start.

    Parameters
    ----------
    triton : Triton
        Runs the models.
    find : callable
        Returns the container with an id, or None.
    timeout : float
        Seconds that a stream may take.
    is_discarding : callable
        Returns whether to stop reading from models that are in the middle of a stream.
    """

    def __init__(
        self, triton: Triton, find: Find, *, timeout: float, is_discarding: Callable[[], bool]
    ) -> None:
        self._triton = triton
        self._find = find
        self._timeout = timeout
        self._is_discarding = is_discarding

    def answer(self, uuid: str, payload: Mapping[str, Any], outbox: Outbox, fault: Fault = NO_FAULT) -> None:
        """Run one request and send all its replies, in the worker's thread."""

        def send(status: str, data: object = None, model_name: str | None = None) -> None:
            reply = {"data": data, "status": status, "model_name": model_name}
            text = json.dumps({"type": "inference", "uuid": uuid, "payload": reply})
            is_last = status in ("COMPLETED", "FAILED")
            for each in fault.texts(text, is_first=status == "START", is_last=is_last):
                outbox.put(each)

        model_name = str(payload.get("model_name"))
        try:
            request = read_request(payload, self._find)
            end = time.monotonic() + self._timeout
            send("START")
            if fault.failure is not None:
                raise fault.failure()
            with self._triton.streaming(request.target):
                responses = self._responses(self._triton.run(request))
                self._relay(responses, request.output_name, end, lambda text: send("ONGOING", text), outbox)
        except BaseException as exc:  # noqa: BLE001 - a model may raise anything, and its worker continues
            send(**failed_reply(_as_over_grpc(exc), model_name))
        else:
            send("COMPLETED", model_name=model_name)

    def _responses(self, returned: object) -> Iterator[object]:
        """Iterate over what a model returned: its chunks, or its only response."""
        if isinstance(returned, Mapping):
            yield returned
            return
        if not isinstance(returned, Iterator):
            raise TypeError(
                f"the model returned a {type(returned).__name__}, "
                "not an iterator of chunks or a mapping of tensors by name"
            )
        for response in returned:
            if self._is_discarding():
                return
            yield response

    def _relay(
        self,
        responses: Iterator[object],
        output_name: str,
        end: float,
        send_chunk: Callable[[str], None],
        outbox: Outbox,
    ) -> None:
        """Send each chunk, and return when the stream is complete.

        The manager takes a response that is not text as the end, unless it is the first one; chunks after it
        are still sent. Without such a response it waits until the time limit.
        """
        has_chunk = complete = False
        failure: Exception | None = None
        for response in responses:
            try:
                text = _decode(response, output_name)
            except (TypeError, IndexError, ValueError) as exc:
                if not complete and time.monotonic() < end:
                    complete, failure = True, None if has_chunk else exc
                continue
            send_chunk(text)
            has_chunk = True
        if not complete:
            outbox.wait_closed(end - time.monotonic())
            raise TimeoutError(f"Stream timed out after {self._timeout:g}s")
        if failure is not None:
            raise ValueError(f"STREAM_DECODE_ERROR: output_name={output_name!r} error={failure}")


def _decode(response: object, output_name: str) -> str:
    """Read the text of a response: a mapping of outputs, or a chunk, which is the output of the usual name.

    Raises
    ------
    TypeError, IndexError, ValueError
        If there is none; the message is Python's or numpy's, as in the recorded manager.
    """
    tensor: Any
    if isinstance(response, Mapping):
        tensor = response.get(output_name)
    elif output_name == DEFAULT_OUTPUT:
        tensor = response
    else:
        tensor = None
    if isinstance(tensor, str):
        return tensor
    if tensor is not None:
        is_empty = isinstance(tensor, bytes) and not tensor
        tensor = np.ravel(np.asarray([] if is_empty else tensor, dtype=np.object_))
    value = tensor[0]
    return value.decode() if isinstance(value, bytes) else str(value)


def _as_over_grpc(exc: BaseException) -> BaseException:
    """Remove the HTTP status with which a refusal of Triton begins."""
    return ValueError(_HTTP_STATUS.sub("", str(exc))) if type(exc) is ValueError else exc
