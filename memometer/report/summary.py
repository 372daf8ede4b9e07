"""The results of a run as every report shows them, made from results.json and manifest.json alone.

A judge's accuracy is part of it only if the judge passed its calibration.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from memometer.budget import UNBOUNDED
from memometer.report import prompt_counts
from memometer.run import test_set_usage
from memometer.run.cost import dollars
from memometer.stats import number_format
from memometer.systems import BASELINES

Results = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure that may be shown: its key in scores, its label, a short label, and True if a judge gives it."""

    key: str
    label: str
    short: str
    judged: bool = False


@dataclass(frozen=True, slots=True)
class Score:
    """A mean score with its 95 % interval. Fractions and numbers of questions; None if unknown.

    Attributes:
        value: Mean over the questions that have a score.
        low: Lower limit, clustered by conversation.
        high: Upper limit.
        n: Questions that have a score.
        missing: Questions without a score because a call failed.
        worst: Mean if all missing answers were wrong.
        best: Mean if all missing answers were right.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    missing: int | None = None
    worst: float | None = None
    best: float | None = None

    def __str__(self) -> str:
        return number_format.rate(self.value, self.low, self.high)


@dataclass(frozen=True, slots=True)
class Row:
    """The results of one system at one budget over the answerable questions; means are per question.

    Attributes:
        system: Name of the system.
        budget: Budget in tokens, or in bytes if the tokenizer is unknown.
        shown_budget: The budget as text.
        baseline: True for none, refusal and oracle.
        degraded: True for a plug-in that lacks something and says so.
        questions: Questions asked.
        missing: Questions without a result because a call failed.
        failed: Questions on which the memory system itself failed; they count as wrong.
        scores: Measure key -> score.
        categories: Category key -> measure key -> score.
        gap: Measure key -> share of the way from none to oracle, a score.
        context: Mean size of the recalled context, in the unit of the budget.
        tokens: Mean prompt and reply tokens, with an equal share of the ingest.
        ingest_tokens: The share of the ingest in `tokens`.
        unreported: Calls whose tokens no server reported; `tokens` is then a lower bound.
        calls: Mean number of calls.
        seconds: Mean seconds.
        stages: Stage -> its cost (`memometer.run.cost`), with `dollars` as text.
    """

    system: str
    budget: int
    shown_budget: str
    baseline: bool
    degraded: bool
    questions: int
    missing: int
    failed: int
    scores: dict[str, Score]
    categories: dict[str, dict[str, Score]]
    gap: dict[str, Score]
    context: float | None
    tokens: float | None
    ingest_tokens: float | None
    unreported: int
    calls: float | None
    seconds: float | None
    stages: dict[str, Results] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Summary:
    """The results of a run.

    Attributes:
        unit: `tokens`, or `bytes` if the tokenizer is unknown: the unit of budgets and contexts.
        scope: `Answerable questions`, or `All questions` if none is answerable: the questions of the rows.
        measures: Measures that may be shown; the first is the headline.
        rows: One row for each system and budget.
        comparisons: Paired comparisons as in results.json, of the measures that may be shown.
        judge_calibrations: As in results.json.
        frontier: Measure key -> points of score over tokens, as in results.json.
        areas: Measure key -> system -> area under the budget curve, as in results.json.
        clean_and_flagged: As in results.json.
        own_measures: As in results.json; empty without measures of the benchmark's own.
        skipped: System -> the reason why it took no further part; it has no rows.
        total: The cost of the whole run, with `dollars` as text; None if unknown.
        withheld: Sentences that say why a judge accuracy is not shown.
        warnings: Sentences to read before the numbers.
        provenance: (name, value) pairs that say how the run was made.
    """

    unit: str
    scope: str
    measures: list[Measure]
    rows: list[Row]
    comparisons: list[Results]
    judge_calibrations: list[Results]
    frontier: dict[str, list[Results]]
    areas: dict[str, Results]
    clean_and_flagged: Results
    own_measures: Results
    skipped: dict[str, str]
    total: Results | None
    withheld: list[str]
    warnings: list[str]
    provenance: list[tuple[str, str]]


def summarize(manifest: Mapping[str, Any], results: Mapping[str, Any]) -> Summary:
    """Summarize a run.

    Args:
        manifest: The content of manifest.json.
        results: The content of results.json, or what it would contain for an unfinished run.

    Returns:
        The summary.
    """
    measures = _measures(results)
    known = {measure.key for measure in measures}
    cost = results.get("cost", {})
    return Summary(
        unit=unit_of(results),
        scope="Answerable questions" if any(e["questions"] for *_, e in entries_of(results)) else "All questions",
        measures=measures,
        rows=list(_rows(results, measures)),
        comparisons=[
            {"p_adjusted": c.get("p_holm"), **c}  # earlier versions corrected by Holm
            for c in results.get("comparisons", ())
            if (c.get("grader") or c["measure"]) in known
        ],
        judge_calibrations=list(results.get("judge_calibrations", ())),
        frontier={key: points for key, points in cost.get("frontier", {}).items() if key in known},
        areas={key: systems for key, systems in cost.get("areas", {}).items() if key in known},
        clean_and_flagged=results.get("clean_and_flagged", {}),
        own_measures=results.get("own_measures") or {},
        skipped=dict(results.get("skipped") or {}),
        total={**cost["total"], "dollars": dollars(cost["total"])} if cost else None,
        withheld=_withheld(results),
        warnings=_warnings(manifest, results),
        provenance=_provenance(manifest, results),
    )


def unit_of(results: Mapping[str, Any]) -> str:
    """Return the unit of budgets and contexts: `bytes` if the tokenizer is unknown, otherwise `tokens`."""
    if unit := results.get("unit"):
        return str(unit)
    return "bytes" if str(results.get("token_counter") or "").startswith("utf8-bytes") else "tokens"


def entries_of(results: Mapping[str, Any]) -> list[tuple[str, str, Results]]:
    """List (system, budget, entry) of results.json."""
    return [
        (name, budget, entry)
        for name, system in results.get("systems", {}).items()
        for budget, entry in system["budgets"].items()
    ]


def _shown_entries(results: Mapping[str, Any]) -> list[tuple[str, str, Results]]:
    """The entries over the answerable questions, or over all questions if none is answerable."""
    entries = entries_of(results)
    if any(entry["questions"] for *_, entry in entries):
        return entries
    return [(system, budget, {**entry, **entry["all_questions"]}) for system, budget, entry in entries]


def _measures(results: Mapping[str, Any]) -> list[Measure]:
    entries = [entry for *_, entry in _shown_entries(results)]
    names = [name for name in _graders(entries) if not results.get("withheld", {}).get(name)]
    found = [
        Measure(name, f"judge accuracy, {name}", f"J{number or ''}", judged=True)
        for number, name in enumerate(names, start=len(names) > 1)
    ]
    if any(entry.get("f1") is not None for entry in entries):
        found.append(Measure("f1", "F1", "F1"))
    if not found or any(entry.get("evidence_recall") is not None for entry in entries):
        found.append(Measure("evidence_recall", "evidence recall", "recall"))
    return found


def _graders(entries: Iterable[Results]) -> list[str]:
    return list(dict.fromkeys(name for entry in entries for name in entry.get("graders", {})))


def _withheld(results: Mapping[str, Any]) -> list[str]:
    names = _graders(entry for _, _, entry in entries_of(results))
    reasons = results.get("withheld", {})
    return [f"Judge accuracy of {name} is withheld: {reasons[name]}" for name in names if reasons.get(name)]


def _rows(results: Mapping[str, Any], measures: list[Measure]) -> Iterable[Row]:
    cost = results.get("cost", {})
    points = {
        (point["system"], point["budget"]): point
        for of_measure in cost.get("frontier", {}).values()
        for point in of_measure
    }
    for name, budget, entry in _shown_entries(results):
        point = points.get((name, int(budget)), {})
        paid = cost.get("systems", {}).get(name, {"ingest": None, "budgets": {}})
        stages = {"ingest": paid["ingest"], **paid["budgets"].get(budget, {})}
        yield Row(
            system=name,
            budget=int(budget),
            shown_budget=shown_budget(int(budget)),
            baseline=name in BASELINES,
            degraded=bool((results.get("plug_ins") or {}).get(name, {}).get("degraded")),
            questions=entry["questions"],
            missing=entry["missing"],
            failed=entry.get("failed", 0),
            scores=scores_of(entry, measures),
            categories={c: scores_of(_of_category(entry, c), measures) for c in entry["by_category"]},
            gap=_gap(entry, measures),
            context=entry.get("mean_tokens"),
            tokens=point.get("tokens"),
            ingest_tokens=point.get("ingest_tokens"),
            unreported=point.get("unreported", 0),
            calls=entry.get("mean_calls"),
            seconds=entry.get("mean_seconds"),
            stages={stage: {**found, "dollars": dollars(found)} for stage, found in stages.items() if found},
        )


def scores_of(entry: Results, measures: Iterable[Measure]) -> dict[str, Score]:
    """Read the scores of one entry of results.json.

    Args:
        entry: An entry of a system at a budget, or a part of it such as a category.
        measures: The measures to read.

    Returns:
        Measure key -> score, of the measures that the entry has.
    """
    return {
        measure.key: found
        for measure in measures
        if (found := _judged(entry, measure.key) if measure.judged else _measured(entry, measure.key))
    }


def _judged(entry: Results, name: str) -> Score | None:
    found = entry.get("graders", {}).get(name, {})
    return _score(found, "score", "interval", found.get("n"))


def _measured(entry: Results, name: str) -> Score | None:
    prefix = "" if name == "evidence_recall" else f"{name}_"
    found = {part: entry[f"{name}_{part}"] for part in ("missing", "worst", "best") if f"{name}_{part}" in entry}
    return _score({"missing": entry["missing"], **entry, **found}, name, f"{name}_interval", entry.get(f"{prefix}n"))


def _score(found: Results, value: str, interval: str, n: int | None) -> Score | None:
    if found.get(value) is None:
        return None
    low, high = found.get(interval) or (None, None)
    return Score(found[value], low, high, n, found.get("missing"), found.get("worst"), found.get("best"))


MEASURES = ("judge", "f1", "balanced_f1", "evidence_recall", "all_evidence")
MEANS = ("mean_tokens", "mean_total_tokens", "mean_calls", "mean_seconds")


def flat(entry: Results, withheld: Collection[str]) -> dict[str, float | None]:
    """Flatten one entry of results.json to numbers by name, for data frames and trackers.

    Args:
        entry: An entry of a system at a budget, or a part of it such as a category.
        withheld: Names of the graders whose accuracy may not be shown.

    Returns:
        Each measure (a fraction) with `_low`, `_high` (95 %, clustered by conversation), `_n` and `_missing`; judge
        accuracy under each grader beyond the run's own as `judge/GRADER`; mean tokens, calls and seconds. Unknown
        values are left out.
    """
    found = {name: _measured(entry, name) for name in MEASURES}
    others = [name for name in list(entry.get("graders", {}))[1:] if name not in withheld]
    found |= {f"judge/{name}": _judged(entry, name) for name in others}
    numbers: dict[str, float | None] = {}
    for name, score in found.items():
        if score:
            numbers[name] = score.value
            parts = {"low": score.low, "high": score.high, "n": score.n, "missing": score.missing}
            numbers |= {f"{name}_{part}": value for part, value in parts.items() if value is not None}
    return numbers | {name: entry[name] for name in MEANS if entry.get(name) is not None}


def _gap(entry: Results, measures: Iterable[Measure]) -> dict[str, Score]:
    """The share of the gap closed; results.json has it for F1 and for the run's own grader."""
    closed = entry.get("gap_closed", {})
    own = next(iter(entry.get("graders", {})), None)
    found = {m.key: closed.get("judge" if m.key == own else m.key) for m in measures}
    return {
        key: Score(gap["share"], gap["low"], gap["high"], gap["n"])
        for key, gap in found.items()
        if gap and gap["share"] is not None
    }


