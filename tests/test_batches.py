"""`evaluate.py --batch`: answers and verdicts from batches, through the clients of OpenAI and Together."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from memometer.models.batch import jobs
from tests.batch_server import Line, Processed, answered, batch_server, refused, unprocessed
from tests.conftest import ROOT, Server, completion
from tests.evaluation import evaluate, records, results, unwrapped

MODELS = ["openai", pytest.param("together_ai", marks=pytest.mark.skipif(not find_spec("together"), reason="extra"))]


def words(url: str, provider: str = "openai", *more: str, judge: bool = True) -> list[str]:
    judged = ["--judge-model", f"{provider}/strict", "--judge-api-base", url, "--no-calibration"]
    return ["--model", f"{provider}/scripted", "--api-base", url, "--tokenizer", "o200k_base", "--no-mlflow",
            "--context-window", "8000", "--systems", "adaptive", "--num-test", "4", "--budget-tokens", "150",
            *(judged if judge else ["--judge-model", "none"]), *more]  # fmt: skip


def reply(request: Line) -> str:
    """What a model answers online and in a batch."""
    prompt = request["messages"][-1]["content"]
    if prompt.rstrip().endswith("Verdict:"):
        return "yes" if "ll" in prompt.split("Gold:")[1] else "no"
    return f"an answer of {len(prompt)} letters"


def in_full(number: int, requests: list[Line]) -> Processed:
    return "completed", [answered(request, reply(request["body"])) for request in requests], []


def outcome(record: dict[str, Any]) -> dict[str, Any]:
    verdicts = [(verdict["judge"], verdict["label"]) for verdict in record["verdicts"]]
    return {name: record[name] for name in ("answer", "recall", "error", "calls", "prompt_tokens")} | {"v": verdicts}


def by_task(folder: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    from memometer.run.folder import key, read_records

    return {key(record): outcome(record) for record in read_records(folder)}


@pytest.mark.parametrize("provider", MODELS)
def test_a_batch_answers_as_single_calls_do(
    provider: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "MAX_REQUESTS", 7)
    server.answer = lambda number, body: completion(reply(body))
    prices = ("--price", "100,200", "--judge-price", "100,200")
    online = evaluate(*words(server.url, provider, *prices, "--run-dir", "online"), cwd=tmp_path, TOGETHER_API_KEY="k")
    assert online.returncode == 0, online.stderr
    with batch_server(in_full, together=provider == "together_ai") as batches:
        given = [*words(batches.url, provider, *prices), "--batch", "--run-dir", "batch"]
        done = evaluate(*given, cwd=tmp_path, TOGETHER_API_KEY="k")
        assert done.returncode == 0, done.stderr
        sent = [batches.requests(number + 1) for number in range(len(batches.batches))]
    assert by_task(tmp_path / "batch") == by_task(tmp_path / "online")
    assert all(len(requests) <= 7 for requests in sent)
    single = Counter(json.dumps(body["messages"]) for body in server.requests)
    assert Counter(json.dumps(line["body"]["messages"]) for requests in sent for line in requests) == single
    settings = {name: value for name, value in server.requests[0].items() if name not in ("messages", "stream")}
    assert {name: value for name, value in sent[0][0]["body"].items() if name != "messages"} == settings
    costs = [results(tmp_path / name)["cost"]["total"] for name in ("online", "batch")]
    assert costs[1]["usd"] == pytest.approx(costs[0]["usd"] / 2) != 0
    assert costs[1]["seconds"] is None
    forecasts = [float(out.split("$")[1].split()[0]) for out in (online.stdout, done.stdout)]
    assert forecasts[1] < forecasts[0]


@pytest.mark.parametrize("provider", MODELS)
def test_what_a_batch_lacks_is_in_the_next(provider: str, tmp_path: Path) -> None:
    """The first batch expires after a part, the second has an error, the third is cancelled, then all goes well."""
    broken: list[str] = []

    def process(number: int, requests: list[Line]) -> Processed:
        done = [answered(request, reply(request["body"])) for request in requests]
        if number == 1:
            return "expired", done[:3], [unprocessed(request) for request in requests[3:]]
        if number == 2:
            broken.append(requests[0]["custom_id"])
            return "completed", done[1:-2], [refused(requests[0], "the prompt is not to my taste")]
        return ("cancelled", [], []) if number == 3 else ("completed", done, [])

    with batch_server(process, together=provider == "together_ai") as batches:
        given = [*words(batches.url, provider, "--batch", "--run-dir", "run", "--fail-on-error", "0.01")]
        first = evaluate(*given, cwd=tmp_path, TOGETHER_API_KEY="k")
        assert first.returncode == 3, first.stderr
        assert "the prompt is not to my taste" in unwrapped(first.stdout)
        assert len(batches.batches) == 5, "three of answers, one again, one of verdicts"
        missing = [record for record in records(tmp_path / "run") if record["error"]]
        assert len(missing) == 1
        assert "HTTP 400" in missing[0]["error"]
        again = evaluate("--resume", "run", cwd=tmp_path, TOGETHER_API_KEY="k")
        assert again.returncode == 0, again.stderr
        asked = Counter(line["custom_id"] for n in range(len(batches.batches)) for line in batches.requests(n + 1))
    assert [len(batches.requests(6)), batches.requests(6)[0]["custom_id"]] == [1, broken[0]]
    assert len(batches.batches) in (6, 7), "the missing answer, and its verdict if it has one"
    answers = [batches.requests(n) for n in (1, 2)]
    assert not {line["custom_id"] for line in answers[0][:3]} & {line["custom_id"] for line in answers[1]}
    assert max(asked.values()) <= 4


@pytest.mark.parametrize("provider", MODELS)
@pytest.mark.parametrize("lost", ["created", "uploaded"])
def test_a_killed_process_never_pays_twice(provider: str, lost: str, tmp_path: Path) -> None:
    """The journal as kill -9 leaves it after the provider's answer and before the line of this answer."""
    with batch_server(in_full, together=provider == "together_ai") as batches:
        given = words(batches.url, provider, "--batch", "--run-dir", "run", judge=False)
        batches.polls = 10**9

        def interrupt() -> None:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)

        batches.after_create = interrupt
        left = evaluate(*given, cwd=tmp_path, TOGETHER_API_KEY="k")
        assert left.returncode == 4, left.stderr
        assert "--resume run" in left.stdout
        journal = tmp_path / "run" / "batches.jsonl"
        lines = journal.read_text().splitlines()
        assert [json.loads(line)["event"] for line in lines] == ["planned", "uploaded", "created"]
        kept = lines[: 2 if lost == "created" else 1]
        journal.write_text("".join(f"{line}\n" for line in kept) + lines[len(kept)][:20])
        batches.polls, batches.after_create = 1, lambda: None
        done = evaluate("--resume", "run", cwd=tmp_path, TOGETHER_API_KEY="k")
        assert done.returncode == 0, done.stderr
        assert [len(batches.batches), len([name for name, _ in batches.files.values() if "memometer" in name])] == [
            1,
            1,
        ]


