"""What comes in on a connection, in one read: when a call gets its answer, and what may follow one."""

from __future__ import annotations

import json
import socket

import pytest

from tcm_sync import ConnectionLostError, ProtocolError
from tcm_sync._transport.connection import Connection
from tcm_sync._transport.counters import Counts
from tcm_sync._transport.frames import CLOSE, PING, TEXT, FrameDecoder
from tcm_sync._transport.incoming import Incoming
from tcm_sync._transport.replies import PendingReplies, Refusal, ReplyFuture, StreamReplies


def message(**envelope):
    return (TEXT, json.dumps(envelope).encode())


REPLY = message(uuid="u-1", type="inference", payload={"data": 1.0})
REPLY_IN_ANOTHER_ORDER = message(type="inference", uuid="u-1", payload={"data": 1.0})
SECOND_REPLY = message(uuid="u-1", type="inference", payload={"data": -1.0})
REFUSAL = message(type="error", payload={"message": "full", "code": "BACKPRESSURE_QUEUE_FULL"})
CLOSING = (CLOSE, b"\x03\xe8")


class Exchange:
    """A connection on which a call waits, and what is done with what comes in on it."""

    def __init__(self):
        near, self._far = socket.socketpair()
        self.connection = Connection(near, "u-1", frozenset(["json"]), FrameDecoder(2**20), [])
        self._pending = PendingReplies()
        self.closed = []  #: For each closing: the class of its error, whether the call had its answer.
        self.failure = None
        self._incoming = Incoming(
            self._pending, Counts(), self._close, lambda *_: None, lambda *_: None, lambda *_: None
        )
        self.ask()

    def ask(self):
        self.future = self._pending["u-1"] = ReplyFuture()
        self.future.started = True

    def wait_for(self, future):
        self._pending["u-1"] = future
        return future

    def receive(self, *events):
        return self._incoming.handle_frames(self.connection, list(events))

    def answer(self):
        """Return the whole reply, or the message of the refusal, or None."""
        if not self.future.wait(0.0):
            return None
        outcome = self.future.outcome
        return outcome.error_reply.message if isinstance(outcome, Refusal) else outcome

    def _close(self, connection, close_frame, error, reason):
        if self.failure is not None:
            raise self.failure
        self.closed.append((type(error), self.answer() is not None))
        connection.close()

    def end(self):
        self.connection.close()
        self._far.close()


@pytest.fixture
def exchange():
    exchange = Exchange()
    yield exchange
    exchange.end()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(REPLY, REPLY[1]), (REPLY_IN_ANOTHER_ORDER, REPLY_IN_ANOTHER_ORDER[1]), (REFUSAL, "full")],
    ids=["reply", "reply in another order", "refusal"],
)
@pytest.mark.parametrize(
    ("behind", "failure"),
    [(SECOND_REPLY, ProtocolError), (REFUSAL, ProtocolError), (CLOSING, ConnectionLostError)],
    ids=["second reply", "refusal", "close"],
)
def test_what_is_read_behind_an_answer_ends_the_connection_before_the_call_returns(
    exchange, answer, expected, behind, failure
):
    assert not exchange.receive(answer, behind)
    assert exchange.closed == [(failure, False)]
    assert exchange.answer() == expected


def test_what_comes_before_a_stream_is_asked_for_is_no_chunk_of_it(exchange):
    stream = exchange.wait_for(StreamReplies(2**20))
    assert not exchange.receive(REPLY)
    assert exchange.closed == [(ProtocolError, False)]
    assert not stream.has_reply()


def test_an_answer_is_handed_over_once(exchange):
    assert exchange.receive(REPLY)
    assert exchange.answer() == REPLY[1]
    exchange.ask()
    assert exchange.receive((PING, b""))
    assert exchange.answer() is None


def test_an_answer_is_handed_over_if_acting_on_what_follows_fails(exchange):
    exchange.failure = MemoryError()
    with pytest.raises(MemoryError):
        exchange.receive(REPLY, SECOND_REPLY)
    assert exchange.answer() == REPLY[1]


def test_a_call_that_has_its_answer_may_send_the_next_request_at_once(exchange, monkeypatch):
    first, resolve = exchange.future, ReplyFuture.resolve

    def and_ask(future, answer):
        resolve(future, answer)
        exchange.ask()

    monkeypatch.setattr(ReplyFuture, "resolve", and_ask)
    assert exchange.receive(REPLY)
    assert first.wait(0.0)
    monkeypatch.undo()
    assert exchange.receive(REFUSAL)
    assert exchange.answer() == "full"
