"""What a judge's certificate does to its scores: J corrected for the judge's errors, or withheld."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from memometer.budget import UNBOUNDED
from memometer.judging.graders import Grading, gradings, prompt_hashes
from memometer.judging.judge_calibration import Certificate, sentence
from memometer.run.folder import Record


def rogan_gladen(
    apparent: float, interval: Sequence[float] | None, false_accept: Mapping[str, Any], false_reject: Mapping[str, Any]
) -> tuple[float | None, tuple[float, float] | None, str]:
    """(accuracy corrected for the judge's errors, its 95 % interval, why there is none or "").

    (apparent + specificity - 1) / (sensitivity + specificity - 1), within 0 and 1 (Rogan and Gladen, American Journal
    of Epidemiology 107, 1978). The interval is the delta method's, with the parts' own intervals in the place of
    standard errors, each on the side where it moves the result down or up (as in `certificate.macro`): the clustered
    one of the score, and those of the certificate. It holds as far as what a system gets wrong is of the certificate's
    kinds, in even parts.
    """
    if false_accept["rate"] is None or false_reject["rate"] is None:
        return None, None, "the judge graded nothing"
    f, s = false_accept["rate"], 1 - false_reject["rate"]
    s_low, s_high = 1 - false_reject["high"], 1 - false_reject["low"]
    # Youden's J, which must be above zero beyond doubt, or what is divided by may be anything.
    youden = s - f
    if youden - math.hypot(s - s_low, false_accept["high"] - f) <= 0:
        return None, None, f"sensitivity + specificity is {s + 1 - f:.2f}, not surely above 1: no better than chance"
    unbounded = (apparent - f) / youden
    corrected = min(1.0, max(0.0, unbounded))
    if interval is None:
        return corrected, None, ""
    low, high = interval
    right, wrong = corrected, 1 - corrected
    down = math.hypot(apparent - low, wrong * (false_accept["high"] - f), right * (s_high - s)) / youden
    up = math.hypot(high - apparent, wrong * (f - false_accept["low"]), right * (s - s_low)) / youden
    if unbounded - down > 1 or unbounded + up < 0:  # also the whole interval: the certificate is not of these answers
        return None, None, "no accuracy with this judge's measured errors gives such a score"
    return corrected, (max(0.0, unbounded - down), min(1.0, unbounded + up)), ""


RAW = ("judge_n", "judge_ungraded", "judge_tokens")
"""What is left of a J that is withheld: that there were verdicts, and what they cost."""


def apply(figures: dict[str, Any], certificate: Certificate | None) -> None:
    """Set the corrected accuracy beside every J in nested figures; without a passed certificate, take every J out."""
    for value in list(figures.values()):
        if isinstance(value, dict):
            apply(value, certificate)
    if certificate is None or not certificate["passed"]:
        for name in [name for name in figures if name.startswith("judge") and name not in RAW]:
            del figures[name]
    elif isinstance(figures.get("judge"), float):
        corrected, interval, reason = rogan_gladen(
            figures["judge"], figures["judge_interval"], certificate["false_accept"], certificate["false_reject"]
        )
        figures["judge_corrected"] = corrected
        figures["judge_corrected_interval"] = None if interval is None else list(interval)
        if reason:
            figures["judge_corrected_reason"] = reason


def settle(
    systems: Mapping[str, Any], records: Sequence[Record], certificates: Sequence[Certificate]
) -> dict[str, str]:
    """Set the corrected accuracy of every grading whose judge passed, and take out J where the run's own judge did not.

    Returns {name of a grading that may not be shown as accuracy: why}. Its verdicts, and what they amount to under
    `gradings`, stay: that is what a judge said, whatever it is worth. Verdicts that were published with imported
    answers are their authors' figures; no prompt of ours gave them, and they are neither measured nor withheld.
    """
    withheld: dict[str, str] = {}
    for grading in gradings(records):
        hashes = prompt_hashes(records, grading)
        own = grading == gradings(records)[0]
        if hashes <= {""}:
            continue
        found = _certificate(grading, hashes, certificates)
        if found and found["passed"]:
            _correct(systems, grading.name, found)
        else:
            withheld[grading.name] = sentence(found) if found else _unmeasured(grading)
        if own:
            apply(dict(systems), found)
    return withheld


def _certificate(grading: Grading, hashes: set[str], certificates: Sequence[Certificate]) -> Certificate | None:
    for found in certificates:
        if (found["judge"], found["prompt"]) == (grading.judge, grading.prompt) and hashes == {found["prompt_hash"]}:
            return found
    return None


def _unmeasured(grading: Grading) -> str:
    model = grading.judge.replace("embedded/", "embedded:", 1)
    return (
        f"{grading.name} was not measured; memometer rescore RUN --judge-model {model} --judge {grading.prompt} "
        "does that."
    )


def _correct(systems: Mapping[str, Any], name: str, certificate: Certificate) -> None:
    for system in systems.values():
        for entry in system["budgets"].values():
            figures = entry["gradings"].get(name)
            if figures and figures["score"] is not None:
                corrected, interval, reason = rogan_gladen(
                    figures["score"], figures["interval"], certificate["false_accept"], certificate["false_reject"]
                )
                figures["corrected"] = corrected
                figures["corrected_interval"] = None if interval is None else list(interval)
                figures["corrected_reason"] = reason


def below(systems: Mapping[str, Any], certificates: Sequence[Certificate], family: str) -> str:
    """What stands below a table: J corrected, the certificates, and the warning of a judge that is of the reader's
    `family`."""
    parts = [_table(systems), *map(sentence, certificates)]
    if family:
        parts.append(f"The judge is of the reader's own family ({family}) and may favour its answers.")
    return "".join(f"\n{part}\n" for part in parts if part)


def _table(systems: Mapping[str, Any]) -> str:
    """J beside what a judge without errors would give; empty where no judge passed."""
    from tabulate import tabulate

    body = [
        [system, f"{int(budget):,}" if int(budget) < UNBOUNDED else "all", name, _shown(found["score"],
         found["interval"]), _shown(found["corrected"], found["corrected_interval"]), found["corrected_reason"]]
        for system, entries in systems.items()
        for budget, entry in entries["budgets"].items()
        for name, found in entry["gradings"].items()
        if "corrected" in found
    ]  # fmt: skip
    if not body:
        return ""
    headers = ["system", "budget", "judge (prompt, key)", "J", "corrected J", ""]
    aligned = ["left", "right", "left", "right", "right", "left"]
    grid = tabulate(body, headers, tablefmt="simple", disable_numparse=True, colalign=aligned)
    return f"J, and J corrected for the judge's errors (Rogan-Gladen), answerable questions\n{grid}"


def _shown(rate: float | None, interval: Sequence[float] | None) -> str:
    if rate is None:
        return "-"
    return f"{100 * rate:.1f}" + (f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else "")
