"""Training metrics: means over replies and groups, their JSON Lines files, and the reward-hacking alarm."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from memometer.train.reward import Grade

Metrics = dict[str, float]

STEPS, VALIDATIONS, REPLIES = "steps.jsonl", "validation_scores.jsonl", "replies.jsonl"
"""Files of a training folder: metrics of each step, of each validation, and a sample of the replies."""

TRL_LOG_NAMES = {
    "reward": "reward",
    "reward_std": "reward_std",
    "frac_reward_zero_std": "zero_variance",
    "kl": "kl",
    "entropy": "entropy",
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "completions/mean_length": "completion_tokens",
    "completions/clipped_ratio": "truncated",
    "step_time": "seconds",
    "num_tokens": "tokens_seen",
}
"""TRL's names of the logged metrics, and ours."""

WINDOW = 20
"""Steps at the beginning and at the end that the alarm compares."""
ALARM_METRICS = ("reward", "strict", "balanced_f1")
MIN_RISE = 2.0
"""Smallest rise of the reward for an alarm, in standard errors of the difference of means."""


def reply_metrics(grades: Sequence[Grade]) -> Metrics:
    """Return means over replies.

    `strict`, `f1` and `balanced_f1` are means over answers and abstentions. `more`, `absent` and `unparseable` are
    shares of all replies. Episodes of lookups also have `calls` and `total_tokens`.
    """
    if not grades:
        return {}
    graded = [grade for grade in grades if grade.status in ("answered", "absent")]
    found = {"reply_tokens": fmean(grade.tokens for grade in grades)}
    for status in ("unparseable", "more", "absent"):
        found[status] = sum(grade.status == status for grade in grades) / len(grades)
    if any(grade.total_tokens for grade in grades):
        found |= {name: fmean(getattr(g, name) for g in grades) for name in ("calls", "total_tokens")}
    if graded:
        found |= {name: fmean(getattr(g, name) for g in graded) for name in ("strict", "f1", "balanced_f1")}
    return found


def group_metrics(rewards: Sequence[float], size: int) -> Metrics:
    """Return the mean reward variance within groups of `size`, and the share of groups without variance.

    A group without variance has zero advantages and teaches nothing.
    """
    groups = [rewards[at : at + size] for at in range(0, len(rewards), size)]
    variances = [fmean([(r - fmean(group)) ** 2 for r in group]) for group in groups]
    return {
        "group_variance": fmean(variances),
        "zero_variance": sum(variance < 1e-12 for variance in variances) / len(variances),
    }


def step_metrics(grades: Sequence[Grade], group_size: int) -> Metrics:
    """Return the metrics of one training step: those of its replies and of its groups."""
    return reply_metrics(grades) | group_metrics([grade.reward for grade in grades], group_size) if grades else {}


def reward_hacking_alarm(steps: Sequence[Mapping[str, Any]]) -> str:
    """Return a warning if the reward rose significantly while neither the strict score nor F1 did; otherwise "".

    Compares the first WINDOW steps with the last WINDOW steps. F1 has precision also for lists: the official score
    would rise with every word that an answer adds.
    """
    known = [{**step, "balanced_f1": step.get("balanced_f1", step.get("f1"))} for step in steps]
    known = [step for step in known if all(step.get(name) is not None for name in ALARM_METRICS)]
    if len(known) < 2 * WINDOW:
        return ""
    early, late = known[:WINDOW], known[-WINDOW:]
    rises = {name: _mean_difference([s[name] for s in early], [s[name] for s in late]) for name in ALARM_METRICS}
    if rises["reward"][1] < MIN_RISE or max(rises["strict"][0], rises["balanced_f1"][0]) > 0:
        return ""
    reward, strict, f1 = (f"{100 * rises[name][0]:+.1f}" for name in ALARM_METRICS)
    return (
        f"ALARM: in percentage points, the reward changed by {reward}, the strict score by {strict}, and F1 by {f1}. "
        f"The model may exploit the reward; read its replies in {REPLIES}."
    )


def _mean_difference(early: Sequence[float], late: Sequence[float]) -> tuple[float, float]:
    """Return the difference of the means, and the same in standard errors."""
    difference = fmean(late) - fmean(early)
    error = sum(sum((x - fmean(part)) ** 2 for x in part) / (len(part) - 1) / len(part) for part in (early, late))
    return difference, difference / error**0.5 if error > 0 else (float("inf") if difference > 0 else 0.0)


def read_lines(path: Path, *, up_to: int | None = None) -> list[dict[str, Any]]:
    """Return the records of a metrics file up to a step, without a line that a kill cut short."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if up_to is None or record["step"] <= up_to:
            found.append(record)
    return found


def rewind(path: Path, step: int) -> None:
    """Remove the records after a step."""
    records = read_lines(path, up_to=step)
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    part.replace(path)


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Append a record to a metrics file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def format_line(record: Mapping[str, Any], label: str = "") -> str:
    """Return a step's or a validation's metrics as one line."""
    names = (
        "reward",
        "strict",
        "f1",
        "calls",
        "total_tokens",
        "reply_tokens",
        "kl",
        "group_variance",
        "zero_variance",
        "unparseable",
        "loss",
    )
    shown = [f"{name} {record[name]:.4g}" for name in names if record.get(name) is not None]
    return f"{label or record.get('what', 'step')} {record['step']}: {', '.join(shown)}"
