"""Fitting the map of late interaction to evidence labels, in NumPy, in seconds.

The turns of a conversation compete for each of its questions: the loss of an evidence turn is -log of its share against
all turns that are no evidence, so that several evidence turns do not compete with each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from memometer.retrieval.blas_threads import one_thread
from memometer.retrieval.late_interaction import Floats, TokenMap, sigmoid, softplus
from memometer.retrieval.optimizer import Adam, Weights

RATES = {"tokens": 1.0, "pooled": 0.3, "asked": 3.0, "said": 3.0, "scales": 3.0}
"""Of the learning rate: what is few numbers, or starts where it need not go far."""

SAID = 3.0  # where the turn tokens' weights start: sigmoid(3) = 0.95
SCALES = (3.0, 2.0)


@dataclass(frozen=True)
class Lesson:
    """A conversation to learn from.

    `turns` and `questions` are what `TokenEncoder.tokens` gives of them, as (token vectors, pooled vector); `evidence`
    the positions (0-based) of each question's evidence turns. A question without evidence teaches nothing.
    """

    turns: Sequence[tuple[Floats, Floats]]
    questions: Sequence[tuple[Floats, Floats]]
    evidence: Sequence[Sequence[int]]


def fit(
    lessons: Sequence[Lesson],
    *,
    width: int = 128,
    epochs: int = 4,
    batch: int = 32,
    turns: int = 160,
    rate: float = 2e-3,
    seed: int = 0,
) -> TokenMap:
    """A map from conversations with at least one question with evidence; the same for the same seed and machine.

    It holds all token vectors in memory, in float16: about 45 MB a conversation of LOCOMO. Four of them take 10 s.

    Args:
        width: of the mapped token vectors; their first directions are those in which the turns' tokens differ most.
        batch: questions of one conversation in each step.
        turns: that compete in a step, besides the evidence: at most so many, half of them near a question by the
            untrained pooled vectors, half random.
        rate: the highest learning rate of Adam, reached after a tenth of the steps and lowered to zero by cosine.
    """
    fields = [_Field(lesson) for lesson in lessons]
    rng = np.random.default_rng(seed)
    with one_thread():
        weights = _start(fields, width)
        steps = epochs * sum(-(-len(field.labelled) // batch) for field in fields)
        adam = Adam(weights, steps=steps, highest=rate, rates=RATES, longest=1.0)
        for _ in range(epochs):
            for field, questions in _batches(fields, batch, rng):
                _, gradients = loss(weights, field.draw(questions, turns, rng))
                adam.step(gradients)
    w = weights
    return TokenMap(w["tokens"], w["pooled"], w["asked"], w["said"], w["scales"])


def _start(fields: Sequence[_Field], width: int) -> Weights:
    sample = np.concatenate([field.turns.tokens[::5] for field in fields]).astype(np.float32)
    sample = sample - sample.mean(0)
    _, directions = np.linalg.eigh(sample.T @ sample)
    inputs, dimensions = sample.shape[1], fields[0].turns.pooled.shape[1]
    return {
        "tokens": directions[:, ::-1][:, :width].astype(np.float32),
        "pooled": np.eye(dimensions, dtype=np.float32),
        "asked": np.zeros(inputs + 1, np.float32),
        "said": np.append(np.zeros(inputs, np.float32), np.float32(SAID)),
        "scales": np.array(SCALES, np.float32),
    }


def _batches(fields: Sequence[_Field], batch: int, rng: np.random.Generator) -> Iterator[tuple[_Field, np.ndarray]]:
    """Every labelled question once, those of a batch out of one conversation."""
    batches = []
    for field in fields:
        order = rng.permutation(field.labelled)
        batches += [(field, order[start : start + batch]) for start in range(0, len(order), batch)]
    for i in rng.permutation(len(batches)):
        yield batches[i]


@dataclass(frozen=True)
class Texts:
    """Token vectors of several texts end to end, the first token of each, and the pooled vectors."""

    tokens: np.ndarray  # (all tokens, 2 * dimensions), float16 until they are drawn
    starts: np.ndarray  # (texts,)
    pooled: Floats  # (texts, dimensions)

    @classmethod
    def of(cls, texts: Sequence[tuple[Floats, Floats]]) -> Texts:
        starts = np.cumsum([0, *(len(hidden) for hidden, _ in texts)])[:-1]
        tokens = np.concatenate([hidden.astype(np.float16) for hidden, _ in texts])
        return cls(tokens, starts, np.stack([pooled for _, pooled in texts]))

    def __getitem__(self, which: np.ndarray) -> Texts:
        ends = np.append(self.starts[1:], len(self.tokens))
        kept = [np.arange(self.starts[i], ends[i]) for i in which]
        starts = np.cumsum([0, *map(len, kept)])[:-1]
        return Texts(self.tokens[np.concatenate(kept)].astype(np.float32), starts, self.pooled[which])


@dataclass(frozen=True)
class Draw:
    """What one step sees; `evidence` (questions, turns) is 1 for evidence, 0 otherwise, no row without a 1."""

    questions: Texts
    turns: Texts
    evidence: Floats


class _Field:
    """A conversation ready for training."""

    def __init__(self, lesson: Lesson) -> None:
        self.turns, self.questions = Texts.of(lesson.turns), Texts.of(lesson.questions)
        self.evidence = np.zeros((len(lesson.questions), len(lesson.turns)), np.float32)
        for row, positions in zip(self.evidence, lesson.evidence, strict=True):
            row[list(positions)] = 1
        self.labelled = np.flatnonzero(self.evidence.any(axis=1) & ~self.evidence.all(axis=1))
        self.near = np.argsort(-self.questions.pooled @ self.turns.pooled.T, axis=1)[:, :30]

    def draw(self, questions: np.ndarray, turns: int, rng: np.random.Generator) -> Draw:
        each = max(2, turns // 2 // len(questions))
        near = rng.permuted(self.near[questions], axis=1)[:, :each]
        n = len(self.turns.starts)
        far = rng.choice(n, min(n, turns // 2), replace=False)
        kept = np.unique(np.concatenate([np.flatnonzero(self.evidence[questions].any(axis=0)), near.ravel(), far]))
        return Draw(self.questions[questions], self.turns[kept], self.evidence[np.ix_(questions, kept)])


def loss(weights: Weights, draw: Draw) -> tuple[float, Weights]:
    """The mean loss of the questions' evidence, and its gradient by each weight."""
    w, questions, turns = weights, draw.questions, draw.turns
    asked = softplus(before_asked := _affine(questions.tokens, w["asked"]))
    said = sigmoid(_affine(turns.tokens, w["said"]))
    q, q_lengths = _unit(questions.tokens @ w["tokens"])
    d, d_lengths = _unit(turns.tokens @ w["tokens"])
    cosine = d @ q.T  # (turn tokens, question tokens)
    best, at = _highest(cosine * said[:, None], turns.starts)  # (turns, question tokens) each
    total = np.add.reduceat(asked, questions.starts)
    late = np.add.reduceat(best * asked, questions.starts, axis=1) / total  # (turns, questions)
    pq, pq_lengths = _unit(questions.pooled @ w["pooled"])
    pd, pd_lengths = _unit(turns.pooled @ w["pooled"])
    dense = pd @ pq.T
    scale = np.exp(w["scales"])
    value, error = _loss(late.T * scale[0] + dense.T * scale[1], draw.evidence)
    error = error.T  # (turns, questions)

    lengths = np.diff(np.append(questions.starts, len(asked)))
    late_error = np.repeat(error * scale[0] / total, lengths, axis=1)  # (turns, question tokens), by the weighted best
    asked_error = (late_error * (best - np.repeat(late, lengths, axis=1))).sum(0)
    # Only the best match of a question token in a turn hears of the error.
    columns = np.arange(len(asked))
    pairs = np.zeros_like(cosine)
    pairs[at, columns] = late_error * asked
    said_error = np.einsum("ij,ij->i", pairs, cosine)
    pairs *= said[:, None]
    d_error, q_error = _through_unit(d, d_lengths, pairs @ q), _through_unit(q, q_lengths, pairs.T @ d)
    dense_error = error * scale[1]
    pd_error = _through_unit(pd, pd_lengths, dense_error @ pq)
    pq_error = _through_unit(pq, pq_lengths, dense_error.T @ pd)
    return value, {
        "tokens": turns.tokens.T @ d_error + questions.tokens.T @ q_error,
        "pooled": turns.pooled.T @ pd_error + questions.pooled.T @ pq_error,
        "asked": _by_affine(questions.tokens, asked_error * sigmoid(before_asked)),
        "said": _by_affine(turns.tokens, said_error * said * (1 - said)),
        "scales": np.array([(error * late).sum(), (error * dense).sum()], scale.dtype) * scale,
    }


