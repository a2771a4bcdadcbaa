"""The head of an HTTP answer, read from a socket under a bound."""

from __future__ import annotations

import socket

from tcm_sync._deadline import Deadline
from tcm_sync._transport.sockets import receive

#: The most bytes that the head of an answer may have.
HEAD_BYTES = 64 * 1024


class HeadTooLongError(Exception):
    """The head has over `HEAD_BYTES` bytes."""


def receive_head(sock: socket.socket, deadline: Deadline) -> tuple[bytes, bytes]:
    """Read up to the empty line that ends a head.

    Returns
    -------
    head : bytes
        Without the empty line.
    rest : bytes
        What came behind it.

    Raises
    ------
    HeadTooLongError
        The head does not end within `HEAD_BYTES`.
    ConnectionResetError
        The connection ended first.
    TimeoutError
        The head was not whole within the deadline.
    """
    received = bytearray()
    while (end := received.find(b"\r\n\r\n", max(0, len(received) - 16_384 - 3))) < 0:
        if len(received) > HEAD_BYTES:
            raise HeadTooLongError
        data = receive(sock, 16_384, deadline)
        if not data:
            raise ConnectionResetError("closed before the answer was whole")
        received += data
    return bytes(received[:end]), bytes(received[end + 4 :])
