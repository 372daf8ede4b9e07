"""Under which judge, prompt and answer key an answer was graded, and what it scored there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Record = dict[str, Any]


@dataclass(frozen=True)
class Grading:
    """A judge, its prompt and the answer key that it graded against."""

    judge: str
    prompt: str
    key: str = "original"

    @property
    def name(self) -> str:
        return f"{self.judge} ({self.prompt}, {self.key})"


def grading_of(verdict: Record) -> Grading:
    return Grading(verdict["judge"], verdict["prompt"], verdict.get("key", "original"))


def gradings(records: Iterable[Record]) -> list[Grading]:
    """Every grading that any record has a verdict under, in order of appearance."""
    return list(dict.fromkeys(grading_of(verdict) for record in records for verdict in record["verdicts"]))


def score(record: Record, grading: Grading, *, rule: Literal["mean", "majority"] = "mean") -> float | None:
    """The share of correct labels over the repeats, or by `majority` whether more than half are; None where no verdict
    under this grading has a label. Of a repeat that was graded twice, the later labelled verdict counts."""
    labels: dict[int, bool] = {}
    for verdict in record["verdicts"]:
        if grading_of(verdict) == grading and verdict["label"] != "ungraded":
            labels[verdict.get("repeat", 0)] = verdict["label"] == "correct"
    if not labels:
        return None
    share = sum(labels.values()) / len(labels)
    return float(share > 0.5) if rule == "majority" else share
