"""Bytes on sockets: opening them, the handshake, frames, and the one thread that reads them all.

Belongs here: what deals with one socket, and the reader, which serves many. Does not belong here: which
socket a call gets, and whether a failed call is sent again (`tcm_sync._pool`, `tcm_sync._calls`).
"""
