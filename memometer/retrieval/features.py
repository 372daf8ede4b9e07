"""The ranking features of turns for a question: one row per turn, one named column per feature.

The signals are BM25 (Robertson and Zaragoza, 2009) over turns, windows and sessions, character n-grams, propagation to
neighbouring turns, pseudo-relevance feedback, and matches of speakers and dates. Scores are normalised over the turns
of the conversation, so that weights learned on one conversation fit another.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np

from memometer.retrieval import dates
from memometer.retrieval.bm25 import K1, idf, saturation
from memometer.retrieval.speakers import asked_about
from memometer.retrieval.tokenize import STOP_WORDS, char_ngrams, stem, terms, words_of
from memometer.retrieval.turn_arrays import TurnArrays, turn_arrays
from memometer.retrieval.turn_index import SHAPE, Postings, TurnIndex

Floats = np.ndarray[Any, np.dtype[np.float32]]

POOL = 2048
"""Maximum number of turns with features. In a longer history, the others rank lower, by their first score."""

LAST_RANK = float(np.log1p(500))
"""Ranks from here on are equal, so that long histories are not outside the range of the training data."""

LONG_TERMS = 60
"""A turn with more terms is long."""

SHAPE_LIMITS = {
    "ends_in_question": 1.0,
    "holds_question": 1.0,
    "image": 1.0,
    "numbers": 3.0,
    "log_words": float(np.log(60)),
    "dates": 2.0,
    "names": 5.0,
    "self": 3.0,
    "you": 3.0,
    "exclaims": 2.0,
}
"""Largest value of each surface feature; a long text has no more of it than a long message."""

KINDS = {name: re.compile(pattern) for name, pattern in {
    "when": r"^when\b|what (?:date|day|month|year)|which (?:month|year|date)",
    "how_long": r"how long",
    "how_many": r"how (?:many|much|often)",
    "who": r"\bwho\b|whose",
    "where": r"\bwhere\b|(?:what|which) (?:country|city|place|state)",
    "why": r"\bwhy\b|reason",
    "would": r"\bwould\b|likely|might|could",
    "yes_no": r"^(?:is|are|was|were|does|do|did|has|have|can)\b",
    "list": r"what (?:\w+ ){0,3}\w+s (?:has|have|does|do|did|are|were)\b|activities|hobbies|which \w+s\b",
    "kind": r"what (?:kind|type)",
    "feeling": r"\bfeel|\bthink|describe|reaction|motivat",
    "picture": r"photo|picture|image|painting|poster|sign",
    "plan": r"plan|going to|will|upcoming|next|goal|future",
    "first": r"\bfirst\b|origin|start",
    "recent": r"recent|last|latest|new|current",
}.items()}  # fmt: skip
"""Types of questions, recognised by their words."""


@dataclass(frozen=True)
class Features:
    """The features of one question.

    Attributes:
        names: the features, in order.
        positions: the turns that have features, ascending, shape (n,).
        matrix: their features, shape (n, len(names)).
        first: the untrained score of every turn, shape (turns,).
    """

    names: tuple[str, ...]
    positions: np.ndarray
    matrix: Floats
    first: Floats


class Question:
    """A question analysed against one index: its terms, the speakers and dates that it mentions, and its types."""

    def __init__(self, index: TurnIndex, text: str) -> None:
        lowered = text.lower()
        self.terms = terms(text)
        self.named, spelt = asked_about(text, index.speakers, index.addressed, index.numbers, index.roles)
        """The speakers that the question is about, as positions in `index.speakers`."""
        names = {term for name in spelt for term in terms(name)}
        self.content = sorted({term for term in self.terms if term not in names})
        """The terms without names, sorted, so that sums do not depend on the order of a set."""
        self.words = [word for word in words_of(text) if word not in STOP_WORDS and stem(word) not in names]
        # A question has no date of its own, so only absolute dates are used, and any reference day will do.
        newest = date.fromordinal(index.days[-1]) if index.days else date(2000, 1, 1)
        self.dates = [when for when in dates.find(text, newest) if not when.relative]
        self.kinds = {name: float(bool(pattern.search(lowered))) for name, pattern in KINDS.items()}


def _z(values: np.ndarray) -> np.ndarray:
    spread = values.std()
    return (values - values.mean()) / spread if spread > 1e-9 else np.zeros_like(values)


def _bounded(z: np.ndarray, limit: float = 6.0) -> np.ndarray:
    """Compress standardised values smoothly into (-limit, limit)."""
    return z / (1 + np.abs(z) / limit)


_NO_POSTINGS = Postings()


def bm25(index: TurnIndex, query: list[str], lengths: np.ndarray) -> np.ndarray:
    """Return the BM25 score of every turn for the distinct query terms, shape (turns,)."""
    n = len(index)
    scores = np.zeros(n, np.float32)
    mean = float(lengths.mean()) or 1.0 if n else 1.0
    for term in sorted(set(query)):
        found = index.postings.get(term, _NO_POSTINGS)
        at = np.array(found.positions, np.int64)
        tf = np.array(found.counts, np.float32)
        scores[at] += idf(n, len(at)) * saturation(tf, lengths[at], mean)
    return scores


def _lexical(index: TurnIndex, turns: TurnArrays, query: list[str]) -> dict[str, np.ndarray]:
    """Return BM25 over turns, windows and sessions, and the share of the question that each turn covers."""
    n, sessions = turns.n, len(turns.starts)
    names = ("turn", "window", "wide", "covered", "window_covered", "matches", "rarest")
    out = {name: np.zeros(n, np.float32) for name in names}
    session, burst = np.zeros(sessions, np.float32), np.zeros(len(turns.burst_starts), np.float32)
    burst_lengths, session_lengths = turns.burst_lengths, turns.session_lengths
    burst_mean = float(burst_lengths.mean()) or 1.0
    window_lengths, wide_lengths = turns.window_lengths, turns.wide_lengths
    means = [float(x.mean()) or 1.0 for x in (turns.lengths, window_lengths, session_lengths, wide_lengths)]
    weights: list[tuple[int, float]] = []
    total = highest = 0.0
    for term in query:
        found = index.postings.get(term, _NO_POSTINGS)
        at = np.array(found.positions, np.int64)
        weight = idf(n, len(at))
        total += weight
        if not len(at):
            continue
        highest = max(highest, weight)
        tf = np.zeros(n, np.float32)
        tf[at] = np.array(found.counts, np.float32)
        near = turns.window(tf)
        wide = near + sum(turns.shift(tf, d) for d in (2, -2, 3, -3))
        in_window, in_wide = np.flatnonzero(near), np.flatnonzero(wide)
        by_session = np.bincount(turns.session[at], weights=tf[at], minlength=sessions).astype(np.float32)
        out["turn"][at] += weight * saturation(tf[at], turns.lengths[at], means[0])
        for name, held, counts, lengths, mean in (
            ("window", in_window, near, window_lengths, means[1]),
            ("wide", in_wide, wide, wide_lengths, means[3]),
        ):
            out[name][held] += idf(n, len(held)) * saturation(counts[held], lengths[held], mean)
        by_burst = np.bincount(turns.burst[at], weights=tf[at], minlength=len(burst)).astype(np.float32)
        burst += idf(len(burst), int(np.count_nonzero(by_burst))) * saturation(by_burst, burst_lengths, burst_mean)
        weights.append((index.numbers[term], weight))
        session += idf(sessions, int(np.count_nonzero(by_session))) * saturation(by_session, session_lengths, means[2])
        out["covered"][at] += weight
        out["window_covered"][in_window] += weight
        out["matches"][at] += 1
        out["rarest"][at] = np.maximum(out["rarest"][at], weight)
    out["covered"] /= total or 1.0
    out["window_covered"] /= total or 1.0
    out["matches"] /= max(1, len(query))
    out["rarest"] /= highest or 1.0
    out["session"], out["burst"] = session, burst[turns.burst]
    if len(turns.passages.turn):
        np.maximum.at(out["turn"], turns.passages.turn, turns.passages.bm25(weights, means[0]))
    return out


def _dates(turns: TurnArrays, question: Question) -> tuple[np.ndarray, np.ndarray]:
    """Return how close each turn's day is to a date in the question (0 to 2), and 1 for turns that mention it."""
    close = np.zeros(turns.n, np.float32)
    meant = np.zeros(turns.n, np.float32)
    for when in question.dates:
        first, last = when.start.toordinal(), when.end.toordinal()
        within = (turns.days >= first) & (turns.days <= last)
        after = turns.days - last
        if when.precision == "day":
            month, next_month = _month_of(when.start)
            score = np.select(
                [np.abs(turns.days - first) <= 1, (after > 0) & (after <= 10),
                 (turns.days >= month) & (turns.days < next_month)], [2.0, 1.2, 0.5], 0.0,
            )  # fmt: skip
        else:
            late = 31 if when.precision == "month" else 366
            score = np.select([within, (after > 0) & (after <= late)], [1.0, 0.3], 0.0)
        close = np.maximum(close, score.astype(np.float32))
        meant[turns.when_turn[(turns.when_start <= last) & (turns.when_end >= first)]] = 1.0
    return close, meant


