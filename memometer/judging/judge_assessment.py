"""The assessment of a judge calibration: its worst set of wrong answers decides whether judge accuracy is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memometer.judging.answer_rules import LEXICAL
from memometer.judging.calibration_set import WRONG
from memometer.judging.judge_calibration import MAX_MISSING, Calibration
from memometer.stats.intervals import wilson
from memometer.stats.number_format import percent, rate

MAX_FALSE_ACCEPT = 0.15
"""Limit for the upper end of the interval in every set of wrong answers. False accepts raise every score, and a system
may give only answers of the kind at which the judge is worst. At 15 %, a judge reports 57 % if half of the answers are
right."""
MAX_FALSE_REJECT = 0.15
MAX_GOLD_REJECTED = 0.02
"""Limits for the measured rates: false rejects lower the scores, and nobody benefits from luck."""

MIN_ANSWERS = 30
"""A set with fewer answers is not checked. Even without an error, 22 are needed for an upper limit of 15 %."""
REQUIRED = ("vague", "echo", "hedge", "refusal_with_content", "injection", "empty_talk")
"""Sets that every calibration must check. They are made by rule and exist for any data."""

SET_NAMES = {
    "vague": "vague answers",
    "echo": "repeats of the question",
    "hedge": "answers with several candidates",
    "refusal": "refusals",
    "refusal_with_content": "refusals with a guess",
    "injection": "answers with words to the judge",
    "empty_talk": "empty sentences",
    "other_speaker": "answers about the other speaker",
    "adjacent_date": "neighbouring dates",
    "near_miss": "near misses",
    "specific_wrong": "specific wrong answers",
}


def assess(calibration: Calibration, *, max_false_accept: float = MAX_FALSE_ACCEPT) -> Calibration:
    """Decide whether a judge passed.

    Args:
        calibration: The measurement.
        max_false_accept: Limit for the upper end of the false-accept rate in each set of wrong answers.

    Returns:
        The calibration with `passed`; `reasons` as clauses, if it is false; `worst`, the set of wrong answers with the
        largest upper limit; `not_checked`, the sets with too few answers; and `certified`, which is false if the limit
        was raised.
    """
    sets, reject = calibration["sets"], calibration["false_reject"]
    wrong = {name: sets[name] for name in WRONG if name in sets and sets[name]["rate"] is not None}
    checked = {name: found for name, found in wrong.items() if found["n"] >= MIN_ANSWERS}
    not_checked = [name for name in WRONG if name not in checked and (name in sets or name in REQUIRED)]
    worst = max(checked, key=lambda name: (checked[name]["high"], checked[name]["rate"]), default=None)
    reasons = []
    if failed := calibration["parser"]["failed"]:
        reasons.append(f"its parser misreads {', '.join(map(repr, failed))}")
    if calibration["missing"] > MAX_MISSING:
        reasons.append(f"{percent(calibration['missing'])} % of its replies are not a label (limit {MAX_MISSING:.0%})")
    assessed = {
        **calibration,
        "max_false_accept": max_false_accept,
        "worst": worst,
        "not_checked": not_checked,
        "certified": False,
    }
    if not wrong or reject["rate"] is None:
        return {**assessed, "passed": False, "reasons": reasons or ["it graded nothing"]}
    if worst and checked[worst]["high"] > max_false_accept:
        reasons.append(
            f"it accepts {error_rate(checked[worst])} of {SET_NAMES[worst]} (limit {max_false_accept:.0%} for the "
            "upper end in every set)"
        )
    reasons += [
        f"it accepts {error_rate(found)} of {SET_NAMES[name]}"
        for name, found in wrong.items()
        if name not in checked and found["rate"] > max_false_accept
    ]
    if not calibration.get("ended_early") and (unchecked := [name for name in REQUIRED if name in not_checked]):
        named = ", ".join(f"{SET_NAMES[name]} ({sets[name]['n'] if name in sets else 0})" for name in unchecked)
        reasons.append(f"not checked, because {MIN_ANSWERS} answers are needed: {named}")
    gold = sets.get("gold", {"rate": None, "low": None, "high": None})
    if gold["rate"] is None or gold["rate"] > MAX_GOLD_REJECTED:
        reasons.append(f"it rejects {error_rate(gold)} of the gold answers (limit {MAX_GOLD_REJECTED:.0%})")
    if reject["rate"] > MAX_FALSE_REJECT:
        reasons.append(f"it rejects {error_rate(reject)} of right answers (limit {MAX_FALSE_REJECT:.0%})")
    if calibration.get("ended_early") and not reasons:
        reasons.append("its measurement ended early, at another limit; run memometer calibrate --again")
    certified = not reasons and max_false_accept <= MAX_FALSE_ACCEPT
    return {**assessed, "passed": not reasons, "reasons": reasons, "certified": certified}


def cannot_pass(errors: int, planned: int, limit: float) -> bool:
    """Return True if a set cannot pass any more, even if every further answer of it is graded right.

    Args:
        errors: Wrong answers that were accepted so far.
        planned: Answers of the set.
        limit: Limit for the upper end of the false-accept rate.
    """
    return planned >= MIN_ANSWERS and wilson(errors / planned, planned)[1] > limit


def error_rate(found: Mapping[str, Any]) -> str:
    """Format an error rate with its interval: `6.2 [3.1, 12.0] %`."""
    return f"{rate(found['rate'], found['low'], found['high'])} %"


def sentence(calibration: Calibration) -> str:
    """Summarize an assessed calibration in one sentence."""
    name, date = f"{calibration['judge']} ({calibration['prompt']})", calibration["date"][:10]
    if not calibration["passed"]:
        early = "; the measurement ended at this point" if calibration.get("ended_early") else ""
        return f"{name} failed its calibration ({date}): {'; '.join(calibration['reasons'])}{early}."
    worst, rejects = calibration.get("worst"), error_rate(calibration["false_reject"])
    if worst is None:  # an earlier version, which had other sets and judged them together
        accepts = f"{error_rate(calibration['false_accept'])} of wrong answers"
        return f"{name} passed the calibration of an earlier version ({date}): it accepts {accepts}."
    accepts = f"{error_rate(calibration['sets'][worst])} of {SET_NAMES[worst]}, its worst set of wrong answers"
    if not calibration["certified"]:
        return (
            f"{name} was not certified ({date}): its accuracy is shown because --max-false-accept is "
            f"{calibration['max_false_accept']:.0%}. It accepts {accepts}, and rejects {rejects} of right ones."
        )
    return f"{name} passed its calibration ({date}): it accepts {accepts}, and rejects {rejects} of right ones."


def notes(calibration: Calibration) -> str:
    """Describe the verdicts by rule, the lexical judge, the parser test and the stability, a line each."""
    parser, stability = calibration["parser"], calibration["stability"]
    lines = []
    if by_rule := calibration.get("by_rule"):
        lines.append(f"Judged wrong by rule, without a call: {counted(by_rule)}.")
    if lexical := calibration.get(LEXICAL):
        worst = max((name for name in WRONG if name in lexical), key=lambda name: float(lexical[name]["rate"] or 0.0))
        lines.append(
            f"A judge without a model (all words of the gold answer are in the answer) accepts "
            f"{error_rate(lexical[worst])} of {SET_NAMES[worst]}."
        )
    lines.append(f"Parser: {parser['cases'] - len(parser['failed'])} of {parser['cases']} test replies read correctly.")
    if stability["n"]:
        lines.append(
            f"Stability: {stability['flipped']} of {stability['n']} labels differ in {stability['repeats']} repeats."
        )
    if names := calibration.get("not_checked"):
        sets = calibration["sets"]
        few = [f"{SET_NAMES[name]} (n = {sets[name]['n'] if name in sets else 0})" for name in names]
        lines.append(f"Not checked, because {MIN_ANSWERS} answers are needed: {', '.join(few)}.")
    if "specific_wrong" not in calibration["sets"]:
        lines.append("Specific wrong answers were not measured; give them with --wrong-answers FILE.")
    return "\n".join(lines)


def counted(numbers: Mapping[str, int]) -> str:
    """List names with their counts: `12 echo, 3 bare label`."""
    return ", ".join(f"{n:,} {name}" for name, n in numbers.items())
