"""The REST service: routes, pages and health checks.

    memometer serve                      http://127.0.0.1:8765/docs, without tokens
    memometer token ada                  creates a token of tenant ada; required for --host 0.0.0.0

Errors are application/problem+json (RFC 9457). A write is durable when it is acknowledged. A store request with an
Idempotency-Key header can be repeated safely.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response
from fastapi.responses import FileResponse
from fastapi.security import HTTPBearer
from prometheus_client import generate_latest
from pydantic import FiniteFloat, TypeAdapter
from starlette.background import BackgroundTask
from starlette.types import Scope

from memometer.cartridge.container import CartridgeError
from memometer.serve import schemas
from memometer.serve.admission import BULK, MCP, MODEL, POOLS, SEARCH, SINGLE_TENANT_POOLS, Admission, Pool
from memometer.serve.auth import AccessTokens
from memometer.serve.cartridge_io import export_cartridge, import_cartridge
from memometer.serve.errors import ProblemDetails, add_error_handlers
from memometer.serve.middleware import MAX_CARTRIDGE_BYTES, Metrics, RateLimiter, RequestGuard
from memometer.serve.readiness import Readiness
from memometer.serve.registry import DEFAULT_MEMORY, MemoryEntry, NotFound
from memometer.serve.schemas import Id, Name, Text
from memometer.serve.tenants import TenantMemories
from memometer.store import deadline
from memometer.store.hybrid_scoring import NAMED

BINARY: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
BULK_BYTES = 100_000
"""Size of a request from which it counts as bulk work."""

Key = Annotated[str | None, Header(alias="Idempotency-Key", pattern=r"^[\x21-\x7e]{1,200}$")]
Memory = Annotated[Name, Query()]
Limit = Annotated[int, Query(ge=1, le=1000)]
Cursor = Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_-]{1,1000}$")]
MEMORY_CURSOR: TypeAdapter[Any] = TypeAdapter(tuple[Name])
TURN_CURSOR: TypeAdapter[Any] = TypeAdapter(tuple[FiniteFloat, Text])


def application(
    memories: TenantMemories,
    *,
    tenant: str,
    tokens: AccessTokens | None = None,
    rate: RateLimiter | None = None,
    hosts: Collection[str] | None = None,
    pools: Mapping[str, Pool] | None = None,
) -> FastAPI:
    """Return the service as an ASGI application.

    Args:
        memories: the memories of all tenants.
        tenant: the tenant of all requests if there are no tokens.
        tokens: the accepted tokens; None accepts every request.
        rate: limit of requests per caller; None for no limit.
        hosts: accepted Host headers if there are no tokens; None for any.
        pools: limits of each kind of work; None for the default ones.
    """
    metrics, admission = Metrics(), Admission(pools or (SINGLE_TENANT_POOLS if tokens is None else POOLS))
    mcp = _mcp_server(memories, tenant)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = admission.threads
        async with mcp.session_manager.run() if mcp else nullcontext():
            yield

    app = FastAPI(
        title="Memometer",
        version="1",
        lifespan=lifespan,
        redoc_url=None,
        responses={status: {"model": ProblemDetails} for status in (400, 401, 403, 404, 409, 413, 422, 429, 500, 503)},
    )
    guard: dict[str, Any] = {"tokens": tokens, "tenant": tenant, "rate": rate or RateLimiter(0), "hosts": hosts}
    kind_of = partial(_kind_of, memories)
    app.add_middleware(RequestGuard, metrics=metrics, admission=admission, kind_of=kind_of, **guard)
    add_error_handlers(app)
    router = APIRouter(dependencies=[Depends(HTTPBearer(auto_error=False))] if tokens else [])
    _add_default_routes(router, memories)
    _add_memory_routes(router, memories)
    _add_turn_routes(router, memories)
    _add_cartridge_routes(router, memories, admission)
    _add_metrics_route(router, metrics)
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
    if action in ("cartridge", "consolidate", "undo") or body_bytes >= BULK_BYTES:
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


def tenant_of(request: Request) -> str:
    """Return the tenant that RequestGuard has set."""
    tenant: str = request.state.tenant
    return tenant


Tenant = Annotated[str, Depends(tenant_of)]

# Route functions without `async` run in a thread pool, which keeps encoding and storage off the event loop.


def _add_default_routes(app: APIRouter, memories: TenantMemories) -> None:
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
            body.memory, memories.consolidate(tenant, body.memory, weights=NAMED[body.weights], dry_run=body.dry_run)
        )

    @app.get("/memory/stats")
    def stats(tenant: Tenant) -> schemas.StatsOut:
        """Count the turns of all memories."""
        sizes = [memories.store.size(entry.scope) for entry in memories.registry.entries(tenant)]
        return schemas.StatsOut(
            memories=len(sizes), turns=sum(s.episodes for s in sizes), archived=sum(s.archived for s in sizes)
        )


def _add_memory_routes(app: APIRouter, memories: TenantMemories) -> None:
    def out(entry: MemoryEntry) -> schemas.MemoryOut:
        return schemas.MemoryOut.of(entry, memories.store.size(entry.scope))

    @app.get("/v1/memories")
    def list_memories(tenant: Tenant, limit: Limit = 100, cursor: Cursor = None) -> schemas.MemoriesOut:
        """List the memories, sorted by name."""
        after = _decoded(cursor, MEMORY_CURSOR)[0] if cursor else ""
        entries = [entry for entry in memories.registry.entries(tenant) if entry.name > after]
        page = entries[:limit]
        following = _encoded(page[-1].name) if len(entries) > limit else None
        return schemas.MemoriesOut(memories=[out(entry) for entry in page], next=following)

    @app.put("/v1/memories/{name}", status_code=201, responses={200: {"model": schemas.MemoryOut}})
    def create(name: Name, body: schemas.CreateIn, tenant: Tenant, response: Response) -> schemas.MemoryOut:
        """Create a memory: 201, or 200 if it exists with the same system."""
        memories.check_system(body.system)
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

    @app.post("/v1/memories/{name}/consolidate")
    def consolidate_one(name: Name, tenant: Tenant, dry_run: bool = False) -> schemas.ConsolidatedOut:
        """Same as /memory/consolidate, with the default weights."""
        return schemas.ConsolidatedOut.of(name, memories.consolidate(tenant, name, dry_run=dry_run))

    @app.post("/v1/memories/{name}/consolidate/undo")
    def undo_consolidation(name: Name, tenant: Tenant) -> schemas.RestoredOut:
        """Restore the turns that the last consolidation archived."""
        return schemas.RestoredOut(memory=name, restored=memories.undo_consolidation(tenant, name))


def _add_turn_routes(app: APIRouter, memories: TenantMemories) -> None:
    @app.post("/v1/memories/{name}/observe", status_code=201)
    def observe(name: Name, body: schemas.ObserveIn, tenant: Tenant, key: Key = None) -> schemas.StoredOut:
        """Store turns. All of them are durable when the response arrives."""
        return schemas.StoredOut(
            memory=name, ids=memories.observe(tenant, name, [t.turn() for t in body.turns], key=key)
        )

    @app.get("/v1/memories/{name}/turns")
    def turns(name: Name, tenant: Tenant, limit: Limit = 100, cursor: Cursor = None) -> schemas.TurnsOut:
        """List the turns that are not archived, newest first."""
        before = _decoded(cursor, TURN_CURSOR) if cursor else None
        found = memories.newest(tenant, name, k=limit + 1, before=before)
        page = found[:limit]
        following = _encoded(page[-1].at, page[-1].id) if len(found) > limit else None
        return schemas.TurnsOut(turns=[schemas.TurnOut.of(episode) for episode in page], next=following)

    @app.get("/v1/memories/{name}/archived")
    def archived(name: Name, tenant: Tenant, limit: Limit = 100) -> schemas.ArchivedOut:
        """List the newest archived turns, which are not recalled."""
        found = memories.archived(tenant, name, k=limit)
        return schemas.ArchivedOut(turns=[schemas.TurnOut.of(episode) for episode in found])

    @app.post("/v1/memories/{name}/turns/{id}/restore", status_code=204)
    def restore(name: Name, id: Id, tenant: Tenant) -> None:
        """Restore an archived turn, so that it is recalled again."""
        if not memories.restore(tenant, name, [id]):
            raise NotFound(f"there is no archived turn {id!r} in memory {name!r}.")

    @app.delete("/v1/memories/{name}/turns/{id}", status_code=204)
    def forget(name: Name, id: Id, tenant: Tenant, archive: bool = False) -> None:
        """Delete a turn permanently, or archive it (`archive=true`), which excludes it from recall."""
        if not memories.forget(tenant, name, [id], permanent=not archive):
            raise NotFound(f"there is no turn {id!r} in memory {name!r}.")


def _add_cartridge_routes(app: APIRouter, memories: TenantMemories, admission: Admission) -> None:
    upload_threads = CapacityLimiter(4)  # uploads must not queue behind other requests

    @app.get("/v1/memories/{name}/cartridge", response_class=FileResponse, responses={200: {"content": BINARY}})
    def export(name: Name, tenant: Tenant, archived: bool = False) -> FileResponse:
        """Download the memory as a cartridge file, which can be imported into any store. Archived turns are left out
        unless `archived=true`."""
        folder = tempfile.TemporaryDirectory()
        try:
            path = Path(folder.name) / f"{name}.cartridge"
            export_cartridge(memories, tenant, name, path, archived=archived)
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
            put = partial(import_cartridge, memories, tenant, name, path, max_record_bytes=MAX_CARTRIDGE_BYTES)
            release = await admission.acquire(BULK, tenant)
            try:
                with deadline.deadline(admission.pools[BULK].seconds):
                    entry = await to_thread.run_sync(put)
            except CartridgeError as error:  # the caller does not know the temporary path
                raise CartridgeError(str(error).replace(str(path), "The request body")) from error
            finally:
                release()
            return schemas.MemoryOut.of(entry, memories.store.size(entry.scope))


def _add_health_routes(app: FastAPI, memories: TenantMemories) -> None:
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


def _add_metrics_route(app: APIRouter, metrics: Metrics) -> None:
    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def prometheus() -> Response:
        """Return metrics in Prometheus text format."""
        return Response(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4; charset=utf-8")


def _encoded(*position: str | float) -> str:
    """The cursor of the page after a position."""
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")


def _decoded(cursor: str, kind: TypeAdapter[Any]) -> Any:
    try:
        return kind.validate_json(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except ValueError as error:
        raise NotFound("invalid cursor; omit it to start from the first page.") from error
