"""A run's results as text for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from memometer.benchmarks.protocol import category_label
from memometer.budget import UNBOUNDED
from memometer.stats import abstention
from memometer.stats.sample_scores import MEASURES

Results = dict[str, Any]
Row = tuple[str, str, Results]
"""System, budget, figures."""

MOST_COMPARISONS = 30
"""Of more than so many the table shows those with the best system of each budget; results.json holds all."""


def as_text(results: Mapping[str, Any], *, no_judge: str = "", folds: bool = False) -> str:
    """The tables of results.json: answerable questions, what their figures are worth, the paired comparisons that
    belong to them, then all questions, then by category. `no_judge` says why there is no J; `folds` shows every
    conversation by itself."""
    systems = results["systems"]
    rows = [(name, budget, entry) for name, system in systems.items() for budget, entry in system["budgets"].items()]
    read = any("f1" in entry["all_questions"] for *_, entry in rows)
    judged = any("judge" in entry for *_, entry in rows)
    headline = "judge" if judged else "f1" if read else "evidence_recall"
    subset = ", a subset" if results["subset"] else ""
    parts = [_section(f"Answerable questions{subset}", rows, read=read, judged=judged)]
    parts += _worth(rows, headline)
    parts += _comparisons(results["comparisons"], headline, rows)
    parts += ["\n".join(results["cautions"])] if results["cautions"] else []
    parts += _gradings(rows, results.get("withheld", {}))
    if read:
        everything = [(name, budget, entry["all_questions"]) for name, budget, entry in rows]
        parts.append(
            _section(
                f"All questions{subset} (an abstention is right if a question is unanswerable)",
                everything,
                read=True,
                judged=False,
            )
        )
    parts += _as_ranked(rows)
    if folds:
        parts.append(_by_conversation(rows))
    names = results["categories"]
    parts.append(_by_category(rows, "f1" if read else "evidence_recall", "F1" if read else "Evidence recall", names))
    if judged:
        parts.append(_by_category(rows, "judge", "J", names))
    parts += _abstention(rows, read=read)
    if read and not judged:
        parts.append(f"J is not shown: {no_judge}")
    return "\n\n".join(parts) + "\n"


def _section(title: str, rows: Sequence[Row], *, read: bool, judged: bool) -> str:
    columns: list[tuple[str, Callable[[Results], str]]] = [
        ("n", lambda e: str(e["questions"] if read else e["n"])),
        ("failed", lambda e: str(e["failed"])),
        ("ungraded", lambda e: str(e["ungraded"])),
        ("evidence recall", lambda e: _rate(e, "evidence_recall")),
        ("all evidence", lambda e: _rate(e, "all_evidence")),
    ]
    if read:
        columns.append(("F1", lambda e: _rate(e, "f1") + (f" ({e['f1_sum']:.1f}/{e['f1_n']})" if "f1_n" in e else "")))
    if judged:
        columns.append(
            ("J", lambda e: _rate(e, "judge") + (f" ({e['judge_correct']:g}/{e['judge_n']})" if "judge_n" in e else ""))
        )
    columns.append(("context tokens", lambda e: _number(e["mean_tokens"])))
    if read:
        columns += [
            (
                "total tokens",
                lambda e: _number(e.get("mean_total_tokens")) + ("?" if e.get("unreported_calls") else ""),
            ),
            ("calls", lambda e: _number(e.get("mean_calls"), 1)),
            ("seconds", lambda e: _number(e.get("mean_seconds"), 2)),
        ]
    body = [[name, budget_name(budget), *(show(entry) for _, show in columns)] for name, budget, entry in rows]
    return grid(
        f"{title}, with 95 % intervals clustered by conversation", ["system", "budget"] + [c for c, _ in columns], body
    )


def _worth(rows: Sequence[Row], measure: str) -> list[str]:
    """What the headline's figures rest on, where anything is known of it."""
    closed = any(entry["gap_closed"].get(measure) for *_, entry in rows)
    headers = ["system", "budget", MEASURES[measure], "by bootstrap", "naive", "design effect", "worst", "best"]
    body = [
        [
            name,
            budget_name(budget),
            percent(entry[measure]),
            span(entry[f"{measure}_bootstrap"]),
            span(_within_bounds(entry[f"{measure}_wilson"] or entry[f"{measure}_naive"])),
            _number(entry[f"{measure}_design_effect"], 1),
            percent(entry[f"{measure}_worst"]),
            percent(entry[f"{measure}_best"]),
            *([_gap(entry["gap_closed"].get(measure))] if closed else []),
        ]
        for name, budget, entry in rows
        if entry.get(measure) is not None
    ]
    told = (
        f"What {MEASURES[measure]} is worth, answerable questions: conversations resampled; naive as if questions were "
        "independent; worst and best if all ungraded were wrong or right"
    )
    parts = [grid(told, headers + (["of the gap none-oracle"] if closed else []), body)] if body else []
    blind = {
        f"The gap between none and oracle ({MEASURES[measure]} {signed(found['gap'])}) cannot be told from zero here, "
        "so no share of it is shown: where the evidence itself does not help, no memory is measured."
        for *_, entry in rows
        if (found := entry["gap_closed"].get(measure)) and found["share"] is None
    }
    return parts + sorted(blind)


