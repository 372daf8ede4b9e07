"""The model calls of plug-in memory systems: counted to the token, limited, and refused without a model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memometer.systems import worker
from tests.conftest import ROOT, Reply, Server, completion
from tests.evaluation import evaluate, remote, results

STUBS = ROOT / "tests" / "stub_systems.py"


def command(name: str) -> str:
    return f"asks=cmd:{sys.executable} {worker.__file__} {STUBS}:{name}"


class Upstream:
    """A model whose token counts depend on the request; it keeps its own sums, apart for the reader's calls."""

    def __init__(self) -> None:
        self.sums = {
            "calls": 0,
            "prompt_tokens": 0,
            "completion_tokens": 0,
            "embedding_calls": 0,
            "embedding_tokens": 0,
        }
        self.of_reader = dict(self.sums)
        self.broken = 0

    def __call__(self, number: int, body: dict[str, Any]) -> Reply:
        if "input" in body:
            tokens = len(body["input"][0])
            self.sums["embedding_calls"] += 1
            self.sums["embedding_tokens"] += tokens
            data = [{"object": "embedding", "index": 0, "embedding": [1.0]}]
            usage = {"prompt_tokens": tokens, "total_tokens": tokens}
            return 200, {"Content-Type": "application/json"}, json.dumps({"data": data, "usage": usage}).encode()
        assert body["model"] == "scripted", "the endpoint names the model of the run"
        if self.broken and number % self.broken == 0:
            return 500, {"Content-Type": "application/json"}, b'{"error": {"message": "busy"}}'
        sums = self.of_reader if len(body["messages"]) > 1 else self.sums
        prompt, reply = sum(len(m["content"]) for m in body["messages"]), 3 + number % 5
        for name, value in (("calls", 1), ("prompt_tokens", prompt), ("completion_tokens", reply)):
            sums[name] += value
        if not body.get("stream"):
            return completion("A bowl", prompt_tokens=prompt, completion_tokens=reply)
        assert body["stream_options"] == {"include_usage": True}
        usage = {"prompt_tokens": prompt, "completion_tokens": reply, "total_tokens": prompt + reply}
        chunks = [{"choices": [{"index": 0, "delta": {"content": "A bowl"}}]}, {"choices": [], "usage": usage}]
        text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        return 200, {"Content-Type": "text/event-stream"}, text.encode()


@pytest.fixture
def behind_http() -> Iterator[str]:
    """A server that started before the evaluation, with another address in its environment."""
    environment = {**os.environ, "OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "OPENAI_API_KEY": "own"}
    words = [sys.executable, worker.__file__, f"{STUBS}:AsksModel", "--http", "0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout
    yield f"asks={process.stdout.readline().strip()}"
    process.terminate()
    process.communicate()


@pytest.mark.parametrize("name", ["own process", "this process", "HTTP"])
def test_calls_are_counted_to_the_token(
    tmp_path: Path, server: Server, name: str, request: pytest.FixtureRequest
) -> None:
    server.answer = upstream = Upstream()
    inside = f"asks={STUBS}:AsksModel"
    system = {"own process": command("AsksModel"), "this process": inside}.get(name)
    system = system or request.getfixturevalue("behind_http")
    done = evaluate(*remote(server, "--split", "all", "--systems", system, "--run-dir", "run", "--judge-model", "none"),
                    cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    calls = results(tmp_path / "run")["plug_in_calls"]["asks"]
    total = {key: calls["ingest"][key] + calls["search"][key] for key in upstream.sums}
    assert total == upstream.sums
    assert calls["ingest"]["calls"] == 3 + 1, "one for each session, and the canary"
    assert calls["search"]["calls"] >= 13
    cost = results(tmp_path / "run")["cost"]["systems"]["asks"]
    assert cost["ingest"]["prompt_tokens"] == calls["ingest"]["prompt_tokens"]
    assert cost["budgets"]["150"]["recall"]["prompt_tokens"] == calls["search"]["prompt_tokens"]
    assert all("metered" not in headers.get("Authorization", "") for headers in server.headers)


def test_failed_calls_are_counted(tmp_path: Path, server: Server) -> None:
    server.answer = upstream = Upstream()
    upstream.broken = 7
    done = evaluate(*remote(server, "--split", "all", "--systems", command("RetriesModel"), "--run-dir", "run",
                            "--judge-model", "none", "--retries", "3"), cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    calls = results(tmp_path / "run")["plug_in_calls"]["asks"]
    assert sum(stage["failures"] for stage in calls.values()) > 0
    total = sum(stage["prompt_tokens"] for stage in calls.values())
    assert total == upstream.sums["prompt_tokens"]
    assert "model calls failed" in (tmp_path / "run" / "table.txt").read_text()


def test_recall_only_refuses_model_calls(tmp_path: Path) -> None:
    done = evaluate("--recall-only", "--no-mlflow", "--split", "all", "--budgets", "60", "--systems",
                    f"bm25,{command('AsksModel')}", "--run-dir", "run", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0
    found = results(tmp_path / "run")
    assert "--recall-only" in found["skipped"]["asks"]
    assert found["plug_in_calls"]["asks"]["ingest"]["refused"] == 1


def test_the_cost_limit_holds_for_plug_ins(tmp_path: Path, server: Server) -> None:
    server.answer = upstream = Upstream()
    done = evaluate(*remote(server, "--split", "all", "--systems", command("AsksModel"), "--run-dir", "run",
                            "--judge-model", "none", "--price", "1000,1000", "--cost-limit", "0.1"),
                    cwd=tmp_path)  # fmt: skip
    assert done.returncode == 4, done.stdout + done.stderr
    assert upstream.sums["calls"] == 1, "the first call exceeds the limit, and no other is made"
    assert upstream.sums["embedding_calls"] == 0
    assert results(tmp_path / "run")["skipped"] == {}
    again = evaluate("--resume", "run", "--cost-limit", "1000", cwd=tmp_path)
    assert again.returncode == 1
    assert "encoder" in results(tmp_path / "run")["skipped"]["asks"], "its price is unknown"