def test_a_failed_batch_stops_the_run_with_the_servers_words(tmp_path: Path) -> None:
    with batch_server(lambda number, requests: ("failed", [], [])) as batches:
        done = evaluate(*words(batches.url, "openai", "--batch", "--run-dir", "run"), cwd=tmp_path)
        assert done.returncode == 1
        assert "a reason" in done.stdout
        assert len(batches.batches) == 2


def test_the_cost_limit_holds(tmp_path: Path) -> None:
    with batch_server(in_full) as batches:
        prices = ("--price", "100,100", "--judge-price", "100,100", "--cost-limit", "0.05")
        done = evaluate(*words(batches.url, "openai", "--batch", "--run-dir", "run", *prices), cwd=tmp_path)
        assert done.returncode == 4, done.stdout + done.stderr
        assert results(tmp_path / "run")["cost"]["total"]["usd"] <= 0.05
        assert re.search(r"--resume run --cost-limit \d", done.stdout)
        assert batches.batches
        more = evaluate("--resume", "run", "--cost-limit", "100", cwd=tmp_path)
        assert more.returncode == 0, more.stderr


def test_a_reader_in_rounds_takes_one_batch_for_each(tmp_path: Path) -> None:
    def process(number: int, requests: list[Line]) -> Processed:
        texts = "none\nStatus: more\nLookup: the dog\nAnswer: none", "1\nStatus: answered\nAnswer: Bruno"
        text = texts[min(number, 2) - 1]
        return "completed", [answered(request, text, prompt_tokens=500) for request in requests], []

    with batch_server(process) as batches:
        given = words(batches.url, "openai", "--batch", "--run-dir", "run", "--rounds", "2", judge=False)
        done = evaluate(*given, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(batches.batches) == 2
    found = [record for record in records(tmp_path / "run") if record["system"] == "adaptive"]
    assert {len(record["rounds"]) for record in found} == {2}
    assert {record["prompt_tokens"] for record in found} == {1000}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--model", "embedded:tiny", "--judge-model", "none"], "embedded"),
        (["--model", "anthropic/claude-3-haiku", "--judge-model", "none"], "anthropic"),
        (["--model", "openai/scripted", "--api-base", "http://127.0.0.1:9/v1", "--systems", "summary"], "summary"),
        (["--recall-only"], "--batch"),
        (["--model", "openai/scripted", "--trace"], "--trace"),
    ],
)
def test_what_batches_cannot_do_is_refused(given: list[str], named: str, tmp_path: Path, tiny: Path) -> None:
    common = ["--num-test", "1", "--budget-tokens", "100", "--no-mlflow", "--batch", "--context-window", "8000"]
    done = evaluate(*given, *[word for word in common if "--trace" not in given or word != "--no-mlflow"], cwd=tmp_path)
    assert done.returncode == 2
    assert named in done.stderr
    assert not (tmp_path / "runs").exists()
    assert (ROOT / "evaluate.py").exists()
