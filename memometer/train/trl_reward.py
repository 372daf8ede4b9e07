"""The reward as a trainer calls it: graded by how far the training is, with what is measured beside it."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from memometer.train import metrics
from memometer.train.reward import MORE, Case, Grade, grade

REMEMBERED, LEAST = 256, 64
"""Rewards of a round that its mean is taken over, and from how many on."""


class Rewarding:
    """What TRL calls with a batch of completions, groups of `num_generations` in a row; keeps the grades of the step.

    Asking for more is worth the mean reward of the next round's prompts, once enough of them have been seen: a reader
    that gains nothing from more memory is not to ask for it.
    """

    __name__ = "reward"

    def __init__(self, *, steps: int, num_generations: int, keep: Callable[[dict[str, Any]], None]) -> None:
        self.steps, self.num_generations, self.keep = steps, num_generations, keep
        self.rewards: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        self.grades: list[Grade] = []
        self.given: list[float] = []

    def more(self, case: Case) -> float:
        """What asking for more is worth in a prompt."""
        seen = self.rewards[case.halvings - 1]
        return max(0.0, fmean(seen)) if len(seen) >= LEAST else MORE

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], case: Sequence[str], trainer_state: Any, **_: Any
    ) -> list[float]:
        cases = [Case.of_json(json.loads(text)) for text in case]
        progress = min(1.0, trainer_state.global_step / self.steps)
        texts = [said if isinstance(said, str) else said[0]["content"] for said in completions]
        worth = [self.more(c) for c in cases]  # before this batch's own rewards: the order of a batch is of no account
        found = [
            grade(c, text, progress=progress, more=more) for c, text, more in zip(cases, texts, worth, strict=True)
        ]
        for c, each in zip(cases, found, strict=True):
            self.rewards[c.halvings].append(each.reward)
        self.grades += found
        self.given += [each.reward for each in found]
        self.keep({"step": trainer_state.global_step + 1, "reward": found[0].reward, "reply": texts[0]})
        return [each.reward for each in found]

    def taken(self) -> metrics.Figures:
        """The figures of what was graded since the last call."""
        found = metrics.of_grades(self.grades)
        if self.given:
            found |= metrics.of_groups(self.given, self.num_generations)
        self.grades, self.given = [], []
        return found

    def save(self, folder: Path) -> None:
        """Into a checkpoint."""
        kept = {str(halvings): list(rewards) for halvings, rewards in self.rewards.items()}
        (folder / "rewards.json").write_text(json.dumps(kept), encoding="ascii")

    def restore(self, folder: Path) -> None:
        for halvings, rewards in json.loads((folder / "rewards.json").read_text(encoding="ascii")).items():
            self.rewards[int(halvings)].extend(rewards)
