"""Own conversations as a benchmark: `--data FILE`, without an edit of the project."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from memometer.benchmarks import judge_prompts, metrics, protocol
from memometer.benchmarks.own.question import Question
from memometer.benchmarks.protocol import Benchmark, Dataset


def _load(path: str | Path | None) -> Dataset:
    from memometer.benchmarks.own.read import load

    return load(path)


def _person_names(seed: str, taken: Collection[str]) -> Callable[[], str]:
    from memometer import benchmarks

    invent = benchmarks.load(benchmarks.DEFAULT).person_names
    assert invent
    return invent(seed, taken)


BENCHMARK = Benchmark(
    name="own",
    title="own data",
    licence="The licence of the data is that of their owner.",
    categories={},
    load=_load,
    question_type=Question,
    judge_prompts=judge_prompts.PROMPTS,
    scoring_files=(Path(__file__).with_name("question.py"), Path(str(metrics.__file__)), Path(str(protocol.__file__))),
    person_names=_person_names,
)
