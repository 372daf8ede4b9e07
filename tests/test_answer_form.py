"""Hedges, length-controlled scores and variance components."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from memometer.benchmarks.protocol import Question
from memometer.judging.evasive_answers import hedges as make_hedges
from memometer.judging.evasive_answers import refusals_with_content
from memometer.judging.hedges import hedge
from memometer.report import variance
from memometer.stats.standardised import standardised_mean
from memometer.stats.variance_components import Place, variance_components


@pytest.mark.parametrize(
    ("question", "gold", "answer", "kind"),
    [
        ("When?", "3 May 2019", "3 May 2019 or 4 June 2019", "several dates"),
        ("When?", "3 May 2019", "3 May 2019", None),
        ("When?", "between 3 May 2019 and 4 June 2019", "from 3 May 2019 to 4 June 2019", None),
        ("What?", "a drum", "either a drum or a flute", "several candidates"),
        ("What?", "a drum", "a flute; a drum; a harp", "several candidates"),
        ("What?", "a drum, a harp", "a drum, a harp", None),
        ("How many?", "two", "two or three", "several numbers"),
        ("Tea or coffee?", "tea", "tea", None),
        ("What?", "a drum", "I don't know, but perhaps a drum", "refuses and answers"),
        ("What?", "a drum", "No information available", None),
        ("What?", "possibly a drum or a harp", "possibly a drum or a harp", None),
    ],
)
def test_a_hedge_is_an_answer_that_does_not_commit(question: str, gold: str, answer: str, kind: str | None) -> None:
    assert hedge(question, gold, answer) == kind


def test_hedges_made_by_rule_are_found() -> None:
    question = Question("a", 0, "What did Vera buy?", "1", "a lamp", ())
    others = ["a rug", "a hat", "two chairs", "a bowl", "paint"]
    for answer in [*make_hedges(question, others).values(), *refusals_with_content(question, others).values()]:
        assert hedge(question.text, "a lamp", answer), answer


def test_a_length_controlled_score_has_the_length_distribution_of_all_systems() -> None:
    scores, strata = [1.0, 1.0, 1.0, 0.0], ["long", "long", "long", "short"]
    clusters = ["a", "b", "a", "b"]
    assert standardised_mean(scores, strata, {"long": 0.5, "short": 0.5}, clusters).mean == pytest.approx(0.5)
    own = standardised_mean(scores, strata, {"long": 0.75, "short": 0.25}, clusters)
    assert own.mean == pytest.approx(0.75)
    assert standardised_mean(scores[:3], strata[:3], {"long": 0.5, "short": 0.5}, clusters[:3]).mean == 1.0


def simulated(
    generator: np.random.Generator, deviations: tuple[float, ...], sizes: tuple[int, ...]
) -> tuple[list[float], list[Place]]:
    scores, places = [], []
    for c in range(sizes[0]):
        of_c = generator.normal(0, deviations[0])
        for q in range(sizes[1] + c % 3):  # unequal numbers of questions
            of_q = generator.normal(0, deviations[1])
            for a in range(sizes[2]):
                of_a = generator.normal(0, deviations[2])
                for v in range(sizes[3]):
                    scores.append(0.5 + of_c + of_q + of_a + generator.normal(0, deviations[3]))
                    places.append((str(c), f"{c}#{q}", a, v))
    return scores, places


def test_the_components_are_those_of_the_simulation() -> None:
    generator, truth = np.random.default_rng(1), (0.1, 0.3, 0.2, 0.15)
    found, errors, means = [], [], []
    for _ in range(60):
        scores, places = simulated(generator, truth, (8, 10, 3, 2))
        components = variance_components(scores, places)
        assert components is not None
        found.append([components.variance[level] for level in components.variance])
        errors.append(components.standard_error**2)
        means.append(float(np.mean(scores)))
    assert np.mean(found, axis=0) == pytest.approx(np.square(truth), rel=0.25)
    assert np.mean(errors) == pytest.approx(np.var(means), rel=0.6), "the standard error is that of the mean score"


def test_balanced_components_equal_the_analysis_of_variance() -> None:
    """Two conversations, two questions each, two answers: the mean squares by hand."""
    values = np.array([[[1.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [1.0, 0.0]]])
    places = [(str(c), f"{c}#{q}", a, 0) for c in range(2) for q in range(2) for a in range(2)]
    found = variance_components(values.reshape(-1).tolist(), places)
    assert found is not None
    within = ((values - values.mean(2, keepdims=True)) ** 2).sum() / 4
    questions = 2 * ((values.mean(2) - values.mean((1, 2))[:, None]) ** 2).sum() / 2
    conversations = 4 * ((values.mean((1, 2)) - values.mean()) ** 2).sum() / 1
    assert found.variance["answers"] == pytest.approx(within)
    assert found.variance["questions"] == pytest.approx(max(0.0, (questions - within) / 2))
    assert found.variance["conversations"] == pytest.approx(max(0.0, (conversations - questions) / 4))
    assert found.variance["verdicts"] is None, "one verdict an answer cannot be told from the answer"


def test_one_conversation_has_no_components() -> None:
    assert variance_components([1.0, 0.0], [("a", "a#0", 0, 0), ("a", "a#1", 0, 0)]) is None


def answered(question: Question, labels: list[str], answer: str = "x") -> dict[str, Any]:
    verdicts = [{"judge": "m", "prompt": "strict", "repeat": n, "label": label} for n, label in enumerate(labels)]
    return {"system": "a", "budget_tokens": 64, "question_id": question.id, "option_order": "free", "answer": answer,
            "error": "", "verdicts": verdicts, "model": "m"}  # fmt: skip


def test_repeats_split_the_variance_of_a_run_and_of_equal_runs() -> None:
    questions = [Question(c, n, f"What {n}?", "1", "x", ()) for c in "abc" for n in range(6)]
    steady = [answered(q, ["correct" if q.index % 2 else "wrong"] * 3) for q in questions]
    (found,) = variance.of_run(steady, questions, ())
    assert found["variance"]["verdicts"] == pytest.approx(0)
    assert found["variance"]["questions"] > 0
    assert found["variance"]["answers"] is None, "one answer a question"
    flipping = [answered(q, ["correct", "wrong", "correct"]) for q in questions]
    (found,) = variance.of_run(flipping, questions, ())
    assert found["variance"]["verdicts"] > 0
    assert found["variance"]["questions"] == pytest.approx(0)
    assert variance.of_run([answered(q, ["correct"]) for q in questions], questions, ()) == []
    assert variance.of_run(steady, questions, ("m (strict, original)",)) == [], "withheld"
    other = [answered(q, [], "x" if q.index < 3 else "y") for q in questions]
    (found,) = variance.measure([[answered(q, []) for q in questions], other], questions, None)
    assert found["units"]["answers"] == 2 * found["units"]["questions"]
    assert found["variance"]["answers"] > 0
    assert len(variance.tables([found])) == 1
