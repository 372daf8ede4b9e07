"""The leaderboard: one Markdown table of a run, and imported results on the same questions below it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memometer.errors import UserError
from memometer.report.presenter import Table, markdown
from memometer.report.results import Run, compute_results
from memometer.report.summary import Row, Score, Summary, summarize
from memometer.run.folder import latest
from memometer.stats.number_format import UNKNOWN, number, p_value, rate

Results = dict[str, Any]


class LeaderboardError(UserError, ValueError):
    """These runs cannot be combined to a leaderboard."""


def leaderboard(run: Run, imported: Sequence[Run] = ()) -> str:
    """Build the leaderboard of a run.

    The other systems are compared with the reference of the run's comparisons, paired on the same questions. Imported
    results are scored on the run's questions and on all of theirs, in a table of their own, because their reader,
    prompt and judge differ.

    Args:
        run: A run of evaluate.py.
        imported: Runs of `memometer import-results`.

    Returns:
        Markdown.

    Raises:
        LeaderboardError: A run is of the wrong kind, is not finished, or used other data.
    """
    if "published" in run.manifest:
        raise LeaderboardError(f"{run.name} is imported; name a run of evaluate.py first.")
    if not run.results.get("systems"):
        raise LeaderboardError(f"{run.name} has no results.json; finish it: python evaluate.py --resume RUN")
    for other in imported:
        if "published" not in other.manifest:
            raise LeaderboardError(f"{other.name} is not imported; compare it with memometer compare.")
        if other.data.sha256 != run.data.sha256:
            raise LeaderboardError(f"{other.name} has answers about other data than {run.name}.")
    summary = summarize(run.manifest, run.results)
    asked = {q.id for q in run.data.questions if q.answerable} & {r["question_id"] for r in run.records}
    if not asked:
        raise LeaderboardError(f"{run.name} asked no answerable question; name a run that did.")
    left_out = [f"{name} is not in the table: {reason}." for name, reason in run.results["left_out"].items()]
    parts: list[Table | str] = ["\n".join([*summary.warnings, *summary.withheld, *left_out]), _own_table(summary)]
    if imported:
        reruns = [
            f"{other.name}: {rerun['said']}"
            for other in imported
            for rerun in other.manifest["published"]["merges"]
            if rerun["flagged"]
        ]
        headers = ["imported results", "reader", "J on these questions", "n", "J on all", "n"]
        rows = [row for other in imported for row in _imported_rows(other, asked)]
        parts += [
            "Imported answers with imported verdicts, on the same questions and on all that they answered:",
            "\n".join(reruns),
            Table("", headers, rows),
        ]
    return f"{_heading(run, summary, asked)}\n\n{markdown(parts)}"


def _heading(run: Run, summary: Summary, asked: set[str]) -> str:
    conversations = len({q.conversation for q in run.data.questions if q.id in asked})
    results = run.results
    parts = [
        f"{len(asked):,} answerable questions of {conversations} conversations, split {results['split']}, seed "
        f"{run.manifest['config']['seed']}; reader {results['reader'] or 'none'}"
    ]
    if results["judge"]:
        parts.append(f"judge {results['judge']}")
    judged = [measure for measure in summary.measures if measure.judged]
    for found in summary.judge_calibrations:
        if found["passed"]:
            accepts, rejects = (
                rate(found[name]["rate"], found[name]["low"], found[name]["high"])
                for name in ("false_accept", "false_reject")
            )
            name = "which" if len(judged) == 1 else f"{found['judge']} ({found['prompt']})"
            parts.append(f"{name} accepts {accepts} % of wrong and rejects {rejects} % of right answers")
    if len(judged) > 1:
        parts += [f"{measure.short} is {measure.label}" for measure in judged]
    abbreviation = " J is judge accuracy." if judged else ""
    return ", ".join(parts) + f".{abbreviation} Brackets: 95 % intervals, clustered by conversation."


def _own_table(summary: Summary) -> Table:
    measures = summary.measures
    headline = measures[0]
    of_headline = [c for c in summary.comparisons if (c["grader"] or c["measure"]) == headline.key]
    sides = [{c["a"]["system"], c["b"]["system"]} for c in of_headline]
    in_all = [row.system for row in summary.rows if sides and all(row.system in pair for pair in sides)]
    last = [c["b"]["system"] for c in of_headline if c["b"]["system"] in in_all]
    reference = next(iter(last or in_all), "") or next((row.system for row in summary.rows if not row.baseline), "")

    def score(row: Row) -> Score | None:
        return row.scores.get(headline.key)

    headers = [
        f"budget, {summary.unit}",
        "system",
        *(measure.short for measure in measures),
        f"n ({headline.short})",
        "none to oracle, %",
        "tokens per question",
        f"{headline.short} minus {reference}'s",
        "p (adjusted)",
    ]
    rows = []

    def order(row: Row) -> tuple[int, bool, float]:
        found = score(row)
        return row.budget, row.baseline, -found.value if found else 0.0

    for row in sorted(summary.rows, key=order):
        found, difference = score(row), _difference(summary.comparisons, headline.key, row, reference)
        rows.append(
            [
                row.shown_budget,
                f"{row.system} (baseline)" if row.baseline else row.system,
                *(str(row.scores.get(measure.key) or UNKNOWN) for measure in measures),
                _n(found),
                str(row.gap.get(headline.key) or UNKNOWN),
                number(row.tokens),
                rate(difference["value"], difference["low"], difference["high"], signed=True)
                if difference
                else UNKNOWN,
                p_value(difference["p_adjusted"] if difference else None),
            ]
        )
    return Table("", headers, rows)


def _n(score: Score | None) -> str:
    if score is None:
        return UNKNOWN
    return number(score.n) + (f", {score.missing:,} missing" if score.missing else "")


def _difference(comparisons: Sequence[Results], measure: str, row: Row, reference: str) -> Results | None:
    """The paired difference of a row to the reference at the same budget.

    A row with a budget of its own is compared only if the reference has a single budget.
    """
    found = [
        (c, sign)
        for c in comparisons
        for side, other, sign in (("a", "b", 1), ("b", "a", -1))
        if (c["grader"] or c["measure"]) == measure
        and (c[side]["system"], int(c[side]["budget"])) == (row.system, row.budget)
        and c[other]["system"] == reference != row.system
    ]
    found = [(c, sign) for c, sign in found if c["level"] == row.budget] or found
    if len(found) != 1 or found[0][0]["difference"] is None:
        return None
    c, sign = found[0]
    low, high = sorted(sign * c[end] for end in ("low", "high")) if c["low"] is not None else (None, None)
    return {"value": sign * c["difference"], "low": low, "high": high, "p_adjusted": c["p_adjusted"]}


def _imported_rows(run: Run, asked: set[str]) -> list[list[str]]:
    keys = [key for key in latest(run.records) if key[2] in asked]
    calibrations = run.results["judge_calibrations"]
    on_these = compute_results(run.manifest, run.records, [], run.data, keys, run.results, calibrations=calibrations)
    summary = summarize(run.manifest, run.results)
    judged = next((measure.key for measure in summary.measures if measure.judged), "")
    scores = {row.system: row.scores for row in summarize(run.manifest, on_these).rows}
    status = "" if run.results["status"] == "valid" else f" ({run.results['status'].upper()})"
    rows = []
    for row in summary.rows:
        cells = [row.system + status, run.results["reader"] or "unknown"]
        for found in (scores.get(row.system, {}).get(judged), row.scores.get(judged)):
            cells += [str(found or UNKNOWN), _n(found)]
        rows.append(cells)
    return rows
