"""Metrics of results.json, computed from the records of a run without calls to models."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from memometer.benchmarks import reward
from memometer.benchmarks.metrics import evidence_recall
from memometer.benchmarks.protocol import FREE, Question
from memometer.judging import sample_scores
from memometer.judging.graders import Grader, grader_of, graders_of, score
from memometer.judging.sample_scores import Pair
from memometer.run.folder import Key, Record, failed, is_answered, latest
from memometer.stats import abstention
from memometer.stats.intervals import (
    bootstrap,
    clustered_mean,
    clustered_ratio,
    design_effect,
    naive,
    paired,
    wilson,
)
from memometer.stats.pairwise import align, conversations

Results = dict[str, Any]


def aggregate(records: Sequence[Record], questions: Iterable[Question], planned: Iterable[Key]) -> dict[str, Results]:
    """Compute the metrics of every system at every budget over the answerable questions.

    A planned question without a result (a model call failed, or it was not asked yet) is missing: it is excluded from
    every mean, and counts in the bounds `_worst` (all missing are wrong) and `_best` (all are right). If the memory
    system failed, the question is `failed` and counts as wrong.

    Args:
        records: All attempts.
        questions: The questions of the data.
        planned: What was planned.

    Returns:
        `<system>.budgets.<budget>` -> metrics as fractions, with `*_interval` ([low, high] at 95 %, clustered by
        conversation, or None), and inside `by_category`, `all_questions`, `by_conversation`, `abstention`, `objective`
        (what optimize.py maximises), `graders` (a `rate` under each grader, also by category) and `gap_closed`.
        `judge` is the first grader, the run's own.
    """
    graders = graders_of(records)
    groups = grouped(records, questions, planned)
    systems: dict[str, Results] = {}
    for (system, budget), pairs in groups.items():
        answerable = [pair for pair in pairs if pair[0].answerable]
        by_category = {
            category: [pair for pair in pairs if pair[0].category == category]
            for category in sorted({question.category for question, _ in pairs})
        }
        worked = [(q, r) for q, r in pairs if r is not None and not failed(r)]
        entry = _metrics(answerable, graders[:1])
        entry["by_category"] = {name: _metrics(of, graders[:1]) for name, of in by_category.items()}
        entry["all_questions"] = _metrics(pairs, graders[:1])
        entry["by_conversation"] = _by_conversation(answerable)
        entry["abstention"] = abstention.metrics(worked)
        entry["objective"] = _objective(worked)
        entry["graders"] = {
            grader.name: {
                **_judged(answerable, grader),
                "by_category": {
                    name: _judged(of, grader)
                    for name, of in by_category.items()
                    if any(question.answerable for question, _ in of)
                },
            }
            for grader in graders
        }
        if graders:
            entry["lexical"] = rate(sample_scores.lexical(answerable), sample_scores.expected(answerable, "judge"))
        entry["gap_closed"] = _gap_closed(system, budget, groups, graders[:1])
        systems.setdefault(system, {"budgets": {}})["budgets"][str(budget)] = entry
    return systems


def _objective(pairs: Sequence[tuple[Question, Record]]) -> Results:
    """The mean reward of answered records with its clustered interval, n, and the price of a thousand tokens.

    Records without token counts, as of imported results, are excluded.
    """
    objective = reward.Objective()
    known = [(q, r) for q, r in pairs if r["recall"]["turn_ids"] is not None and r["prompt_tokens"] is not None]
    done = [(q, r) for q, r in known if is_answered(r) and r["answer"] is not None and r["option_order"] == FREE]
    values = [objective(question, reward.Reply.of_record(record)) for question, record in done]
    found = clustered_ratio(values, [1.0] * len(values), [question.conversation for question, _ in done])
    interval = None if found.low is None else [found.low, found.high]
    return {"mean": found.mean, "interval": interval, "n": found.n, "token_price": objective.token_price}


SystemKey = tuple[str, int]
"""(system, budget in tokens)."""

Groups = dict[SystemKey, list[Pair]]


def grouped(records: Iterable[Record], questions: Iterable[Question], planned: Iterable[Key]) -> Groups:
    """Group the planned questions by system and budget, each with the attempt that counts."""
    by_id = {question.id: question for question in questions}
    counting = latest(records)
    groups: Groups = defaultdict(list)
    for key in planned:
        groups[key[0], key[1]].append((by_id[key[2]], counting.get(key)))
    return dict(groups)


def rate(scores: dict[str, float], expected: Sequence[str]) -> Results:
    """Compute the mean of some scores and its reliability.

    Args:
        scores: Question id -> score in [0, 1].
        expected: Ids of all questions that should have a score.

    Returns:
        `score`, `sum` and `n`; `interval`, clustered by conversation, and its `half_width` before clipping;
        `bootstrap`, from resampled conversations; `naive` and, for scores of 0 and 1, `wilson`, as if questions were
        independent; `design_effect`; `missing`, the expected questions without a score; `worst` and `best`, the score
        if those were all wrong or right. None if undefined.
    """
    values, clusters = list(scores.values()), conversations(scores)
    estimate = clustered_mean(values, clusters)
    missing = len(expected) - len(scores)
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
        "missing": missing,
        "worst": total / len(expected) if expected else None,
        "best": (total + missing) / len(expected) if expected else None,
    }


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)


def _judged(pairs: Sequence[Pair], grader: Grader) -> Results:
    return rate(sample_scores.by_question(pairs, "judge", grader), sample_scores.expected(pairs, "judge"))


def _measured(pairs: Sequence[Pair], measure: str, grader: Grader | None = None) -> Results:
    """`rate` with the name of the measure in front of every key except the score's."""
    found = rate(sample_scores.by_question(pairs, measure, grader), sample_scores.expected(pairs, measure))
    return {measure: found.pop("score"), **{f"{measure}_{name}": value for name, value in found.items()}}


