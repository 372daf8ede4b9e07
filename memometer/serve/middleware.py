"""The checks before every request of the REST service: host, size, token and rate; and its metrics."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Collection
from functools import partial
from urllib.parse import urlsplit

from anyio import CapacityLimiter, move_on_after, to_thread
from cachetools import LRUCache
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memometer.serve.admission import Admission, TooManyRequests
from memometer.serve.auth import AccessToken, AccessTokens
from memometer.serve.errors import problem_response
from memometer.serve.request_log import RequestLog, request_id
from memometer.store import deadline
from memometer.store.episode import StoreError

PUBLIC_PATHS = ("/livez", "/readyz", "/openapi.json", "/docs")
"""Paths that need no token and have no rate limit."""

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""Methods with their own metrics label. Others share one, so that callers cannot create labels without limit."""

MAX_BODY_BYTES = 2**20
MAX_CARTRIDGE_BYTES = 2**28
MAX_BUFFERED_BYTES = 2**26
"""Bytes of all request bodies in memory."""

BODY_SECONDS = 30
"""Time for a request body to arrive; for a cartridge, time between two parts."""

GRACE_SECONDS = 2
"""Time after a deadline in which the work may end by itself."""

SEND_SECONDS = 300
"""Time to send a response, from the deadline."""

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
        self.waiting = Gauge("pool_waiting", "Requests that wait for a slot.", ("pool",), registry=self.registry)
        self.store_bytes = Gauge("store_bytes", "Size of a SQLite store's file.", registry=self.registry)
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

    Health checks pass at once. Every other request is read completely, waits for a slot of its pool, and gets an answer
    before its deadline.

    Args:
        app: the next ASGI application.
        tokens: the accepted tokens; None accepts every request as `tenant`.
        tenant: the tenant of requests if there are no tokens.
        rate: the limit of each tenant, or of each address without a valid token.
        metrics: counts requests.
        admission: the pools of work.
        kind_of: returns the kind of work of a request, from its ASGI scope and the length of its body.
        hosts: accepted Host headers if there are no tokens (protection against DNS rebinding); None for any.
        max_requests: requests in progress; further ones get status 503.
        log: writes every request down; None for no log.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        tokens: AccessTokens | None,
        tenant: str,
        rate: RateLimiter,
        metrics: Metrics,
        admission: Admission,
        kind_of: Callable[[Scope, int], str],
        hosts: Collection[str] | None = None,
        max_requests: int = 1000,
        log: RequestLog | None = None,
    ) -> None:
        self._app = app
        self._log = log or RequestLog()
        self._tokens = tokens
        self._tenant = tenant
        self._rate = rate
        self._metrics = metrics
        self._admission = admission
        self._kind_of = kind_of
        self._hosts = hosts
        self._max_requests = max_requests
        self._in_progress = 0
        self._buffered_bytes = 0
        self._token_thread = CapacityLimiter(1)  # token checks must not queue behind requests
        self._late: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500
        id = scope.setdefault("state", {})["request_id"] = request_id(scope)

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = id
            await send(message)

        self._in_progress += 1
        self._metrics.in_progress.set(self._in_progress)
        with self._log.span(scope) as span:
            try:
                await self._handle(scope, receive, send_and_note_status)
            finally:
                self._in_progress -= 1
                seconds = time.perf_counter() - started
                self._metrics.in_progress.set(self._in_progress)
                route = getattr(scope.get("route"), "path", "none")
                method = scope["method"] if scope["method"] in METHODS else "other"
                self._metrics.requests.labels(method, route, status).inc()
                self._metrics.seconds.labels(route).observe(seconds)
                self._log.finish(scope, span, status=status, seconds=seconds)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if refusal := await self._refusal(scope):
            await refusal(scope, receive, send)
        elif scope["path"] in PUBLIC_PATHS:
            await self._app(scope, receive, send)
        elif is_upload(scope):  # the route stores the body in a file, and waits for a slot then
            await self._app(scope, _limited(receive, MAX_CARTRIDGE_BYTES), send)
        else:
            try:
                body = await self._body(receive)
            except ClientDisconnect:
                return
            except HTTPException as error:
                await problem_response(error.status_code, error.detail)(scope, receive, send)
                return
            self._buffered_bytes += len(body)
            try:
                await self._admit(scope, _replayed(body, receive), send, len(body))
            finally:
                self._buffered_bytes -= len(body)

    async def _body(self, receive: Receive) -> bytes:
        """Read the body of a request.

        Raises:
            HTTPException: the body is too large or too slow, or all bodies together need too much memory.
            ClientDisconnect: the client has gone.
        """
        parts: list[bytes] = []
        limited, is_complete = _limited(receive, MAX_BODY_BYTES), False
        with move_on_after(BODY_SECONDS):
            while not is_complete:
                message = await limited()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                parts.append(message.get("body", b""))
                is_complete = not message.get("more_body", False)
                if self._buffered_bytes + sum(map(len, parts)) > MAX_BUFFERED_BYTES:
                    raise HTTPException(503, "Too many large requests in progress; try again.")
        if not is_complete:
            raise HTTPException(408, f"The request body did not arrive within {BODY_SECONDS} seconds; send it again.")
        return b"".join(parts)

    async def _admit(self, scope: Scope, receive: Receive, send: Send, body_bytes: int) -> None:
        """Run a request in its pool, and answer 503 if it takes longer than the pool allows."""
        kind = self._kind_of(scope, body_bytes)
        seconds = self._admission.pools[kind].seconds
        release = None
        try:
            with move_on_after(seconds):
                release = await self._admission.acquire(kind, scope["state"]["tenant"])
        except TooManyRequests:
            detail = "Too many requests of this tenant wait already; send fewer at a time."
            await problem_response(429, detail)(scope, receive, send)
            return
        if release is None:
            await problem_response(503, "The service is busy; try again later.")(scope, receive, send)
            return
        has_started = is_late = False

        async def send_in_time(message: Message) -> None:
            nonlocal has_started
            if not is_late:
                if not has_started:
                    has_started = True
                    release()  # the work is done; a slow reader holds no slot
                await send(message)

        async def run() -> None:
            await self._app(scope, receive, send_in_time)

        with deadline.deadline(seconds):
            task = asyncio.create_task(run())
        task.add_done_callback(lambda _: release())
        try:
            await asyncio.wait({task}, timeout=seconds + GRACE_SECONDS)
            if has_started and not task.done():
                await asyncio.wait({task}, timeout=SEND_SECONDS)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if task.done():
            await task
        elif has_started:
            task.cancel()
        else:  # a thread cannot be stopped: it keeps its slot until it ends
            is_late = True
            self._late.add(task)
            task.add_done_callback(self._forget_late)
            detail = f"The request took longer than {seconds:g} seconds; send less at once, or try again later."
            await problem_response(503, detail)(scope, receive, send)

    def _forget_late(self, task: asyncio.Task[None]) -> None:
        self._late.discard(task)
        if not task.cancelled():
            task.exception()  # it has been answered already

    async def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._tokens is None and self._hosts is not None and _host_name(host) not in self._hosts:
            return problem_response(403, f"host {host!r} is not accepted; use {', '.join(self._hosts)}.")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():  # a page of another site
            return problem_response(403, f"Requests from pages of {origin!r} are not accepted.")
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
                authorized = await self._token_of(self._tokens, headers.get("authorization", ""))
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
            if not authorized.allows(right := _right_for(scope)):
                return problem_response(403, f"The token allows to {authorized.right}; this request needs {right}.")
            tenant = authorized.tenant
            scope["state"]["token"] = authorized.id
            caller = f"tenant {tenant}"
        if not self._rate.allows(caller):
            return problem_response(429, "Too many requests; try again later.")
        scope["state"]["tenant"] = tenant
        return None

    async def _token_of(self, tokens: AccessTokens, authorization: str) -> AccessToken | None:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        find = partial(tokens.find, token, at=time.time())
        return await to_thread.run_sync(find, limiter=self._token_thread)


