"""Judge accuracy corrected for the judge's misclassification (Rogan-Gladen), with rates from human labels alone.

Error rates from made-up answers are not those of a system's own answers: a correction with them can move an accuracy
away from the truth. So only people who labelled answers of the same run can give the rates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from memometer.stats.intervals import wilson

MIN_LABELS = 20
"""Human labels that each error rate needs."""


def rogan_gladen(
    apparent: float, interval: Sequence[float] | None, false_accept: Mapping[str, Any], false_reject: Mapping[str, Any]
) -> tuple[float | None, tuple[float, float] | None, str]:
    """Correct a judge accuracy for the judge's error rates.

    The estimate is (apparent + specificity - 1) / (sensitivity + specificity - 1), clipped to [0, 1]. Its interval
    combines the clustered interval of the accuracy with those of the error rates (delta method, each limit on the side
    where it moves the result). The rates must come from labels of these answers: a judge errs at other rates elsewhere.

    Source: Rogan and Gladen, American Journal of Epidemiology 107, 1978.

    Args:
        apparent: Judge accuracy in [0, 1].
        interval: Its 95 % limits, or None.
        false_accept: `rate`, `low` and `high` of accepting wrong answers.
        false_reject: `rate`, `low` and `high` of rejecting right answers.

    Returns:
        The corrected accuracy, its 95 % limits, and the reason if there is no estimate, otherwise "".
    """
    if false_accept["rate"] is None or false_reject["rate"] is None:
        return None, None, "the judge graded nothing"
    accept, sensitivity = false_accept["rate"], 1 - false_reject["rate"]
    sensitivity_low, sensitivity_high = 1 - false_reject["high"], 1 - false_reject["low"]
    # The denominator, Youden's J, must be significantly above zero.
    youden = sensitivity - accept
    if youden - math.hypot(sensitivity - sensitivity_low, false_accept["high"] - accept) <= 0:
        total = sensitivity + 1 - accept
        return None, None, f"sensitivity + specificity is {total:.2f}, not significantly above 1 (chance)"
    unclipped = (apparent - accept) / youden
    corrected = min(1.0, max(0.0, unclipped))
    if interval is None:
        return corrected, None, ""
    low, high = interval
    right, wrong = corrected, 1 - corrected
    down = math.hypot(apparent - low, wrong * (false_accept["high"] - accept), right * (sensitivity_high - sensitivity))
    up = math.hypot(high - apparent, wrong * (accept - false_accept["low"]), right * (sensitivity - sensitivity_low))
    down, up = down / youden, up / youden
    if unclipped - down > 1 or unclipped + up < 0:  # the calibration does not describe these answers
        return None, None, "no accuracy is consistent with this score and the judge's error rates"
    return corrected, (max(0.0, unclipped - down), min(1.0, unclipped + up)), ""


def rates_of_labels(
    verdicts: Sequence[float | None], labels: Sequence[float | None], inclusion: Sequence[float]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Estimate a judge's error rates from human labels of the answers that it judged.

    Labels are weighted by the inverse of their inclusion probability. The intervals are Wilson's, with Kish's effective
    number of labels.

    Source: Kish, Survey Sampling, 1965, for the effective number.

    Args:
        verdicts: Judge score of each answer in [0, 1], or None without a verdict, shape (n,).
        labels: Human label of each answer in [0, 1], or None, shape (n,).
        inclusion: Probability with which each answer was drawn for labelling, shape (n,).

    Returns:
        The false-accept rate (of answers that people call wrong) and the false-reject rate (of right ones), each with
        `rate`, `low`, `high` and `n`, the number of labels.
    """
    known = [
        (verdict, label, 1 / probability)
        for verdict, label, probability in zip(verdicts, labels, inclusion, strict=True)
        if verdict is not None and label is not None
    ]
    accepts = [(verdict, weight) for verdict, label, weight in known if label < 0.5]
    rejects = [(1 - verdict, weight) for verdict, label, weight in known if label >= 0.5]
    return _weighted_rate(accepts), _weighted_rate(rejects)


def _weighted_rate(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    if not pairs:
        return {"rate": None, "low": None, "high": None, "n": 0}
    total = sum(weight for _, weight in pairs)
    rate = sum(error * weight for error, weight in pairs) / total
    low, high = wilson(rate, total**2 / sum(weight**2 for _, weight in pairs))
    return {"rate": rate, "low": low, "high": high, "n": len(pairs)}


def corrected(
    judge: Mapping[str, Any] | None, false_accept: Mapping[str, Any], false_reject: Mapping[str, Any]
) -> dict[str, Any]:
    """Correct the judge accuracy of one system with error rates from labels of its own answers.

    Args:
        judge: `mean`, `low` and `high` of the judge accuracy; None without a judge.
        false_accept: As of `rates_of_labels`.
        false_reject: As of `rates_of_labels`.

    Returns:
        `mean`, `low` and `high`, or None with a `reason`.
    """
    unknown = {"mean": None, "low": None, "high": None}
    if not judge or judge["mean"] is None:
        return {**unknown, "reason": "no answer has a verdict"}
    fewest = min(false_accept["n"], false_reject["n"])
    if fewest < MIN_LABELS:
        return {
            **unknown,
            "reason": f"people called {false_accept['n']} answers wrong and {false_reject['n']} right, and "
            f"{MIN_LABELS} of each are needed",
        }
    interval = None if judge["low"] is None else (judge["low"], judge["high"])
    mean, limits, reason = rogan_gladen(judge["mean"], interval, false_accept, false_reject)
    low, high = limits or (None, None)
    return {"mean": mean, "low": low, "high": high, "reason": reason}