def _month_of(day: date) -> tuple[int, int]:
    """Return the ordinals of the first day of this month and of the next."""
    following = date(day.year + day.month // 12, day.month % 12 + 1, 1)
    return day.replace(day=1).toordinal(), following.toordinal()


def features(index: TurnIndex, text: str, similarities: Mapping[str, np.ndarray] | None = None) -> Features:
    """Return the features of the turns of a non-empty index for one question.

    Args:
        index: the turns.
        text: the question.
        similarities: further scores from an encoder by name, each of shape (turns,). They are used like the lexical
            score.
    """
    turns = turn_arrays(index)
    question = Question(index, text)
    lexical = _lexical(index, turns, question.content)
    letters = bm25(index, char_ngrams(" ".join(question.words)), turns.gram_lengths)
    scores = {"lexical": lexical["turn"], "letters": letters, **(similarities or {})}
    date_match, date_meant = _dates(turns, question)
    speaker = np.full(turns.n, 0.5, np.float32)
    if len(question.named) == 1:
        speaker = (turns.speaker == question.named[0]).astype(np.float32)
    session_score = _z(lexical["session"])[turns.session]
    window = _z(lexical["window"])
    z = {name: _z(values) for name, values in scores.items()}
    timely = question.kinds["when"] or question.kinds["how_long"]

    # The untrained score. Similarities get more weight than words, and need less propagation from neighbours.
    relevance = 0.7 * z["lexical"] + 0.3 * z["letters"]
    near, far = 0.45, 0.2
    if similarities:
        relevance = 0.3 * relevance + 0.7 * sum(z[name] for name in similarities) / len(similarities)
        near, far = 0.15, 0.2
    first = turns.spread(relevance, near, far) + 0.35 * session_score + 2 * date_match + 0.8 * speaker + 0.3 * window
    if timely:
        first = first + 0.2 * np.minimum(turns.shape[:, SHAPE.index("dates")], 3)

    pool = np.arange(turns.n)
    if turns.n > POOL:
        pool = np.sort(np.argpartition(-first, POOL)[:POOL])
    columns: dict[str, np.ndarray] = {}
    for name, values in scores.items():
        bounded = _bounded(z[name])
        columns[name] = bounded[pool]
        columns[f"{name} of the best"] = values[pool] / (float(values.max()) or 1.0)
        columns[f"{name} rank"] = _log_rank(z[name][pool])
        for distance in (1, -1, 2, -2):
            columns[f"{name} {distance:+d}"] = turns.shift(bounded, -distance)[pool]
        for place, best in zip(("in burst", "before", "after"), turns.bursts(bounded), strict=True):
            columns[f"{name} {place}"] = best[pool]
        best = turns.best_of_session(bounded)
        columns[f"{name} session best"] = best[turns.session][pool]
        columns[f"{name} session rank"] = _log_rank(best)[turns.session][pool]
    columns["first"] = _bounded(_z(first))[pool]
    columns["first rank"] = _log_rank(first[pool])
    columns["session"] = _bounded(session_score)[pool]
    columns["window"] = _bounded(window)[pool]
    columns["wide window"] = _bounded(_z(lexical["wide"]))[pool]
    columns["burst"] = _bounded(_z(lexical["burst"]))[pool]
    columns["echo"] = _bounded(_z(_pseudo_relevance_feedback(index, first, question.content)))[pool]
    columns["content"] = np.minimum(turns.information(pool), 6)
    columns["pairs"] = _bounded(_z(_pairs(index, turns, question.terms)))[pool]
    for name in ("covered", "window_covered", "matches", "rarest"):
        columns[name] = lexical[name][pool]
    columns["speaker"] = speaker[pool]
    columns["date"] = date_match[pool]
    columns["date meant"] = date_meant[pool]
    for n, name in enumerate(SHAPE):
        columns[name] = np.minimum(turns.shape[pool, n], SHAPE_LIMITS[name])
    asks = turns.shape[:, SHAPE.index("holds_question")]
    columns["question before"] = turns.bursts(asks)[1][pool]
    columns["matching question before"] = turns.bursts(asks * _bounded(z["lexical"]))[1][pool]
    columns["dates if when"] = columns["dates"] * float(bool(timely))
    columns["numbers if how many"] = columns["numbers"] * question.kinds["how_many"]
    columns["image if picture"] = columns["image"] * question.kinds["picture"]
    columns["names if who or where"] = columns["names"] * max(question.kinds["who"], question.kinds["where"])
    long = turns.lengths > LONG_TERMS
    constants = {
        **{f"asks {name}": value for name, value in question.kinds.items()},
        "asks about one": float(len(question.named) == 1),
        "asks about two": float(len(question.named) > 1),
        "gives a date": float(bool(question.dates)),
        "terms": min(len(question.content), 10) / 5,
        "share in long turns": float(turns.lengths[long].sum() / max(1.0, float(turns.lengths.sum()))),
        "share in bursts": 1 - len(turns.burst_starts) / turns.n,
    }
    for name, value in constants.items():
        columns[name] = np.full(len(pool), value, np.float32)
    matrix = np.stack(list(columns.values()), axis=1).astype(np.float32)
    return Features(tuple(columns), pool, matrix, first.astype(np.float32))


def _pseudo_relevance_feedback(
    index: TurnIndex, first: np.ndarray, query: list[str], *, top: int = 8, max_terms: int = 15
) -> np.ndarray:
    """Return BM25 of every turn for the terms that the best turns share and the question lacks, shape (turns,)."""
    n = len(index)
    weights: dict[str, float] = {}
    best = np.argsort(-first, kind="stable")[:top] if n <= POOL else _top(first, top)
    for rank, position in enumerate(best.tolist()):
        start = index.ends[position - 1] if position else 0
        for number in dict.fromkeys(index.sequence[start : index.ends[position]]):
            term = index.vocabulary[number]
            weights[term] = weights.get(term, 0.0) + idf(n, len(index.postings[term].positions)) / (rank + 2)
    for term in query:
        weights.pop(term, None)
    chosen = sorted(weights, key=lambda term: -weights[term])[:max_terms]
    scores = np.zeros(n, np.float32)
    for term in chosen:
        found = index.postings[term]
        at, tf = np.array(found.positions, np.int64), np.array(found.counts, np.float32)
        scores[at] += weights[term] / weights[chosen[0]] * idf(n, len(at)) * tf * (K1 + 1) / (tf + K1)
    return scores


def _top(values: np.ndarray, n: int) -> np.ndarray:
    best = np.sort(np.argpartition(-values, n)[:n])
    return best[np.argsort(-values[best], kind="stable")]


def _pairs(index: TurnIndex, turns: TurnArrays, query: list[str]) -> np.ndarray:
    """Return BM25 of every turn for the question's pairs of neighbouring terms, shape (turns,)."""
    scores = np.zeros(turns.n, np.float32)
    sequence, ends = turns.sequence, turns.ends
    mean = float(turns.lengths.mean()) or 1.0
    for first, second in sorted(set(itertools.pairwise(query))):
        if first not in index.numbers or second not in index.numbers:
            continue
        follows = np.flatnonzero((sequence[:-1] == index.numbers[first]) & (sequence[1:] == index.numbers[second]))
        at = np.searchsorted(ends, follows, side="right")
        at = at[ends[at] > follows + 1]  # exclude pairs across two turns
        held, counts = np.unique(at, return_counts=True)
        lengths = turns.lengths[held]
        scores[held] += idf(turns.n, len(held)) * saturation(counts.astype(np.float32), lengths, mean)
    return scores


def _log_rank(values: np.ndarray) -> np.ndarray:
    rank = np.empty(len(values), np.float32)
    rank[np.argsort(-values, kind="stable")] = np.arange(len(values), dtype=np.float32)
    return np.minimum(np.log1p(rank), LAST_RANK)
