"""One authenticated socket: what is written to it, in which order, and how it ends."""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import struct
import threading

import pytest

from tcm_sync import CallTimeoutError, ClientClosedError, ConnectionLostError
from tcm_sync._deadline import Deadline
from tcm_sync._transport.connection import Connection, receive_tls
from tcm_sync._transport.frames import CLOSE, FRAGMENT_BYTES, PING, PONG, TEXT, FrameDecoder, encode_close
from tcm_sync._transport.replies import PendingReplies, Refusal, ReplyFuture, StreamReplies

from ..helpers.peer_connection import unmasked

TIMEOUT = 30.0
CONTINUATION = 0


class Wire:
    """A connection over a socket pair, and the manager's end of it."""

    def __init__(self):
        ours, self.far = socket.socketpair()
        ours.setblocking(False)
        for end in (ours, self.far):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        self.far.settimeout(TIMEOUT)
        self.connection = Connection(ours, "u-1", frozenset(["json"]), FrameDecoder(2**20), [])

    def fill(self):
        """Write pings until the socket takes no more; return how many went out or are under way."""
        count = 0
        while not self.connection.flush():
            self.connection.queue_control(PING, b"x" * 125)
            count += 1
        return count

    def send(self, message, timeout=TIMEOUT):
        future = ReplyFuture()
        self.connection.send((message,), Deadline(timeout), future)
        return future

    def read(self):
        """Read all that has come, as frames: opcode, final, payload."""
        data = b""
        self.far.setblocking(False)
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while some := self.far.recv(2**20):
                data += some
        return list(self.frames(data))

    def read_until(self, ready):
        """Read frames until there is one for which `ready` is true."""
        data = b""
        while not any(map(ready, found := list(self.frames(data)))):
            data += self.far.recv(2**16)
        return found

    @staticmethod
    def frames(data):
        while len(data) >= 6:
            size, at = data[1] & 0x7F, 2
            if size >= 126:
                at = 4 if size == 126 else 10
                size = int.from_bytes(data[2:at], "big")
            if len(data) < at + 4 + size:
                return
            payload = data[at + 4 : at + 4 + size]
            yield data[0] & 0x0F, bool(data[0] & 0x80), unmasked(payload, data[at : at + 4])
            data = data[at + 4 + size :]


@pytest.fixture
def wire():
    wire = Wire()
    yield wire
    wire.connection.close()
    wire.far.close()


# --- sending ---


def test_a_message_goes_out_and_is_remembered(wire):
    future = wire.send(b'{"a":1}')
    assert wire.read() == [(TEXT, True, b'{"a":1}')]
    connection = wire.connection
    assert future.started
    assert not connection.sending
    assert len(connection.sent_at) == connection.messages_sent == 1
    assert connection.bytes_sent == 2 + 4 + 7  # the header, the mask and the text
    assert connection.opened_at <= connection.sent_at[0] <= connection.last_sent


def test_a_peer_that_takes_nothing_is_given_up_at_the_deadline(wire):
    with pytest.raises(
        CallTimeoutError, match=r"while the request was being sent: .* [\d,]+ bytes"
    ) as caught:
        wire.send(bytes(10**6), timeout=0.05)
    assert caught.value.outcome_unknown
    with pytest.raises(CallTimeoutError):
        wire.send(b"another", timeout=0.0)


def test_what_never_began_is_known_not_to_have_run(wire):
    wire.fill()
    with pytest.raises(CallTimeoutError) as caught:
        wire.send(b"x", timeout=0.05)
    assert not caught.value.outcome_unknown


