"""results.json of a run: computed from its records, or read from its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memometer.benchmarks.protocol import DataError, Dataset
from memometer.judging import human_labels, label_sets, sample_scores
from memometer.judging.graders import Grader, graders_of, judged_by_rule
from memometer.judging.hidden_probes import assess_probes
from memometer.judging.judge import shared_family
from memometer.judging.judge_assessment import MAX_FALSE_ACCEPT
from memometer.judging.judge_calibration import Calibration
from memometer.judging.label_sets import LabelCorrections
from memometer.judging.withheld import withhold
from memometer.report import (
    aggregate,
    answer_form,
    comparisons,
    data_access,
    fact_recall,
    own_measures,
    pareto,
    variance,
)
from memometer.report.prompt_counts import cut_prompts
from memometer.run import cost
from memometer.run.folder import Key, Record, RunFolderError

Results = dict[str, Any]


STATISTICS = 2
"""Version of intervals and tests: 2 has intervals that are never narrower than the naive ones, and max-T p-values."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run: the name of its folder, manifest, records, results and data."""

    name: str
    manifest: Mapping[str, Any]
    records: Sequence[Record]
    results: Mapping[str, Any]
    data: Dataset


def compute_results(
    manifest: Mapping[str, Any],
    records: Sequence[Record],
    ingests: Sequence[Record],
    data: Dataset,
    keys: Sequence[Key],
    facts: Mapping[str, Any],
    *,
    calibrations: Sequence[Calibration] = (),
    rounds: Mapping[tuple[str, int], Results] | None = None,
    corrections: LabelCorrections | None = None,
    measurings: Sequence[Record] = (),
    items: fact_recall.Items | None = None,
    labels: Sequence[Record] = (),
    probes: Sequence[Record] = (),
) -> Results:
    """Compute the content of results.json. Calls no model.

    Args:
        manifest: The content of manifest.json.
        records: All attempts.
        ingests: All ingests.
        data: The data.
        keys: What was planned; a key without a record is missing.
        facts: Entries that the records do not have: status, split, reader, and so on. `warnings` are added to.
        calibrations: Assessed judge calibrations. The accuracy of a judge that did not pass one is withheld.
        rounds: (system, budget) -> analysis of multi-round reading.
        corrections: Label corrections; None for the file that the benchmark's environment variable names.
        measurings: Cost of the calibrations that were measured for this run.
        items: The items that plug-ins returned (`memometer.run.shown_items.texts`).
        labels: Human labels of answers.
        probes: Hidden probes with their verdicts. The accuracy of a judge that errs on them is withheld.

    Returns:
        The results.
    """
    ids = {key[2] for key in keys}
    questions = [question for question in data.questions if question.id in ids]
    graders = graders_of(records)
    systems = aggregate.aggregate(records, questions, keys)
    pairs = comparisons.compare_systems(records, questions, keys, reference=manifest["config"].get("reference") or "")
    problem = ""
    try:
        if corrections is None and label_sets.named_file(data) and not data.kind:
            corrections = label_sets.read(data=data)
    except DataError as error:  # the other results do not depend on it
        problem = f"Clean and flagged questions are not separated: {error}"
    clean_and_flagged = _clean_and_flagged(records, data, keys, graders[:1], corrections)
    limit = max((found.get("max_false_accept", MAX_FALSE_ACCEPT) for found in calibrations), default=MAX_FALSE_ACCEPT)
    probe_results = assess_probes(probes, graders, max_false_accept=limit)
    withheld = withhold(systems, records, calibrations, probe_results)
    pairs = [found for found in pairs if found["grader"] not in withheld]
    if graders and graders[0].name in withheld:
        clean_and_flagged = {}
    for (system, budget), found in (rounds or {}).items():
        systems[system]["budgets"][str(budget)]["rounds"] = found
    above = [
        f"ALARM: {system}: {sentence}"
        for system, found in clean_and_flagged.items()
        for sentence in found.pop("above_ceiling")
    ]
    return {
        **facts,
        "statistics": STATISTICS,
        "benchmark": data.benchmark,
        "categories": dict(data.categories),
        "data_kind": data.kind,
        "data_name": data.name,
        "data_notice": data.notice,
        "missing_share": aggregate.missing_share(records, keys),
        "cut_prompts": cut_prompts(aggregate.current(records, keys)),
        "judge_family": shared_family(facts.get("reader") or "", graders[0].judge) if graders else "",
        "judge_calibrations": [
            {k: v for k, v in found.items() if k not in ("identity", "labels")} for found in calibrations
        ],
        "hidden_probes": probe_results,
        "answer_form": answer_form.measure(records, questions, keys, graders, withheld),
        "variance": variance.of_run(records, questions, withheld),
        "judged_by_rule": judged_by_rule(aggregate.current(records, keys)),
        "withheld": withheld,
        "human_labels": {
            "systems": human_labels.accuracies(records, labels, data) if labels else [],
            "agreement": human_labels.agreements(labels),
        },
        "records": len(records),
        "failures": {
            "missing": aggregate.failure_reasons(records, keys),
            "wrong": aggregate.memory_failure_reasons(records, keys),
        },
        "copied_examples": aggregate.copied_examples(records, questions, keys, manifest.get("example_answers", ())),
        "ingest": aggregate.ingest_cost(ingests),
        "plug_in_calls": aggregate.plug_in_calls(records, ingests),
        "own_measures": own_measures.measure(records, ingests, data, keys, items or {}),
        "fact_recall": fact_recall.measure(records, data, keys, items or {}),
        "systems": systems,
        "comparisons": pairs,
        "warnings": [
            *data_access.alarms([*records, *ingests]),
            *above,
            *manifest.get("cautions", ()),
            *facts.get("warnings", ()),
            *filter(None, [problem]),
            *comparisons.warnings_of(questions, data.questions),
        ],
        "clean_and_flagged": clean_and_flagged,
        "cost": {
            **cost.summarize(manifest, records, ingests, measurings, probes),
            "frontier": pareto.frontier(records, ingests, questions),
            "areas": pareto.areas(records, questions),
        },
    }


