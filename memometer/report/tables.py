"""The tables of a run, as table.txt and report.md contain them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from memometer.benchmarks.protocol import category_label
from memometer.judging.sample_scores import MEASURES
from memometer.report import answer_form, own_measures, variance
from memometer.report.judge_tables import calibration_parts, human_label_parts, probe_lines
from memometer.report.presenter import Table
from memometer.report.summary import Measure, Score, Summary, entries_of, scores_of, shown_budget
from memometer.run import cost
from memometer.stats import abstention
from memometer.stats.number_format import UNKNOWN, interval, number, p_value, percent, rate

Results = dict[str, Any]
Entries = Sequence[tuple[str, str, Results]]
"""(system, budget, entry of results.json)."""


def all_parts(
    summary: Summary, results: Mapping[str, Any], categories: Mapping[str, str], *, by_conversation: bool = False
) -> list[Table | str]:
    """Collect every table and notice of a run.

    Args:
        summary: The results of the run.
        results: The content of results.json.
        categories: Key -> name of the benchmark's categories.
        by_conversation: True adds the evidence recall of each conversation.

    Returns:
        Tables and notices in reading order.
    """
    headline, entries = summary.measures[0], entries_of(results)
    parts: list[Table | str] = [
        "\n".join(summary.warnings),
        main_table(summary),
        "\n".join(summary.withheld),
        *probe_lines(results),
        *human_label_parts(results),
        *_reliability(entries, headline),
        *comparison_tables(headline_comparisons(summary)),
        *_graders(entries, results.get("withheld", {})),
        *answer_form.tables(results.get("answer_form") or {}),
        *variance.tables(results.get("variance") or ()),
        *_label_sets(summary),
        *_all_questions(entries, summary),
        *own_measures.tables(results.get("own_measures") or {}),
        *_fact_recall(results.get("fact_recall") or {}),
        *_ranking(entries),
        *(_conversations(entries) if by_conversation else []),
        *(_categories(summary, measure, categories) for measure in summary.measures),
        *_abstention(entries),
    ]
    for measure in summary.measures:
        parts += _frontier(summary, measure)
    for found in summary.judge_calibrations:
        parts += calibration_parts(found)
    parts += _plug_in_calls(results.get("plug_in_calls") or {}, results.get("plug_ins") or {})
    return [
        *parts,
        *_cost(results.get("cost")),
        Table("How the run was made", ["what", "value"], summary.provenance, 2),
    ]


def _by_system(
    title: str, headers: Sequence[str], entries: Entries, cells: Callable[[Results], list[str] | None]
) -> list[Table]:
    """A table with a row for each entry; an entry without cells is left out, and so is a table without rows."""
    rows = [
        [system, shown_budget(budget), *found]
        for system, budget, entry in entries
        if (found := cells(entry)) is not None
    ]
    return [Table(title, ["system", "budget", *headers], rows)] if rows else []


def _estimate(found: Results, value: str = "score", digits: int = 1) -> str:
    """A value of results.json with its interval, which has the value's name or is called `interval`."""
    ends = found["interval" if value in ("score", "accuracy") else f"{value}_interval"] or ()
    return rate(found[value], *ends, digits=digits)


def measure_name(measure: Measure) -> str:
    """Return the name of a measure without its grader."""
    return "judge accuracy (J)" if measure.judged else measure.label


def score_cell(scores: Mapping[str, Score], measure: Measure) -> str:
    """Format a score with its interval."""
    return str(scores.get(measure.key) or UNKNOWN)


