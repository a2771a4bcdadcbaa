"""One attempt on a socket that is closed at that moment: which error its call gets."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tcm_sync import BackpressureError, ConnectionLostError, ProtocolError, ShuttingDownError
from tcm_sync._deadline import Deadline
from tcm_sync._pool.attempt import CallSender
from tcm_sync._pool.call import Call
from tcm_sync._pool.client_gates import ClientGates
from tcm_sync._pool.gate import Prober
from tcm_sync._transport.replies import PendingReplies, Refusal, ReplyFuture
from tcm_sync.events._listeners import NO_LISTENERS


def explain(loss, started):
    """Return the error of a call that could not send on a socket closed by `loss`."""
    future = ReplyFuture()
    future.started = started
    connection = SimpleNamespace(uuid="u", closed=True, close_error=loss)
    pending = PendingReplies(u=future)
    sender = SimpleNamespace(_pending=pending)
    refusal = CallSender._failure_of_send(sender, ConnectionLostError("lost"), connection, None, future)
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
    connection = SimpleNamespace(uuid="u", closed=False, close_error=None)
    call = SimpleNamespace(deadline=Deadline(10.0))
    refusal = CallSender._failure_of_send(sender, ConnectionLostError("lost"), connection, call, future)
    assert refusal == Refusal(loss, reusable=False)
    assert loss.outcome_unknown is started


class Turn:
    """A turn that was waited for, for so long."""

    def __init__(self, waited):
        self.waited = waited
        self.released = False

    def release(self):
        self.released = True


def take_turn(turn, *, closed=False, closing_reason=None, shut=False, probes=False):
    """Return whether a call may send once it has its turn, and the call."""
    gates, prober = ClientGates("h", NO_LISTENERS), Prober()
    if shut:
        gates.backpressure.shut(BackpressureError("the queue is full"))
        if probes:
            gates.backpressure._opens_at = 0.0
            gates.backpressure.try_pass(prober)
    turns = SimpleNamespace(deadline=lambda deadline: deadline, closed=None)
    counts = SimpleNamespace(waited_for_turn=lambda seconds: None)
    sender = CallSender(SimpleNamespace(pending={}), None, None, gates, turns, None, counts)
    call = Call((), Deadline(10.0), waits_for_manager=True)
    connection = SimpleNamespace(closed=closed, closing_reason=closing_reason)
    found = SimpleNamespace(acquire=lambda *_: turn)
    return sender._take_turn(found, call, connection, (), prober if probes else None), call


@pytest.mark.parametrize(
    "meanwhile", [{"closed": True}, {"closing_reason": "worn out"}, {"shut": True}], ids=str
)
def test_a_call_that_waited_for_its_turn_gives_it_back_if_it_cannot_send_any_more(meanwhile):
    turn = Turn(0.5)
    sends, call = take_turn(turn, **meanwhile)
    assert not sends
    assert turn.released
    assert call.turn is None


@pytest.mark.parametrize(
    ("turn", "meanwhile"),
    [
        (Turn(0.5), {}),
        (Turn(0.5), {"shut": True, "probes": True}),
        (Turn(0.0), {"closed": True}),  # no time has passed since it looked
        (None, {"closed": True}),
    ],
)
def test_a_call_that_can_send_keeps_its_turn(turn, meanwhile):
    sends, call = take_turn(turn, **meanwhile)
    assert sends
    assert call.turn is turn
    assert turn is None or not turn.released


@pytest.mark.parametrize(("received", "doubted"), [(4.0, [5.0, 5.0]), (5.5, [])])
def test_after_a_call_timed_out_on_a_silent_socket_the_others_are_checked(received, doubted):
    doubts = []
    pool = SimpleNamespace(check_silent=doubts.append)
    sender = CallSender(SimpleNamespace(pending={}), pool, pool, None, None, None, None)
    sender._check_others(SimpleNamespace(sent_at=[1.0, 5.0], last_received=received))
    assert doubts == doubted


@pytest.mark.parametrize(
    ("timeout", "attempt_timeout", "least", "most"),
    [(None, None, None, None), (None, 2.0, 2.0, 2.0), (1.0, 2.0, 0.5, 1.0), (10.0, 2.0, 2.0, 2.0)],
)
def test_a_reply_is_waited_for_until_the_first_of_both_deadlines(timeout, attempt_timeout, least, most):
    call = Call((), Deadline(timeout), waits_for_manager=True)
    call.attempt_timeout = attempt_timeout
    waits = []
    assert call.wait(SimpleNamespace(wait=lambda seconds: waits.append(seconds) or True))
    (seconds,) = waits
    assert seconds is None if most is None else least <= seconds <= most