class Unwilling:
    """A socket that takes nothing."""

    context = ssl.create_default_context()

    def __init__(self, sock, error):
        self._sock = sock
        self._error = error

    def send(self, data, flags):
        raise self._error

    def __getattr__(self, name):
        return getattr(self._sock, name)


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [(BlockingIOError(), CallTimeoutError), (BrokenPipeError(errno.EPIPE, "gone"), ConnectionLostError)],
)
@pytest.mark.parametrize("began", [False, True])
def test_a_socket_that_takes_nothing_leaves_it_at_what_was_sent_before(wire, refusal, kind, began):
    connection, future = wire.connection, ReplyFuture()
    future.started = began
    connection.sock = Unwilling(connection.sock, refusal)
    with pytest.raises(kind) as caught:
        connection.send((b"x",), Deadline(0.01), future)
    connection.sock = connection.sock._sock
    assert future.started is began
    assert caught.value.outcome_unknown is began


class ReadsFirst(Unwilling):
    """A TLS socket that must read something before it can write."""

    def send(self, data, flags):
        if self._error is None:
            return self._sock.send(data, flags)
        error, self._error = self._error, None
        raise error


def test_a_tls_socket_that_must_read_first_loses_nothing_of_the_message(wire):
    connection = wire.connection
    connection.sock = ReadsFirst(connection.sock, ssl.SSLWantReadError())
    wire.send(b"text")
    connection.sock = connection.sock._sock
    assert wire.read() == [(TEXT, True, b"text")]
    assert connection.bytes_sent == 2 + 4 + 4


def test_a_message_larger_than_the_socket_takes_goes_out_as_the_peer_reads(wire):
    message = bytes(range(256)) * 4096
    with sending(wire, message) as future:
        found = wire.read_until(lambda frame: frame[1])
    assert b"".join(payload for *_, payload in found) == message
    assert [opcode for opcode, *_ in found] == [TEXT] + [CONTINUATION] * 7
    assert future.started
    assert not wire.connection.sending


@contextlib.contextmanager
def sending(wire, message):
    """Send a message from another thread while the block runs."""
    future = ReplyFuture()
    errors = []

    def run():
        try:
            wire.connection.send((message,), Deadline(TIMEOUT), future)
        except Exception as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield future
    finally:
        thread.join(TIMEOUT)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("began", [False, True])
def test_a_closed_connection_is_a_lost_one(wire, began):
    wire.connection.close()
    future = ReplyFuture()
    future.started = began
    with pytest.raises(ConnectionLostError) as caught:
        wire.connection.send((b"x",), Deadline(TIMEOUT), future)
    assert caught.value.outcome_unknown is began


def test_a_peer_that_has_left_is_a_lost_connection_before_anything_was_sent(wire):
    wire.far.close()
    with pytest.raises(ConnectionLostError, match="while sending") as caught:
        wire.send(b"x")
    assert not caught.value.outcome_unknown
    assert caught.value.__cause__.errno in (errno.EPIPE, errno.ECONNRESET)


@pytest.mark.parametrize("end", [lambda wire: wire.far.close(), lambda wire: wire.connection.shut_down()])
def test_a_message_that_is_cut_off_may_have_run(wire, end):
    with pytest.raises(ConnectionLostError) as caught:
        send_and_end(wire, end)
    assert caught.value.outcome_unknown


def send_and_end(wire, end):
    with sending(wire, bytes(10**6)):
        wire.far.recv(1000)
        end(wire)


# --- control frames ---


def test_control_frames_go_out_before_the_next_message(wire):
    wire.connection.queue_control(PONG, b"1")
    wire.connection.queue_control(PING, b"2")
    wire.send(b"x")
    assert wire.read() == [(PONG, True, b"1"), (PING, True, b"2"), (TEXT, True, b"x")]


def test_pings_and_pongs_go_out_at_once_if_they_can(wire):
    connection = wire.connection
    assert connection.pong(b"payload") is False
    assert connection.ping(1234.5) is False
    assert connection.pinged_at == 1234.5
    assert connection.flush() is False
    assert wire.read() == [(PONG, True, b"payload"), (PING, True, b"")]


