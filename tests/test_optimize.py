"""Prompt searches against a scripted model over HTTP: gains, missing gains, leaks, resumption and costs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from locomo.synthetic.conversation import ConversationGenerator
from locomo.synthetic.simulate import as_json
from memometer.benchmarks.protocol import Conversation
from memometer.commands.optimize import parser
from memometer.optimize.options import OptimizeOptions
from memometer.optimize.plan import SearchPlan, make_plan
from memometer.systems.adaptive import AdaptiveMemory
from memory_system import MemorySystem
from tests import commands
from tests.conftest import ROOT, Reply, Server, completion, failure

MAGIC = "Always look twice."
CANARY = "the vermilion quagga of Tashkent sings at noon beside seven copper kettles"
SEARCHING = ["simba", "miprov2", "gepa"]


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight short conversations: five are searched and confirm, three are sealed and hold the canary."""
    entries = conversations(8, sessions=9)
    for sealed in entries[5:]:
        sealed["conversation"]["session_1"][0]["text"] = CANARY
        for item in sealed["qa"]:
            if "answer" in item:
                item["answer"] = CANARY
    path = tmp_path_factory.mktemp("data") / "simulated.json"
    path.write_text(json.dumps(entries))
    return path


def conversations(count: int, *, sessions: int) -> list[dict[str, Any]]:
    entries = []
    for number in range(1, count + 1):
        people = ConversationGenerator(f"simulate/3/{number}", [12] * sessions, name=f"simulated-3-{number}")
        parts = list(people.sessions())
        made = Conversation(f"simulated-3-{number}", people.speakers, tuple(s for s, _ in parts),
                            tuple(q for _, asked in parts for q in asked))  # fmt: skip
        entries.append(as_json(made, seed=3))
    return entries


def golds(path: Path) -> dict[str, str | None]:
    return {item["question"]: item.get("answer") for entry in json.loads(path.read_text()) for item in entry["qa"]}


