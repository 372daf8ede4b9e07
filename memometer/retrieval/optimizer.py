"""Adam (Kingma and Ba, 2015) with a warm-up, a cosine and decoupled weight decay (Loshchilov and Hutter, 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Weights = dict[str, np.ndarray[Any, Any]]
FIRST, SECOND = 0.9, 0.999  # decay of the moments


class Adam:
    """Changes `weights` in place, a step at a time.

    Args:
        highest: the learning rate, reached after a tenth of `steps` and lowered to zero by cosine.
        rates: of that rate, for weights that are few, or start where they need not go far; 1 for all others.
        decay: of the weights, times the rate.
        longest: all gradients together are cut to this length.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        steps: int,
        highest: float,
        rates: Mapping[str, float] | None = None,
        decay: float = 0.0,
        longest: float = np.inf,
    ) -> None:
        self.weights = weights
        self.steps, self.highest, self.rates = steps, highest, rates or {}
        self.decay, self.longest = decay, longest
        self.moments = {name: (np.zeros_like(w), np.zeros_like(w)) for name, w in weights.items()}
        self.done = 0

    def step(self, gradients: Weights) -> None:
        self.done += 1
        warm = max(1, self.steps // 10)
        past = (self.done - warm) / max(1, self.steps - warm)
        rate = self.highest * (self.done / warm if self.done <= warm else 0.5 * (1 + np.cos(np.pi * past)))
        length = float(np.sqrt(sum(np.square(g).sum() for g in gradients.values())))
        for name, gradient in gradients.items():
            gradient = gradient / max(1.0, length / self.longest)
            first, second = self.moments[name]
            first += (1 - FIRST) * (gradient - first)
            second += (1 - SECOND) * (gradient**2 - second)
            root = np.sqrt(second / (1 - SECOND**self.done)) + 1e-8
            update = first / (1 - FIRST**self.done) / root + self.decay * self.weights[name]
            self.weights[name] -= rate * self.rates.get(name, 1.0) * update
