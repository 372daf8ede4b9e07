"""What goes wrong, and going on: a server that fails, a run that is killed, stopped, damaged and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.conftest import ROOT, Reply, Server, completion, failure
from tests.test_evaluate import SECRET, evaluate, everything, records, remote, results


def test_a_failed_judge_is_asked_again_and_the_reader_is_not(server: Server, tmp_path: Path) -> None:
    server.answer = lambda number, body: failure(500) if body["model"] == "judge" else completion("Sourdough")
    done = evaluate(*remote(server, "--judge-model", "openai/judge", "--judge-api-base", server.url, "--systems",
                            "simple", "--run-dir", "run"), cwd=tmp_path)  # fmt: skip
    assert done.returncode == 3
    answered = sum(body["model"] == "scripted" for body in server.requests)
    server.answer = lambda number, body: completion("no")
    assert evaluate("--resume", "run", cwd=tmp_path).returncode == 0
    assert sum(body["model"] == "scripted" for body in server.requests) == answered
    figures = results(tmp_path / "run")["systems"]["simple"]["budgets"]["150"]
    assert (figures["ungraded"], figures["judge_n"], figures["judge_correct"]) == (0, 11, 0)
    lines = (tmp_path / "run" / "verdicts.jsonl").read_text().splitlines()
    assert len(lines) == 44, "a line a verdict, the failed ones kept in records.jsonl"


def third_fails(number: int, body: dict[str, Any]) -> Reply:
    """429, 500, garbage, an empty reply and a time-out, for a third of the calls."""
    if number % 3:
        return completion("Sourdough")
    kind = (number // 3) % 5
    if kind == 4:
        time.sleep(3)
    return [
        failure(429, Retry_After="0"),
        failure(500, f"you sent Authorization: Bearer {SECRET}"),
        (200, {"Content-Type": "application/json"}, b"<html>not json"),
        completion(""),
        completion("too late"),
    ][kind]


def test_failures_are_ungraded_and_never_zero(server: Server, tmp_path: Path) -> None:
    server.answer = third_fails
    args = remote(server, "--timeout-seconds", "1", "--num-threads", "8", "--run-dir", "run")
    done = evaluate(*args, cwd=tmp_path)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "INVALID" in done.stdout
    found = records(tmp_path / "run")
    failed = [record for record in found if record["error"]]
    assert len(found) == 65 + 13, "the constant refusal asks no model"
    assert len(failed) == 21
    assert all(record["answer"] is None for record in failed)
    kinds = Counter(record["error"].split(":")[0] for record in failed)
    assert {"LMRateLimitError", "LMServerError", "LMProviderError", "AdapterParseError", "LMTransportError"} == set(
        kinds
    )
    for system in results(tmp_path / "run")["systems"].values():
        for figures in system["budgets"].values():
            assert figures["questions"] == figures["ungraded"] + figures["f1_n"]
    assert SECRET not in everything(tmp_path) + done.stdout + done.stderr

    server.answer = lambda number, body: completion("Sourdough")
    again = evaluate("--resume", "run", cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    tries = Counter((r["system"], r["question_id"]) for r in records(tmp_path / "run"))
    assert sorted(tries.values()) == [1] * 57 + [2] * 21, "only what failed is asked again"
    assert len(server.requests) == 65 + 21
    assert all(f["ungraded"] == 0 for s in results(tmp_path / "run")["systems"].values() for f in s["budgets"].values())


def test_retries_wait_and_then_answer(server: Server, tmp_path: Path) -> None:
    server.answer = lambda number, body: failure(429, Retry_After="0.05") if number % 2 else completion("Sourdough")
    args = remote(server, "--systems", "adaptive", "--num-threads", "1", "--run-dir", "run")
    args[args.index("--retries") + 1] = "2"
    done = evaluate(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(records(tmp_path / "run")) == 39 + 13
    assert len(server.requests) == 2 * 39


def test_a_rejected_key_stops_the_run_at_once(server: Server, tmp_path: Path) -> None:
    server.answer = lambda number, body: failure(401, f"Incorrect API key provided: {SECRET}")
    done = evaluate(*remote(server, "--num-threads", "2", "--run-dir", "run"), cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert len(server.requests) <= 4
    assert "no call can succeed: LMAuthError" in done.stdout
    assert "--resume run" in done.stdout
    assert SECRET not in everything(tmp_path) + done.stdout + done.stderr


def wait_for_records(folder: Path, n: int) -> None:
    deadline = time.time() + 60
    while time.time() < deadline:
        if (folder / "records.jsonl").exists() and len((folder / "records.jsonl").read_text().splitlines()) >= n:
            return
        time.sleep(0.05)
    raise AssertionError("the run does not get on")


def slow(number: int, body: dict[str, Any]) -> Reply:
    time.sleep(0.15)
    return completion("Sourdough")


def test_a_killed_run_is_resumed_without_asking_twice(server: Server, tmp_path: Path) -> None:
    server.answer = slow
    running = evaluate(*remote(server, "--num-threads", "2", "--run-dir", "run"), cwd=tmp_path, wait=False)
    wait_for_records(tmp_path / "run", 20)
    second = evaluate("--resume", "run", cwd=tmp_path)
    assert second.returncode == 2
    assert "in use by another process" in second.stderr
    running.send_signal(signal.SIGKILL)
    running.communicate()
    with (tmp_path / "run" / "records.jsonl").open("a") as file:
        file.write('{"system": "simple", "budget_tok')  # what a kill in the middle of a write leaves
    before = sum('"calls":1' in line for line in records_whole(tmp_path / "run"))
    asked = len(server.requests)
    server.answer = lambda number, body: completion("Sourdough")
    done = evaluate("--resume", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    keys = Counter((r["system"], r["question_id"]) for r in records(tmp_path / "run"))
    assert len(keys) == 78
    assert set(keys.values()) == {1}, "no question is answered twice"
    assert len(server.requests) - asked == 65 - before
    assert asked - before <= 2, "at most the calls in flight are lost"


def records_whole(folder: Path) -> list[str]:
    return [line for line in (folder / "records.jsonl").read_text().split("\n")[:-1] if line]


def test_ctrl_c_finishes_what_is_in_flight_and_saves(server: Server, tmp_path: Path) -> None:
    server.answer = slow
    running = evaluate(*remote(server, "--num-threads", "2", "--run-dir", "run"), cwd=tmp_path, wait=False)
    wait_for_records(tmp_path / "run", 8)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 4, out + err
    assert "Go on with: python evaluate.py --resume run" in out
    saved = results(tmp_path / "run")
    assert saved["status"] == "stopped"
    called = sum(record["calls"] for record in records(tmp_path / "run"))
    assert len(server.requests) == called, "what was sent came back and is kept"
    assert evaluate("--resume", "run", cwd=tmp_path).returncode == 0


def test_resume_takes_nothing_else_and_refuses_what_changed(server: Server, tmp_path: Path) -> None:
    assert evaluate(*remote(server, "--systems", "simple", "--run-dir", "run"), cwd=tmp_path).returncode == 0
    extra = evaluate("--resume", "run", "--seed", "3", cwd=tmp_path)
    assert extra.returncode == 2
    assert "got --seed 3" in extra.stderr
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    manifest["config"]["seed"] = 3
    manifest["config"]["num_test"] = 5
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    changed = evaluate("--resume", "run", cwd=tmp_path)
    assert changed.returncode == 2
    assert "another configuration" in changed.stderr
    assert evaluate("--resume", "nowhere", cwd=tmp_path).returncode == 2


def test_a_server_that_is_not_there_ends_the_run_soon(tmp_path: Path) -> None:
    args = ["--model", "openai/x", "--api-base", "http://127.0.0.1:9/v1", "--retries", "0", "--no-mlflow"]
    done = evaluate(*args, "--run-dir", "run", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "the first 8 calls failed, the last with LMTransportError" in done.stdout
    assert len(records(tmp_path / "run")) < 16


def test_a_damaged_folder_is_one_sentence(server: Server, tmp_path: Path) -> None:
    assert evaluate(*remote(server, "--systems", "simple", "--run-dir", "run"), cwd=tmp_path).returncode == 0
    ledger = tmp_path / "run" / "records.jsonl"
    whole = ledger.read_text()
    for name, content in [
        ("records.jsonl", "garbage\n" + whole),
        ("records.jsonl", "{}\n"),
        ("records.jsonl", "[1]\n"),
        ("manifest.json", "{"),
        ("manifest.json", "[]"),
    ]:
        (tmp_path / "run" / name).write_text(content)
        done = evaluate("--resume", "run", cwd=tmp_path)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        ledger.write_text(whole)


FRAGILE = """
import dspy
from memory_system import Memory, Recall