def fields(body: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, type) of what a writer of prompts is asked for; nothing for the reader."""
    system = body["messages"][0]["content"]
    if "[[ ## " not in system:
        return []
    return re.findall(r"^\d+\. `(\w+)` \(([^)]*)\)", system.split("Your output fields are:")[1], re.MULTILINE)


def scripted(path: Path, *, learns: bool, proposal: str = MAGIC) -> Callable[[int, dict[str, Any]], Reply]:
    """A reader that is right where the magic instruction stands in its prompt, or (where it does not learn) never, and
    a writer of prompts that proposes it. Sampled, a reader that learns is right every other time."""
    known = golds(path)
    asked: Counter[str] = Counter()

    def answer(number: int, body: dict[str, Any]) -> Reply:
        if wanted := fields(body):
            texts = {name: json.dumps({"read": proposal}) if "dict" in kind else proposal for name, kind in wanted}
            return completion("".join(f"[[ ## {name} ## ]]\n{text}\n\n" for name, text in texts.items()))
        question = re.findall(r"Question: (.*)", body["messages"][-1]["content"])[-1]
        asked[question] += 1
        right = learns and (MAGIC in body["messages"][0]["content"] or (
            body.get("temperature") == 1.0 and asked[question] % 2 == 0))  # fmt: skip
        if not right:
            return completion(" 1\nStatus: answered\nAnswer: a pelican")
        gold = known[question]
        return completion(f" 1\nStatus: answered\nAnswer: {gold}" if gold else " none\nStatus: absent\nAnswer: none")

    return answer


def flags(server: Server, data: Path, *more: str) -> list[str]:
    return ["--data", str(data), "--model", "openai/scripted", "--api-base", server.url, "--tokenizer", "o200k_base",
            "--context-window", "8000", "--retries", "0", "--num-examples", "6", "--num-confirmation", "4",
            "--no-mlflow", *more]  # fmt: skip


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for key in ("OPENAI_API_KEY", "TOGETHER_API_KEY"):
        monkeypatch.delenv(key, raising=False)


def results(run: str = "run") -> dict[str, Any]:
    return json.loads((Path(run) / "results.json").read_text())


def program(path: str = "optimized_memory_qa.json") -> MemorySystem:
    memory = MemorySystem(rounds=1)
    memory.load(path)  # as DSPy loads it
    return memory


def sent(server: Server) -> str:
    return json.dumps(server.requests)


@pytest.mark.parametrize("optimizer", SEARCHING)
def test_each_finds_the_instruction_that_helps(
    optimizer: str, server: Server, simulated: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answer = scripted(simulated, learns=True)
    read_in: Counter[str] = Counter()
    observe = AdaptiveMemory.observe
    monkeypatch.setattr(
        AdaptiveMemory,
        "observe",
        lambda self, state, turns: read_in.update([turns[0].text]) or observe(self, state, turns),
    )
    plan = plan_of(flags(server, simulated, "--optimizer", optimizer))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("memometer.run.progress.LINE_SECONDS", 0.0)
        assert commands.optimize(flags(server, simulated, "--optimizer", optimizer, "--run-dir", "run")) == 0
    said, aside = capfd.readouterr()
    assert said.startswith("SIMULATED  Gain: quality "), said
    assert all(line.startswith("SIMULATED") for line in said.splitlines())
    found = results()
    assert found["gained"]
    assert found["gain"]["interval"][0] > 0.3
    assert [each["changed"] for each in found["searches"]] == [True, True]
    for each in found["searches"]:
        assert not set(each["conversations"]) & set(each["confirmed_on"])
    saved = json.loads(Path("optimized_memory_qa.json").read_text())["metadata"]["adaptive_memory"]
    assert saved["trained_on"] == found["searches"][found["delivered"] - 1]["conversations"]
    assert len(saved["selected_on"]) == 5
    assert (found["gain"]["n"], found["gain"]["conversations"]) == (20, 5)
    assert MAGIC in program().read.signature.instructions
    # What was forecast, and said before the first call, was not exceeded.
    assert len(server.requests) <= plan.forecast().calls
    assert f"forecast: at most {plan.forecast().calls:,} calls" in aside
    assert "best so far" in aside
    # Each session of the five conversations was read in once; the sealed ones never.
    assert set(read_in.values()) == {1}
    assert len(read_in) == 5 * 9
    assert "vermilion" not in sent(server)
    assert not any(
        "vermilion" in file.read_text() for file in (*Path("run").iterdir(), Path("optimized_memory_qa.json"))
    )
    labels = [body for body in server.requests if "oracle_metadata" in sent_to(body)]
    assert all(re.search(r"\[\[ ## oracle_metadata ## \]\]\s*\{\}", sent_to(body)) for body in labels), (
        "no gold rides along"
    )


def sent_to(body: dict[str, Any]) -> str:
    return body["messages"][-1]["content"] if fields(body) else ""


def plan_of(words: list[str]) -> SearchPlan:
    return make_plan(OptimizeOptions(**vars(parser().parse_args(words))))


@pytest.mark.parametrize("more", [[name] for name in SEARCHING] + [["simba", "--max-demos", "3"]])
def test_a_model_that_ignores_instructions_gains_nothing(
    more: list[str], server: Server, simulated: Path, capfd: Any
) -> None:
    server.answer = scripted(simulated, learns=False)
    assert commands.optimize(flags(server, simulated, "--run-dir", "run", "--optimizer", *more)) == 0
    assert capfd.readouterr().out.startswith("SIMULATED  No significant gain")
    assert not results()["gained"]
    plain = MemorySystem(rounds=1).read
    assert program().read.signature.instructions == plain.signature.instructions
    assert [dict(demo) for demo in program().read.demos] == [dict(demo) for demo in plain.demos]
    saved = json.loads(Path("optimized_memory_qa.json").read_text())["metadata"]["adaptive_memory"]
    assert (saved["optimised"], saved["trained_on"]) == (False, [])


def test_examples_that_are_found_are_short_and_of_training_conversations(
    server: Server, simulated: Path, capfd: Any
) -> None:
    """A reader that is right in two training questions of three, and the bootstrap, which finds examples alone."""
    known = golds(simulated)

    def answer(number: int, body: dict[str, Any]) -> Reply:
        question = re.findall(r"Question: (.*)", body["messages"][-1]["content"])[-1]
        right = len(question) % 3 or len(body["messages"]) > 6
        return completion(f" 2\nStatus: answered\nAnswer: {known[question] if right else 'a pelican'}")

    server.answer = answer
    words = flags(server, simulated, "--optimizer", "bootstrap", "--max-demos", "2", "--token-price", "0")
    assert commands.optimize([*words, "--run-dir", "run"]) == 0
    tried = json.loads(Path("run/candidates.json").read_text())
    demos = [demo for candidate in tried for demo in candidate["examples"]]
    asked = [{item["question"] for item in entry["qa"]} for entry in json.loads(simulated.read_text())]
    found = [demo for demo in demos if demo["question"] in known]
    assert found
    for search, learned in ((1, (0, 2, 4)), (2, (1, 3))):
        of = {demo["question"] for each in tried if each["search"] == search for demo in each["examples"]} & set(known)
        assert of <= set().union(*(asked[number] for number in learned)), "only of conversations that it learned from"
    assert all(len(demo["memory"].splitlines()) <= 6 and demo["lines"] == [2] for demo in found)
    assert max(len(candidate["examples"]) for candidate in tried) == 2


def test_a_killed_search_goes_on_and_pays_nothing_twice(server: Server, simulated: Path, capfd: Any) -> None:
    server.answer = scripted(simulated, learns=True)
    words = flags(server, simulated)
    assert commands.optimize([*words, "--run-dir", "whole", "--out", "whole.json"]) == 0
    whole = len(server.requests)

    server.requests.clear()
    server.answer = scripted(simulated, learns=True)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "optimize.py"), *words, "--run-dir", "killed", "--out", "killed.json"]
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(server.requests) < whole // 2 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed_at = len(server.requests)
    assert 0 < killed_at < whole
    assert not Path("killed.json").exists()

    assert commands.optimize(["--resume", "killed"]) == 0
    assert len(server.requests) <= 1.05 * whole
    assert len(server.requests) - killed_at < whole - killed_at + 3, "no more than the calls in flight were lost"
    assert "of them are stored already" in capfd.readouterr().err
    same = ("gain", "f1", "by_category", "candidates")
    assert {name: results("killed")[name] for name in same} == {name: results("whole")[name] for name in same}
    calls = len(server.requests)
    assert commands.optimize(["--resume", "killed"]) == 0
    assert len(server.requests) == calls, "what is done is not done again"


def test_failed_calls_are_no_zeros(server: Server, simulated: Path, capfd: Any) -> None:
    always = scripted(simulated, learns=True)

    def answer(number: int, body: dict[str, Any]) -> Reply:
        if not fields(body) and number % 25 == 0:
            return failure(500)
        body = {**body, "messages": [{"content": body["messages"][0]["content"] + MAGIC}, *body["messages"][1:]]}
        return always(number, body)

    server.answer = answer
    assert commands.optimize(flags(server, simulated, "--run-dir", "run", "--fail-on-error", "0.2")) == 0
    found = results()
    failed = sum(found["failed_calls"].values())
    assert failed == sum(not fields(body) and number % 25 == 0 for number, body in enumerate(server.requests, start=1))
    assert failed > 2
    assert "Failed calls, excluded from the scores: " in capfd.readouterr().out
    scores = [score for candidate in json.loads(Path("run/candidates.json").read_text())
              for score in candidate["scores"].values()]  # fmt: skip
    assert min(scores) > 0.7, "every call that came through was right"


def test_too_many_failed_calls_end_it_with_a_sentence(server: Server, simulated: Path, capfd: Any) -> None:
    works = scripted(simulated, learns=True)
    server.answer = lambda number, body: failure(500) if number > 30 and number % 2 else works(number, body)
    assert commands.optimize(flags(server, simulated, "--run-dir", "run")) == 3
    said, aside = capfd.readouterr()
    assert not said
    last = aside.strip().splitlines()[-1]
    assert re.search(r"Stopped: \d+ of \d+ calls failed, the last with LMServerError: .*--resume run", last)
    calls = len(server.requests)
    server.answer = works
    assert commands.optimize(["--resume", "run"]) == 0
    assert results()["gained"]
    lines = Path("run/calls.jsonl").read_text().splitlines()
    failed = sum('"failed"' in line for line in lines)
    assert len(server.requests) - calls < len(lines) - failed, "the calls that came through were not made again"
    assert (
        sum(results()["failed_calls"].values())
        == failed
        == calls - sum('"failed"' not in line for line in lines[:calls])
    ), "and those that did not are counted, before and after"


def test_a_cost_limit_stops_it_and_a_dry_run_asks_nothing(server: Server, simulated: Path, capfd: Any) -> None:
    server.answer = scripted(simulated, learns=True)
    assert commands.optimize(flags(server, simulated, "--dry-run")) == 0
    said = capfd.readouterr().out
    assert said.startswith("SIMULATED  simba (light): openai/scripted reads, the same model writes prompts")
    assert "at most 315 calls" in said
    elsewhere = ["--prompt-model", "openai/x", "--prompt-api-base", "http://example.invalid/v1"]
    assert commands.optimize(flags(server, simulated, "--cost-limit", "1", *elsewhere)) == 2
    assert "the price of openai/x is unknown; set it with --prompt-price" in capfd.readouterr().err
    assert not server.requests
    priced = flags(server, simulated, "--price", "1,1", "--cost-limit", "0.01")
    forecast = plan_of(priced).forecast()
    assert forecast.usd == pytest.approx(forecast.tokens / 1e6)
    assert commands.optimize([*priced, "--run-dir", "run"]) == 4
    assert "$0.01 were spent of --cost-limit $0.01" in capfd.readouterr().err
    asked = len(server.requests)
    assert 10 < asked <= 95 + 2, "at least 105 tokens a call, and two at once"
    assert commands.optimize(["--resume", "run"]) == 4
    assert len(server.requests) <= asked + 2
    assert commands.optimize(["--resume", "run", "--cost-limit", "1"]) == 0
    spent = results()["calls"]
    assert results()["usd"] == pytest.approx(sum(of["tokens"] for of in spent.values()) / 1e6)
    assert sum(of["calls"] for of in spent.values()) <= len(server.requests)


def test_a_judge_helps_when_it_is_certified_and_reports_nothing(
    server: Server, simulated: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EMBEDDED_MODELS_DIR", str(tmp_path / "kept"))
    reads = scripted(simulated, learns=True)
    known = golds(simulated)

    def answer(number: int, body: dict[str, Any]) -> Reply:
        if body["model"] != "judge":
            return reads(number, body)
        shown = dict(re.findall(r"^(Question|Gold|Answer): (.*)$", body["messages"][-1]["content"], re.MULTILINE))
        return completion("yes" if shown["Gold"] == json.loads(shown["Answer"]) else "no")

    server.answer = answer
    judge = ["--judge-model", "openai/judge", "--judge-api-base", server.url]
    words = flags(server, simulated, "--optimizer", "gepa", "--run-dir", "run", *judge)
    assert commands.optimize(words) == 2
    assert "openai/judge has no judge calibration" in capfd.readouterr().err
    assert not server.requests
    certified = {"passed": True}
    monkeypatch.setattr("memometer.optimize.plan.Calibrator.cached", lambda self, **_: certified)
    monkeypatch.setattr("memometer.optimize.plan.assess", lambda found: found)
    assert commands.optimize(words) == 0
    assert {body["model"] for body in server.requests} == {"scripted", "judge"}
    assert "openai/judge judges" in capfd.readouterr().err
    found = results()
    assert found["gained"]
    assert found["calls"]["judge"]["calls"] == sum(body["model"] == "judge" for body in server.requests)
    assert known
    capfd.readouterr()
    words = ["--data", str(simulated), "--model", "openai/scripted", "--api-base", server.url, "--dry-run",
             "--context-window", "8000", "--program", "optimized_memory_qa.json"]  # fmt: skip
    assert commands.evaluate([*words, *judge]) == 2
    assert "openai/judge" in capfd.readouterr().err
    assert commands.evaluate(words) == 0


def test_what_the_sealed_conversations_hold_gets_into_no_program(server: Server, simulated: Path, capfd: Any) -> None:
    """A writer that knows the test conversations, as models do that were trained on them."""
    server.answer = scripted(simulated, learns=True, proposal=f"{MAGIC} As for example: {CANARY}.")
    assert commands.optimize(flags(server, simulated, "--optimizer", "gepa", "--run-dir", "run")) == 0
    said = capfd.readouterr().out
    assert said.startswith("SIMULATED  No significant gain: none of 0 candidates")
    assert "Prompts excluded because they contain held-out text: 1" in said
    leaking = [each for each in json.loads(Path("run/candidates.json").read_text()) if "leaks" in each]
    assert [each["search"] for each in leaking] == [1, 2]
    assert all({"a turn (simulated-3-6 D1:1)"} <= set(each["leaks"]) for each in leaking)
    written = [Path("optimized_memory_qa.json"), *Path("run").glob("*.json"), Path("run/report.txt")]
    assert not any("vermilion" in path.read_text() for path in written)


def test_a_program_is_evaluated_with_any_model_and_refused_with_what_is_held_out(
    server: Server, simulated: Path, capfd: Any
) -> None:
    from memometer.reader import program_file

    server.answer = scripted(simulated, learns=True)
    memory = MemorySystem(rounds=1)
    memory.read.signature = memory.read.signature.with_instructions(MAGIC)
    program_file.save(memory.read, Path("good.json"), {"rounds": 1, "trained_on": ["simulated-3-1"]})
    # The server reports 100 tokens for every prompt, which looks like a prompt that was cut.
    words = ["--data", str(simulated), "--model", "openai/another", "--api-base", server.url, "--tokenizer",
             "cl100k_base", "--context-window", "8000", "--systems", "adaptive", "--num-test", "6", "--budget-tokens",
             "300", "--no-mlflow", "--fail-on-error", "0.5"]  # fmt: skip
    assert commands.evaluate([*words, "--program", "good.json", "--run-dir", "run"]) == 0
    figures = results()["systems"]["adaptive"]["budgets"]["300"]
    assert figures["f1"] == 1.0
    assert figures["objective"]["mean"] > 0.7
    assert (
        json.loads(Path("run/manifest.json").read_text())["identity"]["program"]
        == program_file.load(Path("good.json")).digest
    )
    program_file.save(MemorySystem(rounds=1).read, Path("good.json"), {"rounds": 1})
    capfd.readouterr()
    assert commands.evaluate(["--resume", "run"]) == 2
    assert "answer prompts, program changed" in capfd.readouterr().err

    demo = dict(memory.read.demos[0]) | {"memory": f"# Fri 5 May 2023\n1 Nadia: {CANARY}", "question": "What sings?"}
    memory.read.demos = [demo]
    program_file.save(memory.read, Path("bad.json"), {"rounds": 1})
    assert commands.evaluate([*words, "--program", "bad.json", "--run-dir", "refused"]) == 3
    assert "test data found" in capfd.readouterr().err
    program_file.save(MemorySystem(rounds=3).read, Path("other.json"), {"rounds": 3})
    assert commands.evaluate([*words, "--program", "other.json", "--rounds", "1", "--dry-run"]) == 2
    assert "use --rounds 3, or leave --rounds out" in capfd.readouterr().err
    assert commands.evaluate([*words, "--program", "other.json", "--dry-run"]) == 0


@pytest.mark.filterwarnings("default")  # MLflow reads its own database with SQLAlchemy calls that warn
def test_every_candidate_is_a_nested_run_in_mlflow(
    server: Server, simulated: Path, capfd: Any, mlflow_tables: Path
) -> None:
    shutil.copy(mlflow_tables, "mydb.sqlite")
    server.answer = scripted(simulated, learns=True)
    words = [word for word in flags(server, simulated, "--run-dir", "run") if word != "--no-mlflow"]
    assert commands.optimize(words) == 0
    assert "in mydb.sqlite" in capfd.readouterr().out
    import mlflow

    from memometer.reader import program_file

    client = mlflow.MlflowClient(f"sqlite:///{Path('mydb.sqlite').resolve()}")
    experiment = client.get_experiment_by_name("locomo")
    runs = client.search_runs([experiment.experiment_id], max_results=200)
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    nested = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    tried = json.loads(Path("run/candidates.json").read_text())
    assert {run.data.params["prompt"] for run in nested} == {candidate["digest"] for candidate in tried}
    assert parent.data.metrics["gain/difference"] == pytest.approx(results()["gain"]["difference"])
    assert max(run.data.metrics["lift"] for run in nested) > 0.5
    assert len(parent.data.metrics) <= 12
    (prompt,) = client.search_prompts(f"experiment_id = '{experiment.experiment_id}'")
    versions = {version.tags["digest"]: version for version in client.search_prompt_versions(prompt.name)}
    found = program_file.load(Path("optimized_memory_qa.json"))
    assert [versions[found.digest].version, len(versions)] == [2, 2], "the prompt before the search is the first"
    assert versions[found.digest].tags["gained"] == "True"
    assert "{{question}}" in versions[found.digest].template[-1]["content"]
    linked = json.loads(parent.data.tags["mlflow.linkedPrompts"])
    assert {(each["name"], each["version"]) for each in linked} == {(prompt.name, "1"), (prompt.name, "2")}
    assert [artifact.path for artifact in client.list_artifacts(nested[0].info.run_id)] == ["prompt.json"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--optimizer", "bootstrap", "--max-demos", "0"], "--max-demos 1"),
        (["--fail-on-error", "2"], "--fail-on-error: 2: expected a number from 0 to 1"),
        (["--token-price", "7"], "--token-price: 7: expected a number from 0 to 1"),
        (["--cost-limit", "-1"], "--cost-limit"),
        (["--seed", "4294967296"], "below 2^32"),
        (["--seed", "-1"], "expected an integer, 0 or more"),
        (["--api-base", "http://127.0.0.1:1/v1"], "--api-base needs --model"),
        (["--prompt-api-base", "http://127.0.0.1:1/v1"], "--prompt-api-base needs --prompt-model"),
        (["--resume", "nowhere"], "nowhere"),
        (["--resume", "nowhere", "--seed", "1"], "leave out --seed"),
        (["--data", "nowhere.json"], "nowhere.json"),
        (["--out", "nowhere/p.json"], "mkdir -p nowhere"),
        (["--out", "."], "such as program.json"),
        (["--model", "embedded:huge"], "huge"),
        (["--model", "openai/x", "--context-window", "500"], "use a smaller --budget-tokens"),
        (["--model", "openai/x", "--question-budget", "100"], "--question-budget 100"),
        (["--target", "retrieval", "--rounds", "2"], "--rounds"),
        (["--target", "retrieval"], "--out"),
    ],
)
def test_usage_errors(words: list[str], said: str, capfd: Any) -> None:
    words = words if "--data" in words or "--resume" in words else ["--data", str(ROOT / "locomo/sample.json"), *words]
    assert commands.optimize(words) == 2
    out, err = capfd.readouterr()
    assert not out
    assert said in err
    assert "Traceback" not in err
