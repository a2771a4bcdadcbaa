"""Log handlers that raise or do not return: no good reply is lost, and no call waits for them."""

from __future__ import annotations

import logging
import threading
from functools import partial

import pytest

from ..helpers.peer_connection import TIMEOUT
from ..helpers.peer_scripts import ask, ask_many, connect, echo_once
from ..helpers.scripted_peer import ScriptedPeer

_QUEUED = ("tcm_sync.reader", "tcm_sync.pool")  # lines that other calls depend on
_OF_CALLS = ("tcm_sync.retry",)


class Bad(logging.Handler):
    """Does something for each line, and counts the lines."""

    def __init__(self, act):
        super().__init__()
        self.act = act
        self.seen = threading.Event()

    def emit(self, record):
        self.seen.set()
        self.act()


@pytest.fixture
def with_handler():
    """Give loggers a handler that raises, or one that blocks until the end of the test."""
    let, attached = threading.Event(), []

    def attach(what, names):
        def fail():
            raise RuntimeError("no disk")

        handler = Bad(fail if what == "raises" else lambda: let.wait(TIMEOUT))
        for name in names:
            logger = logging.getLogger(name)
            attached.append((logger, handler, logger.level))
            logger.setLevel(logging.DEBUG)
            logger.addHandler(handler)
        return handler

    yield attach
    let.set()
    for logger, handler, level in attached:
        logger.removeHandler(handler)
        logger.setLevel(level)


def chatty(connection, meeting=None):
    """Send what is logged before each reply, and together with it; all connections that meet are used."""
    connection.welcome()
    while True:
        payload = connection.recv_request()
        if meeting is not None:
            meeting.wait(TIMEOUT)
            meeting = None
        with connection.together():
            connection.alert()
            connection.advise()
            connection.reply({"y": payload["request"]["inputs"][0]["data"]})


@pytest.mark.parametrize("what", ["raises", "blocks"])
def test_a_handler_does_not_stop_the_reader(with_handler, what):
    both = partial(chatty, meeting=threading.Barrier(2))
    with ScriptedPeer(both, both, chatty) as peer:
        handler = with_handler(what, _QUEUED)
        with connect(peer, pool_size=2) as client, connect(peer) as other:
            values = [float(value) for value in range(20)]
            assert ask_many(client, values, threads=4) == values
            assert ask(other, 7.0) == 7.0
            assert handler.seen.wait(TIMEOUT)
            assert client.stats().alerts["TritonServerStateChanged"] == 20
    assert all(connection.requests for connection in peer.connections)


def refusing(*codes):
    """Make a script that refuses a first request with each of the codes, and echoes from then on."""
    left = iter(codes)

    def script(connection):
        connection.welcome()
        while True:
            code = next(left, None)
            if code is None:
                echo_once(connection)
            else:
                connection.recv_request()
                connection.error("too much to do", code)

    return script


@pytest.mark.parametrize(
    ("what", "names"), [("raises", _QUEUED + _OF_CALLS), ("raises", _OF_CALLS), ("blocks", _QUEUED)]
)
def test_a_handler_does_not_cost_the_reply_of_a_call_that_is_repeated(with_handler, what, names):
    with ScriptedPeer(refusing("BACKPRESSURE_QUEUE_FULL", "BACKPRESSURE_QUEUE_FULL")) as peer:
        handler = with_handler(what, names)
        with connect(peer, pool_size=1) as client:
            assert ask(client, 6.0) == 6.0
            assert handler.seen.wait(TIMEOUT)
            assert [ask(client, value) for value in (7.0, 8.0)] == [7.0, 8.0]
    assert len(peer.connections) == 1


@pytest.mark.parametrize("what", ["raises", "blocks"])
def test_a_handler_does_not_keep_sockets_from_being_opened_again(with_handler, what):
    def once(connection):
        connection.welcome()
        echo_once(connection)
        connection.drop()

    with ScriptedPeer(once) as peer:
        with_handler(what, _QUEUED)
        with connect(peer, pool_size=1) as client:
            assert [ask(client, value) for value in (1.0, 2.0, 3.0)] == [1.0, 2.0, 3.0]
    assert len(peer.connections) == 3
