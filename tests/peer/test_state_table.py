"""Each event in each state of a connection: the right answer or the right error, and the next call is right.

The first connection of a peer is brought into a state, and then the event happens; later connections work.
What a call must end with is 7.0, the number that it asked for, unless `expected` says otherwise.
"""

from __future__ import annotations

import json
import socket
import threading

import numpy as np
import pytest

from tcm_sync import TcmError

from ..helpers.peer_connection import CLOSE, PING, PONG, TEXT, TIMEOUT
from ..helpers.peer_scripts import ask, background, connect, echo_once
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import wait_for, wait_until

FLOOD = 2000
STRANGE = 666.0  #: What nobody has asked for.
SHORT = 0.5  #: Seconds until a call to a silent peer times out.
LARGE = 2**19  #: Elements of a request that does not fit into the buffers of the kernel.

# --- events: each returns whether the connection continues as if nothing had happened ---


def close_with(code):
    def close(connection):
        connection.close(code)

    return close


def silence(connection):
    connection.wait_eof()


def unknown(connection):
    connection.send_text({"type": "news", "uuid": connection.uuid, "payload": {"data": {"y": [[STRANGE]]}}})
    return True


def reset(connection):
    connection.drop()


def fin(connection):
    connection.hang_up()


def garbage(connection):
    connection.send_raw(b"\xff" * 64 + b"\r\n\r\n")
    connection.wait_eof()


def ping_flood(connection):
    with connection.together():
        for _ in range(FLOOD):
            connection.send_frame(PING, b"are you there")
    return True


def alert_flood(connection):
    with connection.together():
        for _ in range(FLOOD):
            connection.alert()
    return True


def advisory(connection):
    connection.advise()
    return True


def shutdown(connection):
    connection.error("Server is shutting down; request rejected.", "SYSTEM_SHUTDOWN")
    connection.close(1012)


def huge(connection):
    if connection.uuid is None:  # it is not about frames yet
        connection.send_raw(b"X-Long: " + b"x" * 2**17)
    else:
        connection.send_frame(TEXT, b"{", length=2**40)
    connection.wait_eof()


def slow(connection):
    connection.bytewise = True
    return True


def early_reply(connection):
    connection.reply({"y": [[STRANGE]]})
    return True


def second_reply(connection):
    """Send what follows twice: for a reply that is a stale one, which the next caller must not get."""
    send = connection.send_raw

    def twice(data):
        connection.send_raw = send
        send(data * 2)

    connection.send_raw = twice
    return True


CODES = (1000, 1001, 1008, 1009, 1011, 1012, None)
EVENTS = {
    "silence": silence,
    "unknown message": unknown,
    **{f"close {code}": close_with(code) for code in CODES},
    "reset": reset,
    "FIN": fin,
    "garbage": garbage,
    "ping flood": ping_flood,
    "alert flood": alert_flood,
    "advisory": advisory,
    "shutdown": shutdown,
    "huge": huge,
    "slow": slow,
    "early reply": early_reply,
    "second reply": second_reply,
}

# --- states: each brings a connection there, lets the event happen, and continues ---


def connecting(connection, event):
    connection.read_handshake()
    if event(connection):
        connection.answer_handshake()
        connection.authenticate(["json"])
        serve(connection)


def handshaking(connection, event):
    connection.read_handshake()
    connection.send_raw(b"HTTP/1.1 101 Switching Protocols\r\n")
    if event(connection):
        head = []
        connection.send_raw, send = head.append, connection.send_raw
        connection.answer_handshake()
        connection.send_raw = send
        send(b"".join(head).partition(b"\r\n")[2])
        connection.authenticate(["json"])
        serve(connection)


def authenticating(connection, event):
    connection.accept()
    connection.read_auth()
    if event(connection):
        connection.send_text({"type": "auth.ok", "payload": {"capability": ["json"]}})
        serve(connection)


def idle(connection, event):
    connection.welcome()
    echo_once(connection)
    connection.go_on.wait(TIMEOUT)
    if event is silence:
        connection.seen.set()
    try:
        if event(connection):
            connection.send_frame(PING, b"seen all?")
            while connection.wait_frame(PONG).payload != b"seen all?":
                pass
            connection.seen.set()
            serve(connection)
    finally:
        connection.seen.set()


def sending(connection, event):
    if event is early_reply:  # else the kernel may have taken all of the request before the reply comes
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.welcome()
    connection.unread(connection.recv_some())
    if event(connection):
        serve(connection)


def waiting(connection, event):
    connection.welcome()
    value = read(connection)
    if event(connection):
        connection.reply({"y": [[value]]})
        serve(connection)


def reading(connection, event):
    connection.welcome()
    value = read(connection)
    message = json.dumps(connection.inference({"y": [[value]]})).encode()
    connection.send_frame(TEXT, message[:20], fin=False)
    if event(connection):
        connection.send_frame(0, message[20:])
        serve(connection)


def draining(connection, event):
    connection.welcome()
    value = read(connection)
    connection.seen.set()
    connection.go_on.wait(TIMEOUT)
    if event(connection):
        connection.reply({"y": [[value]]})
        serve(connection)


