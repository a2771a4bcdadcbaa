"""Opening sockets within a deadline: names, addresses, TLS, and the threads that do it."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from types import SimpleNamespace

import pytest
import trustme

from tcm_sync import ConnectFailedError
from tcm_sync._deadline import Deadline
from tcm_sync._endpoint import Endpoint
from tcm_sync._pool.connector import Connector
from tcm_sync._reentry import Callers
from tcm_sync._transport import sockets
from tcm_sync._transport.addresses import Addresses
from tcm_sync._transport.nested_tls import NestedTls
from tcm_sync._transport.sockets import (
    OpeningSockets,
    is_local,
    is_own_address,
    open_socket,
    receive,
    send_all,
    shut_down,
    wait_ready,
)

from ..helpers.fixtures import server_context
from ..helpers.waiting import wait_until

TIMEOUT = 30.0


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def endpoint(port=1, host="127.0.0.1"):
    return Endpoint(False, host, port, "/ws", "")


def connect(port=1, host="127.0.0.1", context=None, name=None, timeout=TIMEOUT):
    deadline = Deadline(timeout)
    return open_socket(endpoint(port, host), context, name, deadline, OpeningSockets(), Addresses())


def resolve_to(monkeypatch, *ports):
    """Have every name resolve to these ports of 127.0.0.1."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports]
    monkeypatch.setattr(sockets.socket, "getaddrinfo", lambda *args, **kinds: found)


# --- names and addresses ---


@pytest.mark.parametrize(
    ("error", "retriable"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), False),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), True),
        (UnicodeError("label too long"), False),
    ],
)
def test_a_name_that_is_not_known(monkeypatch, error, retriable):
    def fail(*args, **kinds):
        raise error

    monkeypatch.setattr(sockets.socket, "getaddrinfo", fail)
    with pytest.raises(ConnectFailedError, match="the name 'nowhere' cannot be resolved: ") as caught:
        connect(host="nowhere")
    assert caught.value.retriable is retriable
    assert caught.value.__cause__ is error


def test_a_label_that_is_too_long_for_a_name():
    with pytest.raises(ConnectFailedError, match="cannot be resolved"):
        connect(host="x" * 70)


def test_a_socket_is_connected_and_sends_small_pieces_at_once(server):
    with connect(server.getsockname()[1]) as sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        far, _ = server.accept()
        send_all(sock, b"abc", Deadline(TIMEOUT))
        assert far.recv(10) == b"abc"
        far.close()
        assert receive(sock, 10, Deadline(TIMEOUT)) == b""


def test_a_name_without_any_address(monkeypatch):
    resolve_to(monkeypatch)
    with pytest.raises(ConnectFailedError, match=r"no connection to 127\.0\.0\.1:1"):
        connect()


def test_too_many_open_files_are_a_failure_to_connect(monkeypatch):
    def fail(*args):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(sockets.socket, "socket", fail)
    with pytest.raises(ConnectFailedError, match="Too many open files"):
        connect()


# --- TLS ---


def test_a_socket_that_tls_does_not_take_is_closed(server):
    given = []

    def wrap_socket(sock, **how):
        given.append(sock)
        raise ValueError("no")

    with pytest.raises(ConnectFailedError, match="TLS with h failed: no") as caught:
        connect(server.getsockname()[1], context=SimpleNamespace(wrap_socket=wrap_socket), name="h")
    assert not caught.value.retriable
    assert given[0].fileno() == -1


def test_a_client_that_is_closed_before_tls_begins_leaves_no_socket(server):
    opening = OpeningSockets()
    context = ssl.create_default_context()
    wrap = context.wrap_socket

    def wrap_late(sock, **how):
        opening.abort()
        return wrap(sock, **how)

    late = SimpleNamespace(wrap_socket=wrap_late)
    with pytest.raises(ConnectFailedError, match="the client was closed"):
        open_socket(endpoint(server.getsockname()[1]), late, "h", Deadline(TIMEOUT), opening, Addresses())


def test_a_server_without_tls_is_reported(server):
    def answer():
        far, _ = server.accept()
        with far, contextlib.suppress(OSError):
            far.recv(1000)
            far.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(ConnectFailedError, match=r"TLS with 127\.0\.0\.1 failed: ."):
        connect(server.getsockname()[1], context=ssl.create_default_context())
    thread.join(TIMEOUT)


