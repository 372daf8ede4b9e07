"""The evaluation as its users run it: as a process, from a command to a table."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from locomo.dataset import read
from memometer.harness.plan import Plan
from memometer.judging.calibration_set import draw
from tests.conftest import ROOT, Reply, Server, completion, failure, shown, truthful
from tests.evaluation import SECRET, evaluate, everything, records, remote, results, start_evaluation, unwrapped


def test_recall_only_asks_no_model_and_imports_none(tmp_path: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from memometer.commands import evaluate\n"
        "words = '--recall-only --split all --budgets 64,128,400 --run-dir run --no-mlflow'.split()\n"
        "code = evaluate.main(words)\n"
        "print('imported:', {'litellm', 'mlflow', 'xllamacpp', 'torch'} & set(sys.modules)); sys.exit(code)"
    )
    env = {**os.environ, "LOCOMO_PATH": str(ROOT / "locomo" / "sample.json")}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "imported: set()" in done.stdout
    lines = [line for line in done.stdout.splitlines() if not line.startswith("imported")]
    assert all(line.startswith("SAMPLE") for line in lines), "every line says that this is not LOCOMO"
    systems = results(tmp_path / "run")["systems"]
    assert set(systems) == {"recent", "adaptive", "none", "oracle"}
    for budget in ("64", "128"):
        figures = systems["adaptive"]["budgets"][budget]
        assert figures["n"] == 11
        assert 0 < figures["evidence_recall"] <= 1
        assert figures["mean_tokens"] <= figures["max_tokens"] <= int(budget)
        assert set(figures["by_category"]) == {"1", "2", "3", "4", "5"}
    assert systems["oracle"]["budgets"]["128"]["evidence_recall"] == 1
    assert systems["none"]["budgets"]["0"]["evidence_recall"] == 0
    (large,) = [told for told in results(tmp_path / "run")["warnings"] if "of the mean conversation" in told]
    assert large.startswith("A budget of 400 tokens holds ")
    assert " ".join(done.stdout.replace("SAMPLE  ", "").split()).count(large) == 2, (
        "before anything is asked, and under the table"
    )


def test_the_recall_of_the_adaptive_memory_on_locomo(locomo: Any, tmp_path: Path) -> None:
    # The default weights were fitted on synthetic conversations alone: no fold has to be fitted.
    words = "--recall-only --split validation --budgets 2048 --systems adaptive --run-dir run --no-mlflow".split()
    done = evaluate(*words, cwd=tmp_path, LOCOMO_PATH=str(locomo.path))
    assert done.returncode == 0, done.stderr
    figures = results(tmp_path / "run")["systems"]["adaptive"]["budgets"]["2048"]
    assert figures["n"] == 306
    assert figures["evidence_recall"] >= 0.90
    assert figures["mrr"] <= figures["recall_at_10"] <= figures["session_at_5"] <= 1
    assert set(figures["by_conversation"]) == {"conv-47", "conv-50"}
    assert "fitted on the others" not in done.stdout
    assert figures["max_tokens"] <= 2048


def test_a_run_ends_in_a_table_of_all_systems(server: Server, tmp_path: Path) -> None:
    done = evaluate(*remote(server, "--judge-model", "openai/scripted-judge", "--judge-api-base", server.url,
                            "--no-calibration", "--run-dir", "run"), cwd=tmp_path)  # fmt: skip
    # The scripted judge says what the scripted reader says, which is no label.
    assert done.returncode == 3, done.stderr
    assert "openai/scripted-judge (strict, original) was not calibrated" in (tmp_path / "run" / "table.txt").read_text()
    first = done.stdout.splitlines()[0]
    assert first.startswith("SAMPLE  Budgets count tokens (")
    found = records(tmp_path / "run")
    assert len(found) == 6 * 13
    for record in found:
        billed = 100 if record["system"] == "full_context" else record["prompt_tokens"]  # its prompt is longer
        asked = (record["answer"], record["calls"], billed, record["completion_tokens"])
        refused = record["system"] == "refusal"
        assert asked == (("No information available", 0, 0, 0) if refused else ("Sourdough", 1, 100, 5))
        assert [v["label"] for v in record["verdicts"]] == ([] if "#1" in record["question_id"] and
               record["question_id"] in ("sample-1#11", "sample-1#12") else ["missing"])  # fmt: skip
    figures = results(tmp_path / "run")["systems"]
    assert set(figures) == {"recent", "full_context", "adaptive", "none", "refusal", "oracle"}
    assert figures["adaptive"]["budgets"]["150"]["judge_n"] == 0


def judged(server: Server, *more: str) -> list[str]:
    return remote(server, "--judge-model", "openai/judge", "--judge-api-base", server.url, "--systems", "adaptive",
                  "--run-dir", "run", *more)  # fmt: skip


def test_judged_answers_are_counted_exactly(server: Server, tmp_path: Path) -> None:
    """By a judge that errs never, but for two answers that it lets pass."""
    known = truthful(draw(read(ROOT / "locomo" / "sample.json"), 60))

    def answer(number: int, body: dict[str, Any]) -> Reply:
        if body["model"] != "judge":
            return completion("Not mentioned in it")
        _, gold, said = shown(body)
        if said == "Not mentioned in it":
            return completion("yes" if gold in ("Bruno", "120 euros") else "no")
        return known(number, body)

    server.answer = answer
    cache = {"EMBEDDED_MODELS_DIR": str(tmp_path / "models")}
    done = evaluate(*judged(server, "--max-false-accept", "1"), cwd=tmp_path, **cache)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The judge is not calibrated; it is measured first: " in done.stdout
    figures = results(tmp_path / "run")["systems"]["adaptive"]["budgets"]["150"]
    assert (figures["judge_correct"], figures["judge_n"], figures["missing"]) == (2, 11, 0)
    assert figures["judge"] == 2 / 11
    assert "judge_corrected" not in figures, "made-up answers correct no judge"
    assert figures["by_category"]["4"]["judge"] == 2 / 5
    assert figures["by_category"]["5"]["f1"] == 1.0, "an abstention is right in category 5"
    assert "judge" not in figures["by_category"]["5"]
    (certificate,) = results(tmp_path / "run")["judge_calibrations"]
    assert (certificate["judge"], certificate["prompt"], certificate["passed"]) == ("openai/judge", "strict", True)
    assert "openai/judge (strict) was not certified" in (tmp_path / "run" / "table.txt").read_text()
    (probes,) = results(tmp_path / "run")["hidden_probes"]
    assert (probes["passed"], probes["checked"], probes["false_accept"]["n"]) == (True, True, 60)
    lines = (tmp_path / "run" / "probes.jsonl").read_text().splitlines()
    assert len(lines) == 80
    texts = [json.dumps(body["messages"]) for body in server.requests if body["model"] == "judge"]
    assert not any("probe" in text for text in texts), "a judge cannot tell them from answers"
    asked = len(server.requests)
    assert evaluate("--resume", "run", cwd=tmp_path, **cache).returncode == 0
    assert len(server.requests) == asked, "the certificate is kept"


def test_a_judge_that_accepts_everything_shows_no_score(server: Server, tmp_path: Path) -> None:
    server.answer = lambda number, body: completion("yes")
    cache = {"EMBEDDED_MODELS_DIR": str(tmp_path / "models")}
    done = evaluate(*judged(server), cwd=tmp_path, **cache)
    assert done.returncode == 1, "the run ends before an answer is paid for"
    assert "--allow-failed-calibration" in done.stdout
    assert not any(body["model"] == "scripted" for body in server.requests)
    measured = len(server.requests)
    done = evaluate("--resume", "run", "--allow-failed-calibration", cwd=tmp_path, **cache)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(server.requests) == measured + 3 * 13, "the calibration is known, and no verdict is paid for"
    assert "failed its calibration" in (tmp_path / "run" / "table.txt").read_text()
    assert "it accepts 100.0 [" in (tmp_path / "run" / "table.txt").read_text()
    found = results(tmp_path / "run")
    assert "judge" not in found["systems"]["adaptive"]["budgets"]["150"]
    assert not found["judge_calibrations"][0]["passed"]
    assert not any(record["verdicts"] for record in records(tmp_path / "run"))


def test_a_judge_that_cannot_be_measured_ends_the_run_before_it_costs_anything(server: Server, tmp_path: Path) -> None:
    server.answer = lambda number, body: failure(500) if body["model"] == "judge" else completion("Sourdough")
    done = evaluate(*judged(server), cwd=tmp_path, EMBEDDED_MODELS_DIR=str(tmp_path / "models"))
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"no call can succeed: judge: (\d+) of \1 calls to the judge failed", done.stdout)
    assert not any(body["model"] == "scripted" for body in server.requests)
    assert "--resume run" in done.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--systems", "adaptive,mem1"], "'mem1'"),
        (["--split", "tests"], "'tests'"),
        (["--budgets", "512", "--budget-tokens", "512"], "--budgets"),
        (["--categories", "6"], "--categories"),
        (["--model", "embedded:huge"], "embedded:huge"),
        (["--model", "openai/x", "--max-false-accept", "15"], "--max-false-accept"),
        (
            ["--model", "openai/x", "--judge-model", "openai/y", "--tokenizer", "o200k_base", "--wrong-answers", "no"],
            "'no'",
        ),
        (["--model", "embeded:tiny"], "embedded:tiny|small|base"),
        (["--api-base", "http://127.0.0.1:1/v1"], "--api-base"),
        (["--model", "openai/x", "--api-base", "http://me:pw@host/v1"], "user, password"),
        (["--recall-only", "--model", "openai/x"], "--recall-only"),
        (["--recall-only", "--rounds", "2"], "--recall-only"),
        (["--question-budget", "3000"], "--rounds"),
        (["--abstention", "nowhere.json"], "nowhere.json"),
        (["--recall-only", "--folds"], "--folds"),
        (["--recall-only", "--systems", "adaptive", "--encoder", "nonsense"], "'nonsense'"),
        (["--data", "nowhere.json"], "nowhere.json"),
        (["--num-test", "0"], "--num-test"),
        (["--num-test", "some"], "'some'"),
        (["--recall-only", "--tokenizer", __file__], "tokenizer.json"),
        (["--timeout-seconds", "nan"], "--timeout-seconds"),
        (["--trace", "--no-mlflow"], "--trace"),
        (["--model", "embedded:" + __file__], "GGUF"),
        (["--judge-model", "none", "--judge-api-base", "http://me:pw@host/v1"], "--judge-api-base"),
        (["--model", "openai/x", "--tokenizer", "nope"], "o200k_base or cl100k_base"),
        (["--model", "openai/x", "--context-window", "200"], "--context-window"),
    ],
)
def test_a_mistake_is_one_sentence_and_costs_nothing(args: list[str], message: str, tmp_path: Path) -> None:
    done = evaluate(*args, "--dry-run", cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "pw@" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_dry_run_says_what_it_would_cost(server: Server, tmp_path: Path) -> None:
    done = evaluate("--model", "openai/gpt-4o-mini", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "openai/gpt-4o-mini answers, nobody judges; forecast: at most 65 calls" in " ".join(
        done.stdout.replace("SAMPLE", "").split()
    )
    assert "$0.0" in done.stdout
    assert not list(tmp_path.iterdir())


def test_the_controls_and_what_they_show_stand_in_the_table(server: Server, tmp_path: Path) -> None:
    known = truthful(draw(read(ROOT / "locomo" / "sample.json"), 60))

    def answer(number: int, body: dict[str, Any]) -> Reply:
        if body["model"] != "judge":
            memory = body["messages"][-1]["content"].partition("Memory:")[2]
            return completion("A loaf of bread" if "#" in memory else "A pair of shoes")
        said = shown(body)[2]
        return completion("yes") if said == "A loaf of bread" else known(number, body)

    server.answer = answer
    judge = ["--judge-model", "openai/judge", "--judge-api-base", server.url, "--max-false-accept", "1"]
    models = {"EMBEDDED_MODELS_DIR": str(tmp_path / "models")}
    done = evaluate(*remote(server, *judge, "--run-dir", "run"), cwd=tmp_path, **models)
    assert done.returncode == 0, done.stdout + done.stderr
    found = results(tmp_path / "run")
    figures = {name: next(iter(system["budgets"].values())) for name, system in found["systems"].items()}
    assert [figures[name]["judge"] for name in ("none", "refusal", "oracle")] == [0, 0, 1]
    assert figures["refusal"]["by_category"]["5"]["f1"] == 1
    assert (figures["refusal"]["mean_calls"], figures["refusal"]["mean_tokens"]) == (0, 0)
    assert figures["adaptive"]["gap_closed"]["judge"]["gap"]["difference"] == 1
    compared = {(c["a"]["system"], c["b"]["system"]) for c in found["comparisons"] if c["measure"] == "judge"}
    assert compared == {("full_context", "recent"), ("adaptive", "recent"), ("recent", "none")}
    assert "Paired differences in judge accuracy (J)" in done.stdout
    assert "One conversation: no interval" in done.stdout
    assert done.stdout.count("of the mean conversation") == 0


def test_what_the_window_cannot_hold_is_left_out_or_lowered(server: Server, tmp_path: Path) -> None:
    args = remote(server, "--run-dir", "run")
    args[args.index("--context-window") + 1] = "700"
    args[args.index("--budget-tokens") + 1] = "5000"
    done = evaluate(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "full_context is left out: the longest conversation has" in done.stdout
    assert "Budget 5,000 lowered to" in done.stdout
    assert "full_context" not in results(tmp_path / "run")["systems"]
    assert "full_context" in results(tmp_path / "run")["left_out"]


def test_category_5_is_asked_as_two_options_in_both_orders(server: Server, tmp_path: Path) -> None:
    server.answer = lambda number, body: completion("(a)")
    done = evaluate(*remote(server, "--two-options", "--systems", "adaptive", "--run-dir", "run"), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    traps = results(tmp_path / "run")["systems"]["adaptive"]["budgets"]["150"]["by_category"]["5"]
    assert traps["f1_by_option_order"] == {"abstain-first": 1.0, "trap-first": 0.0}
    assert traps["f1"] == 0.5
    assert traps["n"] == 2


def test_category_5_alone_has_its_own_table(server: Server, tmp_path: Path) -> None:
    server.answer = lambda number, body: completion("Not mentioned.")
    done = evaluate(*remote(server, "--categories", "5", "--systems", "simple", "--run-dir", "run/"), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"simple +150 +2 +100.0 ", done.stdout), "one conversation gives no interval"
    assert "Judge accuracy is not shown" in done.stdout
    assert evaluate("--resume", "run/", cwd=tmp_path).returncode == 0


def test_traces_hold_no_key(server: Server, tmp_path: Path, mlflow_tables: Path) -> None:
    shutil.copy(mlflow_tables, tmp_path / "mydb.sqlite")
    server.answer = lambda number, body: failure(500, f"you sent Authorization: Bearer {SECRET} and {SECRET}")
    args = [arg for arg in remote(server, "--trace", "--systems", "simple", "--run-dir", "run") if arg != "--no-mlflow"]
    process = start_evaluation(*args, cwd=tmp_path)  # MLflow traces a process until its end
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 1, stdout + stderr
    assert (tmp_path / "mydb.sqlite").read_bytes() != mlflow_tables.read_bytes()
    assert SECRET not in everything(tmp_path) + stdout + stderr


def test_answers_from_the_worked_examples_and_failures_are_in_every_report(server: Server, tmp_path: Path) -> None:
    replies = [completion("Sourdough."), (400, {"Content-Type": "application/json"}, b'{"error": {"message": "no"}}')]
    server.answer = lambda number, body: replies[number % 7 == 3]
    done = evaluate(*remote(server, "--systems", "recent", "--run-dir", "run", "--fail-on-error", "1"), cwd=tmp_path)
    found = results(tmp_path / "run")
    assert found["copied_examples"]["copied"] == found["copied_examples"]["answers"] > 10
    assert found["copied_examples"]["texts"] == ["Sourdough"]
    (reason,) = found["failures"]["missing"]
    for text in (
        done.stdout,
        *((tmp_path / "run" / name).read_text() for name in ("table.txt", "report.md", "report.tex")),
    ):
        plain = " ".join(text.replace("SAMPLE", "").replace("\\", "").replace("%", "").split())
        assert "answers repeat a worked example" in plain
        assert reason.split(":")[0] in plain


def test_a_prompt_of_ones_own_is_sent_for_every_system(server: Server, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(
        "Reply with the first word that fits: gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n.\n", "utf-8"
    )
    done = evaluate(*remote(server, "--systems", "recent", "--prompt", "mine.txt"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"Reply with the first word that fits" in json.dumps(request) for request in server.requests} == {True}
    (tmp_path / "mine.txt").write_text(" ")
    for file, more in (("mine.txt", ()), ("absent.txt", ()), ("mine.txt", ("--rounds", "2"))):
        done = evaluate(*remote(server, "--prompt", file, *more), cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "--prompt" in done.stderr


def test_the_recall_is_printed_before_a_model_answers(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[str] = []
    monkeypatch.setattr(Plan, "log", lambda plan, text="": printed.append(text))
    before: list[str] = []
    server.answer = lambda number, body: (before.append(before[0] if before else "".join(printed)), completion("x"))[1]
    evaluate(*remote(server, "--systems", "adaptive,recent", "--run-dir", "run"), cwd=tmp_path)
    recalls = {
        name: of["budgets"]["150"]["evidence_recall"]
        for name, of in results(tmp_path / "run")["systems"].items()
        if name in ("adaptive", "recent")
    }
    for name, recall in recalls.items():
        assert re.search(rf"{name} +150 +\d+ +{100 * recall:.1f}\n", before[0] + "\n")


def test_a_folder_in_use_is_not_written_over(server: Server, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("irreplaceable")
    done = evaluate(*remote(server, "--run-dir", "run"), cwd=tmp_path)
    assert done.returncode == 2
    assert "run is not empty" in done.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]
    done = evaluate(*remote(server, "--run-dir", "run/thesis.txt/new"), cwd=tmp_path)
    assert done.returncode == 2
    assert "run/thesis.txt/new cannot be written (Not a directory); name another folder." in done.stderr


def test_the_embedded_model_runs_end_to_end(tiny: Path, tmp_path: Path) -> None:
    done = evaluate("--num-test", "3", "--systems", "adaptive", "--budget-tokens", "100", "--model", "embedded:tiny",
                    "--no-mlflow", "--run-dir", "run", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(record["answer"] for record in records(tmp_path / "run"))
    assert "--judge-model embedded:base" in unwrapped(done.stdout)
    assert results(tmp_path / "run")["token_counter"].startswith("gguf")
