"""`TcmClient`: what a user calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from tcm_sync._calls.bound_model import Models
from tcm_sync._calls.info import Info
from tcm_sync._calls.management import Management
from tcm_sync._calls.pipelines import Pipelines
from tcm_sync._calls.probes import Probes
from tcm_sync._calls.shared_arrays import Memory
from tcm_sync._calls.stats import Stats
from tcm_sync.retry import RetryPolicy
from tcm_sync.settings import AuthContext, Header, Route, Settings, TlsSettings, settings_from_env

if TYPE_CHECKING:
    from typing import Self


class TcmClient(Models, Pipelines, Info, Management, Memory, Probes, Stats):
    """A blocking client of one manager, for any number of threads.

    It opens by itself on the first call; making one connects to nothing. One background thread reads all of
    its sockets. After a fork the child makes its own; a pickled client carries its settings, the token
    included, and opens anew where it is unpickled.

    Parameters
    ----------
    uri : str
        ``ws://HOST:PORT/ws`` or ``wss://…``.
    auth : AuthContext, optional
        Who is calling.
    route : Route, optional
        Where inferences run that name no container themselves.
    pool_size : int
        The most sockets at a time. The manager serves five a tenant; callers beyond wait here, in turn.
    pool_timeout : float, optional
        Seconds: the most that a call waits for a socket. The call's deadline bounds it anyway.
    max_requests : int
        Requests after which a socket is replaced by a new one, less up to a fifth.
    max_idle, max_lifetime : float
        Seconds after which an unused socket is closed, and any socket is replaced, less up to a fifth.
    messages_per_second : float, optional
        The manager's limit for one socket, if it is known; otherwise it is learned from a refusal.
    management_sockets : int
        The most sockets for management jobs, which are apart from the pool's: opened when needed, closed
        when idle.
    timeout : float or None
        Seconds that a call may take in all, unless it says otherwise; None is no limit. The manager's own
        limit is 30 s, and nothing cancels work, so less than that adds load when it is reached.
    connect_timeout : float
        Seconds for opening one socket; a manager that was never reached fails calls after it.
    ping_interval : float
        Seconds of quiet after which a socket is pinged; quiet for as long again, it is dead.
    retry : RetryPolicy or None
        When failed calls are repeated; None: never. Calls still wait together after a refusal that asks for
        a pause: too much work, or an open circuit.
    shm : {"auto", "off"}
        Whether large tensors go through shared memory where that works (docs/sharedmemory.rst).
    shm_max_pinned : int, optional
        Bytes that servers may be made to keep mapped; left out, a quarter of /dev/shm.
    shm_group : str, optional
        A group that may use the files too, where manager and Triton run as another user.
    max_message_bytes : int
        The manager's limit for one message: what is larger is refused here.
    max_reply_bytes : int
        The most bytes that a reply may have.
    tls : TlsSettings, optional
        For ``wss://``; left out, the system's authorities are trusted.
    headers : mapping of str to str or callable, optional
        Sent with each handshake and probe, for whatever stands before the manager. A callable is asked for
        each of them, so that it can hand out an ``Authorization`` that expires.

    Raises
    ------
    ConfigError
        A setting that cannot work, named.

    Examples
    --------
    >>> with TcmClient("ws://localhost:8000/ws", route=Route("my-container")) as client:  # doctest: +SKIP
    ...     client.infer("digits", {"image": image})["probabilities"]
    """

    def __init__(
        self,
        uri: str,
        auth: AuthContext | None = None,
        *,
        route: Route | None = None,
        pool_size: int = 4,
        pool_timeout: float | None = None,
        max_requests: int = 500,
        max_idle: float = 300.0,
        max_lifetime: float = 3600.0,
        messages_per_second: float | None = None,
        management_sockets: int = 2,
        timeout: float | None = 35.0,
        connect_timeout: float = 5.0,
        ping_interval: float = 20.0,
        retry: RetryPolicy | None = RetryPolicy(),  # noqa: B008 - it is frozen
        shm: Literal["auto", "off"] = "auto",
        shm_max_pinned: int | None = None,
        shm_group: str | None = None,
        max_message_bytes: int = 65_536,
        max_reply_bytes: int = 64 * 2**20,
        tls: TlsSettings | None = None,
        headers: Mapping[str, Header] | None = None,
    ) -> None:
        self._start_with(
            Settings(
                uri=uri,
                auth=auth,
                route=route,
                pool_size=pool_size,
                pool_timeout=pool_timeout,
                max_requests=max_requests,
                max_idle=max_idle,
                max_lifetime=max_lifetime,
                messages_per_second=messages_per_second,
                management_sockets=management_sockets,
                timeout=timeout,
                connect_timeout=connect_timeout,
                ping_interval=ping_interval,
                retry=retry,
                shm=shm,
                shm_max_pinned=shm_max_pinned,
                shm_group=shm_group,
                max_message_bytes=max_message_bytes,
                max_reply_bytes=max_reply_bytes,
                tls=tls,
                headers=headers,
            )
        )

    @classmethod
    def from_env(cls) -> Self:
        """Make a client from the environment.

        ``TCM_WS_URI`` is needed. Read as well: ``TCM_CLIENT_UUID``, ``TCM_CLIENT_TOKEN``, ``TCM_CLIENT_SUB``,
        ``TCM_CLIENT_TENANT_ID``, ``TCM_CLIENT_ROLES`` (separated by commas), ``TCM_CONTAINER_ID``,
        ``TCM_VM_IP``, ``TCM_VM_ID``, ``TCM_CA_FILE``, ``TCM_TIMEOUT`` (seconds) and ``TCM_POOL_SIZE``.

        Raises
        ------
        ConfigError
            A variable is missing or cannot be read, named.
        """
        return cls(**settings_from_env())
