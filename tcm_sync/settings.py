"""What a client is made with: identity, route, TLS, limits; checked."""

from __future__ import annotations

import enum
import os
import ssl
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal

from tcm_sync._arguments import check_choice, check_count, check_seconds, check_text, check_texts, check_whole
from tcm_sync._base_error import Route as Route
from tcm_sync._endpoint import Endpoint
from tcm_sync._handlers import is_of_handler
from tcm_sync._numbers import as_number, shown
from tcm_sync._proxy_url import find_proxy
from tcm_sync._secret_texts import check_header, strip_secret
from tcm_sync._secrets import HoldsSecret, Secret, secret_of_header, secrets_of_query, shown_uri
from tcm_sync._tls_context import make_context
from tcm_sync.errors import ConfigError
from tcm_sync.retry import RetryPolicy

try:  # here: later there may be no descriptor left to load it with
    import grp
except ImportError:  # Windows
    grp = None  # type: ignore[assignment]


class Unset(enum.Enum):
    """The type of `UNSET`: an argument that was left out, which is not the same as None."""

    UNSET = "UNSET"

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset.UNSET

#: Messages of a tenant that the manager passes on in a tick (docs/wire.rst, "Timing").
SERVED_A_TICK = 5
#: Sockets of a client at most, with turns and without (docs/throughput.rst).
POOL_SIZE, POOL_SIZE_WITHOUT_TURNS = 16, 4
_MAX_TURNS = 100

Turns = Literal["auto", "off"] | int
Token = str | Callable[[], str]
Header = str | Callable[[], str]


@dataclass(frozen=True)
class AuthContext(HoldsSecret):
    """Who the client is to the manager (docs/wire.rst, "Authentication").

    Parameters
    ----------
    uuid : str
        The readable prefix of each socket's own uuid: letters, digits, ``.``, ``_`` and ``-``; anything
        else becomes ``-``, and it is cut to 40 characters. It is what the manager's log shows.
    token : str or callable returning str, optional
        Sent once per socket. A callable is asked for each new socket, so it can hand out short-lived tokens.
        White space and a byte order mark around it, which files have, are taken off.
    sub, tenant_id : str, optional
        Subject and tenant. A manager in strict mode takes them from the token instead.
    roles : collection of str
        ``"inference"``, ``"management"``, ``"admin"``. Empty fields are not sent.
    """

    uuid: str = "tcm-sync"
    token: Token | None = field(default=None, repr=False)
    sub: str | None = None
    tenant_id: str | None = None
    roles: Collection[str] = ()

    def __post_init__(self) -> None:
        _set_text(self, "auth", "uuid")
        for name in ("sub", "tenant_id"):
            if getattr(self, name) is not None:
                _set_text(self, "auth", name)
        if self.token is not None and not callable(self.token) and not isinstance(self.token, str):
            raise ConfigError(
                f"auth.token must be a str or a callable returning one, not {type(self.token).__name__}"
            )
        if isinstance(self.token, str):
            object.__setattr__(self, "token", strip_secret("auth.token holds", self.token))
        roles = check_texts("auth.roles", self.roles, "('inference',)")
        object.__setattr__(self, "roles", roles)
        self._hold()

    def _secret_text(self) -> str | None:
        return self.token if isinstance(self.token, str) else None


def as_auth_context(auth: Any) -> AuthContext | None:
    """Return an identity as `AuthContext`; those of tcm-client and `tcm_sync.compat` have the same fields.

    Raises
    ------
    ConfigError
        It is something else.
    """
    if auth is None or isinstance(auth, AuthContext):
        return auth
    names = [each.name for each in fields(AuthContext)]
    if isinstance(auth, type) or not all(hasattr(auth, name) for name in names):
        raise ConfigError(f"auth must be a AuthContext, not {type(auth).__name__}")
    given = {name: getattr(auth, name) for name in names}
    return AuthContext(**{**given, "roles": () if auth.roles is None else auth.roles})