def _of_category(entry: Results, category: str) -> Results:
    graders = {name: found.get("by_category", {}).get(category, {}) for name, found in entry.get("graders", {}).items()}
    return {**entry["by_category"][category], "graders": graders}


def shown_budget(budget: str | int) -> str:
    """Format a budget: `1,024`, `all` without a limit, `-` for a system that is shown nothing."""
    size = int(budget)
    return number_format.number(size) if 0 < size < UNBOUNDED else "all" if size else number_format.UNKNOWN


STATUS = {
    "invalid": "INVALID: do not use these results.",
    "stopped": "The run was stopped: results cover the questions answered so far.",
    "unfinished": "The run has not ended: results cover the questions answered so far.",
    "failed": "The run failed: results cover the questions answered before.",
}


def _warnings(manifest: Mapping[str, Any], results: Mapping[str, Any]) -> list[str]:
    config = manifest["config"]
    found = [str(results["data_notice"])] if results.get("data_notice") else []
    found += [f"SKIPPED {name}: {reason}." for name, reason in (results.get("skipped") or {}).items()]
    for name, plug_in in (results.get("plug_ins") or {}).items():
        found += [f"{name} is degraded: {sentence.rstrip('.')}." for sentence in plug_in["degraded"]]
        found += [f"{name}: {sentence}." for sentence in plug_in["notices"]]
    for name, stages in (results.get("plug_in_calls") or {}).items():
        for what in ("failures", "refused"):
            if count := sum(counts.get(what, 0) for counts in stages.values()):
                verb = "failed" if what == "failures" else "were refused"
                found.append(f"{name}: {count:,} of its model calls {verb}.")
    if results["missing_share"] > (limit := config["fail_on_error"]):
        found.append(f"{results['missing_share']:.1%} of the answers are missing; the limit is {limit:.1%}.")
    failures = results.get("failures") or {"missing": (), "wrong": ()}
    found += [f"missing: {reason}" for reason in failures["missing"]]
    found += [f"failed, counted as wrong: {reason}" for reason in failures["wrong"]]
    if (examples := results.get("copied_examples")) and examples["copied"]:
        texts = ", ".join(f'"{text}"' for text in examples["texts"][:3])
        found.append(
            f"{examples['copied']:,} of {examples['answers']:,} answers repeat a worked example of the prompt "
            f"({texts}); a stronger reader would answer from the memory."
        )
    if cut_prompts := results.get("cut_prompts"):
        found.append(prompt_counts.sentence(cut_prompts))
    if duplicates := (results.get("test_set_usage") or {}).get("duplicate_attempts"):
        found.append(test_set_usage.duplicates_message(duplicates))
    if sentence := STATUS.get(results["status"]):
        found.append(sentence)
    if imported := results.get("imported"):
        found.append(
            f"Answers and verdicts are imported from {imported['file']} ({imported['licence']}); their judge was not "
            "calibrated."
        )
        found += [str(rerun["message"]) for rerun in imported["reruns"] if rerun["flagged"]]
    if family := results.get("judge_family"):
        found.append(f"Judge and reader are of the same model family ({family}); the judge may favour its answers.")
    if cut := sum(entry["all_questions"].get("truncated") or 0 for _, _, entry in entries_of(results)):
        found.append(f"{cut:,} replies were cut at the limit of their tokens; raise --max-answer-tokens.")
    if unmetered := manifest.get("unmetered"):
        found.append(f"Encoder calls of {', '.join(unmetered)} to a provider are not part of the cost.")
    if str(manifest.get("git") or "").endswith("+"):
        found.append(f"The code differs from its commit ({manifest['git']}).")
    return [*found, *results.get("warnings", ())]


