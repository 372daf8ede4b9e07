"""The batches of a run: submitted, waited for and collected, with a journal that survives a killed process.

batches.jsonl has one line for each step of a batch: planned, uploaded, created, ended. Each is written before the next
step begins. A batch whose id was lost is found at the provider by the name of its file. batches/NAME.jsonl are the
requests, batch_replies.jsonl the replies.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memometer.models.batch.engine import BatchEngine, Reply
from memometer.models.batch.providers import ENDPOINT, Provider, Status
from memometer.models.errors import describe, redact
from memometer.run.folder import read_lines

JOURNAL, REPLIES, REQUESTS = "batches.jsonl", "batch_replies.jsonl", "batches"
MAX_REQUESTS, MAX_BYTES = 50_000, 200_000_000
"""Limits of a file at OpenAI. Together's are not lower."""
MAX_POLL_SECONDS = 60.0
POLLS_WITHOUT_ANSWER = 10
"""If this many polls in a row fail, the run stops; the batch goes on."""
UNANSWERED = ("batch_expired", "batch_cancelled")
"""Codes of lines that were not processed. Their requests go into the next batch."""


class BatchesStopped(Exception):
    """The batches cannot go on now; the run can be resumed. The message has the server's words."""


@dataclass
class Batch:
    """One batch: its name, its request ids, and the ids that the provider gave so far."""

    name: str
    requests: tuple[str, ...]
    file_id: str = ""
    batch_id: str = ""
    ended: bool = False


