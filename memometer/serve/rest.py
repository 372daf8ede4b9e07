"""Named memories over HTTP: the seed's four routes, those of each memory, and what a service needs around them.

    memometer serve                      http://127.0.0.1:8765/docs, without a token on this machine alone
    memometer token ada                  a token of tenant ada; with one, --host 0.0.0.0 may be served

Every error is an application/problem+json (RFC 9457). A request to store with an Idempotency-Key may be repeated
until there is a reply: its turns are remembered once. What was acknowledged is in the store.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import ExitStack, asynccontextmanager, nullcontext
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response
from fastapi.responses import FileResponse
from fastapi.security import HTTPBearer
from prometheus_client import generate_latest
from starlette.background import BackgroundTask

from memometer.cartridge.container import CartridgeError
from memometer.serve.auth import Access
from memometer.serve.errors import Problem, described, install
from memometer.serve.glibc_trim import small_heaps
from memometer.serve.middleware import MOST_CARTRIDGE_BYTES, Guard, Measures, Rate
from memometer.serve.schemas import (
    AnswerIn,
    AnswerOut,
    ConsolidatedOut,
    ConsolidateIn,
    CreateIn,
    FoundOut,
    HealthOut,
    Id,
    MemoriesOut,
    MemoryOut,
    Name,
    ObserveIn,
    RecallIn,
    RecallOut,
    RetrievedOut,
    StatsOut,
    StoredOut,
    StoreIn,
    Text,
    TurnOut,
    TurnsOut,
)
from memometer.serve.tenants import DEFAULT_NAME, Named, NamedMemories, NotThere, Refused
from memometer.store.consolidation import IdleConsolidation
from memometer.store.url import without_password

BINARY: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
THREADS = 16
"""Requests worked on at a time. More would wait for the store and the encoder, and take memory."""

Key = Annotated[str | None, Header(alias="Idempotency-Key", pattern=r"^[\x21-\x7e]{1,200}$")]
Memory = Annotated[Name, Query()]
Limit = Annotated[int, Query(ge=1, le=1000)]
Cursor = Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_-]{1,1000}$")]


def application(
    memories: NamedMemories,
    *,
    tenant: str,
    access: Access | None = None,
    rate: Rate | None = None,
    hosts: Collection[str] | None = None,
) -> FastAPI:
    """The service as an ASGI application.

    Args:
        tenant: whose memories it speaks of where it asks for no tokens.
        access: the tokens that it asks for; None asks for none.
        rate: of each caller; None for any.
        hosts: what it may be called where it asks for no tokens; None for anything.
    """
    measures = Measures()
    tools = _tools(memories, tenant)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = THREADS
        async with tools.session_manager.run() if tools else nullcontext():
            yield

    app = FastAPI(
        title="Adaptive memory",
        version="1",
        lifespan=lifespan,
        redoc_url=None,
        responses={status: {"model": Problem} for status in (400, 401, 403, 404, 409, 413, 422, 429, 500, 503)},
    )
    app.add_middleware(Guard, access=access, tenant=tenant, rate=rate or Rate(0), measures=measures, hosts=hosts)
    install(app)
    plain = app.openapi
    app.openapi = lambda: app.openapi_schema or described(plain())  # type: ignore[method-assign]
    asking = APIRouter(dependencies=[Depends(HTTPBearer(auto_error=False))] if access else [])
    _add_seed_routes(asking, memories)
    _add_memory_routes(asking, memories)
    _add_measures(asking, measures)
    app.include_router(asking)
    _add_health_routes(app, memories)
    if tools:
        # Each request stands for itself, and the guard has looked at who asks and by which name.
        from mcp.server.transport_security import TransportSecuritySettings

        security = TransportSecuritySettings(enable_dns_rebinding_protection=False)
        spoken = tools.streamable_http_app(stateless_http=True, json_response=True, transport_security=security)
        for route in spoken.routes:
            route.methods = {"POST"}  # nothing is ever sent unasked; a GET would wait for it without end
        app.router.routes.extend(spoken.routes)
    return app


def _tools(memories: NamedMemories, tenant: str) -> Any:
    """The MCP server; None where its library is not installed."""
    if find_spec("mcp") is None:
        return None
    from memometer.serve.mcp_server import server

    return server(memories, tenant=tenant)


def tenant_of(request: Request) -> str:
    """Whose request it is, as the guard found."""
    found: str = request.state.tenant
    return found


Tenant = Annotated[str, Depends(tenant_of)]


# ---------------------------------------------------------------- the seed's routes


def _add_seed_routes(app: APIRouter, memories: NamedMemories) -> None:
    # Functions without `async` run in a pool of threads: nothing is encoded or stored on the event loop.

    @app.post("/memory/store", status_code=201)
    def store(told: StoreIn, tenant: Tenant, key: Key = None) -> StoredOut:
        """Remember a turn; the memory is made where there is none."""
        memories.ensure(tenant, told.memory)
        ids = memories.observe(tenant, told.memory, [told.said()], key=key, importance=told.importance)
        return StoredOut(memory=told.memory, ids=ids)

    @app.get("/memory/retrieve")
    def retrieve(
        q: Annotated[Text, Query()],
        tenant: Tenant,
        k: Annotated[int, Query(ge=1, le=1000)] = 10,
        memory: Memory = DEFAULT_NAME,
    ) -> RetrievedOut:
        """The k turns that fit best by words and meaning, the best first."""
        found = memories.retrieve(tenant, memory, q, k=k)
        return RetrievedOut(memory=memory, found=[FoundOut.found(hit) for hit in found])

    @app.post("/memory/consolidate")
    def consolidate(told: ConsolidateIn, tenant: Tenant) -> ConsolidatedOut:
        """Merge near-duplicates and archive what is forgotten. Once is as good as twice."""
        return ConsolidatedOut.of(told.memory, memories.consolidate(tenant, told.memory))

    @app.get("/memory/stats")
    def stats(tenant: Tenant) -> StatsOut:
        """How much there is in all memories."""
        sizes = [memories.store.size(named.scope) for named in memories.all(tenant)]
        return StatsOut(
            memories=len(sizes), turns=sum(s.episodes for s in sizes), archived=sum(s.archived for s in sizes)
        )


# ---------------------------------------------------------------- each memory


def _add_memory_routes(app: APIRouter, memories: NamedMemories) -> None:
    carrying = CapacityLimiter(1)  # what is to be exchanged does not queue behind those who ask

    def out(named: Named) -> MemoryOut:
        return MemoryOut.of(named, memories.store.size(named.scope))

    @app.get("/v1/memories")
    def list_memories(tenant: Tenant, limit: Limit = 100, cursor: Cursor = None) -> MemoriesOut:
        """The memories, by name."""
        after = str(_parsed(cursor, 1)[0]) if cursor else ""
        page = [named for named in memories.all(tenant) if named.name > after]
        shown = page[:limit]
        following = _cursor(shown[-1].name) if len(page) > limit else None
        return MemoriesOut(memories=[out(named) for named in shown], next=following)

    @app.put("/v1/memories/{name}", status_code=201, responses={200: {"model": MemoryOut}})
    def create(name: Name, told: CreateIn, tenant: Tenant, response: Response) -> MemoryOut:
        """Make a memory: 201, or 200 where it is there already with the same system."""
        named, new = memories.create(tenant, name, system=told.system)
        response.status_code = 201 if new else 200
        return out(named)

    @app.get("/v1/memories/{name}")
    def show(name: Name, tenant: Tenant) -> MemoryOut:
        """What a memory is, and how much it holds."""
        return out(memories.find(tenant, name))

    @app.delete("/v1/memories/{name}", status_code=204)
    def delete(name: Name, tenant: Tenant) -> None:
        """Remove a memory with all that it holds, for good."""
        memories.delete(tenant, name)

    @app.post("/v1/memories/{name}/observe", status_code=201)
    def observe(name: Name, told: ObserveIn, tenant: Tenant, key: Key = None) -> StoredOut:
        """Remember turns. All are there when it answers."""
        return StoredOut(memory=name, ids=memories.observe(tenant, name, [turn.said() for turn in told.turns], key=key))

    @app.post("/v1/memories/{name}/recall")
    def recall(name: Name, told: RecallIn, tenant: Tenant) -> RecallOut:
        """What a reader is to be shown for a question, within a budget of tokens."""
        at = _seconds(told.at) if told.at else None
        return RecallOut.of(memories.recall(tenant, name, told.question, budget_tokens=told.budget_tokens, at=at))

    @app.post("/v1/memories/{name}/answer")
    def answer(name: Name, told: AnswerIn, tenant: Tenant) -> AnswerOut:
        """What a language model answers from that."""
        said, shown = memories.answer(tenant, name, told.question, budget_tokens=told.budget_tokens)
        return AnswerOut(answer=said, recall=RecallOut.of(shown))

    @app.post("/v1/memories/{name}/consolidate")
    def consolidate_one(name: Name, tenant: Tenant) -> ConsolidatedOut:
        """As /memory/consolidate."""
        return ConsolidatedOut.of(name, memories.consolidate(tenant, name))

    @app.get("/v1/memories/{name}/turns")
    def turns(name: Name, tenant: Tenant, limit: Limit = 100, cursor: Cursor = None) -> TurnsOut:
        """The turns that can be found, the latest first."""
        before = _parsed(cursor, 2) if cursor else None
        found = memories.newest(
            tenant, name, k=limit + 1, before=(float(before[0]), str(before[1])) if before else None
        )
        shown = found[:limit]
        following = _cursor(shown[-1].at, shown[-1].id) if len(found) > limit else None
        return TurnsOut(turns=[TurnOut.of(episode) for episode in shown], next=following)

    @app.get("/v1/memories/{name}/cartridge", response_class=FileResponse, responses={200: {"content": BINARY}})
    def export(name: Name, tenant: Tenant) -> FileResponse:
        """The memory as one file, which any store takes."""
        from memometer.serve.cartridge_io import export_cartridge

        folder = tempfile.TemporaryDirectory()
        try:
            path = Path(folder.name) / f"{name}.cartridge"
            export_cartridge(memories, tenant, name, path)
        except BaseException:  # the response, which would clean up, was not made
            folder.cleanup()
            raise
        clean = BackgroundTask(folder.cleanup)
        return FileResponse(path, media_type=next(iter(BINARY)), filename=path.name, background=clean)

    @app.put("/v1/memories/{name}/cartridge", openapi_extra={"requestBody": {"required": True, "content": BINARY}})
    async def put_cartridge(name: Name, request: Request, tenant: Tenant) -> MemoryOut:
        """Put the turns of a cartridge in the place of the memory, or of none, for the system that it names. Until all
        of it is there, requests are answered from the old one."""
        from memometer.serve.cartridge_io import import_cartridge

        with tempfile.NamedTemporaryFile(suffix=".cartridge") as file:
            async for block in request.stream():
                await to_thread.run_sync(file.write, block, limiter=carrying)
            await to_thread.run_sync(file.flush, limiter=carrying)
            path = Path(file.name)
            put = partial(import_cartridge, memories, tenant, name, path, most_bytes=MOST_CARTRIDGE_BYTES)
            try:
                return out(await to_thread.run_sync(put, limiter=carrying))
            except CartridgeError as error:  # of what was sent, not of a file that the caller could find
                raise CartridgeError(str(error).replace(str(path), "What was sent")) from error

    @app.delete("/v1/memories/{name}/turns/{id}", status_code=204)
    def forget(name: Name, id: Id, tenant: Tenant, archive: bool = False) -> None:
        """Remove a turn for good, or with `archive` keep it where nothing finds it."""
        if not memories.forget(tenant, name, [id], for_good=not archive):
            raise NotThere(f"there is no turn {id!r} in {name!r}.")


def _seconds(moment: datetime) -> float:
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()


def _cursor(*place: str | float) -> str:
    """Where a page ends, in a form that nobody is meant to read."""
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def _parsed(cursor: str, length: int) -> Sequence[Any]:
    try:
        place = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if len(place) != length or not isinstance(place[-1], str) or "\0" in place[-1]:
            raise ValueError(place)
        place[-1].encode()  # raises for half a character
        return [float(number) for number in place[:-1]] + place[-1:]
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise NotThere("this cursor is of no page; begin without one.") from error


# ---------------------------------------------------------------- health


def _add_health_routes(app: FastAPI, memories: NamedMemories) -> None:
    @app.get("/livez")
    async def livez() -> HealthOut:
        """The process answers."""
        return HealthOut(status="ok")

    @app.get("/readyz")
    def readyz() -> HealthOut:
        """The store and the encoder answer."""
        memories.store.vector_format()
        memories.encoder.ready()
        return HealthOut(status="ok")


def _add_measures(app: APIRouter, measures: Measures) -> None:
    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Counters in Prometheus' text format."""
        return Response(generate_latest(measures.registry), media_type="text/plain; version=0.0.4; charset=utf-8")