@dataclass(frozen=True)
class TlsSettings(HoldsSecret):
    """How a ``wss://`` connection is secured. Certificates are always verified.

    Parameters
    ----------
    ca_file : str or path, optional
        PEM file of the authorities to trust, in place of the system's.
    cert_file, key_file : str or path, optional
        The client's own certificate and key (PEM), for mutual TLS.
    key_password : str, optional
        The password of the key. A line end behind it, which files have, is taken off.
    server_hostname : str, optional
        The name to verify and to send as SNI, where it differs from the URI's host.
    """

    ca_file: str | os.PathLike[str] | None = None
    cert_file: str | os.PathLike[str] | None = None
    key_file: str | os.PathLike[str] | None = None
    key_password: str | None = field(default=None, repr=False)
    server_hostname: str | None = None

    def __post_init__(self) -> None:
        for name in ("ca_file", "cert_file", "key_file"):
            if not isinstance(getattr(self, name), (str, bytes, os.PathLike, type(None))):
                raise ConfigError(f"tls.{name} must be the path of a file, not {shown(getattr(self, name))}")
        if not isinstance(self.key_password, (str, bytes, type(None))):
            raise ConfigError(f"tls.key_password must be a text, not {type(self.key_password).__name__}")
        for name in ("ca_file", "cert_file", "key_file", "key_password"):
            value = getattr(self, name)
            if value is not None and not (os.fspath(value) if isinstance(value, os.PathLike) else value):
                raise ConfigError(f"tls.{name} is empty; leave it out if it is not needed")
        self._hold()
        if self.key_file is not None and self.cert_file is None:
            raise ConfigError("tls.key_file needs tls.cert_file beside it")
        if self.server_hostname is not None:
            _set_text(self, "tls", "server_hostname")
            try:
                self.server_hostname.encode("idna")
            except UnicodeError as error:
                raise ConfigError(
                    f"tls.server_hostname {self.server_hostname!r} is no name: {error}"
                ) from None

    def _secret_text(self) -> str | None:
        password = self.key_password
        return password.decode("utf-8", "replace") if isinstance(password, bytes) else password

    def context(self) -> ssl.SSLContext:
        """Make the context that sockets are wrapped with.

        Returns
        -------
        ssl.SSLContext
            A new context.

        Raises
        ------
        ConfigError
            A file is missing, is not what it should be, or is locked.
        """
        password = _first_line(self.key_password)
        return make_context(self.ca_file, self.cert_file, self.key_file, password)


@dataclass(frozen=True)
class Settings:
    """Everything that a client was made with, checked. Its fields are the arguments of `TcmClient`."""

    uri: str = field(repr=False)  # its query may hold a secret
    auth: AuthContext | None = None
    route: Route | None = None
    pool_size: int = POOL_SIZE
    pool_timeout: float | None = None
    max_requests: int = 500
    max_idle: float = 300.0
    max_lifetime: float = 3600.0
    messages_per_second: float | None = None
    management_sockets: int = 2
    timeout: float | None = 35.0
    connect_timeout: float = 5.0
    ping_interval: float = 20.0
    retry: RetryPolicy | None = RetryPolicy()  # noqa: RUF009 - it is frozen
    shm: Literal["auto", "off"] = "auto"
    shm_max_pinned: int | None = None
    shm_group: str | None = None
    max_message_bytes: int = 65_536
    max_reply_bytes: int = 64 * 2**20
    tls: TlsSettings | None = None
    headers: Mapping[str, Header] | None = field(default=None, repr=False)  # some carry credentials
    proxy: str | None = field(default=None, repr=False)  # which may carry credentials too
    turns: Turns = "auto"

    def __post_init__(self) -> None:
        endpoint = Endpoint.parse(self.uri)
        object.__setattr__(self, "auth", as_auth_context(self.auth))
        for name, kind in _KINDS.items():
            if not isinstance(getattr(self, name), (kind, type(None))):
                raise ConfigError(
                    f"{name} must be a {kind.__name__}, not {type(getattr(self, name)).__name__}"
                )
        proxy = find_proxy(self.proxy, secure=endpoint.secure, host=endpoint.host, port=endpoint.port)
        if self.tls is not None and not endpoint.secure and (proxy is None or proxy.scheme != "https"):
            raise ConfigError(f"tls is given but the uri {self.shown_uri!r} is not wss://")
        for name in (
            "pool_size",
            "management_sockets",
            "max_requests",
            "max_message_bytes",
            "max_reply_bytes",
        ):
            self._keep(name, check_count)
        for name in ("max_idle", "max_lifetime", "connect_timeout", "ping_interval"):
            self._keep(name, check_seconds)
        for name in ("timeout", "pool_timeout", "messages_per_second"):
            if getattr(self, name) is not None:
                self._keep(name, check_seconds)
        if self.messages_per_second is not None and self.messages_per_second < 1:
            raise ConfigError("messages_per_second must be at least 1")
        check_choice("shm", self.shm, ("auto", "off"), ConfigError)
        if isinstance(self.turns, str):
            check_choice("turns", self.turns, ("auto", "off"), ConfigError)
        else:
            self._keep("turns", check_turns)
        if self.shm_max_pinned is not None:
            self._keep("shm_max_pinned", check_count)
        if self.shm_group is not None:
            group_id(self.shm_group)
        headers = _checked_headers({} if self.headers is None else self.headers)
        object.__setattr__(self, "headers", headers)
        texts = [secret_of_header(name, value) for name, value in headers.items() if isinstance(value, str)]
        if proxy is not None and proxy.password:
            texts.append(Secret(proxy.password))
        object.__setattr__(self, "_secrets", [*secrets_of_query(endpoint.query), *texts])

    @property
    def shown_uri(self) -> str:
        """The URI without the values of its query."""
        return shown_uri(self.uri)

    @property
    def turn_count(self) -> int | None:
        """How many messages may wait at the manager's scheduler at the same time; None is no limit."""
        if isinstance(self.turns, str):
            return SERVED_A_TICK if self.turns == "auto" else None
        return self.turns

    def _keep(self, name: str, check: Callable[[str, object], float]) -> None:
        """Check a number, and keep it as a plain int or float."""
        object.__setattr__(self, name, check(name, getattr(self, name)))

    def __reduce__(self) -> tuple[Any, ...]:
        return _settings_from_state, ({each.name: getattr(self, each.name) for each in fields(self)},)