def test_an_interruption_of_the_tls_handshake_closes_the_socket(server, monkeypatch):
    def interrupt(sock):
        raise KeyboardInterrupt

    monkeypatch.setattr(ssl.SSLSocket, "do_handshake", interrupt)
    with pytest.raises(KeyboardInterrupt):
        connect(server.getsockname()[1], context=ssl.create_default_context())


def test_what_tls_within_tls_must_answer_goes_out_while_it_is_read():
    authority = trustme.CA()
    ours, far = socket.socketpair()
    tls = server_context(authority, "manager.example")
    tls.verify_mode = ssl.CERT_OPTIONAL
    tls.load_verify_locations(cadata=authority.cert_pem.bytes().decode())
    answered = []

    def ask():
        with tls.wrap_socket(far, server_side=True) as secured:
            secured.verify_client_post_handshake()
            secured.sendall(b"x")
            answered.extend(select.select([secured], [], [], TIMEOUT / 3)[0])

    context = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    context.post_handshake_auth = True  # has it answer while it reads, as a peer's new keys do
    server = threading.Thread(target=ask)
    server.start()
    with contextlib.closing(NestedTls(ours, context, "manager.example")) as nested:
        nested.settimeout(TIMEOUT)
        nested.do_handshake()
        assert nested.recv(1) == b"x"
        server.join(TIMEOUT)
        assert answered


# --- the sockets that are being opened ---


def test_sockets_that_are_being_opened_are_shut_down_and_later_ones_refused():
    opening = OpeningSockets()
    pairs = [socket.socketpair() for _ in range(3)]
    (first, _), (second, _), (third, _) = pairs
    opening.add(first)
    opening.add(second)
    opening.remove(second)
    opening.abort()
    with pytest.raises(ConnectionAbortedError, match="the client was closed"):
        opening.add(third)
    second.setblocking(False)
    assert first.recv(1) == b""
    with pytest.raises(BlockingIOError):
        second.recv(1)
    opening.close(first)
    opening.close(third)
    assert first.fileno() == third.fileno() == -1
    for pair in pairs:
        for sock in pair:
            sock.close()


def test_a_closed_client_connects_nowhere(server):
    opening = OpeningSockets()
    opening.abort()
    with pytest.raises(ConnectFailedError, match="the client was closed"):
        open_socket(endpoint(server.getsockname()[1]), None, None, Deadline(TIMEOUT), opening, Addresses())


def test_a_child_closes_the_descriptors_and_shuts_nothing_down():
    opening = OpeningSockets()
    ours, far = socket.socketpair()
    parents = ours.dup()
    opening.add(ours)
    opening.close_inherited()
    assert ours.fileno() == -1
    parents.sendall(b"x")
    assert far.recv(10) == b"x"
    parents.close()
    far.close()


# --- waiting ---


def test_time_that_is_up_is_a_timeout_before_anything_is_tried():
    with socket.socket() as sock:
        with pytest.raises(TimeoutError):
            receive(sock, 1, Deadline(0.0))
        with pytest.raises(TimeoutError):
            send_all(sock, b"x", Deadline(0.0))


@pytest.mark.parametrize("timeout", [None, 1.0, 1e30])
def test_no_time_is_too_long_to_wait(timeout):
    ours, far = socket.socketpair()
    with ours, far:
        far.sendall(b"x")
        assert receive(ours, 1, Deadline(timeout)) == b"x"
        send_all(ours, b"y", Deadline(timeout))
        wait_ready(ours, write=True, timeout=timeout)
        wait_ready(far, write=False, timeout=timeout)


@pytest.fixture(params=["poll", "select"])
def without_poll(request, monkeypatch):
    """Windows has no poll."""
    if request.param == "select":
        monkeypatch.delattr(select, "poll")


@pytest.mark.usefixtures("without_poll")
def test_a_socket_is_waited_for_until_it_is_ready_or_time_is_up():
    ours, far = socket.socketpair()
    with ours, far:
        wait_ready(ours, write=True, timeout=TIMEOUT)
        deadline = Deadline(None)
        wait_ready(ours, write=False, timeout=0.02)
        assert deadline.elapsed() >= 0.02
        far.sendall(b"x")
        wait_ready(ours, write=False, timeout=TIMEOUT)
        deadline = Deadline(None)
        ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                ours.send(bytes(10**5))
        wait_ready(ours, write=True, timeout=0.02)
        assert deadline.elapsed() >= 0.02


