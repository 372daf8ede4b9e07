"""Judge accuracy corrected for the judge's misclassification (Rogan-Gladen), and withheld for judges that failed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from memometer.judging.graders import Grader, graders_of, prompt_hashes
from memometer.judging.judge_calibration import Calibration, sentence
from memometer.run.folder import Record


def rogan_gladen(
    apparent: float, interval: Sequence[float] | None, false_accept: Mapping[str, Any], false_reject: Mapping[str, Any]
) -> tuple[float | None, tuple[float, float] | None, str]:
    """Correct a judge accuracy for the judge's error rates.

    The estimate is (apparent + specificity - 1) / (sensitivity + specificity - 1), clipped to [0, 1]. Its interval
    combines the clustered interval of the accuracy with those of the error rates (delta method, each limit on the side
    where it moves the result). It is valid as far as a system's wrong answers resemble those of the calibration set.

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


KEPT_IF_WITHHELD = ("judge_n", "judge_missing", "judge_tokens")
"""Fields that stay if judge accuracy is withheld: the number of verdicts and their cost."""


def apply_calibration(metrics: dict[str, Any], calibration: Calibration | None) -> None:
    """Add the corrected accuracy next to every judge accuracy, or remove all of them if the judge did not pass.

    Args:
        metrics: Nested metrics of results.json; changed in place.
        calibration: The assessed calibration of the run's own judge, or None.
    """
    for value in list(metrics.values()):
        if isinstance(value, dict):
            apply_calibration(value, calibration)
    if calibration is None or not calibration["passed"]:
        for name in [name for name in metrics if name.startswith("judge") and name not in KEPT_IF_WITHHELD]:
            del metrics[name]
    elif isinstance(metrics.get("judge"), float):
        _correct(metrics, calibration, "judge", "judge_interval", "judge_corrected")
        if not metrics["judge_corrected_reason"]:
            del metrics["judge_corrected_reason"]


def apply_calibrations(
    systems: Mapping[str, Any], records: Sequence[Record], calibrations: Sequence[Calibration]
) -> dict[str, str]:
    """Correct the accuracy of every grader whose judge passed, and withhold it for the run's own judge if it did not.

    The verdicts stay, and so do their counts under `graders`. Verdicts that were imported with their answers were not
    given under one of our prompts; they are neither corrected nor withheld.

    Args:
        systems: `systems` of results.json; changed in place.
        records: The records of the run.
        calibrations: Assessed calibrations.

    Returns:
        Name of each grader whose accuracy is withheld -> the reason.
    """
    withheld: dict[str, str] = {}
    for number, grader in enumerate(graders_of(records)):
        hashes = prompt_hashes(records, grader)
        if hashes <= {""}:
            continue
        found = _calibration_of(grader, hashes, calibrations)
        if found and found["passed"]:
            for system in systems.values():
                for entry in system["budgets"].values():
                    metrics = entry["graders"].get(grader.name)
                    if metrics and metrics["score"] is not None:
                        _correct(metrics, found, "score", "interval", "corrected")
        else:
            withheld[grader.name] = sentence(found) if found else _not_measured(grader)
        if number == 0:
            apply_calibration(dict(systems), found)
    return withheld


def _calibration_of(grader: Grader, hashes: set[str], calibrations: Sequence[Calibration]) -> Calibration | None:
    for found in calibrations:
        if (found["judge"], found["prompt"]) == (grader.judge, grader.prompt) and hashes == {found["prompt_hash"]}:
            return found
    return None


def _not_measured(grader: Grader) -> str:
    model = grader.judge.replace("embedded/", "embedded:", 1)
    return f"{grader.name} was not calibrated; run memometer rescore RUN --judge-model {model} --judge {grader.prompt}."


def _correct(metrics: dict[str, Any], calibration: Calibration, value: str, interval: str, name: str) -> None:
    corrected, limits, reason = rogan_gladen(
        metrics[value], metrics[interval], calibration["false_accept"], calibration["false_reject"]
    )
    metrics[name] = corrected
    metrics[f"{name}_interval"] = None if limits is None else list(limits)
    metrics[f"{name}_reason"] = reason