def test_of_many_that_wait_the_first_and_the_latest_are_kept(wire):
    """Of pongs only the latest matters (RFC 6455, section 5.5.3)."""
    for number in range(20):
        wire.connection.queue_control(PONG, b"%d" % number)
    assert wire.connection.flush() is False
    assert [payload for *_, payload in wire.read()] == [b"0", b"1", b"2", b"19"]


def test_a_control_frame_that_the_socket_takes_in_part_is_finished_first(wire):
    count = wire.fill()
    assert wire.connection.pong(b"last") is True
    found = []
    while wire.connection.flush():
        found += wire.read()
    wire.send(b"x")
    found += wire.read()
    assert found.count((PING, True, b"x" * 125)) == count
    assert found[-2:] == [(PONG, True, b"last"), (TEXT, True, b"x")]


def test_control_frames_that_the_socket_takes_byte_by_byte_arrive_whole(wire):
    connection = wire.connection
    sock = connection.sock
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)
    connection.sock = Reluctant(sock)
    connection.queue_control(PONG, b"one")
    connection.queue_control(PONG, b"two")
    rounds = 1
    while connection.flush():
        rounds += 1
    assert rounds > 10
    future = ReplyFuture()
    connection.queue_control(PONG, b"three")
    connection.send((b"x",), Deadline(TIMEOUT), future)
    connection.sock = sock
    assert future.started
    assert [payload for *_, payload in wire.read()] == [b"one", b"two", b"three", b"x"]


class Reluctant:
    """A socket that takes one byte at a time, and every other time none."""

    def __init__(self, sock):
        self._sock = sock
        self._takes = False

    def send(self, data, flags):
        self._takes = not self._takes
        if not self._takes:
            raise BlockingIOError
        return self._sock.send(data[:1], flags)

    def __getattr__(self, name):
        return getattr(self._sock, name)


