"""Whether the other end of a TCP connection still answers: its kernel, which no busy program delays.

A connection may break without a notice: a NAT drops it, a host loses its power, a cable is pulled. Then
nothing is acknowledged any more. If a manager is merely slow, or blocked, its kernel still acknowledges.

The system's own keepalive finds out whether a quiet connection is dead. It sends no probe while bytes wait to
be acknowledged, and sends those again for a quarter of an hour. TCP_USER_TIMEOUT would end that sooner, but
it also ends a connection whose other end acknowledges and has no room for more, such as a blocked manager
during a large upload. So what the system has recorded is read from TCP_INFO.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from tcm_sync._handlers import Suppress, is_of_handler

#: Seconds without an acknowledgement after which a connection is dead.
SILENCE = 6.0

# Seconds of quiet before the first probe, seconds between probes, and how many: dead after SILENCE.
_KEEPALIVE = (("TCP_KEEPIDLE", 3), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 3))
_IDLE_OF_MACOS = getattr(socket, "TCP_KEEPALIVE", None)

_TCP_INFO = getattr(socket, "TCP_INFO", None)
# struct tcp_info of linux/tcp.h, up to tcpi_last_ack_recv.
_LAYOUT = struct.Struct("=8B13I")
_RETRANSMITS, _PROBES, _UNACKED = 2, 3, 12
_LAST_SENT, _LAST_DATA, _LAST_ACK = 17, 19, 20  # in milliseconds


class TcpState(NamedTuple):
    """What the system has recorded of a connection.

    Parameters
    ----------
    acknowledged : bool
        Whether the other end has confirmed all that was sent.
    silent_for : float
        Seconds since it confirmed or sent something.
    unanswered : bool
        Whether it has been asked since then: by bytes that were sent again, or by a probe.
    """

    acknowledged: bool
    silent_for: float
    unanswered: bool

    @property
    def is_dead(self) -> bool:
        """Whether it will not answer any more."""
        return self.unanswered and self.silent_for >= SILENCE


def read_tcp_state(sock: socket.socket) -> TcpState | None:
    """Ask the system about a connection; None where it does not say (not Linux, or closed)."""
    if _TCP_INFO is None:
        return None
    try:
        values = _LAYOUT.unpack(sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _LAYOUT.size))
    except (OSError, struct.error) as error:
        if is_of_handler(error):
            raise
        return None
    silent = min(values[_LAST_ACK], values[_LAST_DATA])
    # What was sent again and answered is older than the answer.
    again = values[_RETRANSMITS] > 0 and values[_LAST_SENT] < silent
    return TcpState(values[_UNACKED] == 0, silent / 1000, values[_PROBES] > 0 or again)


def keep_alive(sock: socket.socket) -> None:
    """Have the system find out within `SILENCE` that a quiet connection is dead."""
    with Suppress(OSError):  # it is the pings that find out, later
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            option = getattr(socket, name, _IDLE_OF_MACOS if name == "TCP_KEEPIDLE" else None)
            if option is not None:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
