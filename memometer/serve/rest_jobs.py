"""Routes of long work that is answered at once: the reply names a job, which the caller asks for its state."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from functools import partial
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Path, Response

from memometer.errors import UserError
from memometer.serve import schemas
from memometer.serve.admission import BULK, Admission, TooManyRequests
from memometer.serve.child_jobs import JOB_SECONDS, Jobs
from memometer.serve.registry import NotFound
from memometer.serve.schemas import Name
from memometer.serve.tenant_of_request import Tenant
from memometer.serve.tenants import TenantMemories
from memometer.store import deadline
from memometer.store.episode import Episode
from memometer.store.protocol import Store

SCOPE = "jobs:"
KEEP_SECONDS = 86_400.0
"""Time for which a job can be asked for."""

KEEP_JOBS = 100
"""Jobs of a tenant that can be asked for."""

JobId = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]


class JobRecords:
    """The jobs of all tenants in a store, so that every process of a service can answer for them.

    Args:
        store: holds the records.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def start(self, tenant: str, kind: str, memory: str) -> str:
        """Record a new job and return its id. Old jobs are removed."""
        now, id = time.time(), uuid.uuid4().hex
        jobs = sorted(self._store.scan(SCOPE), key=lambda job: -job.at)
        others = [job for job in jobs if job.details["tenant"] == tenant][KEEP_JOBS:]
        old = {job.id for job in (*others, *(job for job in jobs if job.at < now - KEEP_SECONDS))}
        if old:
            self._store.delete(SCOPE, list(old))
        details: dict[str, str | int | float] = {"tenant": tenant, "kind": kind, "memory": memory, "status": "running"}
        self._store.change(SCOPE, add=[Episode(id, "", now, details=details)])
        return id

    def finish(self, id: str, status: str, **outcome: Any) -> None:
        """Record the end of a job."""
        for job in self._store.get(SCOPE, [id]):
            details = {**job.details, "status": status, "outcome": json.dumps(outcome)}
            self._store.replace(SCOPE, Episode(id, "", job.at, details=details))

    def find(self, tenant: str, id: str) -> schemas.JobOut:
        """Return a job of a tenant.

        Raises:
            NotFound: there is none.
        """
        for job in self._store.get(SCOPE, [id]):
            about = job.details
            if about["tenant"] == tenant:
                outcome = json.loads(str(about.get("outcome", "{}")))
                status = str(about["status"])
                if status == "running" and job.at < time.time() - JOB_SECONDS:
                    status, outcome = "failed", {"detail": "the service ended before the job; start it again."}
                return schemas.JobOut(id=id, kind=str(about["kind"]), memory=str(about["memory"]), status=status,
                                      **outcome)  # fmt: skip
        raise NotFound(f"there is no job {id}; a tenant's last 100 jobs are kept for a day.")


def add_job_routes(app: APIRouter, memories: TenantMemories, admission: Admission, jobs: Jobs) -> None:
    """Add the routes to a router."""
    records, running = JobRecords(memories.store), set[asyncio.Task[None]]()

    async def run(id: str, tenant: str, name: str, body: schemas.ConsolidationIn) -> None:
        work = partial(jobs.consolidate, tenant, name, weights=body.weights, dry_run=body.dry_run)
        try:
            release = await admission.acquire(BULK, tenant)
            try:
                with deadline.deadline(JOB_SECONDS):
                    done = await to_thread.run_sync(work)
            finally:
                release()
            result = schemas.ConsolidatedOut.of(name, done).model_dump()
            await to_thread.run_sync(partial(records.finish, id, "done", result=result))
        except TooManyRequests:
            detail = "Too many jobs of this tenant wait already; start it again later."
            await to_thread.run_sync(partial(records.finish, id, "failed", detail=detail))
        except UserError as error:
            await to_thread.run_sync(partial(records.finish, id, "failed", detail=str(error)))
        except Exception:
            detail = "Internal error; the service's log has the traceback."
            await to_thread.run_sync(partial(records.finish, id, "failed", detail=detail))
            raise

    @app.post("/v1/memories/{name}/consolidations", status_code=202)
    async def start_consolidation(
        name: Name, body: schemas.ConsolidationIn, tenant: Tenant, response: Response
    ) -> schemas.JobOut:
        """Start a consolidation and return its job at once. The Location header is the job's address."""
        await to_thread.run_sync(memories.registry.find, tenant, name)
        id = await to_thread.run_sync(records.start, tenant, "consolidation", name)
        task = asyncio.create_task(run(id, tenant, name, body))
        running.add(task)
        task.add_done_callback(running.discard)
        response.headers["Location"] = f"/v1/jobs/{id}"
        return schemas.JobOut(id=id, kind="consolidation", memory=name, status="running")

    @app.get("/v1/jobs/{job_id}")
    def job(job_id: JobId, tenant: Tenant) -> schemas.JobOut:
        """Return the state of a job: running, done with its result, or failed with the reason."""
        return records.find(tenant, job_id)
