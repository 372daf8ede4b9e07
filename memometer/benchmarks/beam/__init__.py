"""BEAM ("Beyond a Million Tokens"): chats of a user with an assistant and questions of ten abilities, as published.

    evaluate.py --benchmark beam --data chats/100K --recall-only --split all

The folder has one folder per chat with chat.json and probing_questions.json. Every question has a rubric; the judge
prompt `rubric` grades each item, and the score of an answer is the mean.
"""

from __future__ import annotations

from pathlib import Path

from memometer.benchmarks import judge_prompts, metrics
from memometer.benchmarks.beam.question import CATEGORIES, LICENCE, Question
from memometer.benchmarks.protocol import Benchmark, Dataset, JudgePrompt

_RUBRIC = JudgePrompt(
    "rubric",
    "The gold answer is one criterion for the answer. Does the answer meet it? Other words and further detail are "
    "fine. If the criterion asks for something to be left out, the answer meets it by leaving that out. Reply with one "
    "word: yes or no.",
    "the share of the items of the question's rubric that the answer meets",
    rubric=lambda question: question.rubric if isinstance(question, Question) else (),
)
"""The published rubrics under instructions of our own. The published script also knows half-met items, and scores the
order of events with Kendall's tau; this prompt does neither."""


def _load(path: str | Path | None) -> Dataset:
    from memometer.benchmarks.beam.read import load

    return load(path)


BENCHMARK = Benchmark(
    name="beam",
    title="BEAM",
    licence=LICENCE,
    categories=CATEGORIES,
    load=_load,
    question_type=Question,
    judge_prompts={_RUBRIC.name: _RUBRIC, **judge_prompts.PROMPTS},
    scoring_files=(Path(__file__), Path(__file__).with_name("question.py"), Path(str(metrics.__file__))),
)
