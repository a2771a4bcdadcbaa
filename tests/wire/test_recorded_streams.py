"""A client that is sent what a real manager sent reads the same chunks, and the same end."""

from __future__ import annotations

import pytest

from tcm_sync import InferenceFailedError, Route, StreamTimeoutError, TcmClient

from ..peer.scripted import ScriptedPeer
from .recordings import is_remark, recorded

#: What each recorded stream brings in all, and how it ends.
STREAMS = {
    "stream.end.empty_tensor": ("to be", "completed"),
    "stream.end.no_output": ("to be", "completed"),
    "stream.end.not_utf8": ("to be or not", "completed"),
    "close.then_new_stream": ("to be", "completed"),
    "stream.ok": ("to be or not", "idle"),
    "stream.end.error": ("to be", InferenceFailedError),
    "stream.end.empty_first": ("", InferenceFailedError),
    "stream.wrong_output": ("", InferenceFailedError),
    "stream.model_missing": ("", InferenceFailedError),
    "stream.registered_http": ("", InferenceFailedError),
    "stream.idle_end.no_chunks": ("", StreamTimeoutError),
    "stream.idle_end": ("to be or not", StreamTimeoutError),
    "stream.timeout.total": ("w w w w w w", StreamTimeoutError),
    "shutdown.stream_running": (" ".join("w" * 20), StreamTimeoutError),
}
#: These were left early, on the other side; another socket's inference is among what came.
LEFT = {"close.grpc_stream_aborted", "close.grpc_stream_aborted.longer", "close.grpc_stream_idle"}


def replies(case):
    """List the recorded replies of a case, of its inferences alone."""
    frames = [frame.message for frame in recorded("server") if frame.case == case]
    return [frame for frame in frames if not is_remark(frame) and frame["type"] == "inference"]


def test_every_recorded_stream_is_here():
    starts = {
        frame.case
        for frame in recorded("server")
        if not is_remark(frame.message) and (frame.message.get("payload") or {}).get("status") == "START"
    }
    assert starts - {"shm.grpc"} == {*STREAMS, *LEFT}, "that one is about shared memory"


@pytest.mark.parametrize(("case", "words", "end"), [(case, *told) for case, told in STREAMS.items()])
def test_a_recorded_stream_is_read_as_it_was(case, words, end):
    def script(connection):
        connection.welcome()
        connection.recv_request()
        for reply in replies(case):
            connection.send_text({**reply, "uuid": connection.uuid})
        connection.wait_eof()

    patience = {"idle_timeout": 0.3, "on_idle": "end"} if end == "idle" else {}
    with ScriptedPeer(script) as peer, TcmClient(peer.uri, route=Route("ctr-9")) as client:
        if isinstance(end, str):
            stream = client.stream("llm", {"text": ["to be or not"]}, **patience)
            assert " ".join(stream) == words
            assert stream.ended_by == end
        else:
            with pytest.raises(end) as caught:
                list(client.stream("llm", {"text": ["to be or not"]}))
            assert type(caught.value) is end
            assert " ".join(caught.value.chunks) == words
