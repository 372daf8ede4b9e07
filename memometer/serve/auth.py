"""Bearer tokens of tenants, stored as hashes."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from dataclasses import dataclass, replace

from memometer.errors import UserError
from memometer.serve import LOCAL_TENANT
from memometer.store.episode import Episode
from memometer.store.protocol import Store

SCOPE = "access:"
RIGHTS = ("read", "write", "admin")
"""What a token allows: reading; also storing and forgetting; also deleting and replacing memories."""


class InvalidToken(UserError, ValueError):
    """A token cannot be issued."""


@dataclass(frozen=True)
class AccessToken:
    """An issued token.

    Attributes:
        id: the start of its hash.
        tenant: the tenant of its requests.
        created_at: Unix seconds.
        right: one of RIGHTS.
        expires_at: Unix seconds; None for never.
        used_at: Unix seconds, written about every half minute; None if it was never used.
    """

    id: str
    tenant: str
    created_at: float
    right: str = "admin"
    expires_at: float | None = None
    used_at: float | None = None

    def allows(self, right: str) -> bool:
        """Return True if the token gives a right."""
        return RIGHTS.index(right) <= RIGHTS.index(self.right)


class AccessTokens:
    """The tokens in a store. Every process rejects a revoked token from the next request on."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tokens: tuple[int, dict[str, AccessToken]] = (-1, {})
        self._used: dict[str, float] = {}
        self._lock = threading.Lock()

    def issue(self, tenant: str, *, at: float, right: str = "admin", expires_at: float | None = None) -> str:
        """Issue a token to a tenant. Only its hash is stored, so this is the only time that it can be read.

        Raises:
            InvalidToken: the tenant is that of the command line.
        """
        if tenant == LOCAL_TENANT:
            raise InvalidToken(f"{tenant!r} is the tenant of the command line and gets no tokens; use another name.")
        token = secrets.token_urlsafe(32)
        details: dict[str, str | int | float] = {"tenant": tenant, "right": right}
        if expires_at is not None:
            details["expires_at"] = expires_at
        self._store.change(SCOPE, add=[Episode(_hash(token), "", at, details=details)])
        return token

    def rotate(self, id: str, *, at: float) -> tuple[AccessToken, str] | None:
        """Replace a token by a new one with the same tenant, right and expiry; None if there is no such token."""
        for old in self.issued():
            if old.id == id:
                token = self.issue(old.tenant, at=at, right=old.right, expires_at=old.expires_at)
                self.revoke(id)
                return replace(old, id=_hash(token)[:12], created_at=at), token
        return None

    def revoke(self, id: str) -> int:
        """Revoke a token by its id, or all tokens of a tenant; return the number of revoked tokens."""
        revoked = [e.id for e in self._store.scan(SCOPE) if e.id[:12] == id or e.details["tenant"] == id]
        return self._store.delete(SCOPE, revoked)

    def issued(self) -> list[AccessToken]:
        """Return all tokens that are not revoked, oldest first."""
        return sorted(map(_token_of, self._store.scan(SCOPE)), key=lambda token: token.created_at)

    def tenant_of(self, token: str) -> str | None:
        """Return the tenant of a token that is not revoked, or None."""
        found = self.find(token)
        return found.tenant if found else None

    def find(self, token: str, *, at: float | None = None) -> AccessToken | None:
        """Return a token that is valid, or None. All hashes are compared, each in constant time.

        Args:
            token: the token.
            at: present time in Unix seconds, with which its expiry is compared and its use noted; None for neither.
        """
        changes = self._store.size(SCOPE).changes
        if self._tokens[0] != changes:
            self._tokens = changes, {episode.id: _token_of(episode) for episode in self._store.scan(SCOPE)}
        hashed, found, known_hash = _hash(token), None, ""
        for known, issued in self._tokens[1].items():
            if hmac.compare_digest(known, hashed):
                found, known_hash = issued, known
        if found and at is not None:
            if found.expires_at is not None and at >= found.expires_at:
                return None
            with self._lock:
                self._used[known_hash] = at
        return found

    def flush_uses(self) -> None:
        """Write the last uses that were noted since the last call."""
        with self._lock:
            used, self._used = self._used, {}
        for episode in self._store.get(SCOPE, list(used)):
            details = {**episode.details, "used_at": used[episode.id]}
            self._store.replace(SCOPE, replace(episode, details=details))


def _token_of(episode: Episode) -> AccessToken:
    details = episode.details
    expires_at, used_at = details.get("expires_at"), details.get("used_at")
    return AccessToken(
        episode.id[:12],
        str(details["tenant"]),
        episode.at,
        str(details.get("right", "admin")),
        None if expires_at is None else float(expires_at),
        None if used_at is None else float(used_at),
    )


def _hash(token: str) -> str:
    # A token has 256 random bits; a slow password hash would add nothing.
    return hashlib.sha256(token.encode()).hexdigest()
