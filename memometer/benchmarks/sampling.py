"""A stratified random sample of questions."""

from __future__ import annotations

import random
from collections.abc import Iterable

from memometer.benchmarks.protocol import Question


def sample(questions: Iterable[Question], n: int, *, seed: int = 0) -> tuple[Question, ...]:
    """Draw questions, stratified by category (largest remainder).

    The sample depends on the seed and the questions only. A larger sample contains the questions of a smaller one in
    every category whose share does not shrink.

    Args:
        questions: The questions to draw from.
        n: Number of questions.
        seed: Seed of the draw.

    Returns:
        `n` questions in the order of the data, or all if there are no more.
    """
    pool = tuple(questions)
    if n >= len(pool):
        return pool
    groups: dict[str, list[Question]] = {}
    for question in pool:
        groups.setdefault(question.category, []).append(question)
    exact = {category: n * len(group) / len(pool) for category, group in groups.items()}
    sizes = {category: int(share) for category, share in exact.items()}
    by_remainder = sorted(exact, key=lambda c: (sizes[c] - exact[c], c))
    for category in by_remainder[: n - sum(sizes.values())]:
        sizes[category] += 1
    chosen: set[str] = set()
    for category, group in sorted(groups.items()):
        random.Random(f"{seed}/{category}").shuffle(group)
        chosen.update(question.id for question in group[: sizes[category]])
    return tuple(question for question in pool if question.id in chosen)
