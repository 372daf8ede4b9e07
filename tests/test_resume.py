"""What goes wrong, and going on: a server that fails, a run that is killed, stopped, damaged and resumed."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from dspy.utils.exceptions import LMTransportError

from memometer.harness.loop import run
from memometer.harness.tasks import plan_tasks
from memometer.memory import Memory
from memometer.models import resolve_models
from memometer.models.errors import is_of_a_model
from memometer.reader.reader import Reader
from memometer.run.folder import RunFolder
from memometer.systems import SYSTEMS
from memometer.systems.summary import Summary
from tests.conftest import Reply, Server, completion, failure
from tests.evaluation import SECRET, evaluate, everything, records, remote, results, start_evaluation


def test_a_failed_judge_is_asked_again_and_the_reader_is_not(server: Server, tmp_path: Path) -> None:
    server.answer = lambda number, body: failure(500) if body["model"] == "judge" else completion("Sourdough")
    done = evaluate(*remote(server, "--judge-model", "openai/judge", "--judge-api-base", server.url, "--systems",
                            "simple", "--no-calibration", "--run-dir", "run"), cwd=tmp_path)  # fmt: skip
    assert done.returncode == 1
    assert sum(body["model"] == "judge" for body in server.requests) < 16, "no further call can succeed"
    assert "judge: the first 8 calls failed" in done.stdout
    server.answer = lambda number, body: completion("no")
    assert evaluate("--resume", "run", cwd=tmp_path).returncode == 0
    assert sum(body["model"] == "scripted" for body in server.requests) == 3 * 13, "each question once"
    figures = results(tmp_path / "run")["systems"]["simple"]["budgets"]["150"]
    assert (figures["missing"], figures["judge_n"]) == (0, 11)
    graded = [verdict for record in records(tmp_path / "run") for verdict in record["verdicts"]]
    lines = (tmp_path / "run" / "verdicts.jsonl").read_text().splitlines()
    failed = sum(verdict["label"] == "missing" for verdict in graded)
    assert len(lines) == failed >= 8, "a line for each verdict that was repeated; the failed ones stay in records.jsonl"


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


def test_failures_are_missing_and_never_zero(server: Server, tmp_path: Path) -> None:
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
    assert set(kinds) == {"LMRateLimitError", "LMServerError", "EmptyReplyError", "LMTimeoutError"}
    for system in results(tmp_path / "run")["systems"].values():
        for figures in system["budgets"].values():
            assert figures["questions"] == figures["missing"] + figures["f1_n"]
    assert SECRET not in everything(tmp_path) + done.stdout + done.stderr

    server.answer = lambda number, body: completion("Sourdough")
    again = evaluate("--resume", "run", cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    tries = Counter((r["system"], r["question_id"]) for r in records(tmp_path / "run"))
    assert sorted(tries.values()) == [1] * 57 + [2] * 21, "only what failed is asked again"
    assert len(server.requests) == 65 + 21
    assert all(f["missing"] == 0 for s in results(tmp_path / "run")["systems"].values() for f in s["budgets"].values())


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
    running = start_evaluation(*remote(server, "--num-threads", "2", "--run-dir", "run"), cwd=tmp_path)
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
    running = start_evaluation(*remote(server, "--num-threads", "2", "--run-dir", "run"), cwd=tmp_path)
    wait_for_records(tmp_path / "run", 8)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 4, out + err
    assert "evaluate.py --resume run" in out.split("Continue with: ")[1]
    saved = results(tmp_path / "run")
    assert saved["status"] == "stopped"
    called = sum(record["calls"] for record in records(tmp_path / "run"))
    assert len(server.requests) == called, "what was sent came back and is kept"
    assert evaluate("--resume", "run", cwd=tmp_path).returncode == 0


def test_resume_takes_nothing_else_and_refuses_what_changed(server: Server, tmp_path: Path) -> None:
    assert evaluate(*remote(server, "--systems", "simple", "--run-dir", "run"), cwd=tmp_path).returncode == 0
    extra = evaluate("--resume", "run", "--seed", "3", cwd=tmp_path)
    assert extra.returncode == 2
    assert "leave out --seed" in extra.stderr
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    manifest["config"]["seed"] = 3
    manifest["config"]["num_test"] = 5
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    changed = evaluate("--resume", "run", cwd=tmp_path)
    assert changed.returncode == 2
    assert "configuration, questions, tasks changed" in changed.stderr
    assert evaluate("--resume", "nowhere", cwd=tmp_path).returncode == 2


def test_a_server_that_is_not_there_ends_the_run_soon(tmp_path: Path) -> None:
    args = ["--model", "openai/x", "--api-base", "http://127.0.0.1:9/v1", "--retries", "0", "--no-mlflow"]
    done = evaluate(*args, "--run-dir", "run", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no server at http://127.0.0.1:9/v1 (Connection refused)" in done.stdout
    assert "--api-base" in done.stdout
    assert not (tmp_path / "run" / "records.jsonl").exists(), "no question was asked"


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
from memometer.budget import pack
from memometer.memory import Memory


class Fragile(Memory):
    def recall(self, state, question, budget_tokens):
        if "What" in question:
            raise KeyError("what")
        return pack(state, range(len(state.turns)), budget_tokens, self.count)
"""


