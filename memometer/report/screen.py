"""The short version of a run's results that fits a terminal screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memometer.report import own_measures
from memometer.report.presenter import Table
from memometer.report.summary import Summary
from memometer.report.tables import difference, headline_comparisons, measure_name, score_cell, side_name, skipped_row
from memometer.stats.number_format import UNKNOWN, number, p_value, percent

Results = dict[str, Any]

MAX_ROWS = 14
"""Rows of the main table on the screen; a run with more is shown as a table of systems by budgets."""
MAX_PAIRS = 5
"""Paired comparisons on the screen."""


def screen_parts(summary: Summary, *, notes: Sequence[str] = (), rest: str) -> list[Table | str]:
    """Choose what fits a screen: the main table, the most important pairs, the warnings, and a link to the rest.

    Args:
        summary: The results of the run.
        notes: Further sentences, after the warnings.
        rest: A sentence with the place of the full tables.

    Returns:
        Tables and notices.
    """
    shown = _pairs_that_matter(summary)
    verdict: list[str] = []
    if shown and not any((c["p_adjusted"] or 0.0) < 0.05 for c in shown):
        verdict = ["No difference between these systems is significant (adjusted p below 0.05)."]
    return [
        _short_table(summary) if len(summary.rows) <= MAX_ROWS else _by_budget(summary),
        *own_measures.short_table(summary.own_measures),
        *([_short_comparisons(summary, shown)] if shown else []),
        "\n".join(filter(None, [*verdict, *summary.withheld, *summary.warnings, *notes])),
        rest,
    ]


def _short_table(summary: Summary) -> Table:
    headline, *others = summary.measures
    shown = [measure for measure in others if not measure.judged]
    headers = ["system", "budget", "n", headline.short, *(m.short for m in shown), f"context {summary.unit}", "missing"]
    rows = [
        [
            f"{row.system} (degraded)" if row.degraded else row.system,
            row.shown_budget,
            number(row.questions),
            score_cell(row.scores, headline),
            *(percent(score.value) if (score := row.scores.get(m.key)) else UNKNOWN for m in shown),
            number(row.context),
            number(row.missing),
        ]
        for row in summary.rows
    ]
    rows += [skipped_row(name, len(headers)) for name in summary.skipped]
    names = " and ".join([measure_name(headline) + " with its 95 % interval", *(m.label for m in shown)])
    return Table(f"{summary.scope}, percent: {names}", headers, rows)


def _by_budget(summary: Summary) -> Table:
    headline = summary.measures[0]
    scores = {(row.system, row.shown_budget): row.scores.get(headline.key) for row in summary.rows}
    budgets = list(dict.fromkeys(row.shown_budget for row in sorted(summary.rows, key=lambda row: row.budget)))
    systems = list(dict.fromkeys(row.system for row in summary.rows))
    rows = [
        [name, *(percent(score.value) if (score := scores.get((name, budget))) else UNKNOWN for budget in budgets)]
        for name in systems
    ]
    rows += [skipped_row(name, len(budgets) + 1) for name in summary.skipped]
    title = f"{summary.scope}: {measure_name(headline)} in percent by budget ({summary.unit})"
    return Table(title, ["system", *budgets], rows)


def _pairs_that_matter(summary: Summary) -> list[Results]:
    """Choose the comparisons of the best system of each budget, the largest budgets first."""
    key = summary.measures[0].key
    means = {(row.system, row.budget): row.scores[key].value for row in summary.rows if key in row.scores}
    found: dict[int, list[Results]] = {}
    for comparison in headline_comparisons(summary):
        found.setdefault(int(comparison["level"]), []).append(comparison)
    chosen = []
    for level in sorted(found, reverse=True):
        best = max((_key(c[side]) for c in found[level] for side in "ab"), key=lambda k: means.get(k, 0.0))
        chosen += [c for c in found[level] if best in (_key(c["a"]), _key(c["b"]))]
    return chosen[:MAX_PAIRS]


def _key(side: Results) -> tuple[str, int]:
    return side["system"], int(side["budget"])


def _short_comparisons(summary: Summary, comparisons: Sequence[Results]) -> Table:
    rows = [
        [side_name(c["a"]), side_name(c["b"]), difference(c), p_value(c["p_adjusted"]), number(c["n"])]
        for c in comparisons
    ]
    title = f"Paired differences in {measure_name(summary.measures[0])}, percentage points"
    return Table(title, ["a", "b", "a - b", "p (adjusted)", "n"], rows, left=2)
