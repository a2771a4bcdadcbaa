"""The address of a proxy, from a URL or from the environment's variables."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from urllib.parse import SplitResult, unquote, urlsplit

from tcm_sync.errors import ConfigError

#: The schemes, and the port of each where a URL states none.
PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}

_EXAMPLES = "for example 'http://proxy.example.org:3128' or 'socks5h://USER:PASSWORD@proxy.example.org:1080'"
_MAX_SOCKS_BYTES = 255  # bytes of a user name or password (RFC 1929)


@dataclass(frozen=True)
class ProxyUrl:
    """Where a proxy is, and how it is spoken to. Neither its text nor its repr has the credentials."""

    scheme: str
    host: str
    port: int
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def is_socks(self) -> bool:
        """Whether it is a SOCKS5 proxy, and not one for HTTP CONNECT."""
        return self.scheme.startswith("socks")

    @classmethod
    def parse(cls, url: str, source: str = "proxy") -> ProxyUrl:
        """Read ``SCHEME://[USER:PASSWORD@]HOST[:PORT]``.

        Parameters
        ----------
        url : str
            User name and password in percent-encoding.
        source : str
            The setting or variable that it comes from, for messages.

        Raises
        ------
        ConfigError
            It is something else. The message shows nothing of it, since it may hold a password.
        """
        if not isinstance(url, str) or not url.isprintable() or " " in url:
            raise ConfigError(f"{source} must be a URL without spaces or control characters, {_EXAMPLES}")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:  # whose text quotes a part of the URL
            raise ConfigError(
                f"{source} cannot be read: its port must be a number, and special characters of user name "
                f"and password are written in percent-encoding; {_EXAMPLES}"
            ) from None
        if parts.scheme not in PORTS:
            raise ConfigError(
                f"{source} must start with http://, https://, socks5:// or socks5h://, {_EXAMPLES}"
            )
        if not parts.hostname or port == 0 or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ConfigError(
                f"{source} must name a host, a port other than 0, and no path ('/', '?' and '#' in a user "
                f"name or password are written in percent-encoding); {_EXAMPLES}"
            )
        username, password = _credentials(parts, source)
        return cls(parts.scheme, parts.hostname, port or PORTS[parts.scheme], username, password)


def find_proxy(setting: str | None, *, secure: bool, host: str, port: int) -> ProxyUrl | None:
    """Return the proxy to a manager; None if it is connected to directly.

    Parameters
    ----------
    setting : str or None
        None, a URL, or ``"env"`` for the variables of the environment.
    secure : bool
        Whether the manager's scheme is ``wss``.
    host, port
        The manager's.

    Raises
    ------
    ConfigError
        The URL cannot be used, or python-socks is not installed and it needs that.
    """
    if setting is None:
        return None
    if isinstance(setting, str) and setting == "env":  # an array would compare its elements
        found = _from_environment(secure, host, port)
    else:
        found = ProxyUrl.parse(setting)
    if found is not None and found.is_socks and find_spec("python_socks") is None:
        raise ConfigError(f"the proxy {found} needs python-socks: pip install 'tcm-sync[proxy]'")
    return found


def _from_environment(secure: bool, host: str, port: int) -> ProxyUrl | None:
    """Read HTTP_PROXY or HTTPS_PROXY, ALL_PROXY and NO_PROXY as `urllib.request` does."""
    import urllib.request as rules  # slow to import

    proxies = rules.getproxies_environment()
    scheme = "https" if secure else "http"
    name = scheme if proxies.get(scheme) else "all"
    url = proxies.get(name)
    # An address of IPv6 is written with or without brackets in NO_PROXY.
    forms = (f"[{host}]:{port}", host) if ":" in host else (f"{host}:{port}",)
    bypassed = rules.proxy_bypass_environment  # type: ignore[attr-defined] # typeshed lacks it
    if not url or any(bypassed(form, proxies) for form in forms):
        return None
    return ProxyUrl.parse(url if "://" in url else f"http://{url}", f"{name.upper()}_PROXY")


def _credentials(parts: SplitResult, source: str) -> tuple[str, str]:
    username, password = unquote(parts.username or ""), unquote(parts.password or "")
    if password and not username:
        raise ConfigError(f"{source} has a password without a user name")
    for what, text in (("user name", username), ("password", password)):
        if not text.isprintable():
            raise ConfigError(f"the {what} of {source} must have printable characters alone")
        if parts.scheme.startswith("socks") and username and not password:
            raise ConfigError(f"{source} has a user name without a password, which SOCKS5 does not have")
        if parts.scheme.startswith("socks") and not (text.isascii() and len(text) <= _MAX_SOCKS_BYTES):
            raise ConfigError(
                f"the {what} of {source} must be ASCII of at most {_MAX_SOCKS_BYTES} characters for SOCKS5"
            )
    if parts.scheme.startswith("http") and ":" in username:
        raise ConfigError(f"the user name of {source} must have no colon (RFC 7617, section 2)")
    return username, password