# ---------------------------------------------------------------- serving


def serve(
    memories: NamedMemories,
    *,
    tenant: str,
    host: str,
    port: int,
    auth: bool | None = None,
    per_second: float = 0,
    consolidate_after_seconds: float = 0,
) -> None:
    """Serve until SIGTERM or SIGINT; requests that have begun are finished first.

    Args:
        auth: whether to ask for tokens; None does so wherever others could ask.
        per_second: requests of each caller in the long run; 0 for any number.
        consolidate_after_seconds: without anything new; 0 consolidates only when asked.

    Raises Refused where others could ask without a token, nobody could with one, or there is no such port.
    """
    import uvicorn

    if port > 65_535:
        raise Refused(f"there is no port {port}; the highest is 65535.")
    here = host in ("127.0.0.1", "::1", "localhost")
    if auth is False and not here:
        raise Refused(f"{host} can be reached from elsewhere, where tokens are always asked for; leave --no-auth out.")
    access = Access(memories.store) if auth or not here else None
    if access and not access.keys():
        url = without_password(memories.memory_url)
        raise Refused(f"{url} holds no token yet; make one with: memometer token NAME --memory-url {url}")
    memories.sweep()
    memories.encoder.ready()  # what cannot work is told before the first request
    hosts = ("127.0.0.1", "localhost", "[::1]")
    app = application(memories, tenant=tenant, access=access, rate=Rate(per_second), hosts=hosts)
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise Refused(f"port {port} of {host} is not free ({why}); name another with --port.") from error
    print(f"Serving on http://{host}:{port} (Ctrl-C ends it); what there is to ask: /docs", flush=True)
    with ExitStack() as stack:
        stack.enter_context(small_heaps())
        if consolidate_after_seconds:
            idle = IdleConsolidation(memories.store, after_seconds=consolidate_after_seconds, now=memories.now)
            memories.observed = stack.enter_context(idle).touch
        stack.enter_context(listening)
        settings = uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=60)
        uvicorn.Server(settings).run(sockets=[listening])
