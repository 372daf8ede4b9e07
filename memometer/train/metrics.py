"""What is measured beside the reward, at every step and at every validation, and the alarm when the reward rises and
what it stands for does not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from memometer.train.reward import Grade

Figures = dict[str, float]

OF_STEP = {
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
"""TRL's names of what we keep of its log, and ours."""

WINDOW = 20
RISE = 2.0
"""Standard errors of the mean difference between the first and the last steps of a window that count as a rise."""


def of_grades(grades: Sequence[Grade]) -> Figures:
    """Means over replies: `strict` and `f1` over those that were graded as answers or abstentions (asking for more is
    neither), and shares of all for `more`, `absent` and `ungraded`, which hold nothing to grade."""
    if not grades:
        return {}
    graded = [grade for grade in grades if grade.status in ("answered", "absent")]
    shares = {status: sum(g.status == status for g in grades) / len(grades) for status in ("more", "absent")}
    found = {
        "reply_tokens": fmean(grade.tokens for grade in grades),
        "ungraded": sum(grade.status == "unparseable" for grade in grades) / len(grades),
        **shares,
    }
    if graded:
        found |= {"strict": fmean(g.strict for g in graded), "f1": fmean(g.f1 for g in graded)}
    return found


def of_groups(rewards: Sequence[float], size: int) -> Figures:
    """The mean variance of the reward within groups of `size`, and the share of groups without any: those teach
    nothing."""
    groups = [rewards[at : at + size] for at in range(0, len(rewards), size)]
    variances = [fmean([(r - fmean(group)) ** 2 for r in group]) for group in groups]
    return {
        "group_variance": fmean(variances),
        "zero_variance": sum(variance < 1e-12 for variance in variances) / len(variances),
    }


def alarm(steps: Sequence[Mapping[str, Any]]) -> str:
    """A sentence where the reward of the last steps is above that of the first by more than chance, and neither the
    strict score nor F1 is above its own; empty otherwise. Looks at the first and the last WINDOW steps."""
    known = [step for step in steps if all(step.get(name) is not None for name in ("reward", "strict", "f1"))]
    if len(known) < 2 * WINDOW:
        return ""
    early, late = known[:WINDOW], known[-WINDOW:]
    rises = {name: _rise([s[name] for s in early], [s[name] for s in late]) for name in ("reward", "strict", "f1")}
    if rises["reward"][1] < RISE or max(rises["strict"][0], rises["f1"][0]) > 0:
        return ""
    return (
        f"ALARM: the reward rose by {rises['reward'][0]:+.3f} and the strict score moved by {rises['strict'][0]:+.3f}, "
        f"F1 by {rises['f1'][0]:+.3f}: what is rewarded is not what is wanted. Read replies in replies.jsonl."
    )


def _rise(early: Sequence[float], late: Sequence[float]) -> tuple[float, float]:
    """(difference of the means, the same in standard errors)."""
    difference = fmean(late) - fmean(early)
    error = sum(sum((x - fmean(part)) ** 2 for x in part) / (len(part) - 1) / len(part) for part in (early, late))
    return difference, difference / error**0.5 if error > 0 else (float("inf") if difference > 0 else 0.0)


def read_lines(path: Path, *, up_to: int | None = None) -> list[dict[str, Any]]:
    """The lines of a figures file, of steps up to `up_to`. What a kill has cut short is left out."""
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
    """Forget what was written after a step that training goes back to."""
    kept = read_lines(path, up_to=step)
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    part.replace(path)


def append(path: Path, record: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def line(record: Mapping[str, Any]) -> str:
    """One step, or one validation, for people."""
    names = ("reward", "strict", "f1", "reply_tokens", "kl", "group_variance", "zero_variance", "ungraded", "loss")
    told = [f"{name} {record[name]:.4g}" for name in names if record.get(name) is not None]
    return f"{record.get('what', 'step')} {record['step']}: {', '.join(told)}"
