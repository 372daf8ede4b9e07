"""Judge accuracy that is withheld: of judges that were not calibrated, failed, or erred on the hidden probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memometer.judging.graders import Grader, graders_of, prompt_hashes
from memometer.judging.hidden_probes import ProbeResult
from memometer.judging.judge_assessment import sentence
from memometer.judging.judge_calibration import Calibration
from memometer.run.folder import Record

KEPT_IF_WITHHELD = ("judge_n", "judge_missing", "judge_tokens")
"""Fields that stay if judge accuracy is withheld: the number of verdicts and their cost."""


def remove_judge_metrics(metrics: dict[str, Any]) -> None:
    """Remove every judge accuracy.

    Args:
        metrics: Nested metrics of results.json; changed in place.
    """
    for value in list(metrics.values()):
        if isinstance(value, dict):
            remove_judge_metrics(value)
    for name in [name for name in metrics if name.startswith("judge") and name not in KEPT_IF_WITHHELD]:
        del metrics[name]


def withhold(
    systems: Mapping[str, Any],
    records: Sequence[Record],
    calibrations: Sequence[Calibration],
    probes: Sequence[ProbeResult] = (),
) -> dict[str, str]:
    """Withhold the accuracy of every grader whose judge did not pass its calibration and the hidden probes.

    The verdicts stay, and so do their counts under `graders`. Imported verdicts were not given under one of our
    prompts; they are not withheld.

    Args:
        systems: `systems` of results.json; the judge metrics of the run's own grader are removed in place.
        records: The records of the run.
        calibrations: Assessed calibrations.
        probes: Results of the hidden probes, by grader.

    Returns:
        Name of each grader whose accuracy is withheld -> the reason.
    """
    withheld: dict[str, str] = {}
    failed = {found["grader"]: found["sentence"] for found in probes if not found["passed"]}
    for number, grader in enumerate(graders_of(records)):
        hashes = prompt_hashes(records, grader)
        if hashes <= {""}:
            continue
        found = _calibration_of(grader, hashes, calibrations)
        if found is None or not found["passed"]:
            withheld[grader.name] = sentence(found) if found else _not_measured(grader)
        elif grader.name in failed:
            withheld[grader.name] = failed[grader.name]
        if number == 0 and grader.name in withheld:
            remove_judge_metrics(dict(systems))
    return withheld


def _calibration_of(grader: Grader, hashes: set[str], calibrations: Sequence[Calibration]) -> Calibration | None:
    for found in calibrations:
        if (found["judge"], found["prompt"]) == (grader.judge, grader.prompt) and hashes == {found["prompt_hash"]}:
            return found
    return None


def _not_measured(grader: Grader) -> str:
    model = grader.judge.replace("embedded/", "embedded:", 1)
    return f"{grader.name} was not calibrated; run memometer rescore RUN --judge-model {model} --judge {grader.prompt}."
