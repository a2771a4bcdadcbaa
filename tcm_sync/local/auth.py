"""Authenticate clients, and decide what they may do (docs/wire.rst, "Authentication")."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tcm_sync._ttl_cache import TtlCache
from tcm_sync.local.limits import SlidingWindow

if TYPE_CHECKING:
    from collections.abc import Callable

    from tcm_sync.local.settings import Claims, Tokens

#: The tenant of clients that state none, which is every client in the open mode.
UNKNOWN_TENANT = "unknown"
_PERIOD = 60.0  # seconds within which failures count together
_MAX_FAILED = 10_000  # uuids


class AuthRefused(Exception):
    """The auth message is refused; the text is sent to the client."""


@dataclass(frozen=True)
class Identity:
    """The identity of an authenticated client.

    Attributes
    ----------
    tenant : str
        The tenant against whose quota its requests count.
    roles : tuple of str
        Its roles.
    unrestricted : bool
        Whether it may do everything, regardless of its roles.
    sub, tenant_id : str or None
        The claims of its token.
    """

    tenant: str
    roles: tuple[str, ...]
    unrestricted: bool = False
    sub: object = None
    tenant_id: object = None

    @property
    def claims(self) -> dict[str, object]:
        """The claims that the manager repeats in its reply to a management job."""
        return {"sub": self.sub, "tenant_id": self.tenant_id, "roles": list(self.roles)}

    def has_role(self, role: str) -> bool:
        """Return whether the client has the role, or is an admin."""
        return self.unrestricted or role in self.roles or "admin" in self.roles


class Authenticator:
    """Check auth messages.

    Without tokens the mode is open: a client that sends no roles may do everything, and all clients are one
    tenant. With a collection of tokens a client must send one of them, and the client block states roles and
    tenant. With a mapping or a callable, roles and tenant are those of the token's claims and the client
    block is ignored, as by a manager in strict mode; all tokens without a tenant are one tenant.

    Parameters
    ----------
    tokens : mapping of str to claims or roles, collection of str, callable, or None
    failures_per_minute : int or None
        After so many failures within a minute a uuid is refused without a check.
    """

    def __init__(self, tokens: Tokens, failures_per_minute: int | None) -> None:
        self._tokens = tokens
        self._failures_per_minute = failures_per_minute
        self._failures: TtlCache[str, SlidingWindow] = TtlCache(_PERIOD, _MAX_FAILED)

    def identify(self, uuid: str, payload: Mapping[str, Any]) -> Identity:
        """Return the identity of the client that sent the payload of an auth message.

        Raises
        ------
        AuthRefused
            If the token is not valid.
        """
        failures = self._failures.get(uuid)
        if failures is not None and failures.is_full():
            raise AuthRefused("Too many failed auth attempts for this client")
        try:
            return self._check(payload)
        except AuthRefused:
            if self._failures_per_minute is not None:
                window = failures or SlidingWindow(self._failures_per_minute, _PERIOD)
                window.admit()
                self._failures.put(uuid, window)
            raise

    def _check(self, payload: Mapping[str, Any]) -> Identity:
        token = payload.get("token")
        if self._tokens is not None and not token:
            raise AuthRefused("Invalid token: Missing token in auth payload")
        if callable(self._tokens):
            return _strict(_verified(self._tokens, token))
        if self._tokens is not None and (not isinstance(token, str) or token not in self._tokens):
            raise AuthRefused("Invalid token: Token is not known")
        if isinstance(self._tokens, Mapping):
            claims = self._tokens[str(token)]
            return _strict(claims if isinstance(claims, Mapping) else {"roles": claims})
        client = payload.get("client")
        block = client if isinstance(client, dict) else {}
        roles = _roles(block.get("roles")) if isinstance(block.get("roles"), list) else ()
        stated = None if self._tokens is None else block.get("tenant_id")
        return Identity(stated if isinstance(stated, str) else UNKNOWN_TENANT, roles, unrestricted=not roles)


def _verified(verify: Callable[[str], Claims], token: Any) -> Claims:
    try:
        return verify(token)
    except Exception as exc:
        raise AuthRefused(f"Invalid token: {exc}") from exc


def _strict(claims: Claims) -> Identity:
    """Read the claims of a token; of several names for one claim, the first that is not empty counts."""
    tenant = claims.get("tenant_id") or claims.get("tenant")
    roles = _roles(claims.get("roles") or claims.get("role") or claims.get("permissions"))
    return Identity(str(tenant or UNKNOWN_TENANT), roles, sub=claims.get("sub"), tenant_id=tenant)


def _roles(stated: object) -> tuple[str, ...]:
    """Read roles: a collection of them, or a single one."""
    if isinstance(stated, str):
        return (stated,)
    return tuple(role for role in stated if isinstance(role, str)) if isinstance(stated, Collection) else ()


def granted_capabilities(asked: object, known: Collection[str]) -> list[str] | None:
    """Return those of the requested capabilities that this manager has, in the order of the request.

    Returns
    -------
    list of str or None
        ``["json"]`` if it has none of them; None if none was requested.
    """
    if not isinstance(asked, list) or not asked:
        return None
    return [name for name in asked if name in known] or ["json"]
