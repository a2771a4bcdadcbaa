"""A process that has put the default of SIGPIPE back outlives a connection that is gone."""

from __future__ import annotations

import subprocess
import sys

import pytest

PRELUDE = """
import signal, socket
from tcm_sync._deadline import Deadline
from tcm_sync.errors import ConnectionLostError
from tcm_sync._transport.connection import Connection
from tcm_sync._transport.frames import FrameDecoder
from tcm_sync._transport.sockets import send_all

signal.signal(signal.SIGPIPE, signal.SIG_DFL)
ours, theirs = socket.socketpair()
ours.setblocking(False)
connection = Connection(ours, "u-1", frozenset(["json"]), FrameDecoder(2**20), [])
theirs.close()
"""
SENDS = {
    "a request": """
from tcm_sync._transport.replies import PendingReplies
from concurrent.futures import Future
class Begun:
    started = False
try:
    connection.send((b"{}",), Deadline(5.0), Begun())
except ConnectionLostError:
    print("lost")
""",
    "a pong": """
connection.pong(b"x")
print("lost")
""",
    "a farewell": """
connection.close(b"bye")
print("lost")
""",
    "a handshake": """
try:
    send_all(ours, b"GET / HTTP/1.1", Deadline(5.0))
except BrokenPipeError:
    print("lost")
""",
}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere sockets have no such flag")
@pytest.mark.parametrize("what", SENDS)
def test_sending_on_a_connection_that_is_gone_raises_no_signal(what):
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + SENDS[what]], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "lost\n"), done.stderr
