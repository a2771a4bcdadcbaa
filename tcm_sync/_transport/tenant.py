"""Whose share of the manager's messages a socket uses (docs/wire.rst, "Authentication")."""

from __future__ import annotations

import base64
import binascii

import msgspec

from tcm_sync.settings import AuthContext


def tenant_of(token: str | None, auth: AuthContext) -> str:
    """Return the tenant that the manager takes a socket for.

    Parameters
    ----------
    token : str or None
        What the socket is authenticated with. The claims of a JWT win; they are read and not verified.
    auth : AuthContext
        What is sent beside it.

    Returns
    -------
    str
        The claim ``tenant_id``, else ``tenant``, else the tenant of `auth`; empty if there is none.
    """
    claims = _claims(token) if token is not None and token.count(".") == 2 else {}
    for name in ("tenant_id", "tenant"):
        claim = claims.get(name)
        if isinstance(claim, str) and claim:
            return claim
    return auth.tenant_id or ""


def _claims(token: str) -> dict[str, object]:
    """Return the claims of a JWT, none if it is not one."""
    body = token.split(".")[1]
    try:
        text = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        return msgspec.json.decode(text, type=dict[str, object])
    except (binascii.Error, ValueError, msgspec.MsgspecError, RecursionError):
        return {}
