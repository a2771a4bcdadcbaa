"""What a signal handler raises goes up as it is, whatever was under way."""

from __future__ import annotations

import errno
import functools
import gc
import os
import signal
import socket
import threading
import weakref

import pytest

from tcm_sync import Route, TcmClient, TlsSettings
from tcm_sync._calls.progress import Progress
from tcm_sync._handlers import Suppress, is_of_handler
from tcm_sync._shm.arena import Arena
from tcm_sync._shm.segment import Segment, remove_orphans
from tcm_sync._tensors.arrays import as_array
from tcm_sync._tensors.signature import ModelSignature
from tcm_sync._transport.connection import Connection
from tcm_sync._transport.frames import PING, FrameDecoder
from tcm_sync._transport.sockets import shut_down

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


def in_any_place_with_a_flag(*arguments, flag=True):
    raise OSError("mine")


def with_more(more, signum, frame):
    raise OSError("mine")


@pytest.mark.parametrize(
    "handler",
    [
        Handlers().method,
        Handlers(),
        in_any_place,
        in_any_place_with_a_flag,
        functools.partial(with_more, 1),
    ],
    ids=["method", "object", "varargs", "varargs and a flag", "partial"],
)
def test_a_handler_of_any_form_is_known(raising, handler):
    raising(None)
    signal.signal(signal.SIGUSR1, handler)
    with pytest.raises(OSError, match="mine") as caught:
        signal.raise_signal(signal.SIGUSR1)
    assert is_of_handler(caught.value)


def test_an_error_that_was_looked_at_is_freed_without_the_collector():
    def look(marker, number):
        try:
            int(number)
        except ValueError as error:
            return is_of_handler(error)

    class Marker:
        pass

    marker = Marker()
    seen = weakref.ref(marker)
    gc.collect()
    gc.disable()
    try:
        assert look(marker, "no number") is False
        del marker
        assert seen() is None
    finally:
        gc.enable()


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


def signature_of_text(monkeypatch):
    monkeypatch.setattr("tcm_sync._tensors.signature.json.loads", interrupted)
    ModelSignature.from_metadata("{}")


def tls_files(monkeypatch):
    monkeypatch.setattr("tcm_sync.settings.ssl.create_default_context", interrupted)
    TlsSettings(ca_file="ca.pem").context()


def group(monkeypatch):
    monkeypatch.setattr("tcm_sync.settings.grp.getgrnam", interrupted)
    TcmClient("ws://127.0.0.1:1/ws", shm_group="users")


def modules(monkeypatch):
    monkeypatch.setattr("tcm_sync._calls.core.importlib.import_module", interrupted)
    TcmClient("ws://127.0.0.1:1/ws")


def unlinking(monkeypatch):
    segment = Segment.make(4096)
    try:
        with monkeypatch.context() as patch:
            patch.setattr("tcm_sync._shm.segment.os.unlink", interrupted)
            segment.unlink()
    finally:
        segment.unlink()
        segment.close()


def looking_for_a_segment(monkeypatch):
    segment = Segment.make(4096)
    try:
        with monkeypatch.context() as patch:
            patch.setattr("tcm_sync._shm.segment.os.stat", interrupted)
            segment.exists()
    finally:
        segment.unlink()
        segment.close()


def removing_orphans(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("tcm_sync._shm.segment.os.scandir", interrupted)
        remove_orphans()


def lending(monkeypatch):
    monkeypatch.setattr(Segment, "make", interrupted)
    Arena(2**30).acquire(Route("c"), 4096, 0)


def ending_a_socket(monkeypatch):
    monkeypatch.setattr("tcm_sync._transport.sockets.socket.socket.shutdown", interrupted)
    shut_down(None)


def flushing(monkeypatch):
    ours, theirs = socket.socketpair()
    connection = Connection(ours, "u", frozenset(), FrameDecoder(1000), [])
    try:
        connection.queue_control(PING, b"")
        monkeypatch.setattr(Connection, "_write_controls", interrupted)
        connection.flush()
    finally:
        ours.close()
        theirs.close()


def showing_progress(monkeypatch):
    with Progress("t", shown=True) as progress:
        monkeypatch.setattr(progress._bar, "refresh", interrupted)
        progress.update()


PLACES = [
    signature_of_text,
    tls_files,
    group,
    modules,
    unlinking,
    looking_for_a_segment,
    removing_orphans,
    lending,
]
PLACES += [ending_a_socket, flushing, showing_progress]


@pytest.mark.parametrize("error", [ERRORS[1], ValueError("mine"), RuntimeError("mine")], ids=repr)
@pytest.mark.parametrize("place", PLACES)
def test_a_handlers_error_is_no_failure_of_the_place_where_it_comes(
    raising, monkeypatch, capsys, place, error
):
    raising(error)
    with pytest.raises(type(error)) as caught:
        place(monkeypatch)
    assert caught.value is error
    capsys.readouterr()


def test_failures_of_the_system_are_dropped():
    with Suppress(OSError):
        os.stat("/no/such")
    with pytest.raises(ValueError, match="other"), Suppress(OSError):
        raise ValueError("other")