class BatchJobs:
    """The batches of one role in a run folder.

    Args:
        folder: Path of the run folder.
        role: `answers` or `verdicts`.
        model: Name of the model.
        engine: Gets the replies.
        provider: The batch endpoints.
        log: Receives progress messages.
    """

    def __init__(
        self,
        folder: Path,
        role: str,
        model: str,
        engine: BatchEngine,
        provider: Provider,
        *,
        log: Callable[[str], None],
    ) -> None:
        self.folder, self.role, self.model = folder, role, model
        self.engine, self.provider = engine, provider
        self.log = log
        self.batches: dict[str, Batch] = {}
        for line in read_lines(folder / JOURNAL):
            if line["role"] == role:
                self._apply(line)
        for line in read_lines(folder / REPLIES):
            if line["role"] == role and "body" in line:  # requests that got an error are sent again
                engine.replies[line["id"]] = Reply(line["body"])

    @property
    def open(self) -> list[Batch]:
        """The batches that have not been collected."""
        return [batch for batch in self.batches.values() if not batch.ended]

    def submit(self, requests: Mapping[str, Mapping[str, Any]]) -> None:
        """Write requests to files within the provider's limits, and create a batch for each.

        Args:
            requests: Request id -> body.

        Raises:
            BatchesStopped: The provider refused.
        """
        for part in split(requests):
            name = f"memometer-{uuid.uuid4().hex[:16]}"
            path = self.folder / REQUESTS / f"{name}.jsonl"
            path.parent.mkdir(exist_ok=True)
            _write(path, "".join(part.values()))
            self._record(name, "planned", requests=list(part))
            self._start(self.batches[name])

    def finish(self, stop: threading.Event) -> Status | None:
        """Wait for the open batches and collect their replies.

        Args:
            stop: If it is set, the wait ends; the batches go on at the provider.

        Returns:
            The last status that was not `completed`; None if all were.

        Raises:
            BatchesStopped: The provider does not answer, or refused a batch.
        """
        worst = None
        for batch in self.open:
            self._start(batch, recover=True)
        for batch in self.open:
            status = self._wait(batch, stop)
            if status is None:
                return worst
            self._collect(batch, status)
            worst = status if status.state != "completed" else worst
        return worst

    # ------------------------------------------------------------ steps

    def _start(self, batch: Batch, *, recover: bool = False) -> None:
        """Upload and create a batch.

        With `recover`, an earlier process may have done so and been killed before it wrote the id, so the provider is
        searched first.
        """
        known = {other.batch_id for other in self.batches.values() if other.batch_id}
        try:
            if not batch.file_id:
                path = self.folder / REQUESTS / f"{batch.name}.jsonl"
                file_id = (recover and self.provider.find_file(path.name)) or self.provider.upload(path)
                self._record(batch.name, "uploaded", file_id=file_id)
            if not batch.batch_id:
                found = self.provider.find_batch(batch.file_id, batch.name, known) if recover else None
                batch_id = found or self.provider.create(batch.file_id, batch.name)
                self._record(batch.name, "created", batch_id=batch_id)
                self.log(f"Batch {batch_id}: {len(batch.requests):,} requests to {self.model}.")
        except Exception as error:  # any failure of the client stops the run in one sentence
            raise BatchesStopped(f"the batch was not accepted: {describe(error)}") from error

    def _wait(self, batch: Batch, stop: threading.Event) -> Status | None:
        """Poll until a batch has ended; None if the wait was interrupted."""
        started, failures = time.monotonic(), 0
        while not stop.is_set():
            try:
                status = self.provider.status(batch.batch_id)
                failures = 0
            except Exception as error:  # an unreachable provider is polled again
                code = getattr(error, "status_code", None)
                if code == 404:
                    return Status("failed", reason=describe(error))
                failures += 1
                if failures == POLLS_WITHOUT_ANSWER or code in (401, 403):
                    raise BatchesStopped(f"batch {batch.batch_id} cannot be read: {describe(error)}") from error
            else:
                if status.state != "running":
                    return status
            # Short waits for short batches, a minute for those that take hours.
            stop.wait(min(MAX_POLL_SECONDS, max(0.1, (time.monotonic() - started) / 10)))
        return None

    def _collect(self, batch: Batch, status: Status) -> None:
        try:
            contents = [self.provider.content(file_id) for file_id in status.files]
        except Exception as error:  # the replies stay at the provider
            raise BatchesStopped(f"the files of batch {batch.batch_id} cannot be read: {describe(error)}") from error
        asked = set(batch.requests)
        with (self.folder / REPLIES).open("ab") as file:
            for line in (line for content in contents for line in content.splitlines() if line.strip()):
                id, reply = reply_of(line)
                if reply is None or id not in asked:
                    continue
                self.engine.replies[id] = reply
                saved = {"error": reply.error} if reply.error else {"body": reply.body}
                file.write(json.dumps({"id": id, "role": self.role, **saved}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        answered = sum(id in self.engine.replies for id in batch.requests)
        words = f" ({redact(status.reason)[:300]})" if status.reason else ""
        self.log(f"Batch {batch.batch_id} {status.state}: {answered:,} of {len(batch.requests):,} answered{words}.")
        self._record(batch.name, "ended", state=status.state, reason=redact(status.reason))

    def _record(self, name: str, event: str, **facts: Any) -> None:
        line = {"name": name, "role": self.role, "event": event, "at": round(time.time(), 3), **facts}
        with (self.folder / JOURNAL).open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._apply(line)

    def _apply(self, line: Mapping[str, Any]) -> None:
        batch = self.batches.setdefault(line["name"], Batch(line["name"], tuple(line.get("requests", ()))))
        batch.file_id = line.get("file_id", batch.file_id)
        batch.batch_id = line.get("batch_id", batch.batch_id)
        batch.ended |= line["event"] == "ended"


def split(requests: Mapping[str, Mapping[str, Any]]) -> Iterable[dict[str, str]]:
    """Split requests into files within the limits of number and size.

    Args:
        requests: Request id -> body.

    Yields:
        Request id -> its line.
    """
    part: dict[str, str] = {}
    size = 0
    for id, body in requests.items():
        line = json.dumps({"custom_id": id, "method": "POST", "url": ENDPOINT, "body": body}) + "\n"
        if part and (len(part) == MAX_REQUESTS or size + len(line) > MAX_BYTES):
            yield part
            part, size = {}, 0
        part[id] = line
        size += len(line)
    if part:
        yield part


def reply_of(line: bytes) -> tuple[str, Reply | None]:
    """Read a line of an output or error file.

    Returns:
        The request id, and the reply; None if the request was not processed, or the line is unreadable.
    """
    try:
        found = json.loads(line)
        id, error, response = str(found["custom_id"]), found.get("error"), found.get("response") or {}
        code, body = response.get("status_code", 200), response.get("body") or {}
        if isinstance(error, dict) and error.get("code") in UNANSWERED:
            return id, None
        if not error and code == 200 and "error" not in body:
            return id, Reply(body) if body else None
    except (ValueError, LookupError, TypeError, AttributeError):
        return "", None
    words = error or body.get("error") or body
    words = words.get("message") or words if isinstance(words, dict) else words
    text = words if isinstance(words, str) else json.dumps(words)
    return id, Reply(error=redact(f"HTTP {code}: {text}" if code != 200 else text)[:300])


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