def main_table(summary: Summary, *, short: bool = False) -> Table:
    """Build the main table, a row for each system and budget.

    Args:
        summary: The results of the run.
        short: True uses the short names of the measures, for the width of a paper.

    Returns:
        The table.
    """
    measures = [m for m in summary.measures if any(m.key in row.scores for row in summary.rows)]
    answered = any(row.calls for row in summary.rows)
    headers = ["system", "budget", "n", "failed", "missing", *(m.short if short else m.label for m in measures)]
    headers += [f"context {summary.unit}", *(["tokens with ingest", "calls", "seconds", "dollars"] if answered else [])]
    rows = []
    for row in summary.rows:
        name = f"{row.system} (degraded)" if row.degraded else row.system
        cells = [name, row.shown_budget, number(row.questions), number(row.failed), number(row.missing)]
        cells += [*(score_cell(row.scores, measure) for measure in measures), number(row.context)]
        if answered:
            cells += [number(row.tokens) + ("+" if row.unreported else ""), number(row.calls, 1)]
            cells += [number(row.seconds, 2), row.stages.get("answer", {}).get("dollars", UNKNOWN)]
        rows.append(cells)
    rows += [skipped_row(name, len(headers)) for name in summary.skipped]
    return Table(f"{summary.scope}, percent with 95 % intervals clustered by conversation", headers, rows)


def skipped_row(system: str, columns: int) -> list[str]:
    """Return the row of a system that was skipped; the reason is among the warnings."""
    return [system, "SKIPPED", *[UNKNOWN] * (columns - 2)]


def _all_questions(entries: Entries, summary: Summary) -> list[Table]:
    measures = [measure for measure in summary.measures if not measure.judged]
    if all(measure.key != "f1" for measure in measures):
        return []
    headers = ["n", "failed", "missing", *(m.label for m in measures), "all evidence", f"context {summary.unit}"]

    def cells(whole: Results) -> list[str]:
        entry = whole["all_questions"]
        scores = scores_of(entry, measures)
        return [
            *(number(entry[name]) for name in ("questions", "failed", "missing")),
            *(score_cell(scores, measure) for measure in measures),
            _estimate(entry, "all_evidence"),
            number(entry["mean_tokens"]),
            number(entry.get("mean_total_tokens")) + ("?" if entry.get("unreported_calls") else ""),
            number(entry.get("mean_calls"), 1),
            number(entry.get("mean_seconds"), 2),
        ]

    title = "All questions; an unanswerable question is right if the reply abstains"
    return _by_system(title, [*headers, "total tokens", "calls", "seconds"], entries, cells)


def _reliability(entries: Entries, headline: Measure) -> list[Table | str]:
    """Other intervals of the headline measure, its bounds, and the share of the gap that each system closes."""
    name = "judge" if headline.judged else headline.key
    gaps = [gap for *_, entry in entries if (gap := entry["gap_closed"].get(name))]
    headers = [measure_name(headline), "bootstrap", "independent", "design effect", "worst", "best"]

    def cells(entry: Results) -> list[str] | None:
        if entry.get(name) is None:
            return None
        independent = entry[f"{name}_wilson"] or entry[f"{name}_naive"]
        return [
            percent(entry[name]),
            interval(*(entry[f"{name}_bootstrap"] or (None, None))),
            interval(max(0.0, independent[0]), min(1.0, independent[1])) if independent else UNKNOWN,
            number(entry[f"{name}_design_effect"], 1),
            percent(entry[f"{name}_worst"]),
            percent(entry[f"{name}_best"]),
            *([_share(entry["gap_closed"].get(name))] if gaps else []),
        ]

    title = (
        f"Reliability of {measure_name(headline)}: intervals from resampled conversations and as if questions were "
        "independent; worst and best if all missing answers were wrong or right"
    )
    unclear = {
        f"The gap between none and oracle ({measure_name(headline)} {difference(gap['gap'])}) is not significantly "
        "above zero, so no share of it is shown: if even the evidence does not help, the run measures no memory."
        for gap in gaps
        if gap["share"] is None
    }
    return [
        *_by_system(title, headers + (["of the gap none to oracle"] if gaps else []), entries, cells),
        *sorted(unclear),
    ]


def _share(gap: Results | None) -> str:
    if gap is None or gap["share"] is None:
        return UNKNOWN
    ends = "" if gap["low"] is None else f" {interval(gap['low'], gap['high'], 0)}"
    return f"{percent(gap['share'], 0)} %{ends}"