def _metrics(pairs: Sequence[Pair], graders: Sequence[Grader]) -> Results:
    done = [(question, record) for question, record in pairs if record is not None and is_answered(record)]
    worked = [(question, record) for question, record in done if not failed(record)]
    answered = [(question, record) for question, record in worked if record["answer"] is not None]
    has_reader = any(record.get("model") for _, record in done) or bool(answered)
    ids = {question.id for question, _ in pairs}
    metrics: Results = {
        "questions": len(ids),
        "failed": len({question.id for question, record in done if failed(record)}),
        "missing": len(ids - _with_result(done, graders)),
        **_measured(pairs, "evidence_recall"),
        **_all_evidence(pairs),
        **_ranking(done),
        "mean_tokens": _average(record["recall"]["tokens"] for _, record in worked),
        "max_tokens": max((n for _, r in worked if (n := r["recall"]["tokens"]) is not None), default=None),
    }
    metrics["n"] = metrics.pop("evidence_recall_n")
    if has_reader:
        metrics |= {
            **_measured(pairs, "f1"),
            **_measured(pairs, "balanced_f1"),
            "mean_total_tokens": _average(_tokens(r) for _, r in answered),
            "mean_calls": _average(record["calls"] for _, record in answered),
            "mean_seconds": _average(record["seconds"] for _, record in answered),
            "unreported_calls": _sum(record["unreported"] for _, record in answered),
            "truncated": _sum(record["truncated"] for _, record in answered),
        }
        orders = sorted({record["option_order"] for _, record in answered})
        if len(orders) > 1:
            metrics["f1_by_option_order"] = {
                order: _average(q.score(r["answer"], order) for q, r in answered if r["option_order"] == order)
                for order in orders
            }
    if graders and any(sample_scores.applies(question, "judge") for question, _ in done):
        verdicts = [verdict for _, record in answered for verdict in record["verdicts"]]
        metrics |= _measured(pairs, "judge", graders[0])
        metrics["judge_correct"] = metrics.pop("judge_sum")
        metrics["judge_tokens"] = _sum(_tokens(verdict) for verdict in verdicts)
    return metrics


def _with_result(done: Sequence[tuple[Question, Record]], graders: Sequence[Grader]) -> set[str]:
    """The answered questions that also have a label, if there is a judge and a gold answer."""
    judged = sample_scores.by_question(done, "judge", graders[0]) if graders else {}
    return {q.id for q, _ in done if not graders or not sample_scores.applies(q, "judge") or q.id in judged}


