"""Exports, imports and consolidations in a process of their own, so that they take no time from other requests.

The process has a low priority and ends after one job. It receives the job as JSON on its standard input, because a
store URL may contain a password, and replies with one line of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memometer.cartridge.container import CartridgeError
from memometer.errors import UserError
from memometer.models.encoders import EncoderUnavailable
from memometer.serve.cartridge_io import export_cartridge, import_cartridge
from memometer.serve.registry import AlreadyExists, InvalidRequest, NotFound
from memometer.serve.tenant_limits import NotAllowed, TenantLimits
from memometer.serve.tenants import TenantMemories
from memometer.store import deadline
from memometer.store.episode import Conflict, StoreError
from memometer.store.hybrid_scoring import NAMED
from memometer.store.protocol import Consolidated

SHARED = ("sqlite:", "postgresql:", "redis")
"""Stores that several processes can use at a time."""

SMALL_TURNS, SMALL_BYTES = 500, 100_000
"""Below these sizes a job is faster in this process than the start of another."""

NICE = 10
JOB_SECONDS = 3600.0
END_SECONDS = 10.0
"""Time in which an interrupted job removes what it has written."""

ERRORS: dict[str, type[UserError]] = {
    kind.__name__: kind
    for kind in (
        AlreadyExists, CartridgeError, Conflict, EncoderUnavailable, InvalidRequest, NotAllowed, NotFound, StoreError,
        deadline.DeadlineExceeded,
    )
}  # fmt: skip


class Jobs:
    """Runs the jobs of a service.

    Args:
        memories: the memories of the service.
        in_child: run large jobs in a process of their own. Stores that only one process can use ignore it.
    """

    def __init__(self, memories: TenantMemories, *, in_child: bool = False) -> None:
        self._memories = memories
        self._in_child = in_child and memories.memory_url.startswith(SHARED)

    def export(self, tenant: str, name: str, path: Path, *, archived: bool) -> None:
        """Write a memory to a cartridge file; see `export_cartridge`."""
        self._run("export", tenant, name, self._turns(tenant, name) < SMALL_TURNS, path=str(path), archived=archived)

    def import_(self, tenant: str, name: str, path: Path, *, max_record_bytes: int) -> None:
        """Create or replace a memory from a cartridge file; see `import_cartridge`."""
        is_small = path.stat().st_size < SMALL_BYTES
        former = [entry.scope for entry in self._memories.registry.entries(tenant) if entry.name == name]
        self._run("import", tenant, name, is_small, path=str(path), max_record_bytes=max_record_bytes)
        for scope in former:
            self._memories.states.drop(scope)
            self._memories.on_deleted()

    def consolidate(self, tenant: str, name: str, *, weights: str, dry_run: bool) -> Consolidated:
        """Merge near-duplicates and archive faded turns; see `TenantMemories.consolidate`."""
        self._memories.uses.flush()
        is_small = self._turns(tenant, name) < SMALL_TURNS
        done = self._run("consolidate", tenant, name, is_small, weights=weights, dry_run=dry_run)
        merged = {id: tuple(others) for id, others in done["merged"].items()}
        return Consolidated(merged, tuple(done["forgotten"]))

    def _turns(self, tenant: str, name: str) -> int:
        size = self._memories.store.size(self._memories.registry.find(tenant, name).scope)
        return size.episodes + size.archived

    def _run(self, kind: str, tenant: str, name: str, is_small: bool, **options: Any) -> Any:
        if is_small or not self._in_child:
            return run(self._memories, kind, tenant, name, **options)
        limits = self._memories.limits
        job = {
            "kind": kind, "tenant": tenant, "name": name, "options": options,
            "memories": {"memory_url": self._memories.memory_url, "encoder": self._memories.encoder_name,
                         "timezone": self._memories.timezone},
            "limits": {**asdict(limits), "systems": limits.systems and sorted(limits.systems)},
        }  # fmt: skip
        return _run_in_child(job)


def run(memories: TenantMemories, kind: str, tenant: str, name: str, **options: Any) -> Any:
    """Run a job in this process; return its result as JSON can hold it."""
    if kind == "export":
        return export_cartridge(memories, tenant, name, Path(options.pop("path")), **options)
    if kind == "import":
        import_cartridge(memories, tenant, name, Path(options.pop("path")), **options)
        return None
    weights = NAMED[options["weights"]]
    return asdict(memories.consolidate(tenant, name, weights=weights, dry_run=options["dry_run"]))


def _run_in_child(job: dict[str, Any]) -> Any:
    command = [sys.executable, "-m", "memometer.serve.child_jobs"]
    # A session of its own: Ctrl-C in a terminal reaches the service alone, which finishes its requests.
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    try:
        out, _ = process.communicate(json.dumps(job).encode(), timeout=deadline.remaining(JOB_SECONDS))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        raise deadline.DeadlineExceeded("the request took too long and was stopped; nothing was changed.") from None
    finally:
        process.kill()
        process.wait()
    try:
        reply = json.loads(out)
    except ValueError:
        raise StoreError(
            f"the process of the job ended without a result (exit code {process.returncode}); the service's log may "
            "say why. The memory was not changed."
        ) from None
    if "error" in reply:
        raise ERRORS.get(reply["error"], UserError)(reply["detail"])
    return reply["result"]


def main() -> None:
    """Run the job on standard input, in a child process of a service."""
    job = json.load(sys.stdin)
    os.nice(NICE)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    reply = sys.stdout
    sys.stdout = sys.stderr  # a message of a library must not mix with the reply
    try:
        memories = TenantMemories(**job["memories"])
        systems = job["limits"]["systems"]
        memories.limits = TenantLimits(**{**job["limits"], "systems": None if systems is None else frozenset(systems)})
        memories.on_deleted = lambda: None  # the service erases
        try:
            result = {"result": run(memories, job["kind"], job["tenant"], job["name"], **job["options"])}
        finally:
            memories.close()
    except UserError as error:
        kind = next((name for name, cls in ERRORS.items() if type(error) is cls), "")
        kind = kind or next((name for name, cls in ERRORS.items() if isinstance(error, cls)), "UserError")
        result = {"error": kind, "detail": str(error)}
    except KeyboardInterrupt:
        sys.exit(130)
    reply.write(json.dumps(result))
    reply.flush()


if __name__ == "__main__":
    main()