def difference(found: Results) -> str:
    """Format the difference of a comparison with its interval, in percentage points."""
    return rate(found["difference"], found["low"], found["high"], signed=True)


def headline_comparisons(summary: Summary) -> list[Results]:
    """Return the paired comparisons by the headline measure."""
    key = summary.measures[0].key
    return [c for c in summary.comparisons if (c["grader"] or c["measure"]) == key]


def comparison_tables(comparisons: Sequence[Results], categories: Mapping[str, str] | None = None) -> list[Table]:
    """Build the table of paired comparisons by one measure.

    Args:
        comparisons: As in results.json, all by the same measure.
        categories: Key -> name of the categories; needed if comparisons are of single categories.

    Returns:
        One table, or none without comparisons.
    """
    if not comparisons:
        return []
    by_category = any(c["category"] for c in comparisons)
    headers = ["a", "b", *(["category"] if by_category else []), "a - b", "wins/losses/ties", "p McNemar",
               "p sign flips", "p adjusted", "detectable", "n"]  # fmt: skip
    rows = []
    for c in comparisons:
        category = category_label(str(c["category"]), categories or {}) if c["category"] else "all"
        rows.append(
            [
                side_name(c["a"]),
                side_name(c["b"]),
                *([category] if by_category else []),
                difference(c),
                f"{c['wins']}/{c['losses']}/{c['ties']}",
                *(p_value(c[name]) for name in ("p_mcnemar", "p_permutation", "p_adjusted")),
                percent(c["detectable"]),
                number(c["n"]),
            ]
        )
    first = comparisons[0]
    families = " or ".join(dict.fromkeys(str(c["family"]) for c in comparisons))
    under = f" ({first['grader']})" if first["grader"] else ""
    title = (
        f"Paired differences in {MEASURES[first['measure']]}{under}, percentage points with clustered 95 % intervals; "
        "McNemar assumes independent questions, sign flips independent conversations; "
        f"adjusted by max-T over {families}; "
        "detectable: smallest true difference that the adjusted test finds with 80 % power"
    )
    return [Table(title, headers, rows, left=2)]


def side_name(side: Results) -> str:
    """Name one side of a comparison: `run/system @budget`."""
    run = f"{side['run']}/" if "run" in side else ""
    return f"{run}{side['system']}" + (f" @{shown_budget(side['budget'])}" if side["budget"] else "")


def _graders(entries: Entries, withheld: Mapping[str, str]) -> list[Table]:
    """Judge accuracy under each grader that may be shown, with the accuracy that a judge without a model gives."""
    names = list(dict.fromkeys(name for *_, entry in entries for name in entry["graders"]))
    tables = []
    for name in names:
        has_lexical = any(entry.get("lexical") for *_, entry in entries)
        if name in withheld or (len(names) < 2 and not has_lexical):
            continue

        def cells(entry: Results, name: str = name, has_lexical: bool = has_lexical) -> list[str] | None:
            found = entry["graders"].get(name)
            if not found or not found["n"]:
                return None
            bounds = [number(found["n"]), number(found["missing"]), percent(found["worst"]), percent(found["best"])]
            lexical = entry.get("lexical")
            return [_estimate(found), *bounds, *([_estimate(lexical) if lexical else UNKNOWN] if has_lexical else [])]

        headers = ["J", "n", "missing", "worst", "best", *(["lexical judge"] if has_lexical else [])]
        title = f"Judge accuracy (J) of {name}; not comparable with other graders"
        title += "; lexical judge: all words of the gold answer are in the answer" if has_lexical else ""
        tables += _by_system(title, headers, entries, cells)
    return tables


def _label_sets(summary: Summary) -> list[Table]:
    def cells(part: Results) -> list[str]:
        return [_estimate(part, "accuracy", 2), percent(part.get("majority"), 2), number(part["n"])]

    rows = [
        [name, *cells(found["clean"]), *cells(found["flagged"])] for name, found in summary.clean_and_flagged.items()
    ]
    title = "J on questions with a correct label (clean) and with a wrong one (flagged); majority: of repeated verdicts"
    headers = ["system", "clean", "majority", "n", "flagged", "majority", "n"]
    return [Table(title, headers, rows)] if rows else []