def _all_evidence(pairs: Sequence[Pair]) -> Results:
    recalls = sample_scores.by_question(pairs, "evidence_recall")
    complete = {id: float(value == 1.0) for id, value in recalls.items()}
    found = rate(complete, sample_scores.expected(pairs, "evidence_recall"))
    return {"all_evidence": found["score"], "all_evidence_interval": found["interval"], "all_evidence_n": found["n"]}


def _gap_closed(system: str, budget: int, groups: Groups, graders: Sequence[Grader]) -> Results:
    """Measure -> the share of the gap from `none` to `oracle` that a system closes.

    `share` has a clustered interval (`low`, `high`) and is None if the gap is not significantly above zero. The oracle
    is that of the same budget, or of the largest if the system has a budget of its own.
    """
    ceilings = [b for name, b in groups if name == "oracle"]
    if system in ("none", "oracle") or ("none", 0) not in groups or not ceilings:
        return {}
    ceiling = budget if budget in ceilings else max(ceilings)
    found: Results = {}
    for measure, grader in [("f1", None), *(("judge", grader) for grader in graders)]:
        ids, (scores, none, oracle) = align(
            *(
                sample_scores.by_question([p for p in groups[key] if p[0].answerable], measure, grader)
                for key in ((system, budget), ("none", 0), ("oracle", ceiling))
            )
        )
        clusters = conversations(ids)
        gap = paired(oracle, none, clusters)
        if gap.difference is None:
            continue
        closed = clustered_ratio(
            [s - n for s, n in zip(scores, none, strict=True)],
            [o - n for o, n in zip(oracle, none, strict=True)],
            clusters,
        )
        significant = gap.low is not None and gap.low > 0
        found[measure] = {
            "share": closed.mean if significant else None,
            "low": closed.low if significant else None,
            "high": closed.high if significant else None,
            "n": gap.n,
            "gap": {"difference": gap.difference, "low": gap.low, "high": gap.high},
        }
    return found


def _by_conversation(pairs: Sequence[Pair]) -> Results:
    by_id: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_id[pair[0].conversation].append(pair)
    found: Results = {}
    for id, of in by_id.items():
        recalls = sample_scores.by_question(of, "evidence_recall").values()
        found[id] = {
            "evidence_recall": _average(recalls),
            "all_evidence": _average(float(value == 1.0) for value in recalls),
            "n": len(recalls),
        }
    return found


def _ranking(done: Sequence[tuple[Question, Record]]) -> Results:
    """Compute turn recall@10, the mean reciprocal rank of the first evidence turn, and session hit@5.

    Session hit@5 is the share of questions with an evidence session among the five best; None if turn ids name no
    sessions.
    """
    if not any(record["recall"].get("ranked") for _, record in done):
        return {}
    # A system that showed nothing found nothing; a question asked with two option orders is one question.
    ranked = list({q.id: (q, r["recall"].get("ranked", ())) for q, r in done if q.evidence}.values())
    firsts = [next((1 / n for n, id in enumerate(ids, start=1) if id in q.evidence), 0.0) for q, ids in ranked]
    return {
        "recall_at_10": _average(evidence_recall(q.evidence, ids[:10]) or 0.0 for q, ids in ranked),
        "mrr": _average(firsts),
        "session_at_5": _average(_session_hit(q, ids) for q, ids in ranked),
        **_published(ranked),
    }


def _published(ranked: Sequence[tuple[Question, Sequence[str]]]) -> Results:
    """The mean of the metrics that a benchmark publishes for rankings; empty if it has none."""
    values: dict[str, list[float]] = defaultdict(list)
    for question, ids in ranked:
        for name, value in question.ranking_metrics(ids).items():
            values[name].append(value)
    return {"published_ranking": {name: _average(of) for name, of in values.items()}} if values else {}


def _session_hit(question: Question, ranked: Iterable[str], k: int = 5) -> float | None:
    """Return 1.0 if one of the k best sessions has evidence, otherwise 0.0; None if turn ids name no sessions."""
    evidence = {question.session_of(id) for id in question.evidence}
    best = list(dict.fromkeys(question.session_of(id) for id in ranked))[:k]
    return None if None in evidence else float(not evidence.isdisjoint(best))