def closing(connection, event):
    connection.welcome()
    echo_once(connection)
    connection.wait_frame(CLOSE)
    if event(connection):
        connection.send_frame(CLOSE, b"\x03\xe8")
        connection.wait_eof()


def read(connection):
    return connection.recv_request()["request"]["inputs"][0]["data"][0][0]


def serve(connection):
    while True:
        connection.reply({"y": [[read(connection)]]})


STATES = [connecting, handshaking, authenticating, idle, sending, waiting, reading, draining, closing]


def later(connection):
    connection.welcome()
    serve(connection)


class Peer(ScriptedPeer):
    """A peer whose first connection is brought into a state in which an event happens."""

    def __init__(self, state, event):
        self.go_on, self.seen = threading.Event(), threading.Event()

        def first(connection):
            connection.go_on, connection.seen = self.go_on, self.seen
            state(connection, event)

        super().__init__(first, later)


def ended(call):
    try:
        return call()
    except TcmError as error:
        return type(error).__name__


def outcome(state, peer, client, timeout):
    """Return what the call ends with that meets the event."""
    if state is idle:
        assert ask(client, 1.0) == 1.0
        peer.go_on.set()
        wait_for(peer.seen)
        return ended(lambda: ask(client, 7.0, timeout=timeout))
    if state is closing:
        assert ask(client, 1.0) == 1.0
        client.close()
        return ended(lambda: ask(client, 7.0))
    if state is draining:
        with background(lambda: ended(lambda: ask(client, 7.0, timeout=timeout))) as answer:
            wait_for(peer.seen)
            pool = client._core.runtime.pool
            with background(lambda: client.close(timeout=TIMEOUT)) as closed:
                wait_until(lambda: pool.state.draining)
                peer.go_on.set()
                closed()
            return answer()
    if state is sending:
        x = np.full((1, LARGE), 0.123456)
        x[0, 0] = 7.0
        return ended(lambda: client.infer("m", {"x": x}, timeout=timeout)["y"].item())
    return ended(lambda: ask(client, 7.0, timeout=timeout))


#: Messages, which must not come between the fragments of another.
MESSAGES = ("unknown message", "alert flood", "advisory", "shutdown", "early reply")


def expected(state, event):
    """Return what the call may end with.

    What a server must not send once the handshake is complete is a ProtocolError, which is not retried.
    """
    request_is_out = state in (sending, waiting, reading, draining)
    if state is closing:
        return {"ClientClosedError"}
    if event == "silence":
        # A manager that was never reached fails a call soon after `connect_timeout`.
        return {"CallTimeoutError"} if request_is_out or state is idle else {7.0, "ConnectFailedError"}
    if state is reading and event == "huge":
        return {"ProtocolError"}
    if event in ("close 1009", "huge") and request_is_out:
        return {"MessageTooLargeError"}
    if event == "garbage" and (request_is_out or state is authenticating):
        return {"ProtocolError"}
    if state is authenticating and event in ("huge", "early reply"):
        return {"ProtocolError"}
    if event == "second reply" and state in (connecting, handshaking):
        return {"ProtocolError"}
    if event == "second reply" and state is authenticating:
        return {"ProtocolError", 7.0}  # the second auth.ok arrives with the request under way, or before
    if state is reading and event in MESSAGES:
        return {"ProtocolError"}
    if state is reading and event == "second reply":
        return {"ProtocolError", 7.0}  # a second end of a message, in the segment of the first
    if state is sending and event == "early reply":
        return {"ProtocolError"}
    if state is draining and event.startswith(("close", "reset", "FIN", "shutdown")):
        return {"ClientClosedError"}  # a closed client opens no connection to repeat a request
    return {7.0}


#: Where bytes are not frames yet, and those that speak of closing are garbage like any other.
BEFORE_FRAMES = (connecting, handshaking)
TABLE = [
    (state, event)
    for state in STATES
    for event in EVENTS
    if state not in BEFORE_FRAMES or not event.startswith(("close", "shutdown"))
    if state not in (waiting, draining) or event != "early reply"  # there it is the reply
]


@pytest.mark.parametrize(
    ("state", "event"), TABLE, ids=[f"{state.__name__}-{event}" for state, event in TABLE]
)
def test_an_event_in_a_state(state, event):
    quiet = event == "silence"
    connects = state in (connecting, handshaking, authenticating)
    connect_timeout = SHORT if quiet and connects else TIMEOUT
    settings = {"connect_timeout": connect_timeout, "max_message_bytes": 2**27, "pool_size": 1}
    timeout = SHORT if quiet and not connects else TIMEOUT
    with Peer(state, EVENTS[event]) as peer, connect(peer, **settings) as client:
        if quiet and state in (sending, waiting, reading, draining):
            client.open()  # the time that is short is that of the reply
        out = outcome(state, peer, client, timeout)
        assert out in expected(state, event)
        if state not in (draining, closing) and event != "close 1009":  # from which a limit is learned
            answer = ended(lambda: ask(client, 3.0))
            while quiet and connects and answer == "ConnectFailedError":  # its time to connect is short too
                answer = ended(lambda: ask(client, 3.0))
            assert answer == 3.0