def _fact_recall(found: Mapping[str, Any]) -> list[Table]:
    rows = []
    for system, budgets in found.items():
        for budget, entry in budgets.items():
            batch, gold = entry["batch_interval"] or (), entry["coverage_interval"] or ()
            rows.append(
                [
                    system,
                    shown_budget(budget),
                    {"turn": "exact turns", "batch": "batches of turns", "none": "unknown"}[entry["provenance"]],
                    rate(entry["batch_recall"], *batch) if entry["batch_recall"] is not None else UNKNOWN,
                    percent(entry["batch_chance"]),
                    rate(entry["coverage"], *gold) if entry["coverage"] is not None else UNKNOWN,
                    percent(entry["coverage_chance"]),
                    percent(entry["coverage_oracle"]),
                ]
            )
    title = (
        "Sources of the text shown. Batch recall: evidence in the batches that the text comes from; chance: the share "
        "of the conversation that they cover. Gold words: words of the gold answer in the text, single-hop questions; "
        "chance: in the texts for other questions; oracle: in the evidence"
    )
    headers = ["system", "budget", "source", "batch recall", "chance", "gold words", "chance", "oracle"]
    return [Table(title, headers, rows)] if rows else []


def _ranking(entries: Entries) -> list[Table]:
    def cells(entry: Results) -> list[str] | None:
        if entry.get("mrr") is None:
            return None
        return [percent(entry[name]) for name in ("recall_at_10", "mrr", "session_at_5")]

    title = "Ranking of the turns that the budget shows, answerable questions"
    ours = _by_system(title, ["turn recall@10", "MRR", "any evidence session in the top 5"], entries, cells)
    return [*ours, *_published_ranking(entries)]


def _published_ranking(entries: Entries) -> list[Table]:
    names = list(dict.fromkeys(name for *_, entry in entries for name in entry.get("published_ranking", ())))
    title = "Published metrics of the ranking of the turns that the budget shows, answerable questions"
    tables = []
    for group in dict.fromkeys(name.partition("@")[0] for name in names):
        chosen = [name for name in names if name.partition("@")[0] == group]

        def cells(entry: Results, chosen: Sequence[str] = chosen) -> list[str] | None:
            found = entry.get("published_ranking")
            return [percent(found.get(name)) for name in chosen] if found else None

        tables += _by_system(f"{title}: {group}", [f"@{name.partition('@')[2]}" for name in chosen], entries, cells)
    return tables


def _conversations(entries: Entries) -> list[Table]:
    present = list(dict.fromkeys(conversation for *_, entry in entries for conversation in entry["by_conversation"]))

    def cells(entry: Results) -> list[str]:
        return [percent(entry["by_conversation"][conversation]["evidence_recall"]) for conversation in present]

    return _by_system("Evidence recall by conversation, answerable questions", present, entries, cells)


def _categories(summary: Summary, measure: Measure, names: Mapping[str, str]) -> Table:
    keys = dict.fromkeys([*names, *(c for row in summary.rows for c in row.categories)])
    present = [c for c in keys if any(measure.key in row.categories.get(c, {}) for row in summary.rows)]

    def cell(score: Score | None) -> str:
        return f"{score} n={number(score.n)}" if score else UNKNOWN

    rows = [
        [row.system, row.shown_budget, *(cell(row.categories.get(c, {}).get(measure.key)) for c in present)]
        for row in summary.rows
    ]
    headers = ["system", "budget", *(category_label(c, names) for c in present)]
    return Table(f"{_capitalized(measure.label)} by category", headers, rows)


def _capitalized(label: str) -> str:
    return label[:1].upper() + label[1:]


