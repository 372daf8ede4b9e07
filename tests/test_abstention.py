"""What records say about abstaining and asking for more: figures on records made by hand, and the fitted rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from locomo.dataset import Question
from memometer import cli
from memometer.reader.abstention import AbstentionRule, AbstentionSignals
from memometer.reader.signatures import ABSTENTION
from memometer.report import multi_round_analysis
from memometer.stats import abstention
from memometer.token_counters import Utf8Bytes
from memory_system import MemorySystem
from tests.evaluation import evaluate, records, remote, results, unwrapped

SINGLE = Question("conv-1", 0, "What did Nadia pay?", "4", "120 euros", ("D1:1",))
SWAPPED = Question("conv-1", 1, "What did Oskar pay?", "5", None, ("D1:1",), adversarial_answer="120 euros")
OTHER = Question("conv-1", 2, "Where is Nadia?", "1", "Vienna, Graz", ("D1:2", "D2:1"))


def record(question: Question, answer: str | None, **more: Any) -> dict[str, Any]:
    return {"question_id": question.id, "system": "adaptive", "budget_tokens": 100, "option_order": "free", "answer":
    answer,
            "verdicts": [], "error": "", **more}  # fmt: skip


def test_twins_are_right_only_together() -> None:
    for single, swapped, accuracy in [
        ("120 euros", ABSTENTION, 1.0),
        ("120 euros", "120 euros", 0.0),
        (ABSTENTION, ABSTENTION, 0.0),
    ]:
        found = abstention.metrics([(SINGLE, record(SINGLE, single)), (SWAPPED, record(SWAPPED, swapped))])
        assert (found["twin_accuracy"], found["twins"]) == (accuracy, 1)
    verdict = {"judge": "m/judge", "prompt": "strict", "label": "correct"}
    judged = record(SINGLE, "a hundred and twenty", verdicts=[verdict])
    found = abstention.metrics([(SINGLE, judged), (SWAPPED, record(SWAPPED, ABSTENTION))])
    assert found["twin_accuracy"] == 0.0, "whatever a judge says, whose verdicts may be withheld"
    assert abstention.metrics([(OTHER, record(OTHER, "Vienna"))])["twin_accuracy"] is None


def test_over_abstention_is_counted_on_what_has_an_answer() -> None:
    pairs = [
        (SINGLE, record(SINGLE, ABSTENTION)),
        (OTHER, record(OTHER, "Graz")),
        (SWAPPED, record(SWAPPED, ABSTENTION)),
    ]
    found = abstention.metrics(pairs)
    assert (found["over_abstention"], found["over_abstention_n"]) == (0.5, 2)


def test_the_curve_answers_the_surest_first() -> None:
    pairs = [
        (SINGLE, record(SINGLE, "120 euros", speaker_gap=-1.0)),
        (OTHER, record(OTHER, "Paris", speaker_gap=0.0)),
        (SWAPPED, record(SWAPPED, "120 euros", speaker_gap=2.0)),
    ]
    found = abstention.metrics(pairs)
    assert found["risk_coverage"] == [
        [pytest.approx(1 / 3), 0.0],
        [pytest.approx(2 / 3), 0.5],
        [1.0, pytest.approx(2 / 3)],
    ]
    assert found["risk_coverage_auc"] == pytest.approx((0 + 0.5 + 2 / 3) / 3)
    assert abstention.risk_at(found, 0.5) in (0.0, 0.5)
    assert (found["auc"], found["caught_at_5"]) == (1.0, 1.0)


def test_separation_counts_ties_half() -> None:
    assert abstention.separation(np.array([1.0, 0.0]), np.array([0.0, -1.0]))["auc"] == pytest.approx(0.875)
    assert abstention.separation(np.array([]), np.array([0.0]))["auc"] is None
    assert abstention.threshold(np.arange(100.0), 0.05) == 95.0


def test_without_a_model_the_gap_alone_tells_apart() -> None:
    pairs = [(SINGLE, record(SINGLE, None, speaker_gap=-1.0)), (SWAPPED, record(SWAPPED, None, speaker_gap=1.0))]
    assert abstention.metrics(pairs)["auc"] == 1.0
    assert "risk_coverage" not in abstention.metrics(pairs)
    assert abstention.metrics([(q, record(q, None)) for q in (SINGLE, SWAPPED)])["auc"] is None, "no signal, no figure"


def test_the_fitted_rule_keeps_false_abstentions_down(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pairs = []
    for i in range(200):
        bad = i % 4 == 0
        question = Question("conv-1", i, "?", "5" if bad else "4", None if bad else "x", ())
        status = "absent" if rng.random() < (0.5 if bad else 0.02) else "answered"
        seen = record(
            question, "x", status=status, speaker_gap=float(rng.normal(1.0 if bad else -0.5)), attributed=True
        )
        pairs.append((question, seen))
    rule = abstention.fit(pairs)
    abstained = [(q.gold is None, rule.abstains(abstention.signals_of(r))) for q, r in pairs]
    assert sum(says for bad, says in abstained if not bad) <= 0.05 * 150
    assert sum(says for bad, says in abstained if bad) >= 20
    assert rule.weights["absent"] > 0 < rule.weights["speaker_gap"]
    rule.save(tmp_path / "rule.json")
    assert AbstentionRule.load(tmp_path / "rule.json") == rule
    (tmp_path / "rule.json").write_text("{}")
    with pytest.raises(ValueError, match=r"memometer fit-abstention"):
        AbstentionRule.load(tmp_path / "rule.json")
    with pytest.raises(ValueError, match="answerable and unanswerable"):
        abstention.fit([pair for pair in pairs if pair[0].gold])


def test_a_rule_weighs_what_there_is() -> None:
    rule = AbstentionRule({"absent": 2.0, "not_attributed": 1.0, "speaker_gap": 0.5, "nobody_named": -1.0}, 1.5)
    assert rule.abstains(AbstentionSignals(True, None, 0.0))
    assert not rule.abstains(AbstentionSignals(True, None, None))
    assert rule.score(AbstentionSignals(True, False, 2.0)) == 4.0


# ------------------------------------------------------------------ asking for more


def told(offers_more: bool, status: str, *turn_ids: str) -> dict[str, Any]:
    return {"offers_more": offers_more, "status": status, "lookup": "", "context_tokens": 100, "total_tokens": 300,
            "turn_ids": list(turn_ids)}  # fmt: skip


def test_asking_is_held_against_the_evidence() -> None:
    pairs = [
        (SINGLE, record(SINGLE, "x", rounds=[told(True, "answered", "D1:1")])),  # rightly enough
        (
            SINGLE,
            record(SINGLE, "x", rounds=[told(True, "more", "D1:1"), told(False, "answered", "D1:1")]),
        ),  # too careful
        (OTHER, record(OTHER, "x", rounds=[told(True, "absent", "D1:2")])),  # wrongly enough
        (SWAPPED, record(SWAPPED, "x", rounds=[told(True, "more", "D1:1")])),  # there is nothing to find
        (OTHER, record(OTHER, None, error="LMServerError: x")),
    ]
    found = multi_round_analysis.analyze(pairs, {"a": 100.0, "b": 350.0}, [100, 200])
    assert (found["p"], found["p_n"], found["f"], found["f_n"]) == (0.5, 2, 1.0, 1)
    assert 0 < found["p_interval"][0] < 0.5 < found["p_interval"][1] < 1
    assert "p = 0.50 [0.09, 0.91] n=2" in multi_round_analysis.sentence(found, 2)
    nothing = multi_round_analysis.analyze([], {}, [100, 200])
    assert multi_round_analysis.sentence(nothing, 2).endswith("f unknown (n=0)")


def test_rounds_against_one_shot_by_hand() -> None:
    needed = [100.0, 100.0, 400.0, float("inf")]
    contexts = multi_round_analysis.contexts_of(400, 3)
    assert contexts == [100, 200, 400]
    perfect = multi_round_analysis.simulate(needed, contexts=contexts, fixed_tokens=50, p=1, f=0)
    assert perfect.rounds == 0.75
    assert perfect.total_tokens == (2 * 150 + 2 * (150 + 250 + 450)) / 4
    assert perfect.one_prompt == 0.75
    cached = multi_round_analysis.simulate(needed, contexts=contexts, fixed_tokens=50, p=1, f=0, cached_price=0)
    assert cached.total_tokens == (2 * 150 + 2 * (150 + 100 + 200)) / 4
    assert cached.one_prompt == 0.5
    hasty = multi_round_analysis.simulate(needed, contexts=contexts, fixed_tokens=50, p=1, f=1)
    assert (hasty.rounds, hasty.one_prompt, hasty.total_tokens) == (0.5, 0.5, 150)
    assert multi_round_analysis.break_even_p(needed, contexts=contexts, fixed_tokens=50, f=1) == 0.1
    assert multi_round_analysis.break_even_p([110.0] * 4, contexts=contexts, fixed_tokens=50, f=0.9) is None


def test_the_memory_that_a_question_needs(sample: Any) -> None:
    memory = MemorySystem(count=Utf8Bytes())
    needed = multi_round_analysis.needed_tokens(lambda _: memory, sample.conversations, sample.questions, [400, 800])
    assert len(needed) == sum(bool(q.evidence) and q.category != "5" for q in sample.questions)
    assert min(needed.values()) < 800


# ------------------------------------------------------------------ as its users run it


def test_rounds_and_abstention_end_to_end(server: Any, tmp_path: Path) -> None:
    from tests.conftest import completion

    def answer(number: int, body: dict[str, Any]) -> Any:
        prompt = body["messages"][-1]["content"]
        if "Offered: answered, more" in prompt:
            return completion("1\nStatus: more\nLookup: accordion repair\nAnswer: unsure")
        return completion("2\nStatus: answered\nAnswer: Sourdough")

    server.answer = answer
    (tmp_path / "rule.json").write_text(
        json.dumps(
            {"weights": {"absent": 9, "not_attributed": 0, "speaker_gap": 1, "nobody_named": -9}, "threshold": 0.5}
        )
    )
    args = remote(server, "--systems", "adaptive", "--rounds", "2", "--abstention", "rule.json", "--run-dir", "run")
    rule = json.loads((tmp_path / "rule.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps(rule | {"fitted_on": ["conv-47"]}))
    refused = evaluate(*args, "--abstention", "other.json", "--dry-run", cwd=tmp_path)
    assert refused.returncode == 2
    assert "fitted on conv-47, which sample.json does not contain" in refused.stderr
    done = evaluate(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "if all evidence is shown: p = 0.00" in unwrapped(done.stdout)
    assert "Abstention: unanswerable" in (tmp_path / "run" / "table.txt").read_text()
    mine = [r for r in records(tmp_path / "run") if r["system"] == "adaptive"]
    assert all([t["status"] for t in r["rounds"]] == ["more", "answered"] for r in mine)
    assert all(set(r["citations"]) <= set(r["recall"]["turn_ids"]) and r["recall"]["tokens"] <= 150 for r in mine)
    assert {r["raw_answer"] for r in mine} == {"Sourdough"}
    assert all((r["answer"] == ABSTENTION) == ((r["speaker_gap"] or -9) > 0.5) for r in mine)
    figures = results(tmp_path / "run")["systems"]["adaptive"]["budgets"]["150"]
    assert figures["rounds"]["p"] == 0.0
    assert figures["mean_calls"] == 2
    assert len(figures["abstention"]["risk_coverage"]) == 13
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["config"]["rounds"] == 2
    (tmp_path / "rule.json").write_text((tmp_path / "rule.json").read_text().replace("0.5", "0.6"))
    changed = evaluate("--resume", "run", cwd=tmp_path)
    assert changed.returncode == 2
    assert "abstention changed" in changed.stderr


def test_the_command_fits_on_validation_conversations_only(locomo: Any, tmp_path: Path, capsys: Any) -> None:
    for split, code in (("validation", 0), ("test", 2)):
        args = ["--split", split, "--num-test", "40", "--budget-tokens", "100", "--systems", "adaptive"]
        done = evaluate("--recall-only", "--no-mlflow", "--run-dir", split, *args, cwd=tmp_path,
                        LOCOMO_PATH=str(locomo.path))  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert bool(
            cli.main(["fit-abstention", str(tmp_path / split), "--out", str(tmp_path / f"{split}.json")])
        ) == bool(code)
    assert AbstentionRule.load(tmp_path / "validation.json").weights["speaker_gap"] > 0
    assert not (tmp_path / "test.json").exists()
    assert "needs answerable and unanswerable questions" in capsys.readouterr().err
