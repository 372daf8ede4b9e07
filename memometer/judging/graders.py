"""Under which judge, prompt and answer key an answer was graded, and what such verdicts amount to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from memometer.run.folder import Record, failed, is_answered

Rule = Literal["mean", "majority"]


@dataclass(frozen=True, slots=True)
class Grading:
    """One way of grading: figures under two of them are never compared, and never in one column."""

    judge: str
    prompt: str
    key: str = "original"

    @property
    def name(self) -> str:
        return f"{self.judge} ({self.prompt}, {self.key})"


def grading_of(verdict: Mapping[str, Any]) -> Grading:
    """The grading that a verdict belongs to. Without a key it was graded against LOCOMO's own answers."""
    return Grading(verdict["judge"], verdict["prompt"], verdict.get("key", "original"))


def gradings(records: Iterable[Record]) -> list[Grading]:
    """The gradings that verdicts were given under, in order of appearance."""
    return list(dict.fromkeys(grading_of(verdict) for record in records for verdict in record["verdicts"]))


def prompt_hashes(records: Iterable[Record], grading: Grading) -> set[str]:
    """The versions of the judge's prompt that a grading was done with; more than one is no single grading."""
    verdicts = (verdict for record in records for verdict in record["verdicts"] if grading_of(verdict) == grading)
    return {verdict.get("prompt_hash") or "" for verdict in verdicts}


def score(record: Record, grading: Grading, *, rule: Rule = "mean") -> float | None:
    """How right an answer is under one grading, 0 to 1: over its repeats the mean, or what more than half of them say.

    None is ungraded: no repeat has a label, or the reader failed. Where the memory itself failed it is 0.0. Of one
    repeat the first label counts, so that nothing is graded again until it pleases.
    """
    if failed(record):
        return 0.0
    if not is_answered(record):
        return None
    labels: dict[int, float] = {}
    for verdict in record["verdicts"]:
        if grading_of(verdict) == grading and verdict["label"] != "ungraded":
            labels.setdefault(verdict.get("repeat", 0), float(verdict["label"] == "correct"))
    if not labels:
        return None
    mean = sum(labels.values()) / len(labels)
    return mean if rule == "mean" else float(mean > 0.5)