def test_a_memory_that_fails_is_a_result_and_a_model_that_fails_is_none(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fragile.py").write_text(FRAGILE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(SYSTEMS, "fragile", "fragile:Fragile")

    def figures() -> dict[str, Any]:
        return results(tmp_path / "run")["systems"]["fragile"]["budgets"]["150"]

    server.answer = lambda number, body: (
        failure(500) if "Question: When" in body["messages"][-1]["content"] else completion("Sourdough")
    )
    done = evaluate(*remote(server, "--systems", "fragile", "--run-dir", "run"), cwd=tmp_path)
    assert done.returncode == 3, done.stdout + done.stderr
    broken = [record for record in records(tmp_path / "run") if record["memory_error"]]
    assert {(r["system"], r["memory_error"], r["error"]) for r in broken} == {("fragile", "KeyError: 'what'", "")}
    assert all(record["answer"] is None and record["calls"] == 0 for record in broken)
    assert 0 < figures()["failed"] <= len(broken)
    assert 0 < figures()["missing"] == 11 - figures()["f1_n"]
    assert f"failed, counted as wrong: {len(broken)} x fragile: KeyError: 'what'" in done.stdout

    asked = len(server.requests)
    again = sum(bool(record["error"]) for record in records(tmp_path / "run"))
    server.answer = lambda number, body: completion("Sourdough")
    assert evaluate("--resume", "run", cwd=tmp_path).returncode == 0
    assert len(server.requests) - asked == again, "what failed in the memory is not tried until it works"
    assert (figures()["missing"], figures()["f1_n"]) == (0, 11)
    assert figures()["failed"] > 0


class Broken(Memory[Any]):
    def observe(self, state: Any, turns: Any) -> None:
        raise ValueError("no room")


def test_a_conversation_that_cannot_be_read_is_blamed_on_the_memory_or_on_its_model(
    server: Server, tmp_path: Path, sample: Any
) -> None:
    server.answer = lambda number, body: failure(500)
    reader = resolve_models.load("openai/scripted", api_base=server.url, tokenizer="o200k_base", retries=0)
    systems = {"writes": Summary(count=reader.count), "broken": Broken(count=reader.count)}
    tasks = plan_tasks(systems, sample.questions[:2], budgets=[150])
    with RunFolder.create(tmp_path / "run", {}) as folder:
        readers = {name: Reader() for name in systems}
        fatal = run(
            tasks, lambda system, _: systems[system], sample.conversations, folder, reader=reader, readers=readers
        )
        assert fatal == ""
        found = {record["system"]: (record["error"], record["memory_error"]) for record in folder.records()}
        ingests = {ingest["system"]: ingest["memory_error"] for ingest in folder.ingests()}
    assert found["writes"][0].startswith("ingest: LMServerError")
    assert found["writes"][1] == ""
    assert found["broken"] == ("", "ingest: ValueError: no room")
    assert ingests == {"writes": "", "broken": "ingest: ValueError: no room"}


def test_an_error_that_a_memory_put_before_its_models_is_still_the_models() -> None:
    def wrapped(inner: Exception) -> Exception:
        try:
            try:
                raise inner
            except Exception as error:
                raise RuntimeError("the summary could not be written") from error
        except RuntimeError as error:
            return error

    assert is_of_a_model(wrapped(LMTransportError("gone")))
    assert not is_of_a_model(wrapped(KeyError("x")))
    assert not is_of_a_model(None)
