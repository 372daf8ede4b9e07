"""The server process of the REST service."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from memometer.serve.auth import AccessTokens
from memometer.serve.glibc_trim import trimmed_heap
from memometer.serve.middleware import RateLimiter
from memometer.serve.registry import InvalidRequest
from memometer.serve.request_log import RequestLog
from memometer.serve.rest import application
from memometer.serve.tenant_limits import TenantLimits
from memometer.serve.tenants import TenantMemories
from memometer.serve.upkeep import Upkeep
from memometer.store.consolidation import IdleConsolidation
from memometer.store.url import without_password

MAX_HEADER_BYTES = 32 * 1024
"""Bytes of a request's headers."""

HEADER_SECONDS = 10
"""Time for the headers of a request to arrive."""

KEEP_ALIVE_SECONDS = 15
"""Time after a response in which a connection may stay idle."""

SWITCH_SECONDS = 0.0001
"""Time after which Python lets another thread run. With the default of 5 ms, each read of a short request waits that
long for a thread that computes."""


class BoundedHTTP(H11Protocol):
    """HTTP/1.1 that closes connections whose headers do not arrive in time."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_idle():
            self._wait_for_headers()
        elif self._timer:
            self._timer.cancel()
            self._timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer:
            self._timer.cancel()
        super().connection_lost(exc)

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait_for_headers(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self._close_if_idle)

    def _close_if_idle(self) -> None:
        self._timer = None
        if self._is_idle() and not self.transport.is_closing():
            self.transport.close()


def serve(
    memories: TenantMemories,
    *,
    tenant: str,
    host: str,
    port: int,
    auth: bool | None = None,
    per_second: float = 0,
    consolidate_after_seconds: float = 0,
    proxies: Sequence[str] = (),
    limits: TenantLimits | None = None,
    access_log: str | None = None,
    audit_log: str | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; requests in progress are finished first.

    Args:
        memories: the memories of all tenants.
        tenant: the tenant of all requests if tokens are not required.
        host: the address to listen on.
        port: the TCP port.
        auth: require bearer tokens; None requires them unless `host` is the loopback address.
        per_second: sustained requests per second of each caller; 0 for no limit.
        consolidate_after_seconds: consolidate a memory after this time without new turns; 0 for never.
        proxies: addresses of proxies whose X-Forwarded-For header names the caller; nobody else's is believed.
        limits: what tenants may do; None for no limits.
        access_log: file to which every request adds a line of JSON; `-` for standard error, None for none.
        audit_log: the same for requests that store, change, export or delete.

    Raises:
        InvalidRequest: the address cannot be used, or tokens are required and none exists.
    """
    if port > 65_535:
        raise InvalidRequest(f"port {port} does not exist; the highest is 65535.")
    is_local = host in ("127.0.0.1", "::1", "localhost")
    if auth is False and not is_local:
        raise InvalidRequest(f"{host} accepts remote connections, which always require tokens; omit --no-auth.")
    tokens = AccessTokens(memories.store) if auth or not is_local else None
    if tokens and not tokens.issued():
        url = without_password(memories.memory_url)
        raise InvalidRequest(f"{url} has no access token; create one with: memometer token NAME --memory-url {url}")
    memories.limits = limits or TenantLimits()
    memories.registry.remove_orphans()
    memories.ready()  # fail before the first request
    hosts = ("127.0.0.1", "localhost", "::1")
    log = RequestLog(access_log, audit_log)
    app = application(
        memories,
        tenant=tenant,
        tokens=tokens,
        rate=RateLimiter(per_second),
        hosts=hosts,
        child_jobs=True,
        log=log,
    )
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise InvalidRequest(f"cannot listen on {host}:{port} ({reason}); choose another --port.") from error
    print(f"Serving on http://{host}:{port} (API reference: /docs; stop with Ctrl-C)", flush=True)
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()  # what was loaded at the start lives as long as the process, so collections need not look at it
    with ExitStack() as stack:
        stack.callback(log.close)
        stack.enter_context(trimmed_heap())
        stack.enter_context(Upkeep(memories, tokens))
        if consolidate_after_seconds:
            idle = IdleConsolidation(memories.store, after_seconds=consolidate_after_seconds, now=memories.now)
            memories.on_observed = stack.enter_context(idle).touch
        stack.enter_context(listener)
        settings = uvicorn.Config(
            app,
            http=BoundedHTTP,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            proxy_headers=bool(proxies),
            forwarded_allow_ips=list(proxies),
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=60,
        )
        uvicorn.Server(settings).run(sockets=[listener])
