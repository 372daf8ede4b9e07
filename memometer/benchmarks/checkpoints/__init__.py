"""Benchmarks of others that ask while the conversation goes on, read as published: GateMem, MemoryStress, ForgetEval.

    memometer eval --benchmark gatemem --data FOLDER --recall-only
    memometer eval --benchmark memorystress --data memorystress_v1.json --recall-only
    memometer eval --benchmark forgeteval --data cases.json --recall-only

Without a model, a run measures what a system shows: the texts that an answer needs, and those that it must not contain.
None of the data are part of this project.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memometer.benchmarks import judge_prompts, metrics
from memometer.benchmarks.checkpoints.question import Question
from memometer.benchmarks.protocol import Benchmark, Dataset

if TYPE_CHECKING:
    from memometer.benchmarks.shown import Answered, Measure


def _load(module: str, path: str | Path | None) -> Dataset:
    from importlib import import_module

    load: Callable[[str | Path | None], Dataset] = import_module(f"memometer.benchmarks.checkpoints.{module}").load
    return load(path)


def _measure(answered: Sequence[Answered], steps: Sequence[Mapping[str, Any]]) -> list[Measure]:  # noqa: ARG001
    from memometer.benchmarks.checkpoints.measures import measures

    return measures(answered)


def _benchmark(name: str, title: str, licence: str, categories: Mapping[str, str]) -> Benchmark:
    def load(path: str | Path | None) -> Dataset:
        return _load(name, path)

    return Benchmark(
        name=name,
        title=title,
        licence=licence,
        categories=categories,
        load=load,
        question_type=Question,
        judge_prompts=judge_prompts.PROMPTS,
        scoring_files=(Path(__file__).with_name("question.py"), Path(str(metrics.__file__))),
        measure=_measure,
        budgets=(1024, 2048),
    )


GATEMEM = _benchmark(
    "gatemem",
    "GateMem",
    "GateMem: code MIT, data CC BY 4.0.",
    {"utility": "utility", "access": "access", "forgetting": "forgetting"},
)
MEMORYSTRESS = _benchmark(
    "memorystress",
    "MemoryStress",
    "MemoryStress: see the licence of its data set.",
    {
        name: name.replace("_", " ")
        for name in (
            "fact_recall", "preference_recall", "temporal_ordering", "single_mention_recall",
            "contradiction_resolution", "cross_agent_recall", "cold_start_recall", "other",
        )
    },
)  # fmt: skip
FORGETEVAL = _benchmark(
    "forgeteval", "ForgetEval", "ForgetEval: MIT.", {"forget": "deletion and replacement", "keep": "nothing deleted"}
)