def _abstention(entries: Entries) -> list[Table]:
    columns: dict[str, Callable[[Results], float | None]] = {
        "AUC": lambda found: found["auc"],
        "detected at 5 %": lambda found: found["caught_at_5"],
        "at 10 %": lambda found: found["caught_at_10"],
    }
    if any("risk_coverage" in entry["abstention"] for *_, entry in entries):
        columns |= {
            "twins": lambda found: found.get("twin_accuracy"),
            "over-abstention": lambda found: found.get("over_abstention"),
            "risk at 50 %": lambda found: abstention.risk_at(found, 0.5),
            "at 100 %": lambda found: abstention.risk_at(found, 1.0),
            "mean risk": lambda found: found.get("risk_coverage_auc"),
        }

    def cells(entry: Results) -> list[str] | None:
        found = entry["abstention"]
        return None if found["auc"] is None else [percent(value(found)) for value in columns.values()]

    title = "Abstention: unanswerable questions detected, at a share of answerable ones that abstain"
    return _by_system(title, list(columns), entries, cells)


def _frontier(summary: Summary, measure: Measure) -> list[Table]:
    found = []
    if points := summary.frontier.get(measure.key):
        rows = [
            [
                "*" if p["best"] else "",
                p["system"],
                shown_budget(p["budget"]),
                number(p["tokens"]) + ("+" if p["unreported"] else ""),
                number(p["ingest_tokens"]),
                rate(p["score"], p["low"], p["high"]),
                number(p["n"]),
            ]
            for p in sorted(points, key=lambda p: p["tokens"])
        ]
        title = f"{_capitalized(measure.label)} over tokens per question (* no system scores as much with fewer)"
        headers = ["", "system", "budget", "tokens with ingest", "of these ingest", "score", "n"]
        found.append(Table(title, headers, rows, left=2))
    if areas := summary.areas.get(measure.key):
        rows = [
            [name, " to ".join(map(number, a["budgets"])), rate(a["area"], a["low"], a["high"]), number(a["n"])]
            for name, a in areas.items()
        ]
        title = (
            f"{_capitalized(measure.label)}: area under the budget curve (mean score over the logarithm of the budget)"
        )
        found.append(Table(title, ["system", "budgets", "area", "n"], rows))
    return found


def _cost(found: Results | None) -> list[Table]:
    if not found or not found["total"]["calls"]:
        return []
    stages = [*cost.each_stage(found["systems"]), ("judge", "", "calibration", found["calibration"])]
    rows = []
    for system, budget, stage, spent in [*stages, ("all", "", "", found["total"])]:
        if spent["calls"] or spent["seconds"]:
            more = "+" if spent["unreported"] else ""
            tokens = [spent[name] for name in ("prompt_tokens", "cached_tokens", "completion_tokens")]
            cells = [_amount(spent["calls"]), *(_amount(n) + more for n in tokens), _amount(spent["seconds"], 1)]
            rows.append([system, shown_budget(budget) if budget else "", stage, *cells, cost.dollars(spent)])
    headers = ["system", "budget", "stage", "calls", "prompt tokens", "cached", "reply tokens", "seconds", "dollars"]
    return [Table("Cost of all attempts (+ at least, ? unknown)", headers, rows, left=3)]


def _plug_in_calls(found: Mapping[str, Any], plug_ins: Mapping[str, Any]) -> list[Table]:
    names = (
        "calls",
        "prompt_tokens",
        "completion_tokens",
        "embedding_calls",
        "embedding_tokens",
        "failures",
        "refused",
    )
    rows = [
        [system, stage, *(number(counts.get(name, 0)) for name in names)]
        for system, stages in found.items()
        for stage, counts in stages.items()
    ]
    unmetered = [name for name, plug_in in plug_ins.items() if not plug_in.get("metered", True)]
    rows += [[name, "not metered", *(UNKNOWN for _ in names)] for name in unmetered]
    headers = ["system", "stage", "calls", "prompt tokens", "reply tokens", "embedding calls", "embedding tokens",
               "failed", "refused"]  # fmt: skip
    return [Table("Model calls that plug-ins made through the metered endpoint", headers, rows, 2)] if rows else []


def _amount(value: float | None, digits: int = 0) -> str:
    return "?" if value is None else number(value, digits)
