"""LongMemEval (Wu et al., ICLR 2025, arXiv 2410.10813), read as published: S, M and oracle, also the cleaned versions.

    evaluate.py --benchmark longmemeval --data longmemeval_s_cleaned.json --recall-only --split all

Every question has its own history, so a conversation has one question. Questions whose id ends in `_abs` are
unanswerable. Evidence turns are those with `has_answer`. Judge prompts are the official ones, by question type.
"""

from __future__ import annotations

from pathlib import Path

from memometer.benchmarks import metrics
from memometer.benchmarks.longmemeval import prompts
from memometer.benchmarks.longmemeval.question import LICENCE, TYPES, Question
from memometer.benchmarks.protocol import Benchmark, Dataset


def _load(path: str | Path | None) -> Dataset:
    from memometer.benchmarks.longmemeval.read import load

    return load(path)


BENCHMARK = Benchmark(
    name="longmemeval",
    title="LongMemEval",
    licence=LICENCE,
    categories={name: name for name in TYPES},
    load=_load,
    question_type=Question,
    judge_prompts=prompts.PROMPTS,
    scoring_files=(Path(__file__).with_name("question.py"), Path(str(metrics.__file__)), Path(str(prompts.__file__))),
)
