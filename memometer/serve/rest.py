"""The REST service: routes, pages and health checks.

    memometer serve                      http://127.0.0.1:8765/docs, without tokens
    memometer token ada                  creates a token of tenant ada; required for --host 0.0.0.0

Errors are application/problem+json (RFC 9457). A write is durable when it is acknowledged. A store request with an
Idempotency-Key header can be repeated safely.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.responses import FileResponse, HTMLResponse
from fastapi.security import HTTPBearer
from prometheus_client import generate_latest
from pydantic import TypeAdapter
from starlette.background import BackgroundTask
from starlette.types import Scope

from memometer.cartridge.container import CartridgeError
from memometer.serve import api_page, schemas
from memometer.serve.admission import BULK, MCP, MODEL, POOLS, SEARCH, SINGLE_TENANT_POOLS, Admission, Pool
from memometer.serve.auth import AccessTokens
from memometer.serve.child_jobs import Jobs
from memometer.serve.cursors import Cursor, Limit, decoded, encoded
from memometer.serve.errors import ProblemDetails, add_error_handlers
from memometer.serve.middleware import MAX_CARTRIDGE_BYTES, Metrics, RateLimiter, RequestGuard
from memometer.serve.readiness import Readiness
from memometer.serve.registry import DEFAULT_MEMORY, MemoryEntry
from memometer.serve.request_log import RequestLog
from memometer.serve.rest_jobs import add_job_routes
from memometer.serve.rest_turns import Key, add_turn_routes
from memometer.serve.schemas import Name, Text
from memometer.serve.tenant_of_request import Tenant
from memometer.serve.tenants import TenantMemories
from memometer.store import deadline
from memometer.store.url import bytes_of

BINARY: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
BULK_BYTES = 100_000
"""Size of a request from which it counts as bulk work."""

Memory = Annotated[Name, Query()]
MEMORY_CURSOR: TypeAdapter[tuple[str]] = TypeAdapter(tuple[Name])


def application(
    memories: TenantMemories,
    *,
    tenant: str,
    tokens: AccessTokens | None = None,
    rate: RateLimiter | None = None,
    hosts: Collection[str] | None = None,
    pools: Mapping[str, Pool] | None = None,
    child_jobs: bool = False,
    log: RequestLog | None = None,
) -> FastAPI:
    """Return the service as an ASGI application.

    Args:
        memories: the memories of all tenants.
        tenant: the tenant of all requests if there are no tokens.
        tokens: the accepted tokens; None accepts every request.
        rate: limit of requests per caller; None for no limit.
        hosts: accepted Host headers if there are no tokens; None for any.
        pools: limits of each kind of work; None for the default ones.
        child_jobs: run large exports, imports and consolidations in processes of their own.
        log: writes every request down; None for no log.
    """
    metrics, admission = Metrics(), Admission(pools or (SINGLE_TENANT_POOLS if tokens is None else POOLS))
    mcp, jobs = _mcp_server(memories, tenant), Jobs(memories, in_child=child_jobs)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = admission.threads
        async with mcp.session_manager.run() if mcp else nullcontext():
            yield

    app = FastAPI(
        title="Memometer",
        version="1",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's page loads scripts from another server
        redoc_url=None,
        responses={status: {"model": ProblemDetails} for status in (400, 401, 403, 404, 409, 413, 422, 429, 500, 503)},
    )
    guard: dict[str, Any] = {
        "tokens": tokens,
        "tenant": tenant,
        "rate": rate or RateLimiter(0),
        "hosts": hosts,
        "log": log,
    }
    kind_of = partial(_kind_of, memories)
    app.add_middleware(RequestGuard, metrics=metrics, admission=admission, kind_of=kind_of, **guard)
    add_error_handlers(app)
    router = APIRouter(dependencies=[Depends(HTTPBearer(auto_error=False))] if tokens else [])
    _add_default_routes(router, memories, jobs)
    _add_memory_routes(router, memories, jobs)
    add_turn_routes(router, memories)
    add_job_routes(router, memories, admission, jobs)
    _add_cartridge_routes(router, memories, admission, jobs)
    _add_metrics_route(router, metrics, admission, memories)
    app.include_router(router)
    _add_health_routes(app, memories)
    if mcp:
        from mcp.server.transport_security import TransportSecuritySettings

        # RequestGuard checks hosts, origins and tokens already.
        security = TransportSecuritySettings(enable_dns_rebinding_protection=False)
        mcp_app = mcp.streamable_http_app(stateless_http=True, json_response=True, transport_security=security)
        for route in mcp_app.routes:
            route.methods = {"POST"}  # the server sends no notifications; a GET would wait for them for ever
        app.router.routes.extend(mcp_app.routes)
    return app


def _kind_of(memories: TenantMemories, scope: Scope, body_bytes: int) -> str:
    """Return the kind of work of a request (memometer/serve/admission.py)."""
    path, _, action = scope["path"].rpartition("/")
    if action in ("cartridge", "consolidate", "undo", "codebook") or body_bytes >= BULK_BYTES:
        return BULK
    if scope["path"] == "/mcp":
        return MCP
    if action == "answer":
        return MODEL
    if action == "recall" and memories.registry.uses_model(scope["state"]["tenant"], path.rpartition("/")[2]):
        return MODEL
    return SEARCH


def _mcp_server(memories: TenantMemories, tenant: str) -> Any:
    """The MCP server; None if the extra `mcp` is not installed."""
    if find_spec("mcp") is None:
        return None
    from memometer.serve.mcp_server import server

    return server(memories, tenant=tenant)


# Route functions without `async` run in a thread pool, which keeps encoding and storage off the event loop.


def _add_default_routes(app: APIRouter, memories: TenantMemories, jobs: Jobs) -> None:
    @app.post("/memory/store", status_code=201)
    def store(body: schemas.StoreIn, tenant: Tenant, key: Key = None) -> schemas.StoredOut:
        """Store a turn. Creates the memory if it is missing."""
        memories.registry.ensure(tenant, body.memory)
        ids = memories.observe(tenant, body.memory, [body.turn()], key=key, importance=body.importance)
        return schemas.StoredOut(memory=body.memory, ids=ids)

    @app.get("/memory/retrieve")
    def retrieve(
        q: Annotated[Text, Query()],
        tenant: Tenant,
        k: Annotated[int, Query(ge=1, le=1000)] = 10,
        memory: Memory = DEFAULT_MEMORY,
    ) -> schemas.RetrievedOut:
        """Return the k best turns by words and meaning, best first."""
        return schemas.RetrievedOut.of(memory, memories.retrieve(tenant, memory, q, k=k))

    @app.post("/memory/consolidate")
    def consolidate(body: schemas.ConsolidateIn, tenant: Tenant) -> schemas.ConsolidatedOut:
        """Merge near-duplicate turns and archive faded ones. Idempotent."""
        return schemas.ConsolidatedOut.of(
            body.memory, jobs.consolidate(tenant, body.memory, weights=body.weights, dry_run=body.dry_run)
        )

    @app.get("/memory/stats")
    def stats(tenant: Tenant) -> schemas.StatsOut:
        """Count the turns of all memories."""
        sizes = [memories.store.size(entry.scope) for entry in memories.registry.entries(tenant)]
        return schemas.StatsOut(
            memories=len(sizes), turns=sum(s.episodes for s in sizes), archived=sum(s.archived for s in sizes)
        )


def _add_memory_routes(app: APIRouter, memories: TenantMemories, jobs: Jobs) -> None:
    def out(entry: MemoryEntry) -> schemas.MemoryOut:
        return schemas.MemoryOut.of(entry, memories.store.size(entry.scope))

    @app.get("/v1/memories")
    def list_memories(tenant: Tenant, limit: Limit = 100, cursor: Cursor = None) -> schemas.MemoriesOut:
        """List the memories, sorted by name."""
        after = decoded(cursor, MEMORY_CURSOR)[0] if cursor else ""
        entries = [entry for entry in memories.registry.entries(tenant) if entry.name > after]
        page = entries[:limit]
        following = encoded(page[-1].name) if len(entries) > limit else None
        return schemas.MemoriesOut(memories=[out(entry) for entry in page], next=following)

    @app.put("/v1/memories/{name}", status_code=201, responses={200: {"model": schemas.MemoryOut}})
    def create(name: Name, body: schemas.CreateIn, tenant: Tenant, response: Response) -> schemas.MemoryOut:
        """Create a memory: 201, or 200 if it exists with the same system."""
        memories.limits.check_system(body.system)
        entry, created = memories.registry.create(tenant, name, system=body.system)
        response.status_code = 201 if created else 200
        return out(entry)

    @app.get("/v1/memories/{name}")
    def show(name: Name, tenant: Tenant) -> schemas.MemoryOut:
        """Show the system and size of a memory."""
        return out(memories.registry.find(tenant, name))

    @app.delete("/v1/memories/{name}", status_code=204)
    def delete(name: Name, tenant: Tenant) -> None:
        """Delete a memory and its turns permanently."""
        memories.registry.delete(tenant, name)

    @app.post("/v1/memories/{name}/recall")
    def recall(name: Name, body: schemas.RecallIn, tenant: Tenant) -> schemas.RecallOut:
        """Return the text to show to a reader for a question, within a token budget."""
        at = body.at.replace(tzinfo=body.at.tzinfo or UTC).timestamp() if body.at else None
        return schemas.RecallOut.of(
            memories.recall(tenant, name, body.question, budget_tokens=body.budget_tokens, at=at)
        )

    @app.post("/v1/memories/{name}/answer")
    def answer(name: Name, body: schemas.AnswerIn, tenant: Tenant) -> schemas.AnswerOut:
        """Answer a question with the language model, from recalled turns."""
        text, recall = memories.answer(tenant, name, body.question, budget_tokens=body.budget_tokens)
        return schemas.AnswerOut(answer=text, recall=schemas.RecallOut.of(recall))

    @app.post("/v1/memories/{name}/codebook")
    def codebook(name: Name, body: schemas.CodebookIn, tenant: Tenant) -> schemas.CodebookOut:
        """Return the codebook of the memory's vectors: recurring ones, recent ones, and their energies."""
        codes = memories.codebook(tenant, name, goals=body.goals)
        return schemas.CodebookOut.of(name, codes, at=memories.now(), vectors=body.vectors)

    @app.post("/v1/memories/{name}/consolidate")
    def consolidate_one(name: Name, tenant: Tenant, dry_run: bool = False) -> schemas.ConsolidatedOut:
        """Same as /memory/consolidate, with the default weights."""
        return schemas.ConsolidatedOut.of(name, jobs.consolidate(tenant, name, weights="default", dry_run=dry_run))

    @app.post("/v1/memories/{name}/consolidate/undo")
    def undo_consolidation(name: Name, tenant: Tenant) -> schemas.RestoredOut:
        """Restore the turns that the last consolidation archived."""
        return schemas.RestoredOut(memory=name, restored=memories.undo_consolidation(tenant, name))


