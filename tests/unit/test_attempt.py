"""One attempt on a socket that is closed at that moment: which error its call gets."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tcm_sync import ConnectionLostError, ProtocolError, ShuttingDownError
from tcm_sync._deadline import Deadline
from tcm_sync._pool.attempt import CallSender
from tcm_sync._transport.replies import PendingReplies, Refusal, ReplyFuture


def explain(loss, started):
    """Return the error of a call that could not send on a socket closed by `loss`."""
    future = ReplyFuture()
    future.started = started
    connection = SimpleNamespace(uuid="u", closed=True, loss=loss)
    pending = PendingReplies(u=future)
    sender = SimpleNamespace(_pending=pending)
    refusal = CallSender._explain(sender, ConnectionLostError("lost"), connection, None, future)
    assert pending == {}
    assert refusal.error is not loss  # others may have met it too
    return refusal.error


@pytest.mark.parametrize("started", [True, False])
@pytest.mark.parametrize("kind", [ShuttingDownError, ConnectionLostError])
def test_a_request_is_known_to_have_begun_or_not_when_its_socket_was_closed(kind, started):
    error = explain(kind("it ends"), started)
    assert type(error) is kind
    assert error.outcome_unknown is started


def test_a_request_that_never_began_was_not_the_fault_of_the_protocol():
    assert type(explain(ProtocolError("garbage"), started=False)) is ConnectionLostError
    assert type(explain(ProtocolError("garbage"), started=True)) is ProtocolError


@pytest.mark.parametrize("started", [True, False])
def test_what_the_reader_finds_a_moment_later_is_why_nothing_more_could_be_sent(started):
    future, loss = ReplyFuture(), ConnectionLostError("code 1012")
    future.started = started
    future.resolve(Refusal(loss))
    sender = SimpleNamespace(_pending=PendingReplies())
    connection = SimpleNamespace(uuid="u", closed=False, loss=None)
    call = SimpleNamespace(deadline=Deadline(10.0))
    refusal = CallSender._explain(sender, ConnectionLostError("lost"), connection, call, future)
    assert refusal == Refusal(loss, reusable=False)
    assert loss.outcome_unknown is started
