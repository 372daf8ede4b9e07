"""What a run cost, stage by stage, and what its tokens bought."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from locomo.dataset import Question
from memometer.memory import Memory, Recall, State
from memometer.models import resolve_models
from memometer.models.plain_adapter import PlainAdapter
from memometer.models.usage import metered, metered_in
from memometer.reader.reader import Reader
from memometer.report.pareto import areas, frontier, total_tokens
from memometer.run import cost
from memometer.run.cost import Spending, dollars
from memometer.run.folder import read_records
from memometer.run.prices import Price, price_of
from tests import commands
from tests.conftest import ROOT, Reply, Server, completion
from tests.evaluation import remote, results

PRICE = {"prompt": 1e-6, "cached": 5e-7, "completion": 2e-6, "source": "invented"}


def usage(
    calls: int = 1, prompt: int = 100, completion: int = 10, cached: int = 0, unreported: int = 0
) -> dict[str, int]:
    return {"calls": calls, "unreported": unreported, "prompt_tokens": prompt, "completion_tokens": completion,
            "cached_tokens": cached}  # fmt: skip


def record(id: str = "c#0", system: str = "a", budget: int = 100, **more: Any) -> dict[str, Any]:
    return {
        "system": system, "budget_tokens": budget, "question_id": id, "option_order": "free", "attempt": 1, "answer":
        "x", "recall": {"turn_ids": ["D1:1"], "tokens": 40}, "verdicts": [], "seconds": 1.0, "model": "reader", "error":
        "", "truncated": False, **usage(), "answering": {**usage(), "seconds": 0.75}, **more,
    }  # fmt: skip


def question(id: str = "c#0") -> Question:
    return Question(id.split("#")[0], int(id.split("#")[1]), "Who?", "4", "x", ("D1:1", "D1:2"))


def test_prices_are_known_named_local_or_unknown() -> None:
    assert price_of("embedded:tiny") == price_of("embedded/tiny") == Price(0.0, 0.0, 0.0, "local")
    for address in ("http://127.0.0.1:8000/v1", "http://localhost:1/v1", "http://[::1]:1/v1"):
        local = price_of("openai/x", api_base=address)
        assert local
        assert local.source == "local"
    assert price_of("openai/gpt-4o-mini", api_base="https://example.org/v1") is None, "another server, another price"
    assert price_of("openai/unheard-of") is None
    named = price_of("openai/unheard-of", named=(0.5, 2.0))
    assert named
    assert named.usd(1_000_000, 1_000_000) == pytest.approx(2.5)
    known = price_of("openai/gpt-4o-mini")
    assert known
    assert known.usd(1000, 0, 1000) < known.usd(1000, 0), "what is read from the cache costs less"


class Rewriter(Memory[State]):
    """A memory that asks the model before it recalls."""

    def __init__(self) -> None:
        super().__init__()
        self.rewrite = dspy.Predict("question -> lookup")

    def recall(self, state: State, question: str, budget_tokens: int) -> Recall:
        self.rewrite(question=question)
        return Recall()


def test_recall_and_answer_are_metered_apart(server: Server) -> None:
    server.answer = lambda number, body: completion("x", prompt_tokens=[7, 100][number - 1], completion_tokens=number)
    lm = resolve_models.load("openai/scripted", api_base=server.url, retries=0).lm
    memory, reader = Rewriter(), Reader()
    with metered() as whole, metered_in(reader.read) as answering, dspy.context(lm=lm, adapter=PlainAdapter()):
        reader(memory=memory, state=memory.new(), question="Who?", budget_tokens=10)
    assert (whole.calls, whole.prompt_tokens, whole.completion_tokens) == (2, 107, 3)
    assert (answering.calls, answering.prompt_tokens, answering.completion_tokens) == (1, 100, 2)
    assert 0 < answering.seconds < whole.seconds


def test_tokens_read_from_a_cache_are_seen(server: Server) -> None:
    status, headers, body = completion("x", prompt_tokens=100)
    told = json.loads(body)
    told["usage"]["prompt_tokens_details"] = {"cached_tokens": 64}
    server.answer = lambda number, body: (status, headers, json.dumps(told).encode())
    lm = resolve_models.load("openai/scripted", api_base=server.url, retries=0).lm
    with metered() as usage, dspy.context(lm=lm, adapter=PlainAdapter()):
        dspy.Predict("question -> answer")(question="Who?")
    assert (usage.prompt_tokens, usage.cached_tokens) == (100, 64)


def test_every_stage_is_paid_for_and_adds_up() -> None:
    manifest = {"reader": "reader", "prices": {"reader": PRICE, "judge": None, "embedded/base": {**PRICE, "prompt": 0.0,
                "cached": 0.0, "completion": 0.0, "source": "local"}}}  # fmt: skip
    verdict = {"label": "correct", "judge": "embedded/base", "prompt": "strict", "prompt_tokens": 50,
               "completion_tokens": 1, "unreported": 0, "seconds": 0.5}  # fmt: skip
    found = cost.summarize(
        manifest,
        [
            record(**usage(2, 130, 15), verdicts=[verdict]),
            record(error="LMServerError", attempt=1, answer=None, **usage(1, 0, 0, unreported=1),
                   answering={**usage(1, 0, 0, unreported=1), "seconds": 0.1}),
            record("c#1", verdicts=[{**verdict, "judge": "judge"}, {**verdict, "judge": "stranger"}]),
            record(system="b", **usage(0, 0, 0), answering={**usage(0, 0, 0), "seconds": 0.0}),
        ],
        [{"system": "a", "conversation": "c", "error": "", "seconds": 3.0, **usage(4, 1000, 200, cached=500)}],
    )  # fmt: skip
    stages = found["systems"]["a"]["budgets"]["100"]
    assert found["systems"]["a"]["ingest"]["usd"] == pytest.approx(500e-6 + 500 * 5e-7 + 200 * 2e-6)
    assert stages["recall"]["calls"] == 1, "what was not spent inside the reader's call"
    assert stages["recall"]["usd"] == pytest.approx(30e-6 + 5 * 2e-6)
    assert stages["recall"]["seconds"] == pytest.approx(0.25 + 0.9 + 0.25)
    assert stages["answer"]["calls"] == 3, "a failed attempt is paid for as well"
    assert (stages["answer"]["prompt_tokens"], stages["answer"]["unreported"]) == (200, 1)
    assert dollars(stages["answer"]).endswith("+"), "nobody said what the failed call took"
    assert stages["judge"]["usd"] is None, "one of the judges has no price"
    assert dollars(stages["judge"]) == "?"
    assert found["systems"]["b"]["budgets"]["100"]["answer"]["usd"] == 0.0
    assert found["total"]["usd"] is None
    assert found["total"]["calls"] == 4 + 1 + 3 + 3
    local = cost.summarize(manifest, [record(verdicts=[verdict])], [])["systems"]["a"]
    assert dollars(local["budgets"]["100"]["judge"]) == "local"


def test_what_is_not_metered_has_no_price() -> None:
    manifest = {"reader": "reader", "prices": {"reader": PRICE}, "unmetered": ["a"]}
    ingest = {"system": "a", "conversation": "c", "error": "", "seconds": 3.0, **usage(0, 0, 0)}
    found = cost.summarize(manifest, [record()], [ingest])["systems"]["a"]
    assert found["ingest"]["usd"] is None
    assert found["budgets"]["100"]["recall"]["usd"] is None
    assert found["budgets"]["100"]["answer"]["usd"] == pytest.approx(120e-6)


def test_an_older_record_does_not_say_what_its_recall_took() -> None:
    old = record()
    del old["answering"], old["cached_tokens"]
    stages = cost.summarize({}, [old], [])["systems"]["a"]["budgets"]["100"]
    assert stages["answer"]["prompt_tokens"] == 100
    assert stages["recall"]["seconds"] is None


def test_ingest_is_shared_among_the_questions() -> None:
    ingests = [{"conversation": c, **usage(1, 900, 100)} for c in ("c", "c", "other")]
    found = total_tokens([record("c#0"), record("c#1")], ingests)
    assert found["tokens"] == 110 + 1000 / 2, "a conversation read twice counts once, another one not at all"
    found = total_tokens([record(model=None, **usage(0, 0, 0))], [])
    assert found["tokens"] == 40, "where nobody read, what was recalled"


def test_the_frontier_is_what_nothing_beats() -> None:
    many = [question(f"{c}#{i}") for c in "cd" for i in range(4)]

    def of(system: str, budget: int, prompt: int, right: int) -> list[dict[str, Any]]:
        return [record(q.id, system, budget, answer="x" if i < right else "y", **usage(1, prompt, 0))
                for i, q in enumerate(many)]  # fmt: skip

    points = frontier(
        [*of("a", 1, 100, 4), *of("b", 1, 200, 4), *of("c", 1, 300, 6), *of("oracle", 1, 50, 8)], [], many
    )
    assert {p["system"]: p["best"] for p in points["f1"]} == {"a": True, "b": False, "c": True, "oracle": False}
    assert {p["system"]: p["score"] for p in points["f1"]} == {"a": 0.5, "b": 0.5, "c": 0.75, "oracle": 1.0}
    assert {p["score"] for p in points["evidence_recall"]} == {0.5}


@given(scores=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=2, max_size=6),
       factor=st.floats(1.1, 50))  # fmt: skip
def test_the_area_is_the_mean_height_over_log_tokens(scores: list[list[bool]], factor: float) -> None:
    many = [question(f"c{i % 2}#{i}") for i in range(len(scores))]

    def area(budgets: list[int]) -> dict[str, Any]:
        rows = [record(q.id, "a", budget, answer="x" if right else "y")
                for q, rights in zip(many, scores, strict=True)
                for budget, right in zip(budgets, rights, strict=True)]  # fmt: skip
        return areas(rows, many)["f1"]["a"]

    heights = [sum(column) / len(scores) for column in zip(*scores, strict=True)]
    even = area([100, 1000, 10_000])
    assert even["area"] == pytest.approx(heights[0] / 4 + heights[1] / 2 + heights[2] / 4)
    assert even["budgets"] == [100, 10_000]
    assert min(heights) - 1e-9 <= even["area"] <= max(heights) + 1e-9
    uneven = [100, int(100 * factor) + 1, 10_000]
    share = math.log(uneven[1] / 100) / math.log(100)
    expected = share * (heights[0] + heights[1]) / 2 + (1 - share) * (heights[1] + heights[2]) / 2
    assert area(uneven)["area"] == pytest.approx(expected)


def test_one_budget_has_no_area() -> None:
    assert areas([record()], [question()]) == {}


def test_spending_counts_each_line_once() -> None:
    spending = Spending({"reader": "reader", "prices": {"reader": PRICE, "judge": PRICE}}, limit=0.001)
    verdict = {"label": "wrong", "judge": "judge", "prompt_tokens": 100, "completion_tokens": 0, "unreported": 0}
    spending.add("records.jsonl", record(verdicts=[verdict]))
    assert spending.usd == pytest.approx(120e-6 + 100e-6)
    spending.add("verdicts.jsonl", {"verdict": verdict})
    spending.add("ingest.jsonl", {"error": "", **usage(1, 100, 0)})
    assert spending.usd == pytest.approx(420e-6)
    assert not spending.reached
    spending.add("records.jsonl", record(**usage(1, 1000, 0)))
    assert "has cost $0.0014, and --cost-limit is $0.0010" in spending.reached
    spending.limit = 1.0
    spending.add("records.jsonl", record(error="LMServerError", unreported=1))
    assert not spending.reached, "a failed call is rarely billed"
    spending.add("records.jsonl", record(unreported=1))
    assert "did not report the number of tokens" in spending.reached


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, the sample as data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCOMO_PATH", str(ROOT / "locomo" / "sample.json"))
    return tmp_path


def test_a_run_stops_at_its_cost_limit_and_goes_on_with_a_higher_one(
    server: Server, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = remote(server, "--systems", "recent", "--price", "1000,0", "--num-threads", "1", "--run-dir", "run")
    assert commands.evaluate([*args, "--cost-limit", "0.5"]) == 4
    output = capsys.readouterr().out
    assert "The run has cost $0.5000, and --cost-limit is $0.5000" in output
    resume = shlex.split(output.split("Continue with: ")[1].splitlines()[0])
    assert len(read_records(here / "run")) == len(server.requests) == 5, "a tenth of a dollar each"
    assert commands.evaluate(["--resume", "run"]) == 4
    assert len(server.requests) == 5, "the saved limit holds"
    assert resume[:3] == ["memometer", "eval", "--resume"]
    assert commands.evaluate(resume[2:]) == 0, "the printed command is sufficient"
    found = results(here / "run")["cost"]
    assert found["total"]["usd"] == pytest.approx(0.1 * len(server.requests))
    assert found["prices"]["openai/scripted"]["source"] == "named"
    assert found["systems"]["recent"]["budgets"]["150"]["answer"]["usd"] == pytest.approx(1.3)
    assert "$1.3000" in (here / "run" / "table.txt").read_text()
    assert "$1.3000" in (here / "run" / "report.md").read_text()
    assert "$1.3000" in (here / "run" / "report.tex").read_text().replace("\\", "")


def test_the_certificate_is_paid_for_by_the_run_that_measured_it(
    server: Server, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EMBEDDED_MODELS_DIR", str(here / "models"))
    server.answer = lambda number, body: completion("yes")
    judge = ["--judge-model", "openai/judge", "--judge-api-base", server.url, "--judge-price", "1000,0"]
    args = remote(server, "--systems", "recent", "--price", "1000,0", *judge, "--allow-failed-calibration")
    assert commands.evaluate([*args, "--cost-limit", "0.05", "--run-dir", "run"]) == 4
    measured = len(server.requests)
    assert f"The run has cost ${measured / 10:.4f}" in capsys.readouterr().out
    assert not any(body["model"] == "scripted" for body in server.requests), "no question was asked"
    assert commands.evaluate(["--resume", "run", "--cost-limit", "100"]) == 0
    found = results(here / "run")["cost"]
    assert (found["calibration"]["calls"], found["calibration"]["usd"]) == (
        measured, pytest.approx(measured / 10)
    )  # fmt: skip
    assert found["total"]["calls"] == len(server.requests)
    assert found["total"]["usd"] == pytest.approx(0.1 * len(server.requests))
    assert "calibration" in (here / "run" / "table.txt").read_text()
    assert commands.evaluate([*args, "--run-dir", "again"]) == 0
    assert results(here / "again")["cost"]["calibration"]["calls"] == 0, "it was there"


def bare(number: int, body: dict[str, Any]) -> Reply:
    status, headers, content = completion("x")
    told = json.loads(content)
    del told["usage"]
    return status, headers, json.dumps(told).encode()


def test_a_limit_that_cannot_be_kept_is_refused_or_stops(
    server: Server, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = ["--model", "openai/x", "--api-base", "https://example.invalid/v1", "--cost-limit", "1", "--dry-run"]
    assert commands.evaluate(unknown) == 2
    assert "the price of openai/x is not known; name it with --price PROMPT,REPLY" in capsys.readouterr().err
    server.answer = bare
    args = remote(server, "--systems", "recent", "--price", "1,1", "--num-threads", "1", "--run-dir", "run")
    assert commands.evaluate([*args, "--cost-limit", "5"]) == 4
    assert "did not report the number of tokens" in capsys.readouterr().out
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--cost-limit", "0"], "--cost-limit"),
        (["--recall-only", "--cost-limit", "1"], "--recall-only"),
        (["--judge-model", "none", "--judge-price", "1,1"], "--judge-price"),
        (["--price", "cheap"], "0.15,0.60"),
        (["--price=-1,2"], "two numbers from 0"),
        (["--resume", "run", "--cost-limit", "2", "--seed", "1"], "--seed"),
    ],
)
def test_a_mistake_about_money_is_one_sentence(
    args: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.evaluate(args) == 2
    assert message in capsys.readouterr().err
    assert not list(here.iterdir())