def _right_for(scope: Scope) -> str:
    """Return the right that a request needs (memometer/serve/auth.py)."""
    method, path = scope["method"], scope["path"]
    if method in ("GET", "HEAD", "OPTIONS") or re.fullmatch(
        r"/v1/memories/[^/]+/(recall|answer|search|codebook)", path
    ):
        return "read"
    if is_upload(scope) or (method == "DELETE" and re.fullmatch(r"/v1/memories/[^/]+", path)):
        return "admin"
    return "write"


def _host_name(host: str) -> str:
    """Return the name in a Host header, without the port; an IPv6 address without brackets."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def is_upload(scope: Scope) -> bool:
    """Return True if a request uploads a cartridge, whose body is too large for memory."""
    return scope["method"] == "PUT" and re.fullmatch(r"/v1/memories/[^/]+/cartridge", scope["path"]) is not None


def _max_bytes(scope: Scope) -> int:
    return MAX_CARTRIDGE_BYTES if is_upload(scope) else MAX_BODY_BYTES


def _too_large(limit: int) -> str:
    return f"The request body is larger than {limit:,} bytes; send it in parts."


def _limited(receive: Receive, limit: int) -> Receive:
    """Count the bytes of a body as they arrive; chunked requests have no Content-Length."""
    received = 0

    async def counting() -> Message:
        nonlocal received
        message: Message | None = None
        with move_on_after(BODY_SECONDS):
            message = await receive()
        if message is None:
            raise HTTPException(408, f"No part of the request body arrived for {BODY_SECONDS} seconds; send it again.")
        received += len(message.get("body", b""))
        if received > limit:
            raise HTTPException(413, _too_large(limit))
        return message

    return counting


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a body that was read already, then wait for the end of the connection."""
    message: Message | None = {"type": "http.request", "body": body, "more_body": False}

    async def replay() -> Message:
        nonlocal message
        if message is None:
            return await receive()
        first, message = message, None
        return first

    return replay
