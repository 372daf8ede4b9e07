"""The measures of a benchmark's own, computed from what systems showed, with intervals and comparisons."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from memometer import benchmarks
from memometer.benchmarks import ages
from memometer.benchmarks.protocol import Dataset, Question
from memometer.benchmarks.shown import Answered, Measure, Part, Shown
from memometer.memory import Turn
from memometer.report.aggregate import grouped
from memometer.report.fact_recall import Items
from memometer.report.presenter import Table
from memometer.report.summary import shown_budget
from memometer.run.folder import Key, Record, failed, is_answered
from memometer.stats.intervals import clustered_mean, clustered_ratio
from memometer.stats.number_format import UNKNOWN, number, percent, rate
from memometer.stats.pairwise import SystemScores, compare_family, conversations
from memometer.systems import BASELINES

Results = dict[str, Any]


def measure(
    records: Sequence[Record], ingests: Sequence[Record], data: Dataset, planned: Sequence[Key], items: Items
) -> Results:
    """Compute the measures of a benchmark's own for every system at every budget.

    Args:
        records: All attempts.
        ingests: The cost of each step of the ingest.
        data: The data.
        planned: What was planned.
        items: The items of the run.

    Returns:
        `values`: a list of measures with `system`, `budget`, `name`, `group`, `unit`, `low_is_better`, `mean`,
        `interval` (95 %, clustered by conversation) and `n`. `comparisons`: paired differences of the measures
        between systems, corrected within one measure and budget. Empty for a benchmark without measures of its own.
    """
    benchmark = benchmarks.load(data.benchmark)
    asked_at_ages = benchmark.measure is None and any(question.moment for question in data.questions)
    if benchmark.measure is None and not asked_at_ages:
        return {}
    positions = (
        {c.id: {turn.id: n for n, turn in enumerate(c.turns)} for c in data.conversations} if asked_at_ages else {}
    )
    texts = _Texts(data, items)
    found: dict[tuple[str, int], list[Measure]] = {}
    for (system, budget), pairs in grouped(records, data.questions, planned).items():
        answered = [
            Answered(question, texts.shown(question, record), record["recall"]["tokens"] or 0, record["seconds"] or 0.0)
            for question, record in pairs
            if record is not None and is_answered(record)
        ]
        steps = [step for step in ingests if step["system"] == system]
        found[system, budget] = (
            benchmark.measure(answered, steps) if benchmark.measure else ages.measures(answered, positions)
        )
    return {
        "values": [
            {"system": system, "budget": budget, **summary(one)} for (system, budget), of in found.items() for one in of
        ],
        "comparisons": _comparisons(found),
    }


def summary(one: Measure) -> Results:
    """Compute the mean of a measure with its interval, clustered by conversation.

    Args:
        one: The measure of one system.
    """
    values, clusters = list(one.values.values()), conversations(one.values)
    share = one.unit == "share"
    estimate = clustered_mean(values, clusters) if share else clustered_ratio(values, [1.0] * len(values), clusters)
    return {
        "name": one.name,
        "group": one.group,
        "unit": one.unit,
        "low_is_better": one.low_is_better,
        "mean": estimate.mean,
        "interval": None if estimate.low is None else [estimate.low, estimate.high],
        "n": estimate.n,
    }


def _comparisons(found: Mapping[tuple[str, int], Sequence[Measure]]) -> list[Results]:
    """Compare systems pairwise by every share, at equal budgets."""
    compared: list[Results] = []
    for budget in dict.fromkeys(budget for _, budget in found):
        by_measure: dict[tuple[str, str], list[SystemScores]] = defaultdict(list)
        for (system, level), of in found.items():
            for one in of if level == budget and system not in BASELINES else ():
                if one.unit == "share" and one.values:
                    by_measure[one.name, one.group].append(SystemScores(system, budget, dict(one.values)))
        for (name, group), systems in by_measure.items():
            pairs = [(a, b, None) for a, b in combinations(systems, 2) if set(a.scores) & set(b.scores)]
            compared += [{**comparison, "group": group} for comparison in compare_family(pairs, name)]
    return compared


class _Texts:
    """Builds the parts of what records show."""

    def __init__(self, data: Dataset, items: Items) -> None:
        self._items = items
        self._turns: dict[str, dict[str, Turn]] = {c.id: {t.id: t for t in c.turns} for c in data.conversations}

    def shown(self, question: Question, record: Record) -> Shown | None:
        """Return what a record shows; None if the memory failed."""
        if failed(record):
            return None
        recall, turns = record["recall"], self._turns[question.conversation]
        if recall.get("items"):
            return Shown(tuple(self._part(record["system"], key, turns) for key in recall["items"]))
        if "text" in recall:
            return Shown(tuple(Part(line) for line in recall["text"].splitlines()), ranked=False)
        ranked = recall.get("ranked") or ()
        ids = dict.fromkeys([*ranked, *(recall["turn_ids"] or ())])
        return Shown(tuple(Part(turns[id].line, (id,)) for id in ids if id in turns), ranked=bool(ranked))

    def _part(self, system: str, key: str, turns: Mapping[str, Turn]) -> Part:
        item = self._items.get((system, key), {})
        ids = tuple(item.get("turn_ids") or ())
        text = item.get("text")
        if text is None:
            text = "".join(turns[id].line for id in ids if id in turns)
        return Part(text, ids if len(ids) == 1 else ())


def tables(found: Mapping[str, Any]) -> list[Table]:
    """Build a table for each budget: a row for each measure, a column for each system.

    Args:
        found: `own_measures` of results.json.
    """
    values = found.get("values", ())
    built = []
    for budget in dict.fromkeys(value["budget"] for value in values if value["system"] not in BASELINES):
        here = [value for value in values if value["budget"] == budget and value["system"] not in BASELINES]
        systems = list(dict.fromkeys(value["system"] for value in here))
        cells = {(v["name"], v["group"], v["unit"], v["system"]): v for v in here}
        rows = []
        for key in dict.fromkeys((value["name"], value["group"], value["unit"]) for value in here):
            of = [cells.get((*key, system)) for system in systems]
            first = next(value for value in of if value)
            rows.append([_title(first), number(first["n"]), *map(_cell, of)])
        title = f"Measures at {shown_budget(budget)} tokens, with 95 % intervals; (low): a small value is better"
        built.append(Table(title, ["measure", "n", *systems], rows))
    return built


def short_table(found: Mapping[str, Any]) -> list[Table]:
    """Build a table that fits a screen: a row for each share, with the range over its groups, at the largest budget.

    Args:
        found: `own_measures` of results.json.
    """
    values = [v for v in found.get("values", ()) if v["system"] not in BASELINES and v["unit"] == "share"]
    values = [value for value in values if value["mean"] is not None]
    if not values:
        return []
    budget = max(value["budget"] for value in values)
    here = [value for value in values if value["budget"] == budget]
    systems = list(dict.fromkeys(value["system"] for value in here))
    rows = []
    for name, low in dict.fromkeys((value["name"], value["low_is_better"]) for value in here):
        cells = []
        for system in systems:
            means = sorted(v["mean"] for v in here if v["name"] == name and v["system"] == system)
            ends = list(dict.fromkeys(percent(mean) for mean in means[:1] + means[-1:]))
            cells.append(" to ".join(ends) or UNKNOWN)
        rows.append([f"{name.rstrip(',').removesuffix(', updates:')}{' (low)' if low else ''}", *cells])
    title = f"Measures of the benchmark at {shown_budget(budget)} tokens, percent, with the range over their groups"
    return [Table(title, ["measure", *systems], rows)]


def _title(value: Mapping[str, Any]) -> str:
    name = " ".join(filter(None, [value["name"], value["group"]]))
    unit = "" if value["unit"] == "share" else f", {value['unit']}"
    return f"{name}{unit}{' (low)' if value['low_is_better'] else ''}"


def _cell(value: Mapping[str, Any] | None) -> str:
    if value is None or value["mean"] is None:
        return UNKNOWN
    if value["unit"] == "share":
        return rate(value["mean"], *(value["interval"] or ()))
    return number(value["mean"], 3 if value["mean"] < 10 else 0)
