"""Differences that a design can find: evaluations that compare systems, and searches that confirm a gain."""

from __future__ import annotations

from functools import lru_cache
from math import sqrt

import numpy as np

from memometer.stats.intervals import detectable, min_sign_flip_p

DISCORDANT = 0.25
"""Assumed share of questions on which two systems or two prompts differ."""
DESIGN_EFFECT = 2.0
"""Assumed factor by which conversations increase the variance of a difference between systems."""
GAIN_SPREAD = 0.05
"""Assumed standard deviation of a prompt's gain between conversations."""
ALPHA = 0.05
POWER = 0.8

SIMULATED_CLUSTERS = 10
"""Up to this number of conversations the power of the sign-flip test is simulated; beyond it, it is close to a t
test's."""
_SIMULATIONS = 400


@lru_cache(maxsize=256)
def detectable_errors(conversations: int, comparisons: int = 1) -> float | None:
    """Return the true difference that the max-T sign-flip test finds with 80 % power, in standard errors.

    Up to 10 conversations the power is simulated with a fixed seed: conversation means are normal, and the other
    comparisons of the family have no true difference and share the reference. Beyond that it is a t test's.

    Args:
        conversations: Number of conversations.
        comparisons: Number of comparisons that are adjusted together.

    Returns:
        The multiple of the standard error; None if no difference can be significant, however large it is.
    """
    if conversations < 2 or min_sign_flip_p(conversations) > ALPHA:
        return None
    if conversations > SIMULATED_CLUSTERS:
        return detectable(1.0, conversations, alpha=ALPHA / comparisons)
    random = np.random.default_rng(conversations * 1_000 + comparisons)
    family = min(comparisons, 16)
    # A shared reference gives the differences of two comparisons the correlation 1/2.
    reference = random.normal(size=(_SIMULATIONS, 1, conversations))
    noise = (random.normal(size=(_SIMULATIONS, family, conversations)) - reference) / sqrt(2)
    low, high = 0.0, 64.0
    while high - low > 0.05:
        middle = (low + high) / 2
        low, high = (low, middle) if _power(noise, middle / sqrt(conversations)) >= POWER else (middle, high)
    return high


def _power(noise: np.ndarray, shift: float) -> float:
    """Share of simulations in which the first comparison, shifted, is significant by the maximum of the family."""
    conversations = noise.shape[2]
    values = noise.copy()
    values[:, 0] += shift
    scaled = values / np.sqrt((values**2).sum(axis=2, keepdims=True))
    numbers = np.arange(2 ** (conversations - 1))[:, None]
    signs = np.hstack([np.ones((len(numbers), 1)), 1.0 - 2.0 * ((numbers >> np.arange(conversations - 1)) & 1)])
    observed = np.abs(scaled[:, 0].sum(axis=1)) - 1e-9
    exceeded = np.zeros(len(values))
    for simulation in range(len(values)):
        exceeded[simulation] = np.mean(np.abs(signs @ scaled[simulation].T).max(axis=1) >= observed[simulation])
    return float(np.mean(exceeded <= ALPHA))


def smallest_difference(questions: int, conversations: int, comparisons: int) -> float | None:
    """Estimate the true difference that the printed test finds with 80 % power.

    The printed test is a sign-flip test over conversations, adjusted by the maximum statistic of the comparisons with
    one reference.

    Args:
        questions: Number of answerable questions.
        conversations: Number of conversations.
        comparisons: Number of systems that are compared with the reference.

    Returns:
        A fraction, or None if no difference can be significant, however large it is.
    """
    if questions < 1 or (errors := detectable_errors(conversations, comparisons)) is None:
        return None
    found = errors * sqrt(DISCORDANT * DESIGN_EFFECT / questions)
    return found if found < 1 else None


def gain_power(gain: float, questions: int, conversations: int) -> float:
    """Estimate the probability that a search reports a true gain: the lower 95 % limit of the gain is above 0.

    Assumes that the two prompts differ on a quarter of the questions (or on as many as the gain needs), and that the
    gain varies between conversations with a standard deviation of 5 points.

    Args:
        gain: The true gain, a fraction.
        questions: Confirmation questions of all conversations.
        conversations: Number of conversations.
    """
    from scipy.special import nctdtr, stdtrit

    if conversations < 2 or questions < 2:
        return 0.0
    variance = max(DISCORDANT, abs(gain)) - gain**2
    error = sqrt(variance / questions + GAIN_SPREAD**2 / conversations)
    limit = float(stdtrit(conversations - 1, 0.975))
    return 1.0 - float(nctdtr(conversations - 1, gain / error, limit))


def sentence(design: tuple[int, int], others: dict[str, tuple[int, int]], comparisons: int) -> str:
    """Describe the difference that a design can find, and the designs that would find smaller ones.

    Args:
        design: Number of answerable questions and of conversations.
        others: Name -> the same of another design.
        comparisons: Number of systems that are compared with the reference.

    Returns:
        A sentence; empty without comparisons.
    """
    if not comparisons:
        return ""
    found = smallest_difference(*design, comparisons)
    size = f"{design[0]:,} answerable questions, {design[1]} conversation{'s' * (design[1] != 1)}"
    tests = f"{comparisons} comparison{'s' * (comparisons != 1)}"
    better = {
        name: value
        for name, other in others.items()
        if (value := smallest_difference(*other, comparisons)) is not None and (found is None or value < found)
    }
    could = (
        "cannot find any difference" if found is None else f"can find differences of {100 * found:.0f} points or more"
    )
    more = " and ".join(f"{100 * value:.0f} points with {name}" for name, value in better.items())
    return f"This design ({size}, {tests}) {could}{'; it could find ' + more if more else ''}."
