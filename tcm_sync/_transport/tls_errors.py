"""Failures of TLS that belong to another connection.

OpenSSL keeps the failures of each thread in a queue, and looks there why an operation did not succeed, also
where there was only nothing to read. Newer Pythons leave an error of the system in that queue, such as a
reset connection (python/cpython#148594). So one lost connection would end all others that the same thread
serves: every one of a client, in its reader. Other libraries that use TLS may leave errors as well.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable

from tcm_sync._handlers import is_of_handler
from tcm_sync._transport.nested_tls import NestedTls

TlsSocket = ssl.SSLSocket | NestedTls

#: What a non-blocking socket raises when it has to wait; SSLWantRead and SSLWantWrite are its TLS forms.
WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def clear_errors(sock: TlsSocket) -> None:
    """Empty OpenSSL's queue of this thread, which making a TLS object does; it takes some 5 us."""
    sock.context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="localhost")


def with_own_errors(sock: TlsSocket, operation: Callable[..., int], *arguments: object) -> int:
    """Read or write, without waiting, a TLS connection; repeat it if the error may be another connection's.

    Parameters
    ----------
    sock : ssl.SSLSocket or NestedTls
        Non-blocking.
    operation : callable
        A method of that socket, which returns how many bytes; 0 is the end of what is read.
    *arguments : object
        Of the operation.

    Raises
    ------
    OSError
        What the connection's own failure is. Nothing of it is left in the queue.
    """
    own: OSError | None = None  # unless it does not fail again
    while True:
        try:
            count = operation(*arguments)
        except WOULD_BLOCK:
            raise
        except OSError as error:
            if is_of_handler(error):
                raise
            clear_errors(sock)
            if own is not None:
                break
            if isinstance(error, ssl.SSLError) and getattr(error, "library", None) != "SYS":
                raise
            own = error
        else:
            if count or own is None:
                return count
            break
    try:
        raise own
    finally:
        del own  # its traceback has this frame
