"""Tables about judges: their calibration, and their sensitivity to the prompt."""

from __future__ import annotations

from typing import Any

from memometer.judging import judge_calibration
from memometer.report.presenter import Table
from memometer.stats.number_format import number, percent, rate

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


def sensitivity_table(found: Results) -> Table:
    """Build the table of `memometer.judging.judge_sensitivity.sensitivity`."""
    rows = []
    for name, entry in found["systems"].items():
        scores = [entry["scores"][prompt] for prompt in found["prompts"]]
        cells = [rate(score["mean"], score["low"], score["high"]) for score in scores]
        rows.append([name, number(max(score["n"] for score in scores)), *cells, percent(entry["range"])])
    title = "Share of answers that each prompt accepts, percent with 95 % intervals clustered by conversation"
    return Table(title, ["system and budget", "n", *found["prompts"], "range"], rows)