def test_a_pong_goes_out_between_the_fragments_of_a_large_message(wire):
    message = bytes(range(256)) * (5 * FRAGMENT_BYTES // 256)
    with sending(wire, message):
        begun = wire.far.recv(1000)
        assert wire.connection.pong(b"alive") is False  # the sender takes it along
        data = bytearray(begun)
        while not any(final and opcode != PONG for opcode, final, _ in wire.frames(bytes(data))):
            data += wire.far.recv(2**16)
    found = list(wire.frames(bytes(data)))
    assert b"".join(payload for opcode, _, payload in found if opcode != PONG) == message
    assert found[1] == (PONG, True, b"alive")


def test_a_dead_socket_does_not_fail_a_flush():
    wire = Wire()
    wire.far.close()
    assert wire.connection.pong(b"x") is False  # reading finds out
    wire.connection.close()
    assert wire.connection.flush() is False


# --- receiving ---


def test_what_there_is_is_read(wire):
    buffer = memoryview(bytearray(100))
    with pytest.raises(BlockingIOError):
        wire.connection.receive_into(buffer)
    wire.far.sendall(b"abc")
    assert wire.connection.receive_into(buffer) == 3
    assert buffer[:3] == b"abc"
    wire.far.close()
    assert wire.connection.receive_into(buffer) == 0


def test_a_reset_is_an_os_error():
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    connection = Connection(ours, "u", frozenset(), FrameDecoder(100), [])
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    with pytest.raises(ConnectionResetError):
        connection.receive_into(memoryview(bytearray(100)))
    connection.close()


def test_a_tls_object_is_not_read_while_somebody_writes_to_it(wire):
    lock, buffer = threading.Lock(), memoryview(bytearray(100))
    wire.far.sendall(b"abc")
    with lock, pytest.raises(BlockingIOError):
        receive_tls(wire.connection.sock, lock, buffer)
    assert receive_tls(wire.connection.sock, lock, buffer) == 3
    with pytest.raises(BlockingIOError):
        receive_tls(wire.connection.sock, lock, buffer)
    assert not lock.locked()


# --- the end ---


def test_closing_says_goodbye_once(wire):
    number = wire.connection.fileno()
    wire.connection.close(encode_close(1000))
    wire.connection.close(encode_close(1001))
    wire.connection.shut_down()
    assert wire.connection.closed
    assert wire.connection.fileno() == -1 != number
    assert wire.read() == [(CLOSE, True, b"\x03\xe8")]
    assert wire.far.recv(1) == b""


def test_there_is_no_goodbye_within_a_message(wire):
    with contextlib.suppress(CallTimeoutError):
        wire.send(bytes(10**6), timeout=0.05)
    wire.read()  # so that there would be room for it
    wire.connection.close(encode_close(1000))
    assert wire.far.recv(100) == b""


def test_there_is_no_goodbye_within_a_control_frame(wire):
    sock = wire.connection.sock
    wire.connection.sock = Reluctant(sock)
    assert wire.connection.pong(b"alive") is True
    wire.connection.sock = sock
    wire.connection.close(encode_close(1000))
    assert len(wire.far.recv(100)) == 1
    assert wire.far.recv(100) == b""


def test_a_goodbye_that_cannot_be_said_is_left(wire):
    wire.far.close()
    wire.connection.close(encode_close(1000))
    assert wire.connection.closed


def test_a_child_closes_its_descriptor_and_says_nothing():
    wire = Wire()
    copy = socket.socket(fileno=socket.dup(wire.connection.fileno()))  # as the parent has it
    wire.connection.close_inherited()
    assert wire.connection.closed
    assert wire.connection.fileno() == -1
    assert wire.read() == []
    copy.sendall(b"still open")
    wire.far.setblocking(True)
    assert wire.far.recv(100) == b"still open"
    copy.close()
    wire.far.close()


def test_it_is_called_by_its_uuid(wire):
    assert repr(wire.connection) == "<Connection u-1>"
    wire.connection.close()
    assert repr(wire.connection) == "<Connection u-1 closed>"


# --- replies ---


def test_a_reply_is_handed_over_once():
    pending = PendingReplies()
    future = ReplyFuture()
    pending["u-1"] = future
    assert pending.get("u-1") is future
    assert pending.claim("u-2") is None
    assert pending.claim("u-1") is future
    assert pending.claim("u-1") is pending.get("u-1") is None
    assert not future.wait(0.0)
    future.resolve(b"reply")
    assert future.wait(None)
    assert future.outcome == b"reply"


def test_only_the_one_reply_that_is_waited_for_is_an_answer():
    pending = PendingReplies()
    single, stream = ReplyFuture(), StreamReplies(100)
    pending["u-1"] = single
    pending["u-2"] = stream
    assert pending.claim_for_reply("u-2") is None  # a chunk
    assert pending.claim_for_reply("u-3") is None  # late
    assert pending.claim_for_reply("u-1") is None  # before the request was sent
    assert pending.get("u-2") is stream
    assert pending.get("u-1") is single
    single.started = True
    assert pending.claim_for_reply("u-1") is single
    assert pending.claim_for_reply("u-1") is None


def test_a_thread_that_waits_is_woken_by_the_outcome():
    future = ReplyFuture()
    woken = []
    for timeout in (None, TIMEOUT, 1e30):
        thread = threading.Thread(target=lambda timeout=timeout: woken.append(future.wait(timeout)))
        thread.start()
        future.resolve(Refusal(ClientClosedError("closed")))
        thread.join(TIMEOUT)
    assert woken == [True] * 3
    assert future.outcome.reusable is False


def test_all_that_wait_are_claimed_at_the_end():
    pending = PendingReplies()
    futures = [ReplyFuture() for _ in range(5)]
    for number, future in enumerate(futures):
        pending[f"u-{number}"] = future
    pending.claim("u-3")
    assert pending.claim_all() == [*futures[:3], futures[4]]
    assert pending.claim_all() == []
