"""From a run folder to numbers: results.json and the table. Calls no model and may be run again at any time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from locomo import abstention, objective
from locomo.dataset import ANSWERABLE, CATEGORIES, Question
from locomo.evaluate import UNBOUNDED
from locomo.metrics import chosen_option, evidence_recall, official_f1
from locomo.run_folder import Key, Record, is_answered, latest
from locomo.statistics import clustered_mean

Results = dict[str, Any]


def results(records: Iterable[Record], questions: Iterable[Question], planned: Iterable[Key]) -> dict[str, Results]:
    """systems.<name>.budgets.<tokens> -> figures over categories 1-4, with `by_category`, `categories_1_5` and
    `abstention` and `objective` (what optimize.py maximises) inside.

    A question that was planned and has no answer (failed, or not yet asked) is ungraded: it is counted, and in no
    mean. Fractions lie in [0, 1]; `*_interval` is [low, high] at 95 %, clustered by conversation, or null.
    """
    asked = {question.id: question for question in questions}
    found = latest(records)
    groups: dict[tuple[str, int], list[tuple[Question, Record | None]]] = defaultdict(list)
    for k in planned:
        groups[k[0], k[1]].append((asked[k[2]], found.get(k)))
    systems: dict[str, Results] = {}
    for (system, budget), pairs in groups.items():
        entry = _figures([pair for pair in pairs if pair[0].category in ANSWERABLE])
        entry["by_category"] = {
            str(category): _figures(of_category)
            for category in CATEGORIES
            if (of_category := [pair for pair in pairs if pair[0].category == category])
        }
        entry["categories_1_5"] = _figures(pairs)
        entry["by_conversation"] = _conversations([pair for pair in pairs if pair[0].category in ANSWERABLE])
        entry["abstention"] = abstention.figures([(q, r) for q, r in pairs if r is not None])
        entry["objective"] = objective.figures([(q, r) for q, r in pairs if r is not None])
        systems.setdefault(system, {"budgets": {}})["budgets"][str(budget)] = entry
    return systems


def _figures(pairs: Sequence[tuple[Question, Record | None]]) -> Results:
    done = [(question, record) for question, record in pairs if record is not None and is_answered(record)]
    answered = [(question, record) for question, record in done if record["answer"] is not None]
    recalls = [(q, value) for q, r in done if (value := _recall(q, r)) is not None]
    f1s = [(q, official_f1(q, chosen_option(q, r["form"], r["answer"]))) for q, r in answered]
    labels = [(q, r["verdicts"][-1]["label"]) for q, r in answered if r["verdicts"]]
    judged = [(q, float(label == "correct")) for q, label in labels if label != "ungraded"]
    graded = {q.id for q, r in done if not r["verdicts"] or r["verdicts"][-1]["label"] != "ungraded"}
    asked = {question.id for question, _ in pairs}
    figures: Results = {
        "questions": len(asked),
        "ungraded": len(asked - graded),
        **_mean("evidence_recall", recalls),
        **_mean("all_evidence", [(question, float(value == 1.0)) for question, value in recalls]),
        **_ranking(done),
        "mean_tokens": _average(record["recall"]["tokens"] for _, record in done),
        "max_tokens": max((record["recall"]["tokens"] for _, record in done), default=0),
    }
    figures["n"] = figures.pop("evidence_recall_n")
    if answered:
        figures |= {
            **_mean("f1", f1s),
            "mean_total_tokens": _average(r["prompt_tokens"] + r["completion_tokens"] for _, r in answered),
            "mean_calls": _average(record["calls"] for _, record in answered),
            "mean_seconds": _average(record["seconds"] for _, record in answered),
            "unreported_calls": sum(record["unreported"] for _, record in answered),
            "truncated": sum(record["truncated"] for _, record in answered),
        }
        forms = sorted({record["form"] for _, record in answered})
        if len(forms) > 1:
            figures["f1_by_form"] = {
                form: _average(f1 for (_, f1), (_, r) in zip(f1s, answered, strict=True) if r["form"] == form)
                for form in forms
            }
    if labels:
        verdicts = [verdict for _, record in answered for verdict in record["verdicts"]]
        figures |= _mean("judge", judged)
        figures["judge_correct"] = int(figures.pop("judge_sum"))
        figures["judge_tokens"] = sum(v["prompt_tokens"] + v["completion_tokens"] for v in verdicts)
    return figures


def _conversations(pairs: Sequence[tuple[Question, Record | None]]) -> Results:
    by_id: dict[str, list[tuple[Question, Record | None]]] = defaultdict(list)
    for pair in pairs:
        by_id[pair[0].conversation].append(pair)
    figures = {id: _figures(mine) for id, mine in by_id.items()}
    return {
        id: {name: found[name] for name in ("evidence_recall", "all_evidence", "n")} for id, found in figures.items()
    }


def _ranking(done: Sequence[tuple[Question, Record]]) -> Results:
    """What papers on retrieval report, of systems that rank turns: turn recall@10, the mean reciprocal rank of the
    first evidence turn, and how often the five best sessions hold any evidence. Fractions."""
    if not any(record["recall"].get("ranked") for _, record in done):
        return {}
    # What showed nothing found nothing; a question asked in two forms is one question.
    ranked = list({q.id: (q, r["recall"].get("ranked", ())) for q, r in done if q.evidence}.values())
    firsts = [next((1 / n for n, id in enumerate(ids, start=1) if id in q.evidence), 0.0) for q, ids in ranked]
    sessions = [list(dict.fromkeys(id.split(":")[0] for id in ids))[:5] for _, ids in ranked]
    return {
        "recall_at_10": _average(evidence_recall(q.evidence, ids[:10]) or 0.0 for q, ids in ranked),
        "mrr": _average(firsts),
        "session_at_5": _average(
            float(any(id.split(":")[0] in best for id in q.evidence))
            for (q, _), best in zip(ranked, sessions, strict=True)
        ),
    }


def _recall(question: Question, record: Record) -> float | None:
    return evidence_recall(question.evidence, set(record["recall"]["turn_ids"]))


def _mean(name: str, values: Sequence[tuple[Question, float]]) -> Results:
    """Mean, sum, n and interval over questions; one asked in two forms counts once, with the mean of the two."""
    by_question: dict[str, list[float]] = defaultdict(list)
    for question, value in values:
        by_question[question.id].append(value)
    means = [sum(scores) / len(scores) for scores in by_question.values()]
    estimate = clustered_mean(means, [id.split("#")[0] for id in by_question])
    interval = None if estimate.low is None else [estimate.low, estimate.high]
    return {name: estimate.mean, f"{name}_interval": interval, f"{name}_sum": sum(means), f"{name}_n": len(means)}


def ingest_cost(ingests: Iterable[Record]) -> dict[str, Results]:
    """What writing cost each system: seconds, calls and tokens over all conversations, repeats on resume included."""
    costs: dict[str, Results] = defaultdict(lambda: {"seconds": 0.0, "calls": 0, "tokens": 0, "unreported": 0})
    for ingest in ingests:
        cost = costs[ingest["system"]]
        cost["seconds"] += ingest["seconds"]
        cost["calls"] += ingest["calls"]
        cost["tokens"] += ingest["prompt_tokens"] + ingest["completion_tokens"]
        cost["unreported"] += ingest["unreported"]
    return dict(costs)


def _average(values: Iterable[float]) -> float | None:
    listed = list(values)
    return sum(listed) / len(listed) if listed else None


def current(records: Iterable[Record], planned: Iterable[Key]) -> list[Record]:
    """The records that count, of what was planned."""
    found = latest(records)
    return [found[k] for k in planned if k in found]


def ungraded_share(records: Iterable[Record], planned: Sequence[Key]) -> float:
    """The share of planned questions whose answer or verdict failed; questions not yet asked do not count here."""
    mine = current(records, planned)
    bad = sum(not is_answered(r) or any(v["label"] == "ungraded" for v in r["verdicts"][-1:]) for r in mine)
    return bad / len(mine) if mine else 0.0


def failures(records: Iterable[Record], planned: Iterable[Key], *, most: int = 3) -> list[str]:
    """The commonest reasons of what stayed ungraded, with their counts."""
    counts: dict[str, int] = defaultdict(int)
    for record in current(records, planned):
        reasons = [record["error"]] + [verdict["reason"] for verdict in record["verdicts"][-1:]]
        for reason in filter(None, reasons):
            counts[reason] += 1
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    return [f"{n} x {reason}" for reason, n in ranked[:most]]


def table(systems: Mapping[str, Results], *, no_judge: str = "", folds: bool = False) -> str:
    """The table for people: categories 1-4, then 1-5, then by category. `no_judge` says why there is no J; `folds`
    shows every conversation by itself."""
    rows = [(name, budget, entry) for name, system in systems.items() for budget, entry in system["budgets"].items()]
    read = any("f1" in entry["categories_1_5"] for *_, entry in rows)
    judged = any("judge" in entry for *_, entry in rows)
    parts = [_section("Categories 1-4", rows, read=read, judged=judged)]
    if read:
        everything = [(name, budget, entry["categories_1_5"]) for name, budget, entry in rows]
        parts.append(
            _section("Categories 1-5 (category 5 is right when it abstains)", everything, read=True, judged=False)
        )
    parts += _as_ranked(rows)
    if folds:
        parts.append(_by_conversation(rows))
    parts.append(_by_category(rows, "f1" if read else "evidence_recall", "F1" if read else "Evidence recall"))
    if judged:
        parts.append(_by_category(rows, "judge", "J"))
    parts += _abstention(rows, read=read)
    if read and not judged:
        parts.append(f"J is not shown: {no_judge}")
    return "\n\n".join(parts) + "\n"


def _section(title: str, rows: Sequence[tuple[str, str, Results]], *, read: bool, judged: bool) -> str:
    columns: list[tuple[str, Callable[[Results], str]]] = [
        ("n", lambda e: str(e["questions"] if read else e["n"])),
        ("ungraded", lambda e: str(e["ungraded"])),
        ("evidence recall", lambda e: _rate(e, "evidence_recall")),
        ("all evidence", lambda e: _rate(e, "all_evidence")),
    ]
    if read:
        columns.append(("F1", lambda e: _rate(e, "f1") + (f" ({e['f1_sum']:.1f}/{e['f1_n']})" if "f1_n" in e else "")))
    if judged:
        columns.append(
            ("J", lambda e: _rate(e, "judge") + (f" ({e['judge_correct']}/{e['judge_n']})" if "judge_n" in e else ""))
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
    body = [[name, _budget(budget), *(show(entry) for _, show in columns)] for name, budget, entry in rows]
    return _grid(
        f"{title}, with 95 % intervals clustered by conversation", ["system", "budget"] + [c for c, _ in columns], body
    )


def _by_category(rows: Sequence[tuple[str, str, Results]], metric: str, title: str) -> str:
    present = [c for c in CATEGORIES if any(metric in e["by_category"].get(str(c), {}) for *_, e in rows)]
    headers = ["system", "budget"] + [f"{c} {CATEGORIES[c]}" for c in present]
    body = [
        [name, _budget(budget)] + [_cell(entry["by_category"].get(str(c), {}), metric) for c in present]
        for name, budget, entry in rows
    ]
    return _grid(f"{title} by category", headers, body)


def _as_ranked(rows: Sequence[tuple[str, str, Results]]) -> list[str]:
    body = [
        [name, _budget(budget), *(f"{100 * entry[measure]:.1f}" for measure in ("recall_at_10", "mrr", "session_at_5"))]
        for name, budget, entry in rows
        if entry.get("mrr") is not None
    ]
    title = "The ranking, categories 1-4, as papers on retrieval report it (of what the budget shows)"
    headers = ["system", "budget", "turn recall@10", "MRR", "any evidence session in the top 5"]
    return [_grid(title, headers, body)] if body else []


def _by_conversation(rows: Sequence[tuple[str, str, Results]]) -> str:
    present = list(dict.fromkeys(conversation for *_, entry in rows for conversation in entry["by_conversation"]))
    body = []
    for name, budget, entry in rows:
        rates = [entry["by_conversation"][conversation]["evidence_recall"] for conversation in present]
        body.append([name, _budget(budget)] + ["-" if rate is None else f"{100 * rate:.1f}" for rate in rates])
    return _grid("Evidence recall by conversation, categories 1-4", ["system", "budget", *present], body)


def _abstention(rows: Sequence[tuple[str, str, Results]], *, read: bool) -> list[str]:
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
            ("abstains on 1-4", lambda e: e["over_abstention"]),
            ("risk at 50 %", lambda e: abstention.risk_at(e, 0.5)),
            ("at 100 %", lambda e: abstention.risk_at(e, 1.0)),
            ("mean risk", lambda e: e["risk_coverage_auc"]),
        ]
    body = [
        [name, _budget(budget)] + ["-" if (value := show(e)) is None else f"{100 * value:.1f}" for _, show in columns]
        for name, budget, e in told
    ]
    title = "Abstention: category 5 told from 1-4 (LOCOMO's speaker swap), caught at a share of false abstentions"
    return [_grid(title, ["system", "budget"] + [c for c, _ in columns], body)] if told else []


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


def _budget(budget: str) -> str:
    return f"{int(budget):,}" if int(budget) < UNBOUNDED else "all"


def _grid(title: str, headers: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    from tabulate import tabulate

    aligned = ["left"] + ["right"] * (len(headers) - 1)
    return f"{title}\n" + tabulate(body, headers, tablefmt="simple", colalign=aligned, disable_numparse=True)