@pytest.mark.usefixtures("without_poll")
def test_a_socket_that_is_closed_is_not_waited_for():
    ours, far = socket.socketpair()
    ours.close()
    far.close()
    wait_ready(ours, write=True, timeout=None)
    shut_down(ours)


# --- the threads ---


def test_jobs_run_on_two_threads_that_end_when_there_are_none():
    connector = Connector(Callers())
    meeting = threading.Barrier(3)
    done = threading.Semaphore(0)

    def meet():
        meeting.wait(TIMEOUT)
        done.release()

    for _ in range(4):
        connector.submit(meet)
    meeting.wait(TIMEOUT)  # with two of them, and no third
    meeting.wait(TIMEOUT)
    for _ in range(4):
        assert done.acquire(timeout=TIMEOUT)
    connector.join(TIMEOUT)
    wait_until(lambda: "tcm-sync-connector" not in {thread.name for thread in threading.enumerate()})
    connector.submit(done.release)
    assert done.acquire(timeout=TIMEOUT)
    connector.join(TIMEOUT)


def test_a_connector_that_was_stopped_forgets_its_jobs():
    connector = Connector(Callers())
    ran = []
    go_on = threading.Event()
    started = threading.Semaphore(0)

    def hold():
        started.release()
        go_on.wait(TIMEOUT)

    for _ in range(2):
        connector.submit(hold)
    for _ in range(2):
        assert started.acquire(timeout=TIMEOUT)
    connector.submit(lambda: ran.append(1))
    connector.stop()
    connector.submit(lambda: ran.append(2))
    go_on.set()
    connector.join(TIMEOUT)
    assert ran == []


def test_a_connector_does_not_wait_for_its_own_thread():
    connector = Connector(Callers())
    joined = threading.Event()

    def job():
        connector.join(TIMEOUT)
        joined.set()

    connector.submit(job)
    assert joined.wait(TIMEOUT)
    connector.join(TIMEOUT)


def test_a_process_without_threads_to_spare_says_so(monkeypatch):
    def fail(thread):
        raise RuntimeError("can't start new thread")

    connector = Connector(Callers())
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            connector.submit(lambda: None)
    ran = threading.Event()
    connector.submit(ran.set)
    assert ran.wait(TIMEOUT)
    connector.join(TIMEOUT)


def test_one_thread_is_enough_if_there_is_no_second(monkeypatch):
    connector = Connector(Callers())
    go_on, ran = threading.Event(), threading.Event()
    connector.submit(lambda: go_on.wait(TIMEOUT))

    def fail(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with contextlib.suppress(RuntimeError):  # it raises, or the existing thread does the job
            connector.submit(ran.set)
    go_on.set()
    assert ran.wait(TIMEOUT)
    connector.join(TIMEOUT)


# --- this machine and others ---


def between(own, peer, family=socket.AF_INET):
    """Return what a connected socket would say of its ends."""
    return SimpleNamespace(family=family, getsockname=lambda: (own, 1), getpeername=lambda: (peer, 2))


@pytest.mark.parametrize(
    ("own", "peer", "local"),
    [
        ("10.0.0.5", "10.0.0.5", True),
        ("127.0.0.1", "127.0.0.9", True),
        ("10.0.0.5", "10.0.0.4", False),
        ("10.0.0.4", "10.0.0.5", False),
    ],
)
def test_the_other_end_is_this_machine_if_its_address_is_ours_or_loopback(own, peer, local):
    assert is_local(between(own, peer)) is local


@pytest.mark.parametrize(
    ("own", "peer", "local"),
    [("fe80::1%eth0", "fe80::1%eth0", True), ("::1", "::1", True), ("fe80::1%eth0", "fe80::2%eth0", False)],
)
def test_addresses_of_ipv6_may_name_an_interface(own, peer, local):
    assert is_local(between(own, peer, socket.AF_INET6)) is local


def test_a_socket_of_another_kind_or_without_a_peer_is_not_known_to_be_local():
    one, other = socket.socketpair()
    with one, other:
        assert not is_local(one)
    with socket.socket() as unconnected:
        assert not is_local(unconnected)


@pytest.mark.parametrize(
    ("address", "own"), [("localhost", True), ("127.0.0.1", True), ("127.0.0.1.9", False), ("h", False)]
)
def test_an_address_of_this_machine_can_be_bound(address, own):
    assert is_own_address(address) is own
