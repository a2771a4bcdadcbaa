"""The address of a manager."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tcm_sync._secrets import shown_uri
from tcm_sync.errors import ConfigError


@dataclass(frozen=True)
class Endpoint:
    """A manager's address, as read from its URI."""

    secure: bool
    host: str
    port: int
    path: str
    query: str = field(repr=False)  # it may hold a secret

    @classmethod
    def parse(cls, uri: str) -> Endpoint:
        """Read ``ws://HOST[:PORT]/PATH`` or ``wss://…``.

        Raises
        ------
        ConfigError
            The URI has another scheme, no host, port 0, credentials, or a fragment.
        """
        example = "for example 'ws://localhost:8000/ws'"
        if not isinstance(uri, str) or not uri.isprintable() or " " in uri:
            raise ConfigError(f"uri must be a text without spaces or control characters, {example}")
        shown = shown_uri(uri)
        try:
            parts = urlsplit(uri)
            port = parts.port
        except ValueError as error:
            why = "" if "@" in uri else f" ({error})"  # it may quote a password
            raise ConfigError(f"uri {shown!r} cannot be read{why}; {example}") from None
        if parts.username is not None or parts.password is not None:
            raise ConfigError("uri must not hold credentials; they belong in AuthContext or headers")
        if parts.scheme not in ("ws", "wss"):
            raise ConfigError(f"uri {shown!r} must start with ws:// or wss://, {example}")
        if not parts.hostname:
            raise ConfigError(f"uri {shown!r} names no host, {example}")
        if port == 0:
            raise ConfigError(f"uri {shown!r} has port 0, where nothing can listen; {example}")
        if parts.fragment:
            raise ConfigError(f"uri {shown!r} must not have a fragment (RFC 6455, section 3)")
        if not parts.path.isascii() or not parts.query.isascii():
            raise ConfigError(f"uri {shown!r}: write characters outside ASCII in percent-encoding")
        secure = parts.scheme == "wss"
        return cls(secure, parts.hostname, port or (443 if secure else 80), parts.path or "/", parts.query)

    @property
    def authority(self) -> str:
        """Host and port as a Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"

    @property
    def shown(self) -> str:
        """The address without the values of its query, for messages."""
        return shown_uri(self.url)

    @property
    def url(self) -> str:
        """The address to shake hands with."""
        query = f"?{self.query}" if self.query else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'wss' if self.secure else 'ws'}://{host}:{self.port}{self.path}{query}"

    def sibling(self, name: str) -> str:
        """Return the path of another service of the same manager: the final ``/ws`` replaced."""
        return self.path.removesuffix("/ws").rstrip("/") + "/" + name
