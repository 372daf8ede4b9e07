"""Tables about judges: their calibration, human labels next to their verdicts, and sensitivity to the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memometer.judging import judge_calibration
from memometer.report.presenter import Table
from memometer.report.summary import shown_budget
from memometer.stats.number_format import UNKNOWN, number, percent, rate

Results = dict[str, Any]


def calibration_parts(calibration: Results) -> list[Table | str]:
    """Describe one judge calibration: the result, the error rates by set, the notes."""
    sets = dict(calibration.get("sets", {}))
    sets |= {
        f"all {side}": calibration[name]
        for side, name in (("right", "false_reject"), ("wrong", "false_accept"))
        if name in calibration
    }
    rows = [
        [
            name,
            rate(found["rate"], found["low"], found["high"]),
            number(found["n"]),
            number(found.get("missing", 0)),
            ", ".join(f"{kind} {wrong}/{n}" for kind, (wrong, n) in sorted(found.get("kinds", {}).items()) if wrong),
        ]
        for name, found in sets.items()
    ]
    title = f"Judge calibration of {calibration['judge']} ({calibration['prompt']}): percent of wrong verdicts"
    table = Table(title, ["answers", "wrong", "n", "missing", "by kind"], rows)
    return [judge_calibration.sentence(calibration), table, judge_calibration.notes(calibration)]


def human_label_parts(results: Mapping[str, Any]) -> list[Table | str]:
    """Build the table of accuracies from human labels, and the agreement of the labellers."""
    found = results.get("human_labels") or {}
    if not found.get("systems"):
        return []
    rows = [
        [
            entry["system"],
            shown_budget(entry["budget"]),
            *(rate(of["mean"], of["low"], of["high"]) for of in (entry["accuracy"], entry["labels_alone"])),
            percent(entry["judge"]["mean"]) if entry["judge"] else UNKNOWN,
            number(entry["accuracy"]["n"]),
            number(entry["labels"]),
            number(entry["unclear"]),
        ]
        for entry in found["systems"]
    ]
    title = (
        "Accuracy from human labels, percent with 95 % intervals clustered by conversation; in the first, the judge's "
        "verdicts on all answers shorten the interval (PPI++)"
    )
    headers = ["system", "budget", "labels and judge", "labels alone", "judge alone", "n", "labels", "unclear"]
    agreements = [
        f"{' and '.join(pair['labellers'])} both labelled {pair['n']} answers: Cohen's kappa "
        f"{number(pair['kappa'], 2)}."
        for pair in found["agreement"]
    ]
    return [Table(title, headers, rows, 2), *agreements]


def sensitivity_table(found: Results) -> Table:
    """Build the table of `memometer.judging.judge_sensitivity.sensitivity`."""
    rows = []
    for name, entry in found["systems"].items():
        scores = [entry["scores"][prompt] for prompt in found["prompts"]]
        cells = [rate(score["mean"], score["low"], score["high"]) for score in scores]
        rows.append([name, number(max(score["n"] for score in scores)), *cells, percent(entry["range"])])
    title = "Share of answers that each prompt accepts, percent with 95 % intervals clustered by conversation"
    return Table(title, ["system and budget", "n", *found["prompts"], "range"], rows)
