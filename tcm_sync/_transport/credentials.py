"""The token and the headers of a socket: texts, or callables of the user that are asked for each new one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from tcm_sync._secret_texts import check_header, strip_secret
from tcm_sync._secrets import Secret, secret_of_header
from tcm_sync.errors import AuthenticationError, ConfigError
from tcm_sync.settings import Header, Settings, Token


class Credentials:
    """What a client authenticates with, at the manager and at a proxy before it.

    Callables take no deadline. They are called on the threads that open sockets and send probes, so that a
    slow one delays no call past its deadline; `running` names the one that is being called.

    Parameters
    ----------
    settings : Settings
        The client's.
    """

    def __init__(self, settings: Settings) -> None:
        self._token: Token | None = settings.auth.token if settings.auth is not None else None
        self._headers: Mapping[str, Header] = settings.headers or {}
        # Guarded by the GIL: each thread has a key of its own.
        self._running: dict[int, str] = {}

    @property
    def change(self) -> bool:
        """Whether another ask may bring other ones."""
        return callable(self._token) or any(map(callable, self._headers.values()))

    def token(self) -> Secret | None:
        """Return the token of the next socket.

        Raises
        ------
        AuthenticationError
            The callable raised. Its text is not shown, which may hold the token.
        ConfigError
            It returned what is no token.
        """
        if self._token is None:
            return None
        if not callable(self._token):
            return Secret(self._token)
        name = "the token callable"
        return Secret(strip_secret(f"{name} returned", self._ask(self._token, name)))

    def headers(self) -> dict[str, Secret]:
        """Return the headers of the next request.

        Raises
        ------
        AuthenticationError, ConfigError
            As for a token; the header is named.
        """
        return {
            key: secret_of_header(
                key,
                value
                if isinstance(value, str)
                else check_header(key, self._ask(value, f"the callable of the header {key}")),
            )
            for key, value in self._headers.items()
        }

    def running(self) -> str:
        """Return which callable has not returned, as the end of a sentence; empty if none runs."""
        return "".join(f"; {name} has not returned" for name in sorted(set(self._running.values())))

    def _ask(self, ask: Callable[[], str], name: str) -> str:
        thread = threading.get_ident()
        self._running[thread] = name
        try:
            value = ask()
        except Exception as error:
            raise AuthenticationError(f"{name} raised {type(error).__name__}") from error
        finally:
            self._running.pop(thread, None)
        if not isinstance(value, str):
            raise ConfigError(f"{name} returned {type(value).__name__}, not a str")
        return value
