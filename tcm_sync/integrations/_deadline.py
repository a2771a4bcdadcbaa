"""The deadline of an HTTP request, for the calls that are made while it is answered."""

from __future__ import annotations

from tcm_sync._deadline import Deadline
from tcm_sync.client import TcmClient
from tcm_sync.errors import CallTimeoutError


def bounded(client: TcmClient, deadline: Deadline | None) -> TcmClient:
    """Return a view of a client whose calls end with the request, or the client if there is no deadline.

    Parameters
    ----------
    client : TcmClient
        The client.
    deadline : Deadline or None
        When the request must be answered.

    Raises
    ------
    CallTimeoutError
        The request has no time left.
    """
    if deadline is None:
        return client
    left = deadline.remaining()
    if left is None:
        return client
    if left == 0.0:
        raise CallTimeoutError(
            f"no time is left of the request's {deadline.timeout:g} s (TCM_REQUEST_TIMEOUT); nothing was sent"
        )
    usual = client._defaults.timeout  # noqa: SLF001 - of this package
    return client.with_options(timeout=left if usual is None else min(left, usual))