@dataclass(frozen=True)
class BatchPolicy:
    """When samples of different callers are sent as one request.

    A batch is sent when a socket is free and either it is full, or `max_wait` has passed since its first
    sample, or no other thread is in a call (samples of `Model.submit_sample` do not count, and one of theirs
    is sent when it is full or `max_wait` has passed). While it waits for the socket, more samples may join.

    Parameters
    ----------
    max_size : int
        The most samples in a batch.
    max_wait : float
        Seconds that the first one waits for others, at most.
    """

    max_size: int = 32
    max_wait: float = 0.004

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_size", check_count("batch.max_size", self.max_size))
        wait = as_number(self.max_wait)
        if wait is None or not 0 <= wait <= 60:
            raise ConfigError(
                f"batch.max_wait must be a number of seconds from 0 to 60, not {shown(self.max_wait)}"
            )
        object.__setattr__(self, "max_wait", wait)


_KINDS: dict[str, type] = {"route": Route, "tls": TlsSettings, "retry": RetryPolicy}

_RESERVED_HEADERS = frozenset({"upgrade", "connection", "host", "content-length", "transfer-encoding"})


def _settings_from_state(state: dict[str, Any]) -> Settings:
    return Settings(**state)


def check_turns(name: str, value: object) -> int:
    """Return a number of turns as int.

    Raises
    ------
    ConfigError
        It is something else.
    """
    wanted = "'auto', 'off' or a whole number"
    try:
        number = check_whole(name, value)
    except ConfigError:
        raise ConfigError(f"{name} must be {wanted}, not {shown(value)}") from None
    if number > _MAX_TURNS:
        raise ConfigError(f"{name} must be {wanted} from 1 to {_MAX_TURNS}, not {shown(value)}")
    return number


def group_id(name: object) -> int:
    """Return the number of a group of this machine.

    Raises
    ------
    ConfigError
        There is none of that name, or it cannot be looked up now.
    """
    name = check_text("shm_group", name)
    try:
        if grp is not None:
            return grp.getgrnam(name).gr_gid
    except OSError as error:
        if is_of_handler(error):
            raise
        raise ConfigError(f"shm_group: {name!r:.80} cannot be looked up: {error}") from error
    except (KeyError, ValueError) as error:
        if is_of_handler(error):
            raise
    raise ConfigError(f"shm_group must be the name of a group here, not {name!r:.80}")


def _set_text(of: object, prefix: str, name: str) -> None:
    """Check a field of a frozen object that is a text, and keep it as a plain str."""
    object.__setattr__(of, name, check_text(f"{prefix}.{name}", getattr(of, name)))


def _first_line(password: str | bytes | None) -> str | bytes:
    """Return the password of a key. OpenSSL fails with an empty one, and asks on the terminal without one."""
    if isinstance(password, bytes):
        return password.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n")
    return (password or "").removeprefix("\ufeff").rstrip("\r\n")


def _checked_headers(headers: Mapping[str, Header]) -> dict[str, Header]:
    checked: dict[str, Header] = {}
    if not isinstance(headers, Mapping):
        raise ConfigError("headers must map names to values, both str")
    for name, value in headers.items():
        if not isinstance(name, str) or not (isinstance(value, str) or callable(value)):
            raise ConfigError("headers must map names to values, both str (a value may be a callable)")
        if not name or not all(c.isascii() and (c.isalnum() or c in "!#$%&'*+-.^_`|~") for c in name):
            raise ConfigError(f"headers: {name!r} is not a header name (RFC 9110, section 5.6.2)")
        if name.lower() in _RESERVED_HEADERS or name.lower().startswith("sec-websocket-"):
            raise ConfigError(f"headers: {name} is the handshake's own")
        checked[name] = check_header(name, value) if isinstance(value, str) else value
    return checked
