"""Adam (Kingma and Ba, 2015) with warm-up, cosine decay and decoupled weight decay (Loshchilov and Hutter, 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Weights = dict[str, np.ndarray[Any, Any]]
BETA1, BETA2 = 0.9, 0.999


class Adam:
    """Updates `weights` in place, one step at a time.

    Args:
        weights: the parameters by name.
        steps: number of steps of the whole training.
        learning_rate: peak learning rate. It is reached after a tenth of `steps` and then lowered to zero by cosine.
        lr_multipliers: factors on the learning rate by parameter name; 1 for all others.
        weight_decay: decoupled weight decay.
        max_grad_norm: clip the global gradient norm to this value.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        steps: int,
        learning_rate: float,
        lr_multipliers: Mapping[str, float] | None = None,
        weight_decay: float = 0.0,
        max_grad_norm: float = np.inf,
    ) -> None:
        self.weights = weights
        self.steps, self.learning_rate, self.lr_multipliers = steps, learning_rate, lr_multipliers or {}
        self.weight_decay, self.max_grad_norm = weight_decay, max_grad_norm
        self.moments = {name: (np.zeros_like(w), np.zeros_like(w)) for name, w in weights.items()}
        self.steps_done = 0

    def step(self, gradients: Weights) -> None:
        """Update all weights by their gradients, which have the same names and shapes."""
        self.steps_done += 1
        warm_up = max(1, self.steps // 10)
        progress = (self.steps_done - warm_up) / max(1, self.steps - warm_up)
        rate = self.learning_rate * (
            self.steps_done / warm_up if self.steps_done <= warm_up else 0.5 * (1 + np.cos(np.pi * progress))
        )
        norm = float(np.sqrt(sum(np.square(g).sum() for g in gradients.values())))
        for name, gradient in gradients.items():
            gradient = gradient / max(1.0, norm / self.max_grad_norm)
            first, second = self.moments[name]
            first += (1 - BETA1) * (gradient - first)
            second += (1 - BETA2) * (gradient**2 - second)
            root = np.sqrt(second / (1 - BETA2**self.steps_done)) + 1e-8
            update = first / (1 - BETA1**self.steps_done) / root + self.weight_decay * self.weights[name]
            self.weights[name] -= rate * self.lr_multipliers.get(name, 1.0) * update
