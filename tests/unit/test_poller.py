"""Both ways to wait on many sockets, held to the same."""

import select
import selectors
import socket

import pytest

from tcm_sync._transport.poller import READ, WRITE, SelectorPoller, make_poller


@pytest.fixture(params=["the best", "selectors", "select alone"])
def poller(request, monkeypatch):
    if request.param == "select alone":
        monkeypatch.setattr(selectors, "DefaultSelector", selectors.SelectSelector)
    poller = make_poller() if request.param == "the best" else SelectorPoller()
    yield poller
    poller.close()


@pytest.fixture
def pair():
    one, other = socket.socketpair()
    yield one, other
    one.close()
    other.close()


def test_what_can_be_read_is_reported(poller, pair):
    one, other = pair
    poller.register(one.fileno(), READ)
    assert poller.poll(0.0) == []
    other.send(b"x")
    assert poller.poll(10.0) == [(one.fileno(), READ)]


def test_what_can_be_written_is_reported_if_it_was_asked_for(poller, pair):
    one, other = pair
    poller.register(one.fileno(), READ)
    poller.modify(one.fileno(), READ | WRITE)
    assert poller.poll(10.0) == [(one.fileno(), WRITE)]
    other.send(b"x")
    assert poller.poll(10.0) == [(one.fileno(), READ | WRITE)]
    poller.modify(one.fileno(), READ)
    assert poller.poll(10.0) == [(one.fileno(), READ)]


def test_what_was_unregistered_is_not_told(poller, pair):
    one, other = pair
    poller.register(one.fileno(), READ)
    poller.unregister(one.fileno())
    other.send(b"x")
    assert poller.poll(0.0) == []


def test_an_end_is_more_than_room_to_write(poller, pair):
    one, other = pair
    poller.register(one.fileno(), READ)
    other.close()
    ((fd, ready),) = poller.poll(10.0)
    assert fd == one.fileno()
    assert ready & ~WRITE


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="no epoll here")
def test_the_best_is_epoll():
    poller = make_poller()
    assert isinstance(poller, select.epoll)
    poller.close()
    assert (READ, WRITE) == (select.EPOLLIN, select.EPOLLOUT)