def _within_bounds(interval: Sequence[float] | None) -> list[float] | None:
    return None if interval is None else [max(0.0, interval[0]), min(1.0, interval[1])]


def _gap(found: Results | None) -> str:
    if found is None or found["share"] is None:
        return "-"
    return f"{100 * found['share']:.0f} %" + (
        "" if found["low"] is None else f" {span([found['low'], found['high']], 0)}"
    )


def _comparisons(found: Sequence[Results], measure: str, rows: Sequence[Row]) -> list[str]:
    of = [c for c in found if c["measure"] == measure]
    mine = [c for c in of if c["grading"] == of[0]["grading"]]  # the first grading is the run's own
    if len(mine) <= MOST_COMPARISONS:
        return comparison_grid(mine)
    means = {(name, int(budget)): entry.get(measure) or 0.0 for name, budget, entry in rows}
    leaders = {
        level: max((_place(c[side]) for c in mine if c["level"] == level for side in "ab"), key=lambda who: means[who])
        for level in dict.fromkeys(c["level"] for c in mine)
    }
    shown = [c for c in mine if leaders[c["level"]] in (_place(c["a"]), _place(c["b"]))]
    return [
        *comparison_grid(shown),
        f"{len(mine) - len(shown)} more, not with the best of a budget, are in results.json.",
    ]


def _place(entrant: Results) -> tuple[str, int]:
    return entrant["system"], entrant["budget"]


def comparison_grid(found: Sequence[Results], categories: Mapping[str, str] | None = None) -> list[str]:
    """Paired comparisons by one measure, a row each; nothing where there are none."""
    if not found:
        return []
    by_category = any(c["category"] for c in found)
    headers = ["a", "b", *(["category"] if by_category else []), "a - b, points", "wins/losses/ties", "p McNemar",
               "p sign flips", "p Holm", "detectable", "n"]  # fmt: skip
    body = [
        [
            who(c["a"]),
            who(c["b"]),
            *([category_label(c["category"], categories or {}) if c["category"] else "all"] if by_category else []),
            signed(c),
            f"{c['wins']}/{c['losses']}/{c['ties']}",
            *(_p(c[name]) for name in ("p_mcnemar", "p_permutation", "p_holm")),
            percent(c["detectable"]),
            str(c["n"]),
        ]
        for c in found
    ]
    first = found[0]
    families = " or ".join(dict.fromkeys(str(c["family"]) for c in found))
    under = f" ({first['grading']})" if first["grading"] else ""
    title = (
        f"Paired on the same questions, {MEASURES[first['measure']]}{under}: clustered 95 % intervals; McNemar takes "
        f"questions for\nindependent, sign flips conversations; Holm over {families}; detectable: the smallest "
        "true difference found in about 80 % of repetitions"
    )
    return [grid(title, headers, body)]


def who(entrant: Results) -> str:
    """How a side of a comparison is called: `run/system @budget`."""
    run = f"{entrant['run']}/" if "run" in entrant else ""
    return f"{run}{entrant['system']}" + (f" @{budget_name(entrant['budget'])}" if entrant["budget"] else "")


def _gradings(rows: Sequence[Row], withheld: Mapping[str, str]) -> list[str]:
    """The score under every way of grading that may be shown, where there is more than one, and why the others are
    not."""
    names = list(dict.fromkeys(name for *_, entry in rows for name in entry["gradings"]))
    if len(names) < 2:
        return []
    hidden = [f"J of {name} is withheld: {withheld[name]}" for name in names if name in withheld]
    names = [name for name in names if name not in withheld]
    if not names:
        return hidden
    body = [
        [system, budget_name(budget), name, percent(found["score"]) + " " + span(found["interval"]), str(found["n"]),
         str(found["ungraded"]), percent(found["worst"]), percent(found["best"])]
        for name in names
        for system, budget, entry in rows
        if (found := entry["gradings"][name])["n"]
    ]  # fmt: skip
    headers = ["system", "budget", "judge (prompt, key)", "J", "n", "ungraded", "worst", "best"]
    title = "J under each grading, answerable questions; figures of two gradings are not comparable"
    return [grid(title, headers, body), *hidden]


