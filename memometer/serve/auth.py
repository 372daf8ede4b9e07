"""Who may ask a service: bearer tokens, each of a tenant, kept as hashes in the store."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from memometer.store.episode import Episode
from memometer.store.protocol import Store

SCOPE = "access:"


@dataclass(frozen=True)
class Key:
    """A token that was given out. `id` is the start of its hash, which tells nothing of it."""

    id: str
    tenant: str
    created_at: float


class Access:
    """The tokens of a store. One that is revoked is refused from the next request on, in every process."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: tuple[int, dict[str, str]] = (-1, {})

    def grant(self, tenant: str, *, at: float) -> str:
        """A new token of a tenant: it is shown here once, and only its hash is kept."""
        token = secrets.token_urlsafe(32)
        self._store.change(SCOPE, add=[Episode(_hash(token), "", at, details={"tenant": tenant})])
        return token

    def revoke(self, id: str) -> int:
        """Refuse the tokens of an id (`Key.id`) or a tenant from now on. How many there were."""
        gone = [e.id for e in self._store.scan(SCOPE) if e.id[:12] == id or e.details["tenant"] == id]
        return self._store.delete(SCOPE, gone)

    def keys(self) -> list[Key]:
        """All tokens that were given out, the oldest first."""
        return [Key(e.id[:12], str(e.details["tenant"]), e.at) for e in self._store.scan(SCOPE)]

    def tenant_of(self, token: str) -> str | None:
        """Whose token it is; compared with every one there is, in a time that tells nothing of them."""
        changes = self._store.size(SCOPE).changes
        if self._known[0] != changes:
            self._known = changes, {e.id: str(e.details["tenant"]) for e in self._store.scan(SCOPE)}
        asked, found = _hash(token), None
        for known, tenant in self._known[1].items():
            if hmac.compare_digest(known, asked):
                found = tenant
        return found


def _hash(token: str) -> str:
    # A token has 256 random bits, so that nothing slower than one SHA-256 is needed.
    return hashlib.sha256(token.encode()).hexdigest()
