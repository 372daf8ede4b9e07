"""What a search was worth, on questions that chose nothing: before and after, paired, and in the first line whether the
answers are better by more than can be told from zero. What they cost in tokens stands beside it: a prompt that is only
cheaper, or dearer, gives no better answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from memometer.benchmarks.protocol import Question
from memometer.benchmarks.reward import Reply
from memometer.models.replay_cache import CallStore
from memometer.optimize.candidates import Candidate, Candidates
from memometer.optimize.program import Asked
from memometer.run import cost
from memometer.stats.intervals import Comparison, paired

Results = dict[str, Any]
Worth = Callable[[Question, Reply], float]


@dataclass(frozen=True)
class Finding:
    """What a search came to: the chosen program (which may be the unoptimised one), both prompts' scores, the questions
    that confirm, how many candidates the choice was among, and how many proposals could not be read."""

    program: Asked
    unoptimised: Asked
    before: Candidate
    after: Candidate
    questions: Sequence[Question]
    chosen_from: int
    unreadable: int
    candidates: Candidates


def report(study: Any, store: CallStore, finding: Finding, *, out: Path, run: Path) -> tuple[Results, list[str]]:
    """(results as JSON, the lines for people, the verdict first)."""
    both = [q for q in finding.questions if q.id in finding.before.scores and q.id in finding.after.scores]
    worth = study.objective.quality
    before, after = (_values(both, side, worth) for side in (finding.before, finding.after))
    gain = _compared(both, before, after)
    f1 = _compared(both, _f1s(both, finding.before), _f1s(both, finding.after))
    changed = finding.after.digest != finding.before.digest
    gained = changed and gain.low is not None and gain.low > 0
    choosing = [q for q in study.choosing if q.id in finding.before.scores and q.id in finding.after.scores]
    when_chosen = _compared(choosing, *(_values(choosing, side, worth) for side in (finding.before, finding.after)))
    results: Results = {
        "optimizer": study.config["optimizer"],
        "auto": study.config["auto"],
        "reader": study.reader.name,
        "prompt_model": study.prompt_model.name,
        "judge": study.models["judge"].name if "judge" in study.models else None,
        "gained": gained,
        "gain": _as_json(gain, _average(before.values()), _average(after.values())),
        "objective": {"before": _mean(both, finding.before), "after": _mean(both, finding.after)},
        "f1": _as_json(f1, *(_average(_f1s(both, side).values()) for side in (finding.before, finding.after))),
        "gain_on_the_questions_that_chose": when_chosen.difference,
        "by_category": {
            row[0]: dict(zip(_COLUMNS, row[1:], strict=True))
            for row in _rows(both, finding, worth, study.data.categories)
        },
        "candidates": {
            "left": finding.chosen_from,
            "tried": len(finding.candidates.tried),
            "leaking": sum(bool(candidate.leaks) for candidate in finding.candidates.tried.values()),
        },
        "calls": {role: {"calls": bill.calls, "tokens": bill.total_tokens} for role, bill in store.spent.items()},
        "unreported_calls": sum(bill.unreported for bill in store.spent.values()),
        "failed_calls": dict(store.failed_before + store.failed),
        "unreadable_proposals": finding.unreadable,
        "failed_scores": finding.candidates.imputed,
        "left_out": len(study.confirming) - len(both),
        "usd": (spent := study.spent(store)),
        "cost": cost.money(spent, *study.models.values()),
        "run": str(run),
    }
    return results, [
        _verdict(gain, changed, gained, results),
        *_told(gain, f1, results, out=out, run=run, gained=gained, changed=changed),
    ]


def _verdict(gain: Comparison, changed: bool, gained: bool, results: Results) -> str:
    on = f"{gain.n} validation questions of {gain.clusters} conversation{'s' if gain.clusters > 1 else ''}"
    if not changed:
        return (
            f"No distinguishable gain: of {results['candidates']['left']} candidates none was better than the "
            f"unoptimised prompt, which stays ({on})."
        )
    moved = f"{results['gain']['before']:.3f} -> {results['gain']['after']:.3f}, {_interval(gain)}, {on}"
    if gained:
        return f"Gain: quality goes {moved}."
    if gain.high is not None and gain.high < 0:
        return f"No gain but a loss: quality goes {moved}; the unoptimised prompt stays."
    why = "" if gain.low is not None else ", and one conversation gives no interval"
    if gain.detectable is not None and gain.detectable < 1:
        why = f" (a gain of {gain.detectable:.2f} could have been told from none)"
    elif gain.detectable is not None:
        why = " (no gain could have been told from none here: the conversations differ too much)"
    return f"No distinguishable gain: quality goes {moved}{why}; the unoptimised prompt stays the default."


def _told(
    gain: Comparison,
    f1: Comparison,
    results: Results,
    *,
    out: Path,
    run: Path,
    gained: bool,
    changed: bool,
) -> list[str]:
    worth = results["objective"]
    lines = [
        f"F1 {results['f1']['before']:.3f} -> {results['f1']['after']:.3f}, {_interval(f1)}; "
        f"{gain.wins} questions better, {gain.losses} worse, {gain.ties} as before; "
        f"objective, its tokens paid for, {worth['before']:.3f} -> {worth['after']:.3f}."
    ]
    if changed and results["gain_on_the_questions_that_chose"] is not None:
        lines.append(f"On the questions that chose it: {results['gain_on_the_questions_that_chose']:+.3f}.")
    lines.append("")
    headers = ("", "n", "quality", "after", "F1", "after", "tokens", "after")
    rows = [(name, *row.values()) for name, row in results["by_category"].items()]
    floats = ("", "", ".3f", ".3f", ".3f", ".3f", ",.0f", ",.0f")
    lines += tabulate(rows, headers, floatfmt=floats, tablefmt="simple").splitlines()
    lines.append("")
    calls = ", ".join(f"{role} {of['calls']:,} calls, {of['tokens']:,} tokens" for role, of in results["calls"].items())
    lines.append(
        f"{results['candidates']['tried']} prompts tried, {results['candidates']['left']} left to choose from; "
        f"{calls}; {results['cost']}."
    )
    if results["unreadable_proposals"]:
        lines.append(f"{results['unreadable_proposals']} proposals of the prompt model could not be read.")
    if leaking := results["candidates"]["leaking"]:
        lines.append(f"Prompts that hold what is sealed, and were not to be chosen: {leaking} (candidates.json).")
    for reason, n in list(results["failed_calls"].items())[:3]:
        lines.append(f"failed, and in no score: {n} x {reason}")
    if results["left_out"]:
        lines.append(f"Of the questions that confirm, {results['left_out']} had no reply, and are in no comparison.")
    if results["failed_scores"]:
        lines.append(
            f"In the search {results['failed_scores']} scores were the unoptimised prompt's, for want of a reply."
        )
    if gained:
        lines.append(f"Written to {out}; python evaluate.py --program {out} reads with it.")
    else:
        lines.append(
            f"Written to {out}: the unoptimised prompt."
            + (f" The best candidate is {run / 'best_candidate.json'}." if changed else "")
        )
    return lines


_COLUMNS = ("n", "quality_before", "quality_after", "f1_before", "f1_after", "tokens_before", "tokens_after")


def _rows(
    questions: Sequence[Question], finding: Finding, worth: Worth, categories: Mapping[str, str]
) -> list[tuple[Any, ...]]:
    """(category's name, _COLUMNS), all categories last; tokens are those of a question."""
    groups = {name: [q for q in questions if q.category == key] for key, name in categories.items()}
    groups = {name: mine for name, mine in groups.items() if mine} | {"all": list(questions)}
    rows = []
    for name, mine in groups.items():
        sides = (finding.before, finding.after)
        figures = [_average(_values(mine, side, worth).values()) for side in sides]
        figures += [_average(_f1s(mine, side).values()) for side in sides]
        figures += [_average(side.replies[q.id].total_tokens for q in mine) for side in sides]
        rows.append((name, len(mine), *figures))
    return rows


def _compared(questions: Sequence[Question], before: dict[str, float], after: dict[str, float]) -> Comparison:
    return paired(
        [after[q.id] for q in questions], [before[q.id] for q in questions], [q.conversation for q in questions]
    )


def _f1s(questions: Sequence[Question], side: Candidate) -> dict[str, float]:
    return {q.id: q.score(side.replies[q.id].answer) for q in questions}


def _values(questions: Sequence[Question], side: Candidate, worth: Worth) -> dict[str, float]:
    return {q.id: worth(q, side.replies[q.id]) for q in questions}


def _mean(questions: Sequence[Question], side: Candidate) -> float:
    return _average([side.scores[q.id] for q in questions])


def _average(values: Any) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0


def _interval(gain: Comparison) -> str:
    if gain.difference is None:
        return "no question to compare"
    if gain.low is None or gain.high is None:
        return f"{gain.difference:+.3f}"
    return f"{gain.difference:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"


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
