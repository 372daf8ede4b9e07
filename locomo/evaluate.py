"""LOCOMO's evaluation: its data, splits, official scores, judge prompts and label corrections as one benchmark."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from locomo import dataset, label_corrections, llm_judge, metrics, verify
from memometer.benchmarks import metrics as shared_metrics
from memometer.benchmarks.protocol import Benchmark, Dataset, UserFile


def _synthesize(seed: int, conversations: int) -> Dataset:
    from locomo.synthetic.simulate import dataset_of

    return dataset_of(seed, conversations)


def _write_synthetic(path: Path, seed: int, conversations: int) -> list[str]:
    from locomo.synthetic.simulate import write

    return write(path, seed, conversations)


def _result_formats() -> Mapping[str, Any]:
    from locomo.result_formats import FORMATS

    return FORMATS


def _person_names(seed: str, taken: Collection[str]) -> Callable[[], str]:
    from locomo.synthetic.templates import Names
    from memometer.synthetic.draw import Draw

    return Names(Draw(seed), "person", taken=taken)


BENCHMARK = Benchmark(
    name="locomo",
    title="LOCOMO",
    licence=dataset.LICENCE,
    categories=dataset.CATEGORIES,
    load=dataset.load,
    question_type=dataset.Question,
    judge_prompts=llm_judge.PROMPTS,
    scoring_files=tuple(Path(str(module.__file__)) for module in (metrics, shared_metrics)),
    label_corrections=UserFile(
        "LOCOMO_LABEL_CORRECTIONS", label_corrections.SOURCE, label_corrections.read_corrections
    ),
    wrong_answers=UserFile(
        "LOCOMO_WRONG_ANSWERS", "specific_wrong_answers.json of the same audit", label_corrections.read_wrong_answers
    ),
    local_file=dataset.local_file,
    result_formats=_result_formats,
    verify=verify.verify,
    synthesize=_synthesize,
    write_synthetic=_write_synthetic,
    person_names=_person_names,
    recognizes=dataset.recognizes,
)
