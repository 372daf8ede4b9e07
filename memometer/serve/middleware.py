"""What stands before the service: tokens, rate, how many may wait, and the measures of all that passes."""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Callable, Collection

from anyio import CapacityLimiter, to_thread
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memometer.serve.auth import Access
from memometer.serve.errors import problem
from memometer.store.episode import StoreError

OPEN = ("/livez", "/readyz", "/openapi.json", "/docs")
"""What needs no token."""

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""Those that are counted by name: anybody can make up others."""

MOST_BODY_BYTES = 2**20
MOST_CARTRIDGE_BYTES = 2**28
MOST_CALLERS = 10_000
"""Callers whose rate is known; the one that was not heard of longest is forgotten."""


class Measures:
    """Counters in Prometheus' terms. They name no tenant."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        labels = ("method", "route", "status")
        self.requests = Counter("http_requests", "Requests answered.", labels, registry=self.registry)
        self.seconds = Histogram("http_request_seconds", "Time to answer.", ("route",), registry=self.registry)
        self.waiting = Gauge("http_requests_in_progress", "Requests being answered.", registry=self.registry)


class Rate:
    """A token bucket for each caller.

    Args:
        per_second: requests in the long run; 0 for any number.
        burst: at once.
    """

    def __init__(
        self, per_second: float, *, burst: float | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second = per_second
        self._burst = max(1.0, 2 * per_second if burst is None else burst)
        self._now = now
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allows(self, caller: str) -> bool:
        """Whether a caller may ask now; it is counted when it may."""
        if not self._per_second:
            return True
        now = self._now()
        left, since = self._left.pop(caller, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._per_second)
        self._left[caller] = (left - 1 if left >= 1 else left, now)
        if len(self._left) > MOST_CALLERS:
            self._left.popitem(last=False)
        return left >= 1


class Guard:
    """Lets a request through to `app` with its tenant in `request.state.tenant`, or refuses it.

    Args:
        access: the tokens; None asks for none, and everybody is `tenant`.
        hosts: under which names the service may be asked where there are no tokens, so that a page of the web, made to
            point here by its name server, cannot; None for any.
        most_waiting: requests at a time; further ones are told to come back.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        access: Access | None,
        tenant: str,
        rate: Rate,
        measures: Measures,
        hosts: Collection[str] | None = None,
        most_waiting: int = 1000,
    ) -> None:
        self._app = app
        self._access = access
        self._tenant = tenant
        self._rate = rate
        self._measures = measures
        self._hosts = hosts
        self._most_waiting = most_waiting
        self._waiting = 0
        self._doors = CapacityLimiter(1)  # who is let in does not queue behind those who are

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._waiting += 1
        self._measures.waiting.set(self._waiting)
        try:
            refusal = await self._refusal(scope)
            await (refusal or self._app)(scope, _limited(receive, _most_bytes(scope)), noting)
        finally:
            self._waiting -= 1
            self._measures.waiting.set(self._waiting)
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._measures.requests.labels(method, route, status).inc()
            self._measures.seconds.labels(route).observe(time.perf_counter() - started)

    async def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        caller, tenant = f"address {(scope.get('client') or ('',))[0]}", self._tenant
        if self._access is None:
            host = headers.get("host", "").rsplit(":", 1)[0]
            if self._hosts is not None and host not in self._hosts:
                return problem(403, f"This service is not called {host!r}; it is {', '.join(self._hosts)}.")
        if scope["path"] in OPEN:
            return None
        most = _most_bytes(scope)
        if int(headers.get("content-length", "0")) > most:  # a number: the server has seen to that
            return problem(413, _too_large(most))
        if self._waiting > self._most_waiting:
            return problem(503, "Too many requests are waiting; try again.")
        if self._access is not None:
            kind, _, token = headers.get("authorization", "").partition(" ")
            try:
                found = (
                    await to_thread.run_sync(self._access.tenant_of, token, limiter=self._doors)
                    if kind.lower() == "bearer"
                    else None
                )
            except StoreError as error:
                return problem(503, str(error))
            if found is None:
                if not self._rate.allows(caller):
                    return problem(429, "Too many requests with a wrong token; try again later.")
                return problem(
                    401,
                    "A token is needed: Authorization: Bearer TOKEN; memometer token TENANT makes one.",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            tenant = found
            caller = f"tenant {tenant}"
        if not self._rate.allows(caller):
            return problem(429, "Too many requests; slow down.")
        scope.setdefault("state", {})["tenant"] = tenant
        return None


def _most_bytes(scope: Scope) -> int:
    carried = re.fullmatch(r"/v1/memories/[^/]+/cartridge", scope["path"])
    return MOST_CARTRIDGE_BYTES if carried else MOST_BODY_BYTES


def _too_large(most: int) -> str:
    return f"A request may have up to {most:,} bytes here; send it in parts."


def _limited(receive: Receive, most: int) -> Receive:
    """The body as it comes, up to a limit: not every request says how long it will be."""
    received = 0

    async def counting() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > most:
            raise HTTPException(413, _too_large(most))
        return message

    return counting