def _loss(scores: Floats, evidence: Floats) -> tuple[float, Floats]:
    """And its gradient by the scores; both arguments are (questions, turns)."""
    others = np.where(evidence > 0, -np.inf, scores)
    highest = others.max(axis=1, keepdims=True)
    against = highest + np.log(np.exp(others - highest).sum(axis=1, keepdims=True))
    share = evidence / evidence.sum(axis=1, keepdims=True) / len(scores)
    missed = sigmoid(against - scores) * share
    value = float((softplus(against - scores) * share).sum())
    return value, np.exp(others - against) * missed.sum(axis=1, keepdims=True) - missed


def _highest(values: Floats, starts: np.ndarray) -> tuple[Floats, np.ndarray]:
    """The highest value of each text in each column, and in which row it stands."""
    ends = np.append(starts[1:], len(values))
    at = np.stack([start + values[start:end].argmax(axis=0) for start, end in zip(starts, ends, strict=True)])
    return np.take_along_axis(values, at, axis=0), at


def _affine(x: Floats, w: Floats) -> Floats:
    return x @ w[:-1] + w[-1]


def _by_affine(x: Floats, error: Floats) -> Floats:
    return np.append(error @ x, error.sum())


def _unit(x: Floats) -> tuple[Floats, Any]:
    lengths = np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return x / lengths, lengths


def _through_unit(unit: Floats, lengths: Any, error: Floats) -> Floats:
    """The gradient by a vector from that by its direction."""
    return (error - unit * np.einsum("ij,ij->i", unit, error)[:, None]) / lengths
