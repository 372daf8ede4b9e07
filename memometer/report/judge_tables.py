"""Tables about judges: their calibration, human labels next to their verdicts, and sensitivity to the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memometer.judging import judge_assessment
from memometer.judging.answer_rules import LEXICAL
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
    lexical = calibration.get(LEXICAL) or {}
    if lexical:
        for row, name in zip(rows, sets, strict=True):
            row.insert(2, percent(lexical[name]["rate"]) if name in lexical else UNKNOWN)
    title = f"Judge calibration of {calibration['judge']} ({calibration['prompt']}): percent of wrong verdicts"
    headers = ["answers", "wrong", *(["lexical judge"] if lexical else []), "n", "missing", "by kind"]
    table = Table(title, headers, rows)
    return [judge_assessment.sentence(calibration), table, judge_assessment.notes(calibration)]


def probe_lines(results: Mapping[str, Any]) -> list[str]:
    """Describe the hidden probes of a run and the answers that were judged by rule, a line each."""
    lines = [str(found["sentence"]) for found in results.get("hidden_probes") or ()]
    passed = any(found["passed"] for found in results.get("judge_calibrations") or ())
    if passed and not lines:
        lines.append("Hidden probes: not checked, because this run has none.")
    lines += [
        f"{system}: judged wrong by rule, without a call: {judge_assessment.counted(counts)}."
        for system, counts in (results.get("judged_by_rule") or {}).items()
    ]
    return ["\n".join(lines)] if lines else []


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
            _corrected(entry.get("rogan_gladen")),
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
    headers = ["system", "budget", "labels and judge", "labels alone", "judge alone", "Rogan-Gladen", "n", "labels",
               "unclear"]  # fmt: skip
    reasons = [
        f"{entry['system']} has no Rogan-Gladen estimate: {entry['rogan_gladen']['reason']}."
        for entry in found["systems"]
        if (entry.get("rogan_gladen") or {}).get("reason")
    ]
    agreements = [
        f"{' and '.join(pair['labellers'])} both labelled {pair['n']} answers: Cohen's kappa "
        f"{number(pair['kappa'], 2)}."
        for pair in found["agreement"]
    ]
    return [Table(title, headers, rows, 2), *reasons, *agreements]


def _corrected(found: Results | None) -> str:
    return rate(found["mean"], found["low"], found["high"]) if found and found["mean"] is not None else UNKNOWN


def sensitivity_table(found: Results) -> Table:
    """Build the table of `memometer.judging.judge_sensitivity.sensitivity`."""
    rows = []
    for name, entry in found["systems"].items():
        scores = [entry["scores"][prompt] for prompt in found["prompts"]]
        cells = [rate(score["mean"], score["low"], score["high"]) for score in scores]
        rows.append([name, number(max(score["n"] for score in scores)), *cells, percent(entry["range"])])
    title = "Share of answers that each prompt accepts, percent with 95 % intervals clustered by conversation"
    return Table(title, ["system and budget", "n", *found["prompts"], "range"], rows)
