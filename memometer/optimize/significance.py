"""The result of a search on questions that selected nothing: paired differences before and after, and their report.

The first line of the report states whether the answers improved significantly. Token counts are reported separately,
because a prompt that is only cheaper does not give better answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memometer.benchmarks.protocol import Question
from memometer.benchmarks.reward import Reply
from memometer.models.replay_cache import CallStore
from memometer.optimize.candidates import Candidate, CandidateLog
from memometer.optimize.plan import SearchPlan
from memometer.optimize.program import ReadingProgram
from memometer.report import presenter
from memometer.run import cost
from memometer.stats.intervals import Comparison, paired
from memometer.stats.number_format import number, percent

Results = dict[str, Any]
Score = Callable[[Question, Reply], float]


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Attributes:
        program: The selected program; it may be the unoptimized one.
        unoptimised: The unoptimized program.
        before: Results of the unoptimized prompt.
        after: Results of the selected prompt.
        questions: The confirmation questions.
        num_selectable: Number of candidates in the selection.
        unreadable: Number of unreadable proposals.
        candidates: All prompts that were tried.
    """

    program: ReadingProgram
    unoptimised: ReadingProgram
    before: Candidate
    after: Candidate
    questions: Sequence[Question]
    num_selectable: int
    unreadable: int
    candidates: CandidateLog

    @property
    def changed(self) -> bool:
        """True if the selected prompt is not the unoptimized one."""
        return self.after.digest != self.before.digest

    def answered_by_both(self, questions: Iterable[Question]) -> list[Question]:
        """Return the questions that have a score before and after."""
        return [q for q in questions if q.id in self.before.scores and q.id in self.after.scores]

    def compare(self, questions: Sequence[Question], score: Score) -> Comparison:
        """Return the paired comparison of the selected prompt with the unoptimized one, clustered by conversation."""
        before, after = (_scores(questions, side, score) for side in (self.before, self.after))
        return paired(after, before, [q.conversation for q in questions])


def official_score(question: Question, reply: Reply) -> float:
    """Return the benchmark's score of a reply's answer."""
    return question.score(reply.answer)


def summarise(plan: SearchPlan, store: CallStore, found: SearchResult, *, run: Path) -> Results:
    """Return the results as JSON data. `gained` is true if the quality improved significantly."""
    quality = plan.objective.quality
    both = found.answered_by_both(found.questions)
    gain, f1 = found.compare(both, quality), found.compare(both, official_score)
    selection = found.compare(found.answered_by_both(plan.selection), quality)
    tried = found.candidates.tried.values()
    usd = plan.spent(store)
    return {
        "optimizer": plan.options.optimizer,
        "auto": plan.options.auto,
        "reader": plan.models["reader"].name,
        "prompt_model": plan.models["prompt model"].name,
        "judge": plan.models["judge"].name if "judge" in plan.models else None,
        "changed": found.changed,
        "gained": found.changed and gain.low is not None and gain.low > 0,
        "gain": _as_json(gain, *(_mean(_scores(both, side, quality)) for side in (found.before, found.after))),
        "objective": {
            name: _mean([side.scores[q.id] for q in both])
            for name, side in (("before", found.before), ("after", found.after))
        },
        "f1": _as_json(f1, *(_mean(_scores(both, side, official_score)) for side in (found.before, found.after))),
        "gain_on_the_questions_that_chose": selection.difference,
        "by_category": _by_category(both, plan.data.categories, found, quality),
        "candidates": {
            "left": found.num_selectable,
            "tried": len(tried),
            "leaking": sum(bool(candidate.leaks) for candidate in tried),
        },
        "calls": {role: {"calls": bill.calls, "tokens": bill.total_tokens} for role, bill in store.spent.items()},
        "unreported_calls": sum(bill.unreported for bill in store.spent.values()),
        "failed_calls": dict(store.failed_before + store.failed),
        "unreadable_proposals": found.unreadable,
        "failed_scores": found.candidates.imputed,
        "left_out": len(plan.confirmation) - len(both),
        "usd": usd,
        "cost": cost.money(usd, *plan.models.values()),
        "run": str(run),
    }


def report_lines(plan: SearchPlan, found: SearchResult, results: Results, *, out: Path) -> list[str]:
    """Return the report as lines, the conclusion first."""
    both = found.answered_by_both(found.questions)
    gain, f1 = found.compare(both, plan.objective.quality), found.compare(both, official_score)
    objective, candidates = results["objective"], results["candidates"]
    lines = [
        _conclusion(gain, results),
        f"F1 {percent(results['f1']['before'])} -> {percent(results['f1']['after'])}, {_interval(f1)}; "
        f"{gain.wins} questions better, {gain.losses} worse, {gain.ties} equal; objective with the token price "
        f"{percent(objective['before'])} -> {percent(objective['after'])}. All in percent.",
    ]
    if found.changed and results["gain_on_the_questions_that_chose"] is not None:
        lines.append(f"Difference on the selection questions: {_points(results['gain_on_the_questions_that_chose'])}.")
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
        lines.append(f"Written to {out}; use it with python evaluate.py --program {out}.")
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
    reason = "" if gain.low is not None else "; one conversation gives no interval"
    if gain.detectable is not None and gain.detectable < 1:
        reason = f" (the smallest detectable gain is {percent(gain.detectable)} points)"
    elif gain.detectable is not None:
        reason = " (no gain is detectable because the conversations differ too much)"
    return f"No significant gain: quality {change}{reason}; the unoptimized prompt stays."


COLUMNS = ("n", "quality_before", "quality_after", "f1_before", "f1_after", "tokens_before", "tokens_after")


def _by_category(
    questions: Sequence[Question], names: Any, found: SearchResult, quality: Score
) -> dict[str, dict[str, Any]]:
    """COLUMNS by category name, all categories last. Tokens are means per question."""
    groups = {name: [q for q in questions if q.category == key] for key, name in names.items()}
    groups = {name: group for name, group in groups.items() if group} | {"all": list(questions)}
    sides = (found.before, found.after)
    rows = {}
    for name, group in groups.items():
        values = [_mean(_scores(group, side, score)) for score in (quality, official_score) for side in sides]
        values += [_mean([side.replies[q.id].total_tokens for q in group]) for side in sides]
        rows[name] = dict(zip(COLUMNS, (len(group), *values), strict=True))
    return rows


def _scores(questions: Sequence[Question], side: Candidate, score: Score) -> list[float]:
    return [score(q, side.replies[q.id]) for q in questions]


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
