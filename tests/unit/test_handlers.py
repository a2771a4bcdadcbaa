"""What a signal handler raises goes up as it is, whatever was under way."""

from __future__ import annotations

import errno
import functools
import os
import signal
import threading

import pytest

from tcm_sync import TcmClient
from tcm_sync._handlers import is_of_handler
from tcm_sync._tensors.arrays import as_array

from ..helpers.peer_scripts import connect
from ..helpers.scripted_peer import ScriptedPeer

ERRORS = [
    TimeoutError("alarm"),
    OSError(errno.ECONNREFUSED, "mine"),
    ConnectionResetError("mine"),
    ValueError("mine"),
]


class SoftTimeLimitExceeded(Exception):
    """As that of a task queue."""


@pytest.fixture
def raising():
    """Have SIGUSR1 raise an error."""
    before = signal.getsignal(signal.SIGUSR1)

    def use(error):
        def handler(signum, frame):
            raise error

        signal.signal(signal.SIGUSR1, handler)

    yield use
    signal.signal(signal.SIGUSR1, before)


def interrupted(*_, **__):
    """Stand for a call of the system in which the signal comes."""
    signal.raise_signal(signal.SIGUSR1)
    raise AssertionError("the handler raises")


class Handlers:
    def method(self, signum, frame):
        raise OSError("mine")

    def __call__(self, signum, frame):
        raise OSError("mine")


def in_any_place(*arguments):
    raise OSError("mine")


def with_more(more, signum, frame):
    raise OSError("mine")


@pytest.mark.parametrize(
    "handler",
    [Handlers().method, Handlers(), in_any_place, functools.partial(with_more, 1)],
    ids=["method", "object", "varargs", "partial"],
)
def test_a_handler_of_any_form_is_known(raising, handler):
    raising(None)
    signal.signal(signal.SIGUSR1, handler)
    with pytest.raises(OSError, match="mine") as caught:
        signal.raise_signal(signal.SIGUSR1)
    assert is_of_handler(caught.value)


def test_an_error_of_the_system_is_of_no_handler():
    with pytest.raises(OSError) as caught:
        os.stat("/no/such")
    assert not is_of_handler(caught.value)
    assert not is_of_handler(OSError("never raised"))


CALLS = {
    "health": lambda client: client.health(timeout=30),
    "ready": lambda client: client.ready(timeout=30),
    "wait_until_ready": lambda client: client.wait_until_ready(30),
}


@pytest.mark.parametrize("error", [ERRORS[0], ERRORS[3], SoftTimeLimitExceeded("mine")], ids=repr)
@pytest.mark.parametrize("call", CALLS)
def test_an_alarm_ends_a_probe_that_waits(raising, call, error):
    def never_answers(connection):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        connection.wait_eof()

    raising(error)
    with ScriptedPeer() as peer, connect(peer) as client:
        peer.http["/health"] = peer.http["/ready"] = never_answers
        with pytest.raises(type(error)) as caught:
            CALLS[call](client)
        assert caught.value is error


@pytest.mark.parametrize("error", ERRORS[:2], ids=repr)
@pytest.mark.parametrize("place", ["socket.socket.connect", "socket.getaddrinfo"])
def test_an_alarm_ends_a_connecting(raising, monkeypatch, place, error):
    raising(error)
    with TcmClient("ws://127.0.0.1:1/ws") as client:
        monkeypatch.setattr(place, interrupted)
        with pytest.raises(type(error)) as caught:
            client.health(timeout=30)
        assert caught.value is error
        monkeypatch.undo()


class Tensor:
    def __array__(self, *_, **__):
        interrupted()


class Number:
    def __index__(self):
        interrupted()


@pytest.mark.parametrize("error", [ERRORS[0], ERRORS[3], SoftTimeLimitExceeded("mine")], ids=repr)
def test_an_alarm_in_the_middle_of_a_conversion_is_no_input_error(raising, error):
    raising(error)
    for asked in (
        lambda: as_array(Tensor()),
        lambda: TcmClient("ws://127.0.0.1:1/ws", pool_size=Number()),
    ):
        with pytest.raises(type(error)) as caught:
            asked()
        assert caught.value is error
