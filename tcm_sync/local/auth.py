"""Who may connect, and what they may do (docs/wire.rst, "Authentication")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tcm_sync.local.limits import SlidingWindow

if TYPE_CHECKING:
    from collections.abc import Collection

    from tcm_sync.local.settings import Tokens

#: Whose everything is when nobody says whose it is: all of the open mode.
ANYBODY = "unknown"


class AuthRefused(Exception):
    """The auth message is refused; the text is what the client is told."""


@dataclass(frozen=True)
class Identity:
    """A client that was let in.

    Attributes
    ----------
    tenant : str
        Whose quota its work counts against.
    roles : tuple of str
        What it may do.
    unrestricted : bool
        Whether it may do everything, whatever its roles.
    """

    tenant: str
    roles: tuple[str, ...]
    unrestricted: bool = False

    def may(self, role: str) -> bool:
        """Tell whether the client has the role, itself or as admin."""
        return self.unrestricted or role in self.roles or "admin" in self.roles


class Authenticator:
    """Judges auth messages.

    Without tokens the mode is open: who sends no roles may do everything, and all are one tenant. With a
    collection of tokens one of them must be sent, and the client block tells roles and tenant. With a mapping
    the roles are the token's and the client block is ignored, as by a manager in strict mode; each token is
    a tenant of its own.

    Parameters
    ----------
    tokens : mapping of str to roles, collection of str, or None
    failures_per_minute : int or None
        After so many failures of one uuid within a minute it is refused unheard.
    """

    def __init__(self, tokens: Tokens, failures_per_minute: int | None) -> None:
        self._tokens = tokens
        self._failures_per_minute = failures_per_minute
        self._failures: dict[str, SlidingWindow] = {}

    def identify(self, uuid: str, payload: Mapping[str, Any]) -> Identity:
        """Tell who sent the payload of an auth message.

        Raises
        ------
        AuthRefused
            If the token is not good.
        """
        failures = self._failures.get(uuid)
        if failures is not None and failures.is_full():
            raise AuthRefused("Too many failed auth attempts for this client")
        try:
            return self._judge(payload)
        except AuthRefused:
            if self._failures_per_minute is not None:
                window = self._failures.setdefault(uuid, SlidingWindow(self._failures_per_minute, 60.0))
                window.admit()
            raise

    def _judge(self, payload: Mapping[str, Any]) -> Identity:
        client = payload.get("client")
        claims = client if isinstance(client, dict) else {}
        if self._tokens is None:
            roles = _roles(claims)
            return Identity(ANYBODY, roles, unrestricted=not roles)
        token = payload.get("token")
        if not token:
            raise AuthRefused("Invalid token: Missing token in auth payload")
        if not isinstance(token, str) or token not in self._tokens:
            raise AuthRefused("Invalid token: Token is not known")
        if isinstance(self._tokens, Mapping):
            tenant = f"tenant-{list(self._tokens).index(token)}"
            return Identity(tenant, tuple(self._tokens[token]))
        roles = _roles(claims)
        stated = claims.get("tenant_id")
        return Identity(stated if isinstance(stated, str) else ANYBODY, roles, unrestricted=not roles)


def _roles(claims: Mapping[str, Any]) -> tuple[str, ...]:
    roles = claims.get("roles")
    return tuple(role for role in roles if isinstance(role, str)) if isinstance(roles, list) else ()


def granted(asked: object, known: Collection[str]) -> list[str] | None:
    """Pick what of the asked capabilities this manager knows, in the order asked.

    Returns
    -------
    list of str or None
        ``["json"]`` if it has none of them; None if none was asked for.
    """
    if not isinstance(asked, list) or not asked:
        return None
    return [name for name in asked if name in known] or ["json"]