def _data_label(config: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    return str(results.get("data_kind") or results.get("data_name") or config.get("benchmark") or "locomo")


def _provenance(manifest: Mapping[str, Any], results: Mapping[str, Any]) -> list[tuple[str, str]]:
    config, identity = manifest["config"], manifest["identity"]
    packages = ", ".join(f"{name} {version}" for name, version in manifest["packages"].items() if version)
    sources = {str(price["source"]) for price in manifest.get("prices", {}).values() if price}
    scored = (results.get("test_set_usage") or {}).get("test_scored")
    found = {
        "begun": manifest["created_at"],
        "status": results["status"],
        "data": f"{_data_label(config, results)}, sha256 {identity['data']}",
        "split": f"{config['split']}, seed {config['seed']}"
        + (f", a sample of {config['num_test']}" if config["num_test"] else ""),
        "categories": ", ".join(str(c) for c in config["categories"] or ()),
        "reader": results["reader"] or "none (recall only)",
        "judge": results["judge"] or "none",
        "graders": "; ".join(_graders(entry for _, _, entry in entries_of(results))),
        "token counter": results["token_counter"],
        "evaluations of the test split": f"{scored['configuration']} of this configuration, {scored['all']} in all"
        if scored
        else "",
        "prices": "; ".join(sorted(sources)),
        "left out": "; ".join(f"{name}: {reason}" for name, reason in results["left_out"].items()),
        **{f"plug-in {name}": _described(found) for name, found in (results.get("plug_ins") or {}).items()},
        "commit": manifest["git"] or "unknown",
        "Python": manifest["python"],
        "packages": packages,
        **{f"identity: {name}": value for name, value in identity.items() if name != "data"},
    }
    return [(name, str(value)) for name, value in found.items() if value]


def _described(plug_in: Mapping[str, Any]) -> str:
    """The name, versions and parameters of a plug-in on one line."""
    versions = [f"{package} {version}" for package, version in (plug_in["versions"] or {}).items()]
    parameters = [f"{name}={value}" for name, value in (plug_in["parameters"] or {}).items()]
    memory = plug_in["peak_memory_bytes"]
    megabytes = [f"{memory / 1e6:,.0f} MB of memory at most"] if memory else []
    return "; ".join(filter(None, [plug_in["name"], ", ".join(versions), ", ".join(parameters), *megabytes]))
