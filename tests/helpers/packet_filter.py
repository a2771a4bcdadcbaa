"""Sockets whose kernel drops whatever arrives for them, so that nothing is acknowledged."""

from __future__ import annotations

import ctypes
import socket
import struct
import sys

import pytest

_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27


def discard_packets(sock: socket.socket) -> None:
    """Drop every packet for this socket from now on. A listening one answers no SYN, and refuses none.

    It takes neither rights nor a network namespace: the kernel applies a filter that accepts nothing before
    it acknowledges.
    """
    if sys.platform != "linux":
        pytest.skip("only Linux drops packets for one socket")
    accept_nothing = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))
    program = struct.pack("@HP", 1, ctypes.addressof(accept_nothing))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def accept_packets(sock: socket.socket) -> None:
    """Let packets arrive again."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
