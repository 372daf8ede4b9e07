"""The smallest difference between two systems that a planned evaluation can find."""

from __future__ import annotations

from math import sqrt

from memometer.stats.intervals import detectable, min_sign_flip_p

DISCORDANT = 0.25
"""Assumed share of questions on which two systems differ."""
DESIGN_EFFECT = 2.0
"""Assumed factor by which conversations increase the variance; measured: 1.3 to 2.7."""
ALPHA = 0.05


def smallest_difference(questions: int, conversations: int, comparisons: int) -> float | None:
    """Estimate the true difference that the printed test finds with 80 % power.

    The printed test is a sign-flip test over conversations, corrected by Holm. The difference is that of a t test at
    the level that the strictest step of Holm leaves.

    Args:
        questions: Number of answerable questions.
        conversations: Number of conversations.
        comparisons: Number of pairs that are corrected together.

    Returns:
        A fraction, or None if no difference can be significant, however large it is.
    """
    if questions < 1 or conversations < 2 or min_sign_flip_p(conversations) * comparisons > ALPHA:
        return None
    standard_error = sqrt(DISCORDANT * DESIGN_EFFECT / questions)
    found = detectable(standard_error, conversations, alpha=ALPHA / comparisons)
    return found if found < 1 else None


def sentence(design: tuple[int, int], others: dict[str, tuple[int, int]], comparisons: int) -> str:
    """Say which difference a design can find, and which other designs would.

    Args:
        design: Number of answerable questions and of conversations.
        others: Name -> the same of another design.
        comparisons: Number of pairs that are corrected together.

    Returns:
        A sentence; empty without comparisons.
    """
    if not comparisons:
        return ""
    found = smallest_difference(*design, comparisons)
    size = f"{design[0]:,} answerable questions, {design[1]} conversation{'s' * (design[1] != 1)}"
    tests = f"{comparisons} comparison{'s' * (comparisons != 1)}"
    could = "no difference, however large" if found is None else f"differences from about {100 * found:.0f} points"
    better = {
        name: value
        for name, other in others.items()
        if (value := smallest_difference(*other, comparisons)) is not None and (found is None or value < found)
    }
    more = "".join(f"; {name} from {100 * value:.0f}" for name, value in better.items())
    return f"This design ({size}, {tests}) can find {could}{more}."