def _by_category(rows: Sequence[Row], metric: str, title: str, names: Mapping[str, str]) -> str:
    present = [c for c in names if any(metric in e["by_category"].get(c, {}) for *_, e in rows)]
    headers = ["system", "budget"] + [category_label(c, names) for c in present]
    body = [
        [name, budget_name(budget)] + [_cell(entry["by_category"].get(c, {}), metric) for c in present]
        for name, budget, entry in rows
    ]
    return grid(f"{title} by category", headers, body)


def _as_ranked(rows: Sequence[Row]) -> list[str]:
    body = [
        [
            name,
            budget_name(budget),
            *(f"{100 * entry[measure]:.1f}" for measure in ("recall_at_10", "mrr", "session_at_5")),
        ]
        for name, budget, entry in rows
        if entry.get("mrr") is not None
    ]
    title = "The ranking, answerable questions, as papers on retrieval report it (of what the budget shows)"
    headers = ["system", "budget", "turn recall@10", "MRR", "any evidence session in the top 5"]
    return [grid(title, headers, body)] if body else []


def _by_conversation(rows: Sequence[Row]) -> str:
    present = list(dict.fromkeys(conversation for *_, entry in rows for conversation in entry["by_conversation"]))
    body = []
    for name, budget, entry in rows:
        rates = [entry["by_conversation"][conversation]["evidence_recall"] for conversation in present]
        body.append([name, budget_name(budget)] + ["-" if rate is None else f"{100 * rate:.1f}" for rate in rates])
    return grid("Evidence recall by conversation, answerable questions", ["system", "budget", *present], body)


def _abstention(rows: Sequence[Row], *, read: bool) -> list[str]:
    """The grid, where there are questions to tell apart."""
    told = [
        (name, budget, entry["abstention"]) for name, budget, entry in rows if entry["abstention"]["auc"] is not None
    ]
    columns: list[tuple[str, Callable[[Results], float | None]]] = [
        ("AUC", lambda e: e["auc"]),
        ("caught at 5 %", lambda e: e["caught_at_5"]),
        ("at 10 %", lambda e: e["caught_at_10"]),
    ]
    if read:
        columns += [
            ("twins", lambda e: e["twin_accuracy"]),
            ("abstains on answerable", lambda e: e["over_abstention"]),
            ("risk at 50 %", lambda e: abstention.risk_at(e, 0.5)),
            ("at 100 %", lambda e: abstention.risk_at(e, 1.0)),
            ("mean risk", lambda e: e["risk_coverage_auc"]),
        ]
    body = [
        [name, budget_name(budget)]
        + ["-" if (value := show(e)) is None else f"{100 * value:.1f}" for _, show in columns]
        for name, budget, e in told
    ]
    title = "Abstention: unanswerable questions told from answerable ones, caught at a share of false abstentions"
    return [grid(title, ["system", "budget"] + [c for c, _ in columns], body)] if told else []


def _cell(entry: Results, metric: str) -> str:
    n = entry.get({"f1": "f1_n", "judge": "judge_n"}.get(metric, "n"), 0)
    return f"{_rate(entry, metric)} n={n}" if n else "-"


def _rate(entry: Results, name: str) -> str:
    if entry.get(name) is None:
        return "-"
    interval = entry[f"{name}_interval"]
    return f"{100 * entry[name]:.1f}" + (f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else "")


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def budget_name(budget: str | int) -> str:
    """A budget in tokens."""
    return f"{int(budget):,}" if int(budget) < UNBOUNDED else "no limit"


def percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def points(fraction: float | None) -> str:
    """To a hundredth of a point, as published scores are."""
    return "-" if fraction is None else f"{100 * fraction:.2f}"


def span(interval: Sequence[float] | None, digits: int = 1) -> str:
    """An interval in points."""
    return "-" if interval is None else f"[{100 * interval[0]:.{digits}f}, {100 * interval[1]:.{digits}f}]"


def signed(found: Results) -> str:
    """A difference in points with its interval."""
    if found["difference"] is None:
        return "-"
    told = f"{100 * found['difference']:+.1f}"
    return told if found["low"] is None else f"{told} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"


def _p(value: float | None) -> str:
    return "-" if value is None else "<0.0001" if value < 1e-4 else f"{value:.4f}"


def grid(title: str, headers: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A titled table, the first column to the left."""
    from tabulate import tabulate

    aligned = ["left"] + ["right"] * (len(headers) - 1)
    return f"{title}\n" + tabulate(body, headers, tablefmt="simple", colalign=aligned, disable_numparse=True)