def ingest_cost(ingests: Iterable[Record]) -> dict[str, Results]:
    """Sum the cost of ingest by system, over all conversations and with repeats after a resume."""
    costs: dict[str, Results] = defaultdict(lambda: {"seconds": 0.0, "calls": 0, "tokens": 0, "unreported": 0})
    for ingest in ingests:
        cost = costs[ingest["system"]]
        cost["seconds"] += ingest["seconds"]
        cost["calls"] += ingest["calls"]
        cost["tokens"] += ingest["prompt_tokens"] + ingest["completion_tokens"]
        cost["unreported"] += ingest["unreported"]
    return dict(costs)


def plug_in_calls(records: Iterable[Record], ingests: Iterable[Record]) -> Results:
    """Sum the model calls that plug-ins made through the metered endpoint.

    Returns:
        System -> stage (ingest or search) -> counts by name, as in `memometer.models.metered_endpoint`.
    """
    found: dict[str, dict[str, Counter[str]]] = {}
    for stage, lines in (("ingest", ingests), ("search", records)):
        for line in lines:
            if outside := line.get("outside"):
                found.setdefault(line["system"], {}).setdefault(stage, Counter()).update(outside)
    return {system: {stage: dict(counts) for stage, counts in stages.items()} for system, stages in found.items()}


def _average(values: Iterable[float | None]) -> float | None:
    """The mean of the known values; imported answers come without counts."""
    listed = [value for value in values if value is not None]
    return sum(listed) / len(listed) if listed else None


def _sum(values: Iterable[int | None]) -> int | None:
    listed = [value for value in values if value is not None]
    return sum(listed) if listed else None


def _tokens(cost: Mapping[str, int | None]) -> int | None:
    prompt, reply = cost["prompt_tokens"], cost["completion_tokens"]
    return None if prompt is None or reply is None else prompt + reply


def current(records: Iterable[Record], planned: Iterable[Key]) -> list[Record]:
    """List the attempt that counts for each planned key that has one; see `latest`."""
    counting = latest(records)
    return [counting[key] for key in planned if key in counting]


def missing_share(records: Iterable[Record], planned: Sequence[Key]) -> float:
    """Compute the share of asked questions whose answer or verdict (the run's own) is missing.

    Questions that were not asked yet, and failures of the memory system, do not count.
    """
    counting = current(records, planned)
    graders = graders_of(counting)[:1]
    missing = sum(
        not is_answered(r) or (any(grader_of(v) in graders for v in r["verdicts"]) and score(r, graders[0]) is None)
        for r in counting
    )
    return missing / len(counting) if counting else 0.0


def failure_reasons(records: Iterable[Record], planned: Iterable[Key]) -> list[str]:
    """List the most common reasons of missing results, with their counts."""
    return _most_common(
        reason
        for record in current(records, planned)
        for reason in [record["error"], *(verdict["reason"] for verdict in record["verdicts"][-1:])]
    )


def memory_failure_reasons(records: Iterable[Record], planned: Iterable[Key]) -> list[str]:
    """List the most common failures of the memory systems, with their counts."""
    return _most_common(f"{r['system']}: {r['memory_error']}" for r in current(records, planned) if failed(r))


def copied_examples(
    records: Iterable[Record], questions: Iterable[Question], planned: Iterable[Key], examples: Iterable[str]
) -> Results:
    """Count the answers that repeat an answer of the prompt's worked examples, although the gold answer differs.

    Args:
        records: All attempts.
        questions: The questions of the data.
        planned: What was planned.
        examples: The answers of the worked examples.

    Returns:
        `answers`, the number of answers that a model gave; `copied`, how many of them repeat an example; `texts`, the
        repeated ones, the most common first.
    """
    gold = {question.id: _plain(question.gold or "") for question in questions}
    known = {_plain(text): text for text in examples}
    given = [record for record in current(records, planned) if record.get("calls") and record["answer"]]
    plain = [(_plain(record["answer"]), gold.get(record["question_id"], "")) for record in given]
    copied = Counter(known[answer] for answer, right in plain if answer in known and answer != right)
    return {"answers": len(given), "copied": copied.total(), "texts": [text for text, _ in copied.most_common()]}


def _plain(text: str) -> str:
    return " ".join(text.casefold().strip(" .\"'").split())


def _most_common(reasons: Iterable[str], *, most: int = 3) -> list[str]:
    return [f"{n} x {reason}" for reason, n in Counter(filter(None, reasons)).most_common(most)]
