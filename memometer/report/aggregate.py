"""From a run folder to numbers: results.json. Calls no model and may be run again at any time."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from memometer.benchmarks import reward
from memometer.benchmarks.metrics import evidence_recall
from memometer.benchmarks.protocol import FREE, Question
from memometer.judging.graders import Grading, grading_of, gradings, score
from memometer.run.folder import Key, Record, failed, is_answered, latest
from memometer.stats import abstention, sample_scores
from memometer.stats.intervals import (
    FEW_CLUSTERS,
    bootstrap,
    clustered_mean,
    clustered_ratio,
    design_effect,
    least_p,
    naive,
    paired,
    wilson,
)
from memometer.stats.pairwise import Entrant, corrected, versus
from memometer.stats.sample_scores import Pair
from memometer.systems import BASELINES

Results = dict[str, Any]


def results(records: Sequence[Record], questions: Iterable[Question], planned: Iterable[Key]) -> dict[str, Results]:
    """systems.<name>.budgets.<tokens> -> figures over answerable questions, with `by_category`, `all_questions`,
    `abstention`, `objective` (what optimize.py maximises), `gradings` (a `rate` under each way of grading, also by
    category) and `gap_closed` inside.

    A question that was planned and has no result (a model's call failed, or it was not yet asked) is ungraded: it is
    counted, and in no mean, but in `_worst` (all of them wrong) and `_best` (all of them right). One where the memory
    failed is `failed`, and wrong. Fractions lie in [0, 1]; `*_interval` is [low, high] at 95 %, clustered by
    conversation, or null. `judge` is the first grading, the run's own.
    """
    under = gradings(records)
    groups = grouped(records, questions, planned)
    systems: dict[str, Results] = {}
    for (system, budget), pairs in groups.items():
        answerable = [pair for pair in pairs if pair[0].answerable]
        by_category = {
            category: of_category
            for category in sorted({question.category for question, _ in pairs})
            if (of_category := [pair for pair in pairs if pair[0].category == category])
        }
        entry = _figures(answerable, under[:1])
        entry["by_category"] = {name: _figures(mine, under[:1]) for name, mine in by_category.items()}
        entry["all_questions"] = _figures(pairs, under[:1])
        entry["by_conversation"] = _conversations(answerable)
        entry["abstention"] = abstention.figures([(q, r) for q, r in pairs if r is not None and not failed(r)])
        entry["objective"] = _objective([(q, r) for q, r in pairs if r is not None and not failed(r)])
        entry["gradings"] = {
            grading.name: {
                **_graded(answerable, grading),
                "by_category": {
                    name: _graded(of, grading)
                    for name, of in by_category.items()
                    if any(question.answerable for question, _ in of)
                },
            }
            for grading in under
        }
        entry["gap_closed"] = _gap_closed(system, budget, groups, under[:1])
        systems.setdefault(system, {"budgets": {}})["budgets"][str(budget)] = entry
    return systems


Place = tuple[str, int]
"""A system and its budget in tokens."""

Groups = dict[Place, list[Pair]]


def grouped(records: Iterable[Record], questions: Iterable[Question], planned: Iterable[Key]) -> Groups:
    """(system, budget) -> its planned questions, each with the attempt that counts."""
    asked = {question.id: question for question in questions}
    found = latest(records)
    groups: Groups = defaultdict(list)
    for k in planned:
        groups[k[0], k[1]].append((asked[k[2]], found.get(k)))
    return dict(groups)


def rate(found: dict[str, float], asked: Sequence[str]) -> Results:
    """What the mean of some questions' scores is worth.

    `score`, `sum` and `n` over the questions that have one; `interval` clustered by conversation, with the `half_width`
    that it has before it is cut to [0, 1]; `bootstrap` the same by resampling conversations; `naive` and (for scores of
    0 and 1) `wilson` as if questions were independent, `design_effect` how far they are not; of `asked` how many are
    `ungraded`, and the score if those were all wrong (`worst`) or right (`best`). Null where there is none.
    """
    values, clusters = list(found.values()), sample_scores.conversations(found)
    estimate = clustered_mean(values, clusters)
    ungraded = len(asked) - len(found)
    total = sum(values)
    binary = set(values) <= {0.0, 1.0}
    return {
        "score": estimate.mean,
        "interval": None if estimate.low is None else [estimate.low, estimate.high],
        "half_width": estimate.half_width,
        "bootstrap": _listed(bootstrap(values, clusters)),
        "naive": _listed(naive(values)),
        "wilson": _listed(wilson(estimate.mean, estimate.n)) if binary and estimate.mean is not None else None,
        "design_effect": design_effect(values, estimate),
        "sum": total,
        "n": estimate.n,
        "ungraded": ungraded,
        "worst": total / len(asked) if asked else None,
        "best": (total + ungraded) / len(asked) if asked else None,
    }


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)


def _graded(pairs: Sequence[Pair], grading: Grading) -> Results:
    return rate(sample_scores.by_question(pairs, "judge", grading), sample_scores.asked(pairs, "judge"))


def _measured(pairs: Sequence[Pair], measure: str, grading: Grading | None = None) -> Results:
    """`rate`, every key but the score's own after the measure's name."""
    found = rate(sample_scores.by_question(pairs, measure, grading), sample_scores.asked(pairs, measure))
    return {measure: found.pop("score"), **{f"{measure}_{name}": value for name, value in found.items()}}


def _figures(pairs: Sequence[Pair], under: Sequence[Grading]) -> Results:
    done = [(question, record) for question, record in pairs if record is not None and is_answered(record)]
    shown = [(question, record) for question, record in done if not failed(record)]
    answered = [(question, record) for question, record in shown if record["answer"] is not None]
    read = any(record.get("model") for _, record in done) or bool(answered)
    asked = {question.id for question, _ in pairs}
    figures: Results = {
        "questions": len(asked),
        "failed": len({question.id for question, record in done if failed(record)}),
        "ungraded": len(asked - _graded_ids(done, under)),
        **_measured(pairs, "evidence_recall"),
        **_all_evidence(pairs),
        **_ranking(done),
        "mean_tokens": _average(record["recall"]["tokens"] for _, record in shown),
        "max_tokens": max((n for _, r in shown if (n := r["recall"]["tokens"]) is not None), default=None),
    }
    figures["n"] = figures.pop("evidence_recall_n")
    if read:
        figures |= {
            **_measured(pairs, "f1"),
            "mean_total_tokens": _average(_tokens(r) for _, r in answered),
            "mean_calls": _average(record["calls"] for _, record in answered),
            "mean_seconds": _average(record["seconds"] for _, record in answered),
            "unreported_calls": _sum(record["unreported"] for _, record in answered),
            "truncated": _sum(record["truncated"] for _, record in answered),
        }
        forms = sorted({record["form"] for _, record in answered})
        if len(forms) > 1:
            figures["f1_by_form"] = {
                form: _average(q.score(r["answer"], form) for q, r in answered if r["form"] == form) for form in forms
            }
    if under and any(sample_scores.applies(question, "judge") for question, _ in done):
        verdicts = [verdict for _, record in answered for verdict in record["verdicts"]]
        figures |= _measured(pairs, "judge", under[0])
        figures["judge_correct"] = figures.pop("judge_sum")
        figures["judge_tokens"] = _sum(_tokens(verdict) for verdict in verdicts)
    return figures


def _graded_ids(done: Sequence[tuple[Question, Record]], under: Sequence[Grading]) -> set[str]:
    """The questions with a result: answered, and where there is a judge and a gold answer, with a label."""
    judged = sample_scores.by_question(done, "judge", under[0]) if under else {}
    return {q.id for q, _ in done if not under or not sample_scores.applies(q, "judge") or q.id in judged}


def _objective(pairs: Sequence[tuple[Question, Record]]) -> Results:
    """The mean reward of answered records with its interval clustered by conversation (null for one conversation), n
    and the price of a thousand tokens. Records without token counts, as of imported results, are excluded."""
    objective = reward.Objective()
    known = [(q, r) for q, r in pairs if r["recall"]["turn_ids"] is not None and r["prompt_tokens"] is not None]
    done = [(q, r) for q, r in known if is_answered(r) and r["answer"] is not None and r["form"] == FREE]
    values = [objective(question, reward.Reply.of_record(record)) for question, record in done]
    found = clustered_ratio(values, [1.0] * len(values), [question.conversation for question, _ in done])
    interval = None if found.low is None else [found.low, found.high]
    return {"mean": found.mean, "interval": interval, "n": found.n, "token_price": objective.token_price}


def _all_evidence(pairs: Sequence[Pair]) -> Results:
    recalls = sample_scores.by_question(pairs, "evidence_recall")
    found = rate(
        {id: float(value == 1.0) for id, value in recalls.items()}, sample_scores.asked(pairs, "evidence_recall")
    )
    return {"all_evidence": found["score"], "all_evidence_interval": found["interval"], "all_evidence_n": found["n"]}


def _gap_closed(system: str, budget: int, groups: Groups, under: Sequence[Grading]) -> Results:
    """measure -> how much of the way from `none` to `oracle` a system comes, over answerable questions: `share` with
    `low` and `high` (clustered, of the ratio), and the `gap` itself. `share` is null where the gap is not
    distinguishable from zero: a reader that evidence does not help measures no memory. The oracle is the one of the
    same budget, or of the largest where a system has a budget of its own."""
    ceilings = [b for name, b in groups if name == "oracle"]
    if system in ("none", "oracle") or ("none", 0) not in groups or not ceilings:
        return {}
    ceiling = budget if budget in ceilings else max(ceilings)
    found: Results = {}
    for measure, grading in [("f1", None), *(("judge", grading) for grading in under)]:
        ids, (mine, none, oracle) = sample_scores.align(
            *(
                sample_scores.by_question([p for p in groups[k] if p[0].answerable], measure, grading)
                for k in ((system, budget), ("none", 0), ("oracle", ceiling))
            )
        )
        clusters = sample_scores.conversations(ids)
        gap = paired(oracle, none, clusters)
        if gap.difference is None:
            continue
        closed = clustered_ratio(
            [m - n for m, n in zip(mine, none, strict=True)],
            [o - n for o, n in zip(oracle, none, strict=True)],
            clusters,
        )
        certain = gap.low is not None and gap.low > 0
        found[measure] = {
            "share": closed.mean if certain else None,
            "low": closed.low if certain else None,
            "high": closed.high if certain else None,
            "n": gap.n,
            "gap": {"difference": gap.difference, "low": gap.low, "high": gap.high},
        }
    return found


def compared(records: Sequence[Record], questions: Iterable[Question], planned: Iterable[Key]) -> list[Results]:
    """The paired comparisons that a table needs beside it, over answerable questions, by every measure and grading that
    the run has: of all systems at the same budget (`level`) with each other, and with the better of the controls that
    know nothing. Holm's correction is over one measure at one budget. See `memometer.stats.pairwise` for the other
    keys."""
    groups = grouped(records, questions, planned)
    pairs = {key: [pair for pair in of if pair[0].answerable] for key, of in groups.items()}
    found: list[Results] = []
    for measure, grading in [("judge", g) for g in gradings(records)] + [("f1", None), ("evidence_recall", None)]:
        entrants = {
            key: Entrant(*key, mine)
            for key, of in pairs.items()
            if (mine := sample_scores.by_question(of, measure, grading))
        }
        for level, matches in _matches(entrants, floor=measure != "evidence_recall").items():
            family = [versus(entrants[a], entrants[b], measure, grading=grading) for a, b in matches]
            found += [{**comparison, "level": level} for comparison in corrected(family)]
    return found


def _matches(entrants: dict[Place, Entrant], *, floor: bool) -> dict[int, list[tuple[Place, Place]]]:
    """Budget -> who is compared. A system with one budget of its own (full context) meets the others at theirs."""
    systems: dict[str, list[int]] = defaultdict(list)
    for system, budget in entrants:
        systems[system].append(budget)
    controls = {name: systems.pop(name) for name in BASELINES if name in systems}
    levels = controls.get("oracle") or sorted({budget for budgets in systems.values() for budget in budgets})
    floors = [entrants[name, 0] for name in ("none", "refusal") if floor and (name, 0) in entrants]
    lowest = [max(floors, key=lambda entrant: entrant.mean)] if floors else []
    matches: dict[int, list[tuple[Place, Place]]] = {}
    for level in levels:
        here = [
            (system, level if level in budgets else budgets[0])
            for system, budgets in systems.items()
            if level in budgets or len(budgets) == 1
        ]
        matches[level] = list(combinations(here, 2)) + [(a, (b.system, b.budget)) for a in here for b in lowest]
    return matches


def cautions(asked: Sequence[Question], everything: Sequence[Question], found: Sequence[Results]) -> list[str]:
    """What a reader of the figures has to know first, a sentence each."""
    told = []
    clusters = len({question.conversation for question in asked})
    if clusters <= FEW_CLUSTERS:
        told.append(few_clusters(clusters, max((c["family"] for c in found), default=0)))
    for name, counted in (("answerable questions", True), ("questions", False)):
        n, full = (sum(question.answerable or not counted for question in of) for of in (asked, everything))
        if n < full:
            told.append(f"A subset: {n:,} of {full:,} {name}.")
    return told


def few_clusters(clusters: int, family: int = 0) -> str:
    """The warning where intervals rest on few conversations. `family`: how many comparisons are corrected together."""
    if clusters < 2:
        return "One conversation: no interval and no test can say what another one would score."
    least = least_p(clusters)
    told = f"{clusters} conversations are few: intervals rest on t with {clusters - 1} degrees of freedom"
    if least > 0.05:
        return f"{told}, and no sign-flip p can be below {least:.3g}, whatever the difference."
    if family * least > 0.05:
        return f"{told}, and no p of {family} sign-flip tests can be below {min(1.0, family * least):.2f} after Holm."
    return f"{told}, and no sign-flip p can be below {least:.3g}."


def _conversations(pairs: Sequence[Pair]) -> Results:
    by_id: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_id[pair[0].conversation].append(pair)
    found: Results = {}
    for id, mine in by_id.items():
        recalls = sample_scores.by_question(mine, "evidence_recall").values()
        found[id] = {
            "evidence_recall": _average(recalls),
            "all_evidence": _average(float(value == 1.0) for value in recalls),
            "n": len(recalls),
        }
    return found


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


def _average(values: Iterable[float | None]) -> float | None:
    """Over what is known, as in `_sum`: answers that others published come without counts."""
    listed = [value for value in values if value is not None]
    return sum(listed) / len(listed) if listed else None


def _sum(values: Iterable[int | None]) -> int | None:
    listed = [value for value in values if value is not None]
    return sum(listed) if listed else None


def _tokens(cost: Mapping[str, int | None]) -> int | None:
    prompt, reply = cost["prompt_tokens"], cost["completion_tokens"]
    return None if prompt is None or reply is None else prompt + reply


def current(records: Iterable[Record], planned: Iterable[Key]) -> list[Record]:
    """The records that count, of what was planned."""
    found = latest(records)
    return [found[k] for k in planned if k in found]


def ungraded_share(records: Iterable[Record], planned: Sequence[Key]) -> float:
    """The share of planned questions whose answer or verdict (the run's own) failed; questions not yet asked, and what
    failed in the memory itself, do not count here."""
    mine = current(records, planned)
    under = gradings(mine)[:1]
    bad = sum(
        not is_answered(r) or (any(grading_of(v) in under for v in r["verdicts"]) and score(r, under[0]) is None)
        for r in mine
    )
    return bad / len(mine) if mine else 0.0


def failures(records: Iterable[Record], planned: Iterable[Key]) -> list[str]:
    """The commonest reasons of what stayed ungraded, with their counts."""
    return _commonest(
        reason
        for record in current(records, planned)
        for reason in [record["error"], *(verdict["reason"] for verdict in record["verdicts"][-1:])]
    )


def memory_failures(records: Iterable[Record], planned: Iterable[Key]) -> list[str]:
    """The commonest failures of the memories themselves, with their counts."""
    return _commonest(f"{r['system']}: {r['memory_error']}" for r in current(records, planned) if failed(r))


def _commonest(reasons: Iterable[str], *, most: int = 3) -> list[str]:
    return [f"{n} x {reason}" for reason, n in Counter(filter(None, reasons)).most_common(most)]
