"""Seeded random choices that are the same on every machine and in every version of Python."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """Makes seeded random choices, with `random()` only, because Python guarantees that its results do not change."""

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed).random

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.random() < probability

    def pick(self, options: Sequence[T]) -> T:
        """Draw one of the options, all with the same probability."""
        return options[int(self.random() * len(options))]

    def between(self, low: int, high: int) -> int:
        """Draw an integer from `low` to `high`, both included."""
        return low + int(self.random() * (high - low + 1))

    def within(self, low: float, high: float) -> float:
        """Draw a number between `low` and `high`."""
        return low + self.random() * (high - low)

    def some(self, options: Sequence[T], number: int) -> list[T]:
        """Draw this many different options, or all if there are fewer, in random order."""
        return sorted(options, key=lambda _: self.random())[:number]

    def lengthy(self, median: float, spread: float) -> float:
        """Draw a length from a log-normal distribution; `spread` is the standard deviation of its logarithm."""
        return median * math.exp(spread * (sum(self.random() for _ in range(12)) - 6))

    def wait(self, mean: float) -> float:
        """Draw a waiting time from an exponential distribution."""
        return -mean * math.log(1 - self.random())
