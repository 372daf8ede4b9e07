"""Bearer tokens of tenants, stored as hashes."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from memometer.store.episode import Episode
from memometer.store.protocol import Store

SCOPE = "access:"


@dataclass(frozen=True)
class AccessToken:
    """An issued token. `id` is the start of its hash; `created_at` is in Unix seconds."""

    id: str
    tenant: str
    created_at: float


class AccessTokens:
    """The tokens in a store. Every process rejects a revoked token from the next request on."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tenants: tuple[int, dict[str, str]] = (-1, {})

    def issue(self, tenant: str, *, at: float) -> str:
        """Issue a token to a tenant. Only its hash is stored, so this is the only time that it can be read."""
        token = secrets.token_urlsafe(32)
        self._store.change(SCOPE, add=[Episode(_hash(token), "", at, details={"tenant": tenant})])
        return token

    def revoke(self, id: str) -> int:
        """Revoke a token by its id, or all tokens of a tenant; return the number of revoked tokens."""
        revoked = [e.id for e in self._store.scan(SCOPE) if e.id[:12] == id or e.details["tenant"] == id]
        return self._store.delete(SCOPE, revoked)

    def issued(self) -> list[AccessToken]:
        """Return all tokens that are not revoked, oldest first."""
        return [AccessToken(e.id[:12], str(e.details["tenant"]), e.at) for e in self._store.scan(SCOPE)]

    def tenant_of(self, token: str) -> str | None:
        """Return the tenant of a token, or None. All hashes are compared, each in constant time."""
        changes = self._store.size(SCOPE).changes
        if self._tenants[0] != changes:
            self._tenants = changes, {e.id: str(e.details["tenant"]) for e in self._store.scan(SCOPE)}
        hashed, found = _hash(token), None
        for known, tenant in self._tenants[1].items():
            if hmac.compare_digest(known, hashed):
                found = tenant
        return found


def _hash(token: str) -> str:
    # A token has 256 random bits; a slow password hash would add nothing.
    return hashlib.sha256(token.encode()).hexdigest()
