"""REALTALK: chats of real people over 21 days (Lee et al., 2025, arXiv 2502.13270), read as published.

    evaluate.py --benchmark realtalk --data FOLDER --recall-only --split all

The folder has the files Chat_*.json of the repository's `data`. Scores are the published ones: LOCOMO's F1 by category.
"""

from __future__ import annotations

from pathlib import Path

from memometer.benchmarks import judge_prompts, metrics
from memometer.benchmarks.protocol import Benchmark, Dataset
from memometer.benchmarks.realtalk.question import CATEGORIES, LICENCE, Question


def _load(path: str | Path | None) -> Dataset:
    from memometer.benchmarks.realtalk.read import load

    return load(path)


def _verify(data: Dataset) -> tuple[list[str], bool]:
    from memometer.benchmarks.realtalk.read import verify

    return verify(data)


BENCHMARK = Benchmark(
    name="realtalk",
    title="REALTALK",
    licence=LICENCE,
    categories=CATEGORIES,
    load=_load,
    question_type=Question,
    judge_prompts=judge_prompts.PROMPTS,
    scoring_files=(Path(__file__).with_name("question.py"), Path(str(metrics.__file__))),
    verify=_verify,
)
