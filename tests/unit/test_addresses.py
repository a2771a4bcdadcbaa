"""Connecting to whichever address of a host answers first."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import SimpleNamespace

import pytest

from tcm_sync import ConnectFailedError
from tcm_sync._deadline import Deadline
from tcm_sync._transport import addresses as module
from tcm_sync._transport.addresses import Addresses, connect
from tcm_sync._transport.sockets import OpeningSockets

from ..helpers.packet_filter import discard_packets
from ..helpers.waiting import wait_for, wait_until

TIMEOUT = 30.0
NEVER = 10 * TIMEOUT  # between two attempts, where the second is to begin for another reason


@pytest.fixture
def ports():
    """Make listening ports of three kinds."""
    with contextlib.ExitStack() as open_servers:

        class Ports:
            def good(self):
                server = open_servers.enter_context(socket.create_server(("127.0.0.1", 0)))
                return server.getsockname()[1]

            def silent(self):
                server = open_servers.enter_context(socket.create_server(("127.0.0.1", 0)))
                discard_packets(server)
                return server.getsockname()[1]

            def refusing(self):
                with socket.create_server(("127.0.0.1", 0)) as server:
                    return server.getsockname()[1]

        yield Ports()


@pytest.fixture
def apart(monkeypatch):
    """Set the time between two attempts."""
    return lambda seconds: monkeypatch.setattr(module, "_ATTEMPT_DELAY", seconds)


def infos(*ports):
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports]


def reach(*ports, addresses=None, timeout=TIMEOUT, opening=None):
    """Connect to the first of the ports that answers, and return which."""
    sock = connect(
        "host:1",
        infos(*ports),
        Addresses() if addresses is None else addresses,
        Deadline(timeout),
        OpeningSockets() if opening is None else opening,
    )
    with sock:
        return sock.getpeername()[1]


def sockets_made(monkeypatch):
    """Record every socket that is made."""
    made = []

    class Recorded(socket.socket):
        def __init__(self, *args, **kinds):
            super().__init__(*args, **kinds)
            made.append(self)

    monkeypatch.setattr(module.socket, "socket", Recorded)
    return made


# --- the race ---


def test_the_next_address_is_tried_while_a_silent_one_is_still_waited_for(ports, apart, monkeypatch):
    apart(0.02)
    silent, quiet, good = ports.silent(), ports.silent(), ports.good()
    made = sockets_made(monkeypatch)
    assert reach(silent, quiet, good, timeout=NEVER) == good
    assert [sock.fileno() for sock in made] == [-1] * len(made)  # the losers' are closed
    assert len(made) == 3


def test_the_next_address_is_tried_at_once_when_one_refuses(ports, apart):
    apart(NEVER)
    good = ports.good()
    assert reach(ports.refusing(), ports.refusing(), good) == good


def test_an_address_that_fails_while_another_is_waited_for_makes_room_for_the_next(ports, apart, monkeypatch):
    """As a host does that answers with an ICMP error a moment later."""
    apart(NEVER)
    good, failing = ports.good(), ports.silent()
    opening = OpeningSockets()
    connecting = threading.Event()

    class Announced(socket.socket):
        def connect(self, address):
            try:
                super().connect(address)
            finally:
                connecting.set()

    monkeypatch.setattr(module.socket, "socket", Announced)

    def fail_first():
        wait_for(connecting)
        (sock,) = opening._sockets
        sock.shutdown(socket.SHUT_RDWR)

    thread = threading.Thread(target=fail_first)
    thread.start()
    assert reach(failing, good, opening=opening) == good
    thread.join(TIMEOUT)


def test_an_attempt_continues_after_the_next_one_has_begun(ports, apart):
    apart(0.0)
    good = ports.good()
    assert reach(good, ports.silent(), ports.silent()) == good


def test_one_deadline_covers_all_addresses(ports, monkeypatch):
    silent = [ports.silent() for _ in range(3)]
    made = sockets_made(monkeypatch)
    with pytest.raises(ConnectFailedError, match="no connection to host:1: timed out"):
        reach(*silent, timeout=0.2)
    assert len(made) == 3  # and leaves time for each of them
    assert [sock.fileno() for sock in made] == [-1] * 3


def test_without_a_deadline_an_address_is_waited_for(ports):
    good = ports.good()
    assert reach(good, timeout=None) == good


def test_time_that_is_up_is_a_timeout(ports):
    with pytest.raises(ConnectFailedError, match="no connection to host:1: timed out"):
        reach(ports.silent(), timeout=0.0)


def test_the_failure_of_each_address_is_named_where_they_differ(monkeypatch):
    failures = {1: ConnectionRefusedError(111, "Connection refused"), 2: OSError(101, "unreachable")}

    class Failing(socket.socket):
        def connect(self, address):
            raise failures[address[1]]

    monkeypatch.setattr(module.socket, "socket", Failing)
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 1)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", 2)),
    ]
    with pytest.raises(ConnectFailedError) as caught:
        connect("host:1", found, Addresses(), Deadline(TIMEOUT), OpeningSockets())
    assert "127.0.0.1: [Errno 111] Connection refused; 127.0.0.2: [Errno 101] unreach" in str(caught.value)
    assert caught.value.__cause__ is failures[2]
    assert caught.value.retriable


def test_closing_the_client_ends_the_race(ports, apart):
    apart(0.01)
    opening = OpeningSockets()
    raised = []

    def attempt():
        with pytest.raises(ConnectFailedError) as caught:
            reach(ports.silent(), ports.silent(), opening=opening, timeout=NEVER)
        raised.append(caught.value)

    thread = threading.Thread(target=attempt)
    thread.start()
    wait_until(lambda: len(opening._sockets) == 2)
    opening.abort()
    thread.join(TIMEOUT)
    assert raised
    assert not opening._sockets


def test_an_interruption_closes_every_socket_of_the_race(ports, apart, monkeypatch):
    apart(0.0)
    silent = [ports.silent() for _ in range(3)]
    made = sockets_made(monkeypatch)
    opening = OpeningSockets()
    add = opening.add

    def interrupt_third(sock):
        if len(made) == 3:
            raise KeyboardInterrupt
        add(sock)

    monkeypatch.setattr(opening, "add", interrupt_third)
    with pytest.raises(KeyboardInterrupt):
        reach(*silent, opening=opening)
    assert [sock.fileno() for sock in made] == [-1] * 3
    assert not opening._sockets


# --- what is remembered ---


def test_the_address_that_worked_is_tried_first(ports, apart):
    apart(0.01)
    silent, good = ports.silent(), ports.good()
    addresses = Addresses()
    assert reach(silent, good, addresses=addresses) == good
    apart(NEVER)
    assert reach(silent, good, addresses=addresses) == good


def test_an_address_that_stopped_answering_is_no_longer_the_first(ports, apart):
    apart(0.01)
    silent, good = ports.silent(), ports.good()
    addresses = Addresses()
    addresses.succeeded(("127.0.0.1", silent))
    assert reach(good, silent, addresses=addresses) == good
    apart(NEVER)
    assert reach(silent, good, addresses=addresses) == good


def test_an_address_that_failed_comes_last_until_it_works_again():
    addresses = Addresses()
    found = infos(1, 2, 3)
    addresses.failed(("127.0.0.1", 1))
    assert [info[4][1] for info in addresses.order(found)] == [2, 3, 1]
    addresses.succeeded(("127.0.0.1", 1))
    assert [info[4][1] for info in addresses.order(found)] == [1, 2, 3]
    addresses.failed(("127.0.0.1", 1))
    assert [info[4][1] for info in addresses.order(found)] == [2, 3, 1]


def test_what_the_resolver_no_longer_returns_is_not_tried_and_forgotten(ports):
    good, gone = ports.good(), ports.good()
    addresses = Addresses()
    addresses.succeeded(("127.0.0.1", gone))
    assert reach(good, addresses=addresses) == good
    addresses.failed(("127.0.0.1", 1))
    addresses.order(infos(2))
    assert [info[4][1] for info in addresses.order(infos(1, 2))] == [1, 2]


def test_the_families_take_turns_beginning_with_the_resolvers_first():
    def info(family, host):
        return (family, socket.SOCK_STREAM, 6, "", (host, 1))

    six = [info(socket.AF_INET6, f"::{number}") for number in range(3)]
    four = [info(socket.AF_INET, f"127.0.0.{number}") for number in range(2)]
    assert Addresses().order([*six, *four]) == [six[0], four[0], six[1], four[1], six[2]]
    assert Addresses().order([*four, *six]) == [four[0], six[0], four[1], six[1], six[2]]


def test_what_fails_after_the_connect_counts_against_the_address(ports):
    port = ports.good()
    addresses = Addresses()
    sock = connect("host:1", infos(port), addresses, Deadline(TIMEOUT), OpeningSockets())
    with pytest.raises(ConnectFailedError), sock, addresses.noting_failures(sock):
        raise ConnectFailedError("no answer to the handshake")
    assert [info[4][1] for info in addresses.order(infos(port, 1))] == [1, port]


def test_the_failure_of_one_address_takes_nothing_from_the_one_that_worked():
    addresses = Addresses()
    other, worked, failed = found = infos(1, 2, 3)
    addresses.succeeded(worked[4])
    addresses.failed(failed[4])
    assert addresses.order(found) == [worked, other, failed]


def test_an_address_that_worked_and_then_failed_is_no_longer_preferred():
    addresses = Addresses()
    found = infos(1, 2)
    addresses.succeeded(found[1][4])
    addresses.failed(found[1][4])
    assert addresses.order(found[:1]) == found[:1]  # the resolver leaves it out, so its failure is forgotten
    assert addresses.order(found) == found


def test_a_socket_that_was_reset_before_its_address_was_asked_hides_no_failure():
    failure = ConnectFailedError("no answer")
    with (
        socket.socket() as never_connected,
        pytest.raises(ConnectFailedError) as caught,
        Addresses().noting_failures(never_connected),
    ):
        raise failure
    assert caught.value is failure


def test_no_address_is_tried_once_the_time_is_up(ports, monkeypatch):
    silent, good = ports.silent(), ports.good()
    left = iter([10.0])  # when the first attempt begins, and none later
    made = sockets_made(monkeypatch)
    with pytest.raises(ConnectFailedError, match="timed out"):
        connect(
            "host:1",
            infos(silent, good),
            Addresses(),
            SimpleNamespace(remaining=lambda: next(left, 0.0)),
            OpeningSockets(),
        )
    assert len(made) == 1