def _add_cartridge_routes(app: APIRouter, memories: TenantMemories, admission: Admission, jobs: Jobs) -> None:
    def shown(tenant: str, name: str) -> schemas.MemoryOut:
        entry = memories.registry.find(tenant, name)
        return schemas.MemoryOut.of(entry, memories.store.size(entry.scope))

    upload_threads = CapacityLimiter(4)  # uploads must not queue behind other requests

    @app.get("/v1/memories/{name}/cartridge", response_class=FileResponse, responses={200: {"content": BINARY}})
    def export(name: Name, tenant: Tenant, archived: bool = False) -> FileResponse:
        """Download the memory as a cartridge file, which can be imported into any store. Archived turns are left out
        unless `archived=true`."""
        folder = tempfile.TemporaryDirectory()
        try:
            path = Path(folder.name) / f"{name}.cartridge"
            jobs.export(tenant, name, path, archived=archived)
        except BaseException:  # without a response, no background task cleans up
            folder.cleanup()
            raise
        clean = BackgroundTask(folder.cleanup)
        return FileResponse(path, media_type=next(iter(BINARY)), filename=path.name, background=clean)

    @app.put("/v1/memories/{name}/cartridge", openapi_extra={"requestBody": {"required": True, "content": BINARY}})
    async def put_cartridge(name: Name, request: Request, tenant: Tenant) -> schemas.MemoryOut:
        """Create a memory from a cartridge file, or replace the existing one. Until the import is complete, requests
        use the old memory."""
        with tempfile.NamedTemporaryFile(suffix=".cartridge") as file:
            async for block in request.stream():
                await to_thread.run_sync(file.write, block, limiter=upload_threads)
            await to_thread.run_sync(file.flush, limiter=upload_threads)
            path = Path(file.name)
            put = partial(jobs.import_, tenant, name, path, max_record_bytes=MAX_CARTRIDGE_BYTES)
            release = await admission.acquire(BULK, tenant)
            try:
                with deadline.deadline(admission.pools[BULK].seconds):
                    await to_thread.run_sync(put)
            except CartridgeError as error:  # the caller does not know the temporary path
                raise CartridgeError(str(error).replace(str(path), "The request body")) from error
            finally:
                release()
            return await to_thread.run_sync(shown, tenant, name)


def _add_health_routes(app: FastAPI, memories: TenantMemories) -> None:
    @app.get("/docs", include_in_schema=False, response_class=HTMLResponse)
    async def reference() -> HTMLResponse:
        """Return the API reference."""
        return HTMLResponse(api_page.page(app.openapi()))

    @app.get("/livez")
    async def livez() -> schemas.HealthOut:
        """Check that the process responds."""
        return schemas.HealthOut(status="ok")

    readiness = Readiness(memories)

    @app.get("/readyz")
    async def readyz() -> schemas.HealthOut:
        """Check that the store can be written and read. It waits for no other request."""
        await readiness.check()
        return schemas.HealthOut(status="ok")


def _add_metrics_route(app: APIRouter, metrics: Metrics, admission: Admission, memories: TenantMemories) -> None:
    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def prometheus() -> Response:
        """Return metrics in Prometheus text format."""
        for kind in admission.pools:
            metrics.waiting.labels(kind).set(admission.waiting(kind))
        metrics.store_bytes.set(bytes_of(memories.memory_url))
        return Response(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4; charset=utf-8")