class Fragile(Memory):
    needs_model = True

    def __init__(self, **parts):
        super().__init__(**parts)
        self.write = dspy.Predict("text -> fact")

    def observe(self, state, turns):
        super().observe(state, turns)
        self.fact = self.write(text=turns[0].text).fact

    def recall(self, state, question, budget_tokens):
        if "Who" in question or "What" in question:
            raise KeyError(question[:3])
        return Recall()
"""


def test_a_memory_that_fails_is_a_result_and_a_model_that_fails_is_none(server: Server, tmp_path: Path) -> None:
    """A memory of the user's own that raises, and whose writing fails while the server is down."""
    (tmp_path / "fragile.py").write_text(FRAGILE)
    script = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, '.']; import evaluate, memories\n"
        "memories.SYSTEMS['fragile'] = 'fragile:Fragile'; sys.exit(evaluate.main(sys.argv[1:]))"
    )

    def fragile(*args: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "LOCOMO_PATH": str(ROOT / "data" / "sample.json"), "OPENAI_API_KEY": SECRET}
        command = [sys.executable, "-c", script, *args]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)

    writing = [True]

    def answer(number: int, body: dict[str, Any]) -> Reply:
        fails = writing[0] and "Text:" in body["messages"][-1]["content"]
        return failure(500) if fails else completion("Sourdough")

    server.answer = answer
    done = fragile(*remote(server, "--systems", "fragile", "--run-dir", "run"))
    assert done.returncode == 3, done.stdout + done.stderr
    mine = [record for record in records(tmp_path / "run") if record["system"] == "fragile"]
    assert all(r["error"].startswith("ingest: LMServerError") and not r["memory_error"] for r in mine)
    entry = results(tmp_path / "run")["systems"]["fragile"]["budgets"]["150"]
    assert (entry["ungraded"], entry["failed"]) == (11, 0)

    writing[0] = False
    done = fragile("--resume", "run")
    assert done.returncode == 0, done.stdout + done.stderr
    mine = [record for record in records(tmp_path / "run") if record["system"] == "fragile" and not record["error"]]
    broken = [record for record in mine if record["memory_error"]]
    assert len(mine) == 13
    assert {record["memory_error"] for record in broken} == {"KeyError: 'Who'", "KeyError: 'Wha'"}
    assert all(record["answer"] is None and record["calls"] == 0 for record in broken)
    entry = results(tmp_path / "run")["systems"]["fragile"]["budgets"]["150"]
    assert entry["ungraded"] == 0
    assert (
        0
        < entry["failed"]
        == entry["f1_n"] - sum(not r["memory_error"] for r in mine if int(r["question_id"][9:]) < 11)
    )
    assert "failed, and scored as wrong: " in done.stdout
    assert "x fragile: KeyError: 'Who'" in done.stdout

    asked = len(server.requests)
    assert fragile("--resume", "run").returncode == 0
    assert len(server.requests) == asked, "what failed in the memory is a result, and not tried until it works"
