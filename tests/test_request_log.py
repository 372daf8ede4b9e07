"""The access log, the audit log and the traces of the service: what they hold, and that they hold no text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client", reason="the service is not installed: pip install '.[service]'")

from memometer.errors import UserError
from memometer.serve.child_jobs import Jobs
from memometer.serve.new_turns import NewTurn
from memometer.serve.registry import NotFound
from memometer.serve.request_log import RequestLog
from memometer.serve.tenants import TenantMemories
from tests.serving import ENCODER, in_thread


def test_the_logs_name_requests_and_hold_no_text(tmp_path: Path) -> None:
    in_memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    spans = in_memory.InMemorySpanExporter()
    access, audit = tmp_path / "access.jsonl", tmp_path / "audit.jsonl"
    log = RequestLog(str(access), str(audit), spans=spans)
    with in_thread(f"sqlite:///{tmp_path}/a.db", auth=True, log=log) as service:
        token = service.tokens.issue("ada", at=1.0)
        headers = {"Authorization": f"Bearer {token}", "X-Request-ID": "mine-1"}
        reply = service.post("/memory/store", json={"text": "a zebrafish", "id": "t1"}, headers=headers)
        assert reply.headers["X-Request-ID"] == "mine-1"
        service.get("/memory/retrieve", params={"q": "zebrafish"}, headers={**headers, "X-Request-ID": "a b"})
        service.delete("/v1/memories/default/turns/t1", headers=headers)
        assert service.get("/memory/stats").status_code == 401
        service.get("/zebrafish?zebrafish", headers=headers)
    log.close()
    # A line is written after its reply, so that the next request may be faster.
    lines = {line["status"]: line for line in map(json.loads, access.read_text().splitlines())}
    assert {status: line["tenant"] for status, line in lines.items()} == {
        201: "ada", 200: "ada", 204: "ada", 401: None, 404: "ada"
    }  # fmt: skip
    assert lines[201]["request_id"] == "mine-1"
    assert len(lines[200]["request_id"]) == 32, "an id of other characters is not taken"
    audited = {line["action"]: line for line in map(json.loads, audit.read_text().splitlines())}
    assert {action: line["turn"] for action, line in audited.items()} == {"store": None, "forget": "t1"}
    assert audited["forget"]["memory"] == "default"
    named = {(span.name, span.attributes["http.response.status_code"]) for span in spans.get_finished_spans()}
    assert named >= {
        ("POST /memory/store", 201), ("GET /memory/retrieve", 200), ("DELETE /v1/memories/{name}/turns/{id}", 204),
    }  # fmt: skip
    everything = access.read_text() + audit.read_text() + repr([span.to_json() for span in spans.get_finished_spans()])
    assert "zebrafish" not in everything
    assert token not in everything
    assert (access.stat().st_mode & 0o777, audit.stat().st_mode & 0o777) == (0o600, 0o600)


def test_a_log_that_cannot_be_written_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name another file"):
        RequestLog(str(tmp_path / "none" / "access.jsonl"))


def test_jobs_in_a_child_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Export, import and refusals are the same as in this process."""
    monkeypatch.setattr("memometer.serve.child_jobs.SMALL_TURNS", 0)
    monkeypatch.setattr("memometer.serve.child_jobs.SMALL_BYTES", 0)
    memories = TenantMemories(f"sqlite:///{tmp_path}/a.db", encoder=ENCODER)
    jobs = Jobs(memories, in_child=True)
    memories.registry.ensure("ada", "diary")
    memories.observe("ada", "diary", [NewTurn("I sold the kayak.", id="1"), NewTurn("I own a lamp.", id="2")])
    path = tmp_path / "diary.cartridge"
    jobs.export("ada", "diary", path, archived=False)
    jobs.import_("ada", "copy", path, max_record_bytes=10**6)

    def texts(name: str) -> Any:
        return {(e.id, e.text) for e in memories.newest("ada", name, k=9)}

    assert texts("copy") == texts("diary")
    path.write_bytes(b"no cartridge")
    with pytest.raises(Exception, match="refused|cannot read") as refused:
        jobs.import_("ada", "copy", path, max_record_bytes=10**6)
    assert type(refused.value).__name__ == "CartridgeError"
    assert texts("copy") == texts("diary")
    with pytest.raises(NotFound):
        jobs.export("ada", "none", path, archived=False)
    memories.close()