def _clean_and_flagged(
    records: Sequence[Record],
    data: Dataset,
    keys: Sequence[Key],
    own: Sequence[Grader],
    corrections: LabelCorrections | None,
) -> dict[str, Results]:
    """`system @budget` -> accuracy on clean and on flagged questions, and warnings of scores above the ceiling."""
    found: dict[str, Results] = {}
    if corrections is None or not own:
        return found
    groups = aggregate.grouped(records, data.questions, keys)
    for (system, budget), pairs in groups.items():
        answerable = [pair for pair in pairs if pair[0].answerable]
        if scores := sample_scores.by_question(answerable, "judge", own[0]):
            name = system if sum(other == system for other, _ in groups) == 1 else f"{system} @{budget:,}"
            majority = label_sets.clean_and_flagged(
                sample_scores.by_question(answerable, "judge", own[0], rule="majority"), corrections.flagged
            )
            parts = label_sets.clean_and_flagged(scores, corrections.flagged)
            found[name] = {part: {**value, "majority": majority[part]["accuracy"]} for part, value in parts.items()}
            # The ceiling holds for the original label set only.
            questions = [question for question, _ in answerable] if own[0].label_set == "original" else []
            found[name]["above_ceiling"] = label_sets.above_ceiling(
                scores, questions, corrections.flagged, data.categories
            )
    return found


_RENAMED = {
    "accounting": "cost",
    "all_evidence_one_shot": "all_evidence_one_prompt",
    "categories_1_5": "all_questions",
    "cautions": "warnings",
    "certificate": "calibration",
    "certificates": "judge_calibrations",
    "f1_by_form": "f1_by_option_order",
    "grading": "grader",
    "gradings": "graders",
    "ledger": "test_set_usage",
    "broken": "duplicate_attempts",
    "notice": "data_notice",
    "stand_in": "data_kind",
    "ungraded": "missing",
    "ungraded_share": "missing_share",
}
"""Field of results.json in earlier versions -> its name now; `*_ungraded` is now `*_missing`."""


def read_results(path: Path) -> Results:
    """Read results.json of a run folder; fields of earlier versions are renamed.

    Args:
        path: The run folder.

    Returns:
        The results.

    Raises:
        RunFolderError: There is no results.json, or it is damaged.
    """
    file = path / "results.json"
    try:
        results = json.loads(file.read_bytes())
        if not isinstance(results, dict):
            raise TypeError("not an object")
    except FileNotFoundError as error:
        raise RunFolderError(
            f"{path} has no results.json; finish the run: python evaluate.py --resume {path}"
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise RunFolderError(
            f"{file} is damaged ({error}); delete it and write it again: python evaluate.py --resume {path}"
        ) from error
    upgraded: Results = _upgraded(results)
    upgraded.setdefault("categories", {})
    return upgraded


def _upgraded(value: Any) -> Any:
    if isinstance(value, list):
        return [_upgraded(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {_RENAMED.get(k, k.replace("_ungraded", "_missing")): _upgraded(v) for k, v in value.items()}
