"""Scores of rubrics: items that are met, half met or not met, and the order of events in an answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence


def is_half_met(reply: str) -> bool:
    """True if the reply of a judge is `partly`, alone."""
    return reply.strip().strip("*`\"'").rstrip(".").lower() in ("partly", "partially")


def lines_of(answer: str) -> list[str]:
    """Return the lines of an answer that are not blank; each is one event."""
    return [line.strip() for line in answer.splitlines() if line.strip()]


def aligned(events: Sequence[str], lines: Sequence[str], is_same: Callable[[str, str], bool]) -> list[str]:
    """Replace each line by the first event that it describes; an event is used once.

    Args:
        events: The events of the rubric, in order.
        lines: The lines of an answer.
        is_same: (event, line) -> True if both are the same event. It is called until an event is found.

    Returns:
        The lines; one that describes none of the events is left as it is.
    """
    left = list(events)
    found = []
    for line in lines:
        event = next((event for event in left if is_same(event, line)), None)
        if event is not None:
            left.remove(event)
        found.append(line if event is None else event)
    return found


def order_score(events: Sequence[str], found: Sequence[str]) -> float:
    """Compare the order of events with Kendall's tau-b, as BEAM's published evaluation does.

    Events and lines that the other list lacks share the last rank there.

    Args:
        events: The events in their order.
        found: The aligned lines of an answer.

    Returns:
        (tau-b + 1) / 2, from 0 to 1; 0 if tau-b is undefined.
    """
    from scipy.stats import kendalltau

    union = list(dict.fromkeys([*events, *found]))
    ranks = [{item: rank for rank, item in enumerate(each, start=1)} for each in (events, found)]
    one, other = ([rank.get(item, len(union) + 1) for item in union] for rank in ranks)
    tau = float(kendalltau(one, other, variant="b").statistic)
    return 0.0 if math.isnan(tau) else (tau + 1) / 2
