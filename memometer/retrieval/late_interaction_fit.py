"""Fit the projection of late interaction to evidence labels, in NumPy, in seconds.

The turns of a conversation compete for each question. The loss of an evidence turn is its cross-entropy against all
turns without evidence, so several evidence turns do not compete with each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from memometer.retrieval.adam import Adam, Weights
from memometer.retrieval.blas_threads import one_thread
from memometer.retrieval.late_interaction import Floats, Projection, sigmoid, softplus

LR_MULTIPLIERS = {"tokens": 1.0, "pooled": 0.3, "asked": 3.0, "said": 3.0, "scales": 3.0}
"""Factors on the learning rate by parameter: weights that start near their final value learn more slowly, and small
arrays of weights learn faster."""

INITIAL_SAID = 3.0  # a turn token starts with the weight sigmoid(3) = 0.95
INITIAL_SCALES = (3.0, 2.0)


@dataclass(frozen=True)
class TrainingExample:
    """An encoded conversation with evidence labels.

    Attributes:
        turns: (token vectors, pooled vector) of each turn, from `TokenEncoder.tokens`.
        questions: the same of each question.
        evidence: positions (0-based) of each question's evidence turns; a question without any is not used.
    """

    turns: Sequence[tuple[Floats, Floats]]
    questions: Sequence[tuple[Floats, Floats]]
    evidence: Sequence[Sequence[int]]


def fit(
    examples: Sequence[TrainingExample],
    *,
    width: int = 128,
    epochs: int = 4,
    batch: int = 32,
    turns: int = 160,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> Projection:
    """Fit a projection. The result depends on the seed and the machine only.

    All token vectors are held in memory in float16, about 45 MB per LOCOMO conversation. Four conversations take 10 s.

    Args:
        examples: conversations with at least one question with evidence.
        width: dimensions of the projected token vectors. They start as the principal components of the turns' tokens.
        epochs: passes over the questions.
        batch: questions per step, all of one conversation.
        turns: turns without evidence that compete in a step, at most: half of them are close to a question by the
            unprojected pooled vectors, half are random.
        learning_rate: peak learning rate of Adam.
        seed: seed of the random numbers.
    """
    conversations = [_TrainingConversation(example) for example in examples]
    rng = np.random.default_rng(seed)
    with one_thread():
        weights = _initial_weights(conversations, width)
        steps = epochs * sum(-(-len(conversation.labelled) // batch) for conversation in conversations)
        adam = Adam(weights, steps=steps, learning_rate=learning_rate, lr_multipliers=LR_MULTIPLIERS, max_grad_norm=1.0)
        for _ in range(epochs):
            for conversation, questions in _batches(conversations, batch, rng):
                _, gradients = loss(weights, conversation.sample(questions, turns, rng))
                adam.step(gradients)
    w = weights
    return Projection(w["tokens"], w["pooled"], w["asked"], w["said"], w["scales"])


def _initial_weights(conversations: Sequence[_TrainingConversation], width: int) -> Weights:
    sample = np.concatenate([conversation.turns.tokens[::5] for conversation in conversations]).astype(np.float32)
    sample = sample - sample.mean(0)
    _, directions = np.linalg.eigh(sample.T @ sample)
    inputs, dimensions = sample.shape[1], conversations[0].turns.pooled.shape[1]
    return {
        "tokens": directions[:, ::-1][:, :width].astype(np.float32),
        "pooled": np.eye(dimensions, dtype=np.float32),
        "asked": np.zeros(inputs + 1, np.float32),
        "said": np.append(np.zeros(inputs, np.float32), np.float32(INITIAL_SAID)),
        "scales": np.array(INITIAL_SCALES, np.float32),
    }


def _batches(
    conversations: Sequence[_TrainingConversation], batch: int, rng: np.random.Generator
) -> Iterator[tuple[_TrainingConversation, np.ndarray]]:
    """Yield every labelled question once; a batch has questions of one conversation."""
    batches = []
    for conversation in conversations:
        order = rng.permutation(conversation.labelled)
        batches += [(conversation, order[start : start + batch]) for start in range(0, len(order), batch)]
    for i in rng.permutation(len(batches)):
        yield batches[i]


@dataclass(frozen=True)
class Texts:
    """The vectors of several texts.

    Attributes:
        tokens: token vectors of all texts end to end, shape (tokens, 2 * dimensions), float16 until they are sampled.
        starts: the first token of each text, shape (texts,).
        pooled: shape (texts, dimensions).
    """

    tokens: np.ndarray
    starts: np.ndarray
    pooled: Floats

    @classmethod
    def of(cls, texts: Sequence[tuple[Floats, Floats]]) -> Texts:
        """Join (token vectors, pooled vector) of each text."""
        starts = np.cumsum([0, *(len(hidden) for hidden, _ in texts)])[:-1]
        tokens = np.concatenate([hidden.astype(np.float16) for hidden, _ in texts])
        return cls(tokens, starts, np.stack([pooled for _, pooled in texts]))

    def __getitem__(self, which: np.ndarray) -> Texts:
        ends = np.append(self.starts[1:], len(self.tokens))
        tokens = [np.arange(self.starts[i], ends[i]) for i in which]
        starts = np.cumsum([0, *map(len, tokens)])[:-1]
        return Texts(self.tokens[np.concatenate(tokens)].astype(np.float32), starts, self.pooled[which])


@dataclass(frozen=True)
class Sample:
    """The data of a step. `evidence` has shape (questions, turns): 1 for evidence, else 0; each row has a 1."""

    questions: Texts
    turns: Texts
    evidence: Floats


class _TrainingConversation:
    """A conversation prepared for sampling."""

    def __init__(self, example: TrainingExample) -> None:
        self.turns, self.questions = Texts.of(example.turns), Texts.of(example.questions)
        self.evidence = np.zeros((len(example.questions), len(example.turns)), np.float32)
        for row, positions in zip(self.evidence, example.evidence, strict=True):
            row[list(positions)] = 1
        self.labelled = np.flatnonzero(self.evidence.any(axis=1) & ~self.evidence.all(axis=1))
        self.near = np.argsort(-self.questions.pooled @ self.turns.pooled.T, axis=1)[:, :30]

    def sample(self, questions: np.ndarray, turns: int, rng: np.random.Generator) -> Sample:
        each = max(2, turns // 2 // len(questions))
        near = rng.permuted(self.near[questions], axis=1)[:, :each]
        n = len(self.turns.starts)
        others = rng.choice(n, min(n, turns // 2), replace=False)
        evidence = np.flatnonzero(self.evidence[questions].any(axis=0))
        competing = np.unique(np.concatenate([evidence, near.ravel(), others]))
        return Sample(self.questions[questions], self.turns[competing], self.evidence[np.ix_(questions, competing)])


def loss(weights: Weights, sample: Sample) -> tuple[float, Weights]:
    """Return the mean loss of the questions' evidence, and its gradient for each weight."""
    w, questions, turns = weights, sample.questions, sample.turns
    asked = softplus(before_asked := _affine(questions.tokens, w["asked"]))
    said = sigmoid(_affine(turns.tokens, w["said"]))
    q, q_lengths = _unit(questions.tokens @ w["tokens"])
    d, d_lengths = _unit(turns.tokens @ w["tokens"])
    cosine = d @ q.T  # (turn tokens, question tokens)
    best, at = _maximum(cosine * said[:, None], turns.starts)  # (turns, question tokens) each
    total = np.add.reduceat(asked, questions.starts)
    late = np.add.reduceat(best * asked, questions.starts, axis=1) / total  # (turns, questions)
    pq, pq_lengths = _unit(questions.pooled @ w["pooled"])
    pd, pd_lengths = _unit(turns.pooled @ w["pooled"])
    dense = pd @ pq.T
    scale = np.exp(w["scales"])
    value, error = _loss(late.T * scale[0] + dense.T * scale[1], sample.evidence)
    error = error.T  # (turns, questions)

    lengths = np.diff(np.append(questions.starts, len(asked)))
    late_error = np.repeat(error * scale[0] / total, lengths, axis=1)  # (turns, question tokens), by the weighted best
    asked_error = (late_error * (best - np.repeat(late, lengths, axis=1))).sum(0)
    # Only the best match of a question token in a turn gets a gradient.
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
    """Return the loss and its gradient for the scores; both arguments are (questions, turns)."""
    others = np.where(evidence > 0, -np.inf, scores)
    highest = others.max(axis=1, keepdims=True)
    against = highest + np.log(np.exp(others - highest).sum(axis=1, keepdims=True))
    share = evidence / evidence.sum(axis=1, keepdims=True) / len(scores)
    missed = sigmoid(against - scores) * share
    value = float((softplus(against - scores) * share).sum())
    return value, np.exp(others - against) * missed.sum(axis=1, keepdims=True) - missed


def _maximum(values: Floats, starts: np.ndarray) -> tuple[Floats, np.ndarray]:
    """Return the maximum of each text in each column, and its row."""
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
    """Return the gradient for a vector from the gradient for its direction."""
    return (error - unit * np.einsum("ij,ij->i", unit, error)[:, None]) / lengths
