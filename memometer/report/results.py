"""What a run amounts to, written into its folder: results.json, table.txt and the reports that people read.

Whoever answered and whoever judged, every run ends here: one of evaluate.py, one graded again, one of others' answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from memometer.benchmarks.protocol import DataError, Dataset
from memometer.judging import judge_calibration, label_sets, misclassification
from memometer.judging.graders import Grading, gradings
from memometer.judging.judge import shared_family
from memometer.judging.judge_calibration import Certificate
from memometer.judging.label_sets import LabelCorrections
from memometer.report import aggregate, write
from memometer.report.terminal import as_text
from memometer.report.viewer_data import Run
from memometer.run import cost
from memometer.run.folder import Key, Record, RunFolder
from memometer.stats import pareto, sample_scores

Results = dict[str, Any]


def write_results(
    folder: RunFolder,
    data: Dataset,
    keys: Sequence[Key],
    facts: Mapping[str, Any],
    *,
    certificates: Sequence[Certificate] = (),
    no_judge: str = "",
    rounds: Mapping[tuple[str, int], Results] | None = None,
    notes: Sequence[str] = (),
    corrections: LabelCorrections | None = None,
) -> tuple[Results, str]:
    """Write results.json, table.txt and the reports; returns the results and the table. Calls no model.

    Args:
        keys: what was planned; what of it has no record is ungraded.
        facts: what results.json says beside the figures: status, split, reader, and so on; its `cautions` and those of
            the manifest are added to.
        certificates: of judges, as they were measured, beside those that an earlier results.json holds; J of a judge
            without a passed one is withheld, unless verdicts were published with their answers, and no prompt of ours
            gave them.
        no_judge: why there is no J, where nothing was graded.
        rounds: (system, budget) -> what asking for more was worth.
        notes: lines for below the table.
        corrections: tells the questions whose gold is wrong from the others; None for the file that the benchmark's
        variable names.
    """
    results = compute_results(
        folder.manifest,
        folder.records(),
        folder.ingests(),
        data,
        keys,
        facts,
        certificates=[judge_calibration.stamp(found) for found in _known(folder, certificates)],
        rounds=rounds,
        corrections=corrections,
        measurings=folder.measurings(),
    )
    withheld, told = results["withheld"], results["clean_and_flagged"]
    table = as_text(
        results, no_judge=next(iter(withheld.values()), no_judge), folds=bool(folder.manifest["config"].get("folds"))
    )
    table += misclassification.below(results["systems"], results["certificates"], results["judge_family"])
    table += cost.table(results["accounting"])
    below = [*(label_sets.sentence(system, found) for system, found in told.items()), *notes]
    table += "".join(f"\n{line}\n" for line in below if line)
    folder.write_json("results.json", results)
    folder.write_text("table.txt", "".join(f"{data.prefix}{line}\n" for line in table.splitlines()))
    run = Run(folder.path.resolve().name, folder.manifest, folder.records(), results, data)
    write.write([run], folder.path)
    return results, table


def _known(folder: RunFolder, new: Sequence[Certificate]) -> list[Certificate]:
    """The certificates of a run so far, the newest of each judge and prompt."""
    try:
        earlier = json.loads((folder.path / "results.json").read_bytes())["certificates"]
        found = {(each["judge"], each["prompt"], each["prompt_hash"]): each for each in [*earlier, *new]}
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or a damaged file, which is about to be replaced
        return list(new)
    return list(found.values())


def compute_results(
    manifest: Mapping[str, Any],
    records: Sequence[Record],
    ingests: Sequence[Record],
    data: Dataset,
    keys: Sequence[Key],
    facts: Mapping[str, Any],
    *,
    certificates: Sequence[Certificate] = (),
    rounds: Mapping[tuple[str, int], Results] | None = None,
    corrections: LabelCorrections | None = None,
    measurings: Sequence[Record] = (),
) -> Results:
    """What results.json says; the arguments are those of `write_results`, the certificates as reports keep them."""
    asked = {k[2] for k in keys}
    questions = [question for question in data.questions if question.id in asked]
    under = gradings(records)
    systems = aggregate.results(records, questions, keys)
    comparisons = aggregate.compared(records, questions, keys)
    missing = ""
    try:
        corrections = corrections or _corrections(data)
    except DataError as error:  # a run's figures do not depend on it
        missing = f"Clean and flagged questions are not told apart: {error}"
    told = _by_key(records, data, keys, under[:1], corrections)
    withheld = misclassification.settle(systems, records, certificates)
    comparisons = [found for found in comparisons if found["grading"] not in withheld]
    if under and under[0].name in withheld:
        told = {}
    for (system, budget), figures in (rounds or {}).items():
        systems[system]["budgets"][str(budget)]["rounds"] = figures
    alarms = [f"ALARM: {system}: {alarm}" for system, found in told.items() for alarm in found.pop("alarms")]
    family = shared_family(facts.get("reader") or "", under[0].judge) if under else ""
    return {
        **facts,
        "benchmark": data.benchmark,
        "categories": dict(data.categories),
        "stand_in": data.kind,
        "notice": data.notice,
        "ungraded_share": aggregate.ungraded_share(records, keys),
        "judge_family": family,
        "certificates": list(certificates),
        "withheld": withheld,
        "records": len(records),
        "ingest": aggregate.ingest_cost(ingests),
        "systems": systems,
        "comparisons": comparisons,
        "cautions": [
            *aggregate.cautions(questions, data.questions, comparisons),
            *manifest.get("cautions", ()),
            *facts.get("cautions", ()),
            *filter(None, [missing]),
            *alarms,
        ],
        "clean_and_flagged": told,
        "accounting": {
            **cost.figures(manifest, records, ingests, measurings),
            "frontier": pareto.frontier(records, ingests, questions),
            "areas": pareto.areas(records, questions),
        },
    }


def _corrections(data: Dataset) -> LabelCorrections | None:
    return label_sets.read(data=data) if label_sets.named_file(data) and not data.kind else None


def _by_key(
    records: Sequence[Record],
    data: Dataset,
    keys: Sequence[Key],
    own: Sequence[Grading],
    corrections: LabelCorrections | None,
) -> dict[str, Results]:
    """`system @budget` -> accuracy on clean and on flagged questions, and the alarms above the ceiling."""
    found: dict[str, Results] = {}
    if corrections is None or not own:
        return found
    groups = aggregate.grouped(records, data.questions, keys)
    for (system, budget), pairs in groups.items():
        answerable = [pair for pair in pairs if pair[0].answerable]
        if of := sample_scores.by_question(answerable, "judge", own[0]):
            name = system if sum(other == system for other, _ in groups) == 1 else f"{system} @{budget:,}"
            by_majority = sample_scores.by_question(answerable, "judge", own[0], rule="majority")
            majority = label_sets.side_by_side(by_majority, corrections.flagged)
            found[name] = {
                **{
                    part: {**figures, "majority": majority[part]["accuracy"]}
                    for part, figures in label_sets.side_by_side(of, corrections.flagged).items()
                },
                # The ceiling is that of the original key: under another a truthful reader may well be above it.
                "alarms": label_sets.alarms(
                    of, [question for question, _ in answerable], corrections.flagged, data.categories
                )
                if own[0].key == "original"
                else [],
            }
    return found
