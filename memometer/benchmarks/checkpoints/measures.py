"""The measures at checkpoints: the needed and the forbidden texts in what a system shows."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

from memometer.benchmarks.checkpoints.question import Question
from memometer.benchmarks.shown import Answered, Measure, Shown


def measures(answered: Sequence[Answered]) -> list[Measure]:
    """Compute the measures of each category, in all and by group.

    Args:
        answered: The questions that were asked, with what was shown.
    """
    values: dict[tuple[str, str, bool], dict[str, float]] = defaultdict(dict)
    for each in answered:
        question, shown = each.question, each.shown or Shown(())
        if not isinstance(question, Question):
            continue
        text = squeezed("\n".join(part.text for part in shown.parts))
        groups = ["", question.group] if question.group else [""]
        for group in groups:
            if question.needed:
                share = sum(contains(text, needed) for needed in question.needed) / len(question.needed)
                values[f"{question.category}: needed texts shown", group, False][question.id] = share
            if question.leaks:
                leaked = float(any(contains(text, leak) for leak in question.leaks))
                values[f"{question.category}: a forbidden text shown", group, True][question.id] = leaked
            if question.sessions:
                seen = {id for part in shown.parts for id in part.turn_ids}
                hit = sum(not seen.isdisjoint(session) for session in question.sessions) / len(question.sessions)
                values[f"{question.category}: sessions of the answer shown", group, False][question.id] = hit
    return [
        Measure(name, group, found, low_is_better=low)
        for (name, group, low), found in sorted(values.items(), key=lambda item: item[0])
    ]


def contains(text: str, pattern: str) -> bool:
    """Return True if a text contains a published text, which may be a regular expression.

    Args:
        text: The text, as `squeezed` returns it.
        pattern: The published text.
    """
    plain = squeezed(pattern)
    if not plain:
        return False
    if _bounded(plain).search(text):
        return True
    expression = _expression(pattern)
    return expression is not None and expression.search(text) is not None


def squeezed(text: str) -> str:
    """Return a text in lower case with single spaces."""
    return " ".join(text.casefold().split())


@lru_cache(maxsize=4096)
def _bounded(plain: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(plain)}(?!\w)")


@lru_cache(maxsize=4096)
def _expression(pattern: str) -> re.Pattern[str] | None:
    """Compile a text that is marked as a regular expression; None for any other."""
    if not re.search(r"\(\?:|\\[bdsw]|\.\*|\[[^\]]+\][+*?]?|\)\?", pattern):
        return None
    try:
        return re.compile(rf"(?<!\w)(?:{' '.join(pattern.split())})(?!\w)", re.IGNORECASE)
    except re.error:
        return None
