"""Routes of a memory's turns: store, list, search, change and forget."""

from __future__ import annotations

import hashlib
from typing import Annotated

from fastapi import APIRouter, Header, Response
from pydantic import FiniteFloat, TypeAdapter

from memometer.serve import schemas
from memometer.serve.cursors import Cursor, Limit, decoded, encoded
from memometer.serve.errors import PreconditionFailed, ProblemDetails
from memometer.serve.registry import NotFound
from memometer.serve.schemas import Id, Name, Text
from memometer.serve.tenant_of_request import Tenant
from memometer.serve.tenants import TenantMemories
from memometer.store.episode import Episode

Key = Annotated[str | None, Header(alias="Idempotency-Key", pattern=r"^[\x21-\x7e]{1,200}$")]
IfMatch = Annotated[str | None, Header(alias="If-Match", pattern=r"^[\x20-\x7e]{1,200}$")]
IfNoneMatch = Annotated[str | None, Header(alias="If-None-Match", max_length=200)]
TURN_CURSOR: TypeAdapter[tuple[float, str]] = TypeAdapter(tuple[FiniteFloat, Text])


def etag(episode: Episode) -> str:
    """Return the entity tag of a turn, which changes with its text and its archiving."""
    content = f"{episode.id}\0{episode.text}\0{episode.archived}"
    return f'"{hashlib.sha256(content.encode(errors="surrogatepass")).hexdigest()[:32]}"'


def add_turn_routes(app: APIRouter, memories: TenantMemories) -> None:
    """Add the routes to a router."""

    @app.post("/v1/memories/{name}/observe", status_code=201)
    def observe(name: Name, body: schemas.ObserveIn, tenant: Tenant, key: Key = None) -> schemas.StoredOut:
        """Store turns. All of them are durable when the response arrives."""
        return schemas.StoredOut(
            memory=name, ids=memories.observe(tenant, name, [t.turn() for t in body.turns], key=key)
        )

    @app.post("/v1/memories/{name}/search")
    def search(name: Name, body: schemas.SearchIn, tenant: Tenant) -> schemas.RetrievedOut:
        """Return the k best turns by words and meaning, best first. Unlike GET, it keeps the question out of URLs."""
        return schemas.RetrievedOut.of(name, memories.retrieve(tenant, name, body.question, k=body.k))

    @app.get("/v1/memories/{name}/turns")
    def turns(name: Name, tenant: Tenant, limit: Limit = 100, cursor: Cursor = None) -> schemas.TurnsOut:
        """List the turns that are not archived, newest first."""
        before = decoded(cursor, TURN_CURSOR) if cursor else None
        found = memories.newest(tenant, name, k=limit + 1, before=before)
        page = found[:limit]
        following = encoded(page[-1].at, page[-1].id) if len(found) > limit else None
        return schemas.TurnsOut(turns=[schemas.TurnOut.of(episode) for episode in page], next=following)

    @app.get("/v1/memories/{name}/archived")
    def archived(name: Name, tenant: Tenant, limit: Limit = 100) -> schemas.ArchivedOut:
        """List the newest archived turns, which are not recalled."""
        found = memories.archived(tenant, name, k=limit)
        return schemas.ArchivedOut(turns=[schemas.TurnOut.of(episode) for episode in found])

    @app.get("/v1/memories/{name}/turns/{id}", responses={304: {"description": "The turn has not changed."}})
    def turn(name: Name, id: Id, tenant: Tenant, response: Response, known: IfNoneMatch = None) -> schemas.TurnOut:
        """Return a turn, archived or not. Its ETag is for If-None-Match here and for If-Match in PATCH."""
        found = memories.get(tenant, name, id)
        response.headers["ETag"] = etag(found)
        if known == etag(found):
            return Response(status_code=304, headers={"ETag": etag(found)})  # type: ignore[return-value]
        return schemas.TurnOut.of(found)

    @app.patch("/v1/memories/{name}/turns/{id}", responses={412: {"model": ProblemDetails}})
    def update(
        name: Name, id: Id, body: schemas.TurnPatch, tenant: Tenant, response: Response, match: IfMatch = None
    ) -> schemas.TurnOut:
        """Replace the text of a turn. The former text stays in its history until the turn is deleted."""
        known = memories.get(tenant, name, id)
        if match not in (None, "*", etag(known)):
            raise PreconditionFailed(f"turn {id!r} was changed meanwhile; read it again.")
        found = memories.update(tenant, name, id, body.text, expected=known if match else None)
        response.headers["ETag"] = etag(found)
        return schemas.TurnOut.of(found)

    @app.get("/v1/memories/{name}/turns/{id}/history")
    def history(name: Name, id: Id, tenant: Tenant) -> schemas.ArchivedOut:
        """List all versions of a turn, the oldest first."""
        found = memories.history(tenant, name, id)
        if not found:
            raise NotFound(f"there is no turn {id!r} in memory {name!r}.")
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
