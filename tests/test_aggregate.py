"""Three states and what is shown beside a score, from records made here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from locomo.dataset import CATEGORIES, Question
from memometer.report import aggregate, comparisons, presenter
from memometer.report.summary import summarize
from memometer.report.tables import all_parts
from memometer.run.folder import key
from memometer.stats import power
from memometer.stats.max_t import max_t

JUDGE = {"judge": "m/judge", "prompt": "strict", "prompt_hash": "a1", "reason": "", "prompt_tokens": 9,
         "completion_tokens": 1}  # fmt: skip


def questions(conversations: int = 8, each: int = 6) -> list[Question]:
    """Single-hop, the last of each conversation unanswerable."""
    return [
        Question(f"c{c}", i, f"Question {i}?", *(("5", None) if i == each - 1 else ("4", "gold")), (f"D1:{i}",))
        for c in range(conversations)
        for i in range(each)
    ]


def record(system: str, question: Question, label: str | None, **more: Any) -> dict[str, Any]:
    """An answer with a verdict; the evidence is shown where the answer is correct."""
    right = label == "correct"
    verdicts = [{**JUDGE, "label": label}] if label and question.gold else []
    return {"system": system, "budget_tokens": 0 if system in ("none", "refusal") else 512, "question_id": question.id,
            "option_order": "free", "attempt": 1, "answer": "gold" if right else "other", "verdicts": verdicts,
            "recall": {"turn_ids": list(question.evidence) if right else [], "tokens": 100, "ranked": []},
            "prompt_tokens": 120, "completion_tokens": 3, "calls": 1, "unreported": 0, "truncated": False,
            "seconds": 0.1, "model": "m/reader", "error": "", "memory_error": "", **more}  # fmt: skip


def run(asked: list[Question], **systems: Callable[[Question], dict[str, Any]]) -> dict[str, Any]:
    records = [{**make(question), "system": name} for name, make in systems.items() for question in asked]
    keys = [(r["system"], r["budget_tokens"], r["question_id"], r["option_order"]) for r in records]
    pairs = comparisons.compare_systems(records, asked, keys)
    return {
        "systems": aggregate.aggregate(records, asked, keys),
        "comparisons": pairs,
        "warnings": comparisons.warnings_of(asked, asked),
        "subset": False,
        "categories": CATEGORIES,
        "share": aggregate.missing_share(records, keys),
        "failures": aggregate.memory_failure_reasons(records, keys),
    }


def figures(results: dict[str, Any], system: str) -> dict[str, Any]:
    (entry,) = results["systems"][system]["budgets"].values()
    return entry


def as_text(found: dict[str, Any]) -> str:
    """Every table of the results, as text."""
    manifest = {"config": {"fail_on_error": 1, "split": "all", "seed": 0, "num_test": None, "categories": None},
                "identity": {"data": ""}, "packages": {}, "created_at": "", "git": "", "python": ""}  # fmt: skip
    facts = {"missing_share": 0, "status": "valid", "reader": "", "judge": "", "token_counter": "", "left_out": {}}
    results = {**facts, **found}
    return presenter.text(all_parts(summarize(manifest, results), results, {}))


def test_correct_wrong_and_missing_have_bounds() -> None:
    def answer(question: Question) -> dict[str, Any]:
        if question.index == 0:
            return record("a", question, "missing")
        if question.index == 1:
            return record("a", question, None, answer=None, error="LMServerError: 500")
        return record("a", question, "correct" if question.index == 2 else "wrong")

    found = run(questions(), a=answer)
    entry = figures(found, "a")
    assert (entry["questions"], entry["missing"], entry["failed"]) == (40, 16, 0)
    assert (entry["judge_correct"], entry["judge_n"], entry["judge_missing"]) == (8, 24, 16)
    assert entry["judge"] == pytest.approx(8 / 24), "over what was graded"
    assert (entry["judge_worst"], entry["judge_best"]) == (8 / 40, 24 / 40), "over all that was planned"
    assert entry["f1_n"] == 32, "what the judge left ungraded was answered all the same"
    assert found["share"] == pytest.approx(16 / 48)
    under = entry["graders"]["m/judge (strict, original)"]
    assert {name: under[name] for name in ("score", "n", "missing", "worst", "best")} == {
        "score": entry["judge"], "n": 24, "missing": 16, "worst": 8 / 40, "best": 24 / 40}  # fmt: skip
    assert set(under["by_category"]) == {"4"}


def test_a_memory_that_fails_is_wrong_and_its_run_is_valid() -> None:
    def fragile(question: Question) -> dict[str, Any]:
        if question.conversation == "c0":
            recall = {"turn_ids": [], "tokens": 0, "ranked": []}
            return record(
                "a", question, None, answer=None, recall=recall, calls=0, prompt_tokens=0, memory_error="Boom: x"
            )
        return record("a", question, "correct")

    found = run(questions(), a=fragile)
    entry = figures(found, "a")
    assert (entry["failed"], entry["missing"], entry["questions"]) == (5, 0, 40)
    for measure in ("judge", "f1", "evidence_recall"):
        assert entry[measure] == pytest.approx(35 / 40), measure
    assert (entry["judge_worst"], entry["judge_best"]) == (35 / 40, 35 / 40)
    assert entry["by_category"]["5"]["f1"] == 0, "who fails does not abstain"
    assert entry["by_category"]["5"]["failed"] == 1
    assert entry["mean_tokens"] == 100, "what nothing was shown for costs nothing"
    assert found["share"] == 0
    assert found["failures"] == ["6 x a: Boom: x"]
    assert entry["by_conversation"]["c0"]["evidence_recall"] == 0


def test_a_memory_that_always_fails_scores_zero() -> None:
    def broken(question: Question) -> dict[str, Any]:
        return record("a", question, None, answer=None, memory_error="ingest: Boom: x")

    entry = figures(run(questions(), a=broken, b=lambda q: record("b", q, "correct")), "a")
    assert (entry["judge"], entry["f1"], entry["evidence_recall"], entry["failed"]) == (0, 0, 0, 40)
    assert entry["mean_tokens"] is None


def test_a_failure_where_nobody_reads_is_no_answer() -> None:
    def recalled(question: Question) -> dict[str, Any]:
        return record("a", question, None, answer=None, model=None, memory_error="Boom: x" if question.index else "")

    found = run(questions(), a=recalled, b=recalled)
    assert "f1" not in figures(found, "a")
    assert figures(found, "a")["failed"] == 32
    assert {c["measure"] for c in found["comparisons"]} == {"evidence_recall"}


def placed(system: str, share: float) -> Callable[[Question], dict[str, Any]]:
    """Right on the first questions of each conversation, so that what one gets right the better ones do too."""
    return lambda question: {**record(system, question, "correct" if question.index < share * 5 else "wrong")}


def test_the_gap_between_none_and_oracle_is_closed_by_a_share() -> None:
    asked = questions()
    found = run(asked, a=placed("a", 0.6), none=placed("none", 0.2), oracle=placed("oracle", 1.0))
    closed = figures(found, "a")["gap_closed"]["judge"]
    assert closed["share"] == pytest.approx((0.6 - 0.2) / (1.0 - 0.2))
    assert closed["gap"]["difference"] == pytest.approx(0.8)
    assert closed["n"] == 40
    assert figures(found, "oracle")["gap_closed"] == {}
    assert "50 %" in as_text(found)


def test_no_share_is_shown_of_a_gap_that_may_be_zero() -> None:
    def lucky(question: Question) -> dict[str, Any]:
        return record("oracle", question, "correct" if question.id == "c0#4" or question.index < 2 else "wrong")

    found = run(questions(), a=placed("a", 0.4), none=placed("none", 0.4), oracle=lucky)
    closed = figures(found, "a")["gap_closed"]["judge"]
    assert closed["gap"]["difference"] == pytest.approx(1 / 40)
    assert (closed["share"], closed["low"], closed["high"]) == (None, None, None)
    assert "no share of it is shown" in as_text(found)


def test_every_system_is_compared_with_each_other_and_the_better_floor() -> None:
    found = run(
        questions(),
        a=placed("a", 0.8),
        b=placed("b", 0.4),
        none=placed("none", 0.2),
        refusal=placed("refusal", 0.0),
        oracle=placed("oracle", 1.0),
    )
    judged = [c for c in found["comparisons"] if c["measure"] == "judge"]
    assert [(c["a"]["system"], c["b"]["system"]) for c in judged] == [("a", "b"), ("a", "none"), ("b", "none")]
    assert judged[0]["difference"] == pytest.approx(0.4)
    assert (judged[0]["wins"], judged[0]["losses"], judged[0]["ties"]) == (16, 0, 24)
    assert judged[0]["p_permutation"] == 2 / 2**8
    assert judged[0]["p_adjusted"] == 2 / 2**8, "all three differences have the same sign in every conversation"
    assert judged[0]["family"] == 3
    assert judged[0]["grader"] == "m/judge (strict, original)"
    assert set(judged[0]) >= {"p_mcnemar", "low", "high", "detectable", "n", "clusters"}
    assert {c["measure"] for c in found["comparisons"]} == {"judge", "f1", "evidence_recall"}
    text = as_text(found)
    assert "Paired differences in judge accuracy (J) (m/judge (strict, original))" in text
    assert text.index("Paired") < text.index("All questions"), "under the table that it belongs to"


def test_budgets_are_compared_level_by_level() -> None:
    def at(system: str, budget: int, share: float) -> list[dict[str, Any]]:
        return [
            {**record(system, q, "correct" if q.index < share * 5 else "wrong"), "budget_tokens": budget} for q in asked
        ]

    asked = questions()
    places = [("a", 512, 0.4), ("a", 1024, 0.6), ("b", 512, 0.2), ("b", 1024, 0.4), ("whole", 9000, 0.8)]
    places += [("oracle", 512, 1.0), ("oracle", 1024, 1.0)]
    records = [made for place in places for made in at(*place)]
    keys = [(r["system"], r["budget_tokens"], r["question_id"], r["option_order"]) for r in records]
    found = [c for c in comparisons.compare_systems(records, asked, keys) if c["measure"] == "judge"]
    assert [(c["a"]["system"], c["a"]["budget"], c["b"]["system"], c["b"]["budget"]) for c in found] == [
        ("a", 512, "b", 512), ("a", 512, "whole", 9000), ("b", 512, "whole", 9000),
        ("a", 1024, "b", 1024), ("a", 1024, "whole", 9000), ("b", 1024, "whole", 9000)]  # fmt: skip
    assert [c["level"] for c in found] == [512, 512, 512, 1024, 1024, 1024]
    assert {c["family"] for c in found} == {3}, "a budget is a table of its own"


def test_two_gradings_stand_apart() -> None:
    def twice(question: Question) -> dict[str, Any]:
        made = record("a", question, "wrong")
        return {
            **made,
            "verdicts": [
                *made["verdicts"],
                *({**v, "prompt": "lenient", "label": "correct"} for v in made["verdicts"]),
            ],
        }

    found = run(questions(), a=twice)
    entry = figures(found, "a")
    assert entry["judge"] == 0, "J is the run's own grading"
    assert [under["score"] for under in entry["graders"].values()] == [0, 1]
    assert as_text(found).count("Judge accuracy (J) of m/judge") == 2


def test_what_a_reader_has_to_know_first() -> None:
    asked = questions(conversations=4)
    told = comparisons.warnings_of(asked[:-1], asked)
    assert "4 conversations" in told[0]
    assert "3 degrees of freedom" in told[0]
    assert "below 0.125" in told[0]
    assert told[1:] == ["A subset: 23 of 24 questions."]
    assert "0.00195" in comparisons.few_clusters(10)
    assert "too few" in comparisons.few_clusters(3)
    assert "too few" not in comparisons.few_clusters(4)
    assert comparisons.few_clusters(1).startswith("One conversation: no interval")
    assert comparisons.warnings_of(questions(11), questions(11)) == []


def test_the_objective_is_the_mean_reward_of_answered_records() -> None:
    (question,) = questions(conversations=1, each=2)[:1]
    answered = record("a", question, "correct", prompt_tokens=900, completion_tokens=100, citations=["D1:0"])
    failed = {**record("a", question, None), "error": "LMTimeoutError", "answer": None, "budget_tokens": 1024}
    found = aggregate.aggregate([answered, failed], [question], [(*key(r),) for r in (answered, failed)])
    entry = found["a"]["budgets"]["512"]["objective"]
    assert entry == {"mean": pytest.approx(0.99), "interval": None, "n": 1, "token_price": 0.01}


def test_each_system_is_compared_with_the_strongest_simple_one_or_a_named_one() -> None:
    scores = {"a": 0.8, "b": 0.6, "recent": 0.2, "bm25": 0.4, "none": 0.0}
    asked = questions()
    records = [one for name, share in scores.items() for one in map(placed(name, share), asked)]
    keys = [key(one) for one in records]

    def matched(reference: str = "") -> list[tuple[str, str]]:
        found = comparisons.compare_systems(records, asked, keys, reference=reference)
        return [(c["a"]["system"], c["b"]["system"]) for c in found if c["measure"] == "judge"]

    assert matched() == [("a", "bm25"), ("b", "bm25"), ("recent", "bm25"), ("bm25", "none")]
    assert matched("a") == [("b", "a"), ("recent", "a"), ("bm25", "a"), ("a", "none")]


@pytest.mark.parametrize("clusters", [6, 10])
def test_the_printed_detectable_difference_is_found_in_about_80_percent(clusters: int) -> None:
    """Simulated families of four systems against one reference; one system differs by what is printed."""
    random = np.random.default_rng(3)
    errors = power.detectable_errors(clusters, 4)
    assert errors is not None
    found = false = 0
    for _ in range(300):
        reference = random.normal(size=clusters)
        sums = (random.normal(size=(4, clusters)) - reference) / np.sqrt(2)
        false += min(max_t(sums)) < 0.05
        sums[0] += errors / np.sqrt(clusters)
        found += max_t(sums)[0] < 0.05
    assert 0.72 <= found / 300 <= 0.9
    assert false / 300 <= 0.05 + 2 * 0.0126
