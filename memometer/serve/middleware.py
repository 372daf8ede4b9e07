"""The checks before every request of the REST service: host, size, token and rate; and its metrics."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection

from anyio import CapacityLimiter, to_thread
from cachetools import LRUCache
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memometer.serve.auth import AccessTokens
from memometer.serve.errors import problem_response
from memometer.store.episode import StoreError

PUBLIC_PATHS = ("/livez", "/readyz", "/openapi.json", "/docs")
"""Paths that need no token and have no rate limit."""

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""Methods with their own metrics label. Others share one, so that callers cannot create labels without limit."""

MAX_BODY_BYTES = 2**20
MAX_CARTRIDGE_BYTES = 2**28
MAX_CALLERS = 10_000
"""Callers in the rate limiter; the least recently seen one is dropped."""


class Metrics:
    """Prometheus metrics of the service. Labels contain no tenant."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        labels = ("method", "route", "status")
        self.requests = Counter("http_requests", "Finished requests.", labels, registry=self.registry)
        self.seconds = Histogram("http_request_seconds", "Duration of a request.", ("route",), registry=self.registry)
        self.in_progress = Gauge("http_requests_in_progress", "Requests in progress.", registry=self.registry)


class RateLimiter:
    """A token bucket per caller.

    Args:
        per_second: sustained requests per second; 0 for no limit.
        burst: bucket size; None for two seconds' worth.
        now: returns the time in seconds.
    """

    def __init__(
        self, per_second: float, *, burst: float | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second = per_second
        self._burst = max(1.0, 2 * per_second if burst is None else burst)
        self._now = now
        self._buckets: LRUCache[str, tuple[float, float]] = LRUCache(MAX_CALLERS)

    def allows(self, caller: str) -> bool:
        """Return True if a caller may send a request now, and count the request."""
        if not self._per_second:
            return True
        now = self._now()
        tokens, since = self._buckets.get(caller, (self._burst, now))
        tokens = min(self._burst, tokens + (now - since) * self._per_second)
        self._buckets[caller] = (tokens - 1 if tokens >= 1 else tokens, now)
        return tokens >= 1


class RequestGuard:
    """ASGI middleware that refuses a request, or passes it on with its tenant in `request.state.tenant`.

    Args:
        app: the next ASGI application.
        tokens: the accepted tokens; None accepts every request as `tenant`.
        tenant: the tenant of requests if there are no tokens.
        rate: the limit of each tenant, or of each address without a valid token.
        metrics: counts requests.
        hosts: accepted Host headers if there are no tokens (protection against DNS rebinding); None for any.
        max_requests: requests in progress; further ones get status 503.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        tokens: AccessTokens | None,
        tenant: str,
        rate: RateLimiter,
        metrics: Metrics,
        hosts: Collection[str] | None = None,
        max_requests: int = 1000,
    ) -> None:
        self._app = app
        self._tokens = tokens
        self._tenant = tenant
        self._rate = rate
        self._metrics = metrics
        self._hosts = hosts
        self._max_requests = max_requests
        self._in_progress = 0
        self._token_thread = CapacityLimiter(1)  # token checks must not queue behind requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._in_progress += 1
        self._metrics.in_progress.set(self._in_progress)
        try:
            refusal = await self._refusal(scope)
            await (refusal or self._app)(scope, _limited(receive, _max_bytes(scope)), send_and_note_status)
        finally:
            self._in_progress -= 1
            self._metrics.in_progress.set(self._in_progress)
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._metrics.requests.labels(method, route, status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)

    async def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if self._tokens is None and self._hosts is not None:
            host = headers.get("host", "").rsplit(":", 1)[0]
            if host not in self._hosts:
                return problem_response(403, f"host {host!r} is not accepted; use {', '.join(self._hosts)}.")
        if scope["path"] in PUBLIC_PATHS:
            return None
        limit = _max_bytes(scope)
        if int(headers.get("content-length", "0")) > limit:  # the HTTP server has checked that it is a number
            return problem_response(413, _too_large(limit))
        if self._in_progress > self._max_requests:
            return problem_response(503, "Too many requests in progress; try again.")
        caller, tenant = f"address {(scope.get('client') or ('',))[0]}", self._tenant
        if self._tokens is not None:
            try:
                authorized = await self._tenant_of(self._tokens, headers.get("authorization", ""))
            except StoreError as error:
                return problem_response(503, str(error))
            if authorized is None:
                if not self._rate.allows(caller):
                    return problem_response(429, "Too many requests without a valid token; try again later.")
                return problem_response(
                    401,
                    "Send a token in the header Authorization: Bearer TOKEN; `memometer token TENANT` creates one.",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            tenant = authorized
            caller = f"tenant {tenant}"
        if not self._rate.allows(caller):
            return problem_response(429, "Too many requests; try again later.")
        scope.setdefault("state", {})["tenant"] = tenant
        return None

    async def _tenant_of(self, tokens: AccessTokens, authorization: str) -> str | None:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        return await to_thread.run_sync(tokens.tenant_of, token, limiter=self._token_thread)


def _max_bytes(scope: Scope) -> int:
    is_cartridge = re.fullmatch(r"/v1/memories/[^/]+/cartridge", scope["path"])
    return MAX_CARTRIDGE_BYTES if is_cartridge else MAX_BODY_BYTES


def _too_large(limit: int) -> str:
    return f"The request body is larger than {limit:,} bytes; send it in parts."


def _limited(receive: Receive, limit: int) -> Receive:
    """Count the bytes of a body as they arrive; chunked requests have no Content-Length."""
    received = 0

    async def counting() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise HTTPException(413, _too_large(limit))
        return message

    return counting
