"""The result of a cross-fitted search on questions that selected nothing: paired differences and their report.

The gain is the mean over all confirming conversations. Each of them is answered by the prompt of the search that did
not learn from it, so the gain belongs to the search, and each prompt counts for one half. The delivered prompt is the
one with the highest gain on the selection questions of its own search. A gain is reported if the lower limit of its
interval is above zero and the delivered prompt is better on its own confirmation questions.

Token counts are reported separately, because a prompt that is only cheaper does not give better answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memometer.benchmarks.protocol import Question
from memometer.benchmarks.reward import Reply
from memometer.models.replay_cache import CallStore
from memometer.optimize.candidates import Candidate
from memometer.optimize.fold_search import FoldResult
from memometer.optimize.plan import SearchPlan
from memometer.optimize.program import ReadingProgram
from memometer.report import presenter
from memometer.run import cost
from memometer.stats.intervals import READABLE_CLUSTERS, Comparison, paired
from memometer.stats.number_format import number, percent

Results = dict[str, Any]
Score = Callable[[Question, Reply], float]


@dataclass(frozen=True)
class SearchResult:
    """The results of all searches.

    Attributes:
        folds: The result of each search.
        unoptimised: The unoptimized program.
        before: Results of the unoptimized prompt.
        unreadable: Number of unreadable proposals.
    """

    folds: tuple[FoldResult, ...]
    unoptimised: ReadingProgram
    before: Candidate
    unreadable: int

    @property
    def delivered(self) -> FoldResult:
        """The search whose prompt is delivered: the one with the highest gain on its own selection questions."""
        return max(self.folds, key=lambda fold: fold.selection_gain)

    @property
    def changed(self) -> bool:
        """True if a search selected a prompt other than the unoptimized one."""
        return any(fold.program is not self.unoptimised for fold in self.folds)

    def pairs(self, folds: Iterable[FoldResult] | None = None) -> list[Pair]:
        """Return the confirmation questions that have a reply before and after, with both replies."""
        return [
            Pair(
                q,
                self.before.replies[q.id],
                fold.after.replies[q.id],
                self.before.scores[q.id],
                fold.after.scores[q.id],
            )
            for fold in (self.folds if folds is None else folds)
            for q in fold.fold.confirmation
            if q.id in self.before.scores and q.id in fold.after.scores
        ]


@dataclass(frozen=True, slots=True)
class Pair:
    """A confirmation question with the replies and objectives of both prompts."""

    question: Question
    before: Reply
    after: Reply
    objective_before: float
    objective_after: float


def compare(pairs: Sequence[Pair], score: Score) -> Comparison:
    """Return the paired comparison of the found prompts with the unoptimized one, clustered by conversation."""
    before, after = _scores(pairs, score)
    return paired(after, before, [pair.question.conversation for pair in pairs])


def is_gain(gain: Comparison, delivered: Comparison) -> bool:
    """Decide if a gain is reported.

    Args:
        gain: The comparison over all confirming conversations.
        delivered: The comparison of the delivered prompt on its own confirmation questions.

    Returns:
        True if the lower limit of the gain is above zero, there are enough conversations to read it, and the delivered
        prompt is better on its own questions.
    """
    readable = gain.clusters >= READABLE_CLUSTERS and gain.low is not None and gain.low > 0
    return readable and (delivered.difference or 0.0) > 0


def official_score(question: Question, reply: Reply) -> float:
    """Return the benchmark's score of a reply's answer."""
    return question.score(reply.answer)


def summarise(plan: SearchPlan, store: CallStore, found: SearchResult, *, run: Path) -> Results:
    """Return the results as JSON data. `gained` is true if the quality improved significantly."""
    quality = plan.objective.quality
    pairs = found.pairs()
    gain, f1 = compare(pairs, quality), compare(pairs, official_score)
    delivered = found.delivered
    tried = [candidate for fold in found.folds for candidate in fold.candidates.tried.values()]
    usd = plan.spent(store)
    return {
        "optimizer": plan.options.optimizer,
        "auto": plan.options.auto,
        "reader": plan.models["reader"].name,
        "prompt_model": plan.models["prompt model"].name,
        "judge": plan.models["judge"].name if "judge" in plan.models else None,
        "changed": found.changed,
        "gained": found.changed and is_gain(gain, compare(found.pairs([delivered]), quality)),
        "gain": _as_json(gain, *_means(pairs, quality)),
        "objective": {
            "before": _mean([pair.objective_before for pair in pairs]),
            "after": _mean([pair.objective_after for pair in pairs]),
        },
        "f1": _as_json(f1, *_means(pairs, official_score)),
        "searches": [_search_as_json(fold, found, quality) for fold in found.folds],
        "delivered": delivered.fold.number,
        "by_category": _by_category(pairs, plan.data.categories, quality),
        "candidates": {
            "left": sum(fold.num_selectable for fold in found.folds),
            "tried": len({candidate.digest for candidate in tried}),
            "leaking": len({candidate.digest for candidate in tried if candidate.leaks}),
        },
        "calls": {role: {"calls": bill.calls, "tokens": bill.total_tokens} for role, bill in store.spent.items()},
        "unreported_calls": sum(bill.unreported for bill in store.spent.values()),
        "failed_calls": dict(store.failed_before + store.failed),
        "unreadable_proposals": found.unreadable,
        "failed_scores": sum(fold.candidates.imputed for fold in found.folds),
        "left_out": len(plan.confirmation) - len(pairs),
        "usd": usd,
        "cost": cost.money(usd, *plan.models.values()),
        "run": str(run),
    }


def report_lines(plan: SearchPlan, found: SearchResult, results: Results, *, out: Path) -> list[str]:
    """Return the report as lines, the conclusion first."""
    pairs = found.pairs()
    gain, f1 = compare(pairs, plan.objective.quality), compare(pairs, official_score)
    objective, candidates = results["objective"], results["candidates"]
    lines = [
        _conclusion(gain, results),
        f"F1 {percent(results['f1']['before'])} -> {percent(results['f1']['after'])}, {_interval(f1)}; "
        f"{gain.wins} questions better, {gain.losses} worse, {gain.ties} equal; objective with the token price "
        f"{percent(objective['before'])} -> {percent(objective['after'])}. All in percent.",
    ]
    lines += [
        f"Search {each['search']}: {_points(each['selection_gain'])} on its {each['selection_questions']} selection "
        f"questions, {_points(each['difference'] or 0.0)} on its {each['n']} confirmation questions."
        if each["changed"]
        else f"Search {each['search']}: no candidate was better than the unoptimized prompt on its selection questions."
        for each in results["searches"]
    ]
    headers = ("", "n", "quality", "after", "F1", "after", "tokens", "after")
    formats: tuple[Any, ...] = (number, percent, percent, percent, percent, number, number)
    rows = [
        [name, *(show(value) for show, value in zip(formats, row.values(), strict=True))]
        for name, row in results["by_category"].items()
    ]
    lines += ["", *presenter.text([presenter.Table("", headers, rows)]).splitlines(), ""]
    calls = ", ".join(f"{role} {of['calls']:,} calls, {of['tokens']:,} tokens" for role, of in results["calls"].items())
    lines.append(f"{candidates['tried']} prompts tried, {candidates['left']} selectable; {calls}; {results['cost']}.")
    if results["unreadable_proposals"]:
        lines.append(f"Unreadable proposals of the prompt model: {results['unreadable_proposals']}.")
    if candidates["leaking"]:
        lines.append(f"Prompts excluded because they contain held-out text: {candidates['leaking']} (candidates.json).")
    for reason, n in list(results["failed_calls"].items())[:3]:
        lines.append(f"Failed calls, excluded from the scores: {n} x {reason}")
    if results["left_out"]:
        lines.append(f"Confirmation questions without a reply, excluded from the comparison: {results['left_out']}.")
    if results["failed_scores"]:
        lines.append(f"Failed calls in the search that got the unoptimized prompt's score: {results['failed_scores']}.")
    if results["gained"]:
        which = f"the prompt of search {results['delivered']}, which has the higher gain on its selection questions"
        which = f"{which}. The gain is the mean of all searches" if len(found.folds) > 1 else "the prompt"
        lines.append(f"Written to {out}: {which}. Use it with python evaluate.py --program {out}.")
    else:
        best = f" The best candidate is in {Path(results['run']) / 'best_candidate.json'}." if found.changed else ""
        lines.append(f"Written to {out}: the unoptimized prompt.{best}")
    return lines


def _conclusion(gain: Comparison, results: Results) -> str:
    base = f"{gain.n} confirmation questions of {gain.clusters} conversation{'s' if gain.clusters > 1 else ''}"
    if not results["changed"]:
        return (
            f"No significant gain: none of {results['candidates']['left']} candidates was better than the unoptimized "
            f"prompt on the selection questions ({base})."
        )
    before, after = percent(results["gain"]["before"]), percent(results["gain"]["after"])
    change = f"{before} -> {after}, {_interval(gain)}, {base}"
    if results["gained"]:
        return f"Gain: quality {change}."
    if gain.high is not None and gain.high < 0:
        return f"Loss: quality {change}; the unoptimized prompt stays."
    if gain.clusters < READABLE_CLUSTERS:
        reason = f"; {READABLE_CLUSTERS} conversations or more are needed"
    elif gain.low is not None and gain.low > 0:
        reason = "; the delivered prompt was not better on its own confirmation questions"
    elif gain.detectable is None:
        reason = ""
    elif gain.detectable < 1:
        reason = f" (true gains from {percent(gain.detectable)} points are found in 80 % of searches)"
    else:
        reason = " (the interval is too wide to find any gain; use a larger --num-confirmation or more conversations)"
    return f"No significant gain: quality {change}{reason}; the unoptimized prompt stays."


COLUMNS = ("n", "quality_before", "quality_after", "f1_before", "f1_after", "tokens_before", "tokens_after")


def _by_category(pairs: Sequence[Pair], names: Any, quality: Score) -> dict[str, dict[str, Any]]:
    """COLUMNS by category name, all categories last. Tokens are means per question."""
    groups = {name: [pair for pair in pairs if pair.question.category == key] for key, name in names.items()}
    groups = {name: group for name, group in groups.items() if group} | {"all": list(pairs)}
    rows = {}
    for name, group in groups.items():
        values = [value for score in (quality, official_score) for value in _means(group, score)]
        values.append(_mean([pair.before.total_tokens for pair in group]))
        values.append(_mean([pair.after.total_tokens for pair in group]))
        rows[name] = dict(zip(COLUMNS, (len(group), *values), strict=True))
    return rows


def _search_as_json(fold: FoldResult, found: SearchResult, quality: Score) -> Results:
    confirmed = compare(found.pairs([fold]), quality)
    return {
        "search": fold.fold.number,
        "conversations": [c.id for c in fold.fold.conversations],
        "confirmed_on": [c.id for c in fold.fold.confirming],
        "changed": fold.program is not found.unoptimised,
        "selection_gain": fold.selection_gain,
        "selection_questions": len(fold.fold.selection),
        "difference": confirmed.difference,
        "n": confirmed.n,
    }


def _scores(pairs: Sequence[Pair], score: Score) -> tuple[list[float], list[float]]:
    """Scores before and after."""
    return [score(p.question, p.before) for p in pairs], [score(p.question, p.after) for p in pairs]


def _means(pairs: Sequence[Pair], score: Score) -> tuple[float, float]:
    before, after = _scores(pairs, score)
    return _mean(before), _mean(after)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _interval(gain: Comparison) -> str:
    if gain.difference is None:
        return "no questions to compare"
    if gain.low is None or gain.high is None:
        return _points(gain.difference)
    return f"{_points(gain.difference)} [{_points(gain.low)}, {_points(gain.high)}]"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}"


def _as_json(gain: Comparison, before: float, after: float) -> Results:
    return {
        "before": before,
        "after": after,
        "difference": gain.difference,
        "interval": None if gain.low is None else [gain.low, gain.high],
        "p_permutation": gain.p_permutation,
        "n": gain.n,
        "conversations": gain.clusters,
    }
