"""Life: a memory through its life. Groups of people ask, correct, delete, keep secrets and paste text of others.

    memometer eval --benchmark life --recall-only                    1,200 turns in each of 8 conversations, seed 0
    memometer eval --benchmark life --data 10k:7 --recall-only       10,200 turns in each of 6 conversations, seed 7

No model is needed: what a memory shows at each moment is compared with what it must show and must not show. The texts
are made of this project's own words; the same size and seed give the same conversations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memometer.benchmarks import judge_prompts, metrics
from memometer.benchmarks.life.question import CATEGORIES, LICENCE, Question
from memometer.benchmarks.protocol import Benchmark, Dataset

if TYPE_CHECKING:
    from memometer.benchmarks.shown import Answered, Measure


def _load(name: str | Path | None) -> Dataset:
    from memometer.benchmarks.life.generate import dataset

    return dataset(name)


def _recognizes(path: Path) -> bool:
    from memometer.benchmarks.life.generate import NAME

    return NAME.fullmatch(str(path)) is not None


def _measure(answered: Sequence[Answered], steps: Sequence[Mapping[str, Any]]) -> list[Measure]:
    from memometer.benchmarks.life.measures import measures

    return measures(answered, steps)


BENCHMARK = Benchmark(
    name="life",
    title="Life",
    licence=LICENCE,
    categories=CATEGORIES,
    load=_load,
    question_type=Question,
    judge_prompts=judge_prompts.PROMPTS,
    scoring_files=(Path(__file__).with_name("question.py"), Path(str(metrics.__file__))),
    recognizes=_recognizes,
    budgets=(1024,),
    measure=_measure,
)
"""The benchmark of this project."""
