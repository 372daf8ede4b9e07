"""BEAM ("Beyond a Million Tokens"): chats of a user with an assistant and questions of ten abilities, as published.

    evaluate.py --benchmark beam --data chats/100K --recall-only --split all

The folder has one folder per chat with chat.json and probing_questions.json. Every question has a rubric; the judge
prompt `rubric` grades each item as met, half met or not met, and the score of an answer is the mean. The score of a
question about the order of events is Kendall's tau-b.
"""

from __future__ import annotations

from pathlib import Path

from memometer.benchmarks import judge_prompts, metrics
from memometer.benchmarks.beam.question import CATEGORIES, LICENCE, Question
from memometer.benchmarks.protocol import Benchmark, Dataset, JudgePrompt

HALF_MET = 0.5

_INSTRUCTIONS = (
    "The gold answer is one criterion for the answer. Does the answer meet it? Other words and further detail are "
    "fine. If the criterion asks for something to be left out, the answer meets it by leaving that out and still "
    "answering the question. Reply with one word: yes, no, or partly if a part is missing or slightly wrong."
)
_RUBRIC, _PUBLISHED = (
    JudgePrompt(
        name,
        _INSTRUCTIONS,
        f"the mean of the question's rubric, where a half-met item counts {half_met:g}; for event ordering, Kendall's "
        "tau-b scaled to 0-1",
        rubric=lambda question: question.rubric if isinstance(question, Question) else (),
        half_met=half_met,
        order=lambda question: question.category == "event_ordering",
    )
    for name, half_met in (("rubric", HALF_MET), ("rubric-published", 0.0))
)
"""The published rubrics and scores under instructions of our own. The published script asks for 0, 0.5 or 1 and then
cuts 0.5 to 0 (`int`); `rubric-published` does so too."""


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
    judge_prompts={_RUBRIC.name: _RUBRIC, _PUBLISHED.name: _PUBLISHED, **judge_prompts.PROMPTS},
    scoring_files=(Path(__file__), Path(__file__).with_name("question.py"), Path(str(metrics.__file__))),
)
