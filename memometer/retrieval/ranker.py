"""The learned ranker: linear weights over the features of a turn, fitted to evidence labels and stored as JSON.

A question's turns compete in a softmax; the loss is the cross-entropy of the evidence turns (listwise loss, Cao et al.,
2007). It is convex, so a fit does not depend on a seed. The score is turned into a calibrated probability that the turn
is evidence (Platt, 1999).

Where a question or a conversation is unlike those of the fit, the untrained score takes the place of the learned one in
proportion.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from memometer.retrieval.blas_threads import one_thread
from memometer.retrieval.features import Features, Floats

FOLDER = Path(__file__).parent / "weights"
RANKINGS = ("default", "locomo")
"""Shipped weights: fitted on synthetic conversations, or on LOCOMO's training conversations."""
CLIP = 5.0
"""Standardised features are clipped, because values beyond those of the training data mean nothing."""

STYLES = ("share in long turns", "share in bursts")
"""Features of a conversation that change the weights of all others: each has its own set of weights."""

FEW_TURNS = 8
"""With fewer turns, ranks and quantiles mean little, and the untrained score counts more."""

SIMILARITY_WEIGHT = 1.0
"""Weight of an encoder's similarity, in standard deviations over the turns. It was chosen on synthetic conversations
that the weights were not fitted on (docs/experiments.md)."""

UNTRAINED_SHARPNESS = 1.0
"""Factor of the untrained score, so that its softmax is about as sharp as the learned one."""


def shipped(ranking: str = "default", *, without: str = "") -> Path:
    """Return the file of shipped weights.

    Args:
        ranking: one of RANKINGS.
        without: a conversation of LOCOMO: the weights are fitted on the nine others.

    Raises:
        ValueError: the ranking is unknown.
    """
    if ranking not in RANKINGS:
        raise ValueError(f"unknown ranking {ranking!r}; known: {', '.join(RANKINGS)}")
    parts = [ranking, "words", *(["without", without] if without else [])]
    return FOLDER / ("-".join(parts) + ".json")


@dataclass(frozen=True)
class RankingExample:
    """A training question: its features, and the rows (0-based) of its evidence turns."""

    features: Features
    evidence: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Ranker:
    """The weights of `score = x · weights[0] + sum over styles of style · (x · weights[1 + n])`.

    Here x is `(features - mean) / scale`.

    Attributes:
        names: the features, in order.
        mean: shape (names,).
        scale: standard deviations, shape (names,).
        weights: shape (1 + styles, names).
        low: least mean of each feature over the turns of a training question, shape (names,).
        high: largest such mean, shape (names,).
        calibration: slope and intercept of the log-odds of being evidence over the log of the softmax.
        cost_exponent: turns are packed by probability / tokens ** cost_exponent.
        fitted_on: the conversations with whose labels it was fitted; its scores there prove nothing.
        data: what these conversations are.
        licence: the licence of the weights.
        encoder: the encoder whose similarities are among the features; empty for none.
        made_by: the command that fitted it.
    """

    names: tuple[str, ...]
    mean: Floats
    scale: Floats
    weights: Floats
    low: Floats
    high: Floats
    calibration: tuple[float, ...] = (1.0, 0.0)
    cost_exponent: float = 1.0
    fitted_on: tuple[str, ...] = ()
    data: str = ""
    licence: str = ""
    encoder: str = ""
    made_by: str = ""

    def __deepcopy__(self, memo: dict[int, object]) -> Ranker:
        return self  # it never changes, and optimisers copy programs often

    def check(self, names: Sequence[str]) -> None:
        """Raise ValueError if the weights were fitted to other features."""
        if tuple(names) != self.names:
            missing = sorted(set(self.names) ^ set(names))
            raise ValueError(f"the ranking weights were fitted to other features (different: {', '.join(missing[:5])})")

    def unlikeness(self, features: Features) -> float:
        """Return how far a question is outside the range of the training questions, from 0 (inside) to 1.

        A feature counts by the distance of its mean over the turns from the range, in widths of the range, up to 1.
        """
        means = features.matrix.mean(0)
        width = np.maximum(self.high - self.low, 0.05 * self.scale)
        outside = np.maximum(self.low - means, means - self.high) / width
        share = float(np.clip(outside, 0, 1).mean())
        few = max(0.0, 1 - len(features.positions) / FEW_TURNS)
        return min(1.0, max(4 * share, few))

    def scores(self, features: Features, similarity: Floats | None = None) -> Floats:
        """Return the log-probability of every turn to be evidence, shape (turns,).

        Turns outside `features.positions` rank after all others, ordered by their first score.

        Args:
            features: the features, without similarities of an encoder unless the weights were fitted with them.
            similarity: an encoder's similarity of every turn with the question, shape (turns,), which is added to the
                learned score.

        Raises:
            ValueError: the weights were fitted to other features.
        """
        self.check(features.names)
        x = np.clip((features.matrix - self.mean) / self.scale, -CLIP, CLIP)
        learned = _log_softmax(((x @ self.weights.T) * _styles(features.matrix, self.names)).sum(1))
        if other := self.unlikeness(features):
            first = _log_softmax(UNTRAINED_SHARPNESS * features.first[features.positions])
            learned = (1 - other) * learned + other * first
        if similarity is not None and (spread := float(similarity.std())) > 1e-9:
            standardised = (similarity[features.positions] - similarity.mean()) / spread
            learned = _log_softmax(learned + SIMILARITY_WEIGHT * standardised)
        slope, intercept = self.calibration
        ranked = -np.logaddexp(0, -(slope * learned + intercept))
        scores = features.first - features.first.max() - 1 + ranked.min()
        scores[features.positions] = ranked
        return scores

    def save(self, path: Path) -> None:
        """Write JSON with one line per attribute and three decimals of each weight."""
        table = asdict(self)
        for name in ("mean", "scale", "weights", "low", "high"):
            table[name] = _rounded(getattr(self, name))
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in table.items()]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    scores = scores - scores.max()
    return scores - np.log(np.exp(scores).sum())


def _styles(matrix: np.ndarray, names: Sequence[str]) -> Floats:
    """Return the factor of each set of weights for each turn, shape (turns, 1 + styles)."""
    return np.column_stack([np.ones(len(matrix), np.float32), *(matrix[:, names.index(style)] for style in STYLES)])


def _rounded(values: Floats) -> Any:
    return np.round(values.astype(float), 3).tolist()


@lru_cache(maxsize=32)
def load(path: Path) -> Ranker:
    """Load weights that `save` wrote.

    Raises:
        ValueError: the file does not contain ranking weights.
    """
    try:
        table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        arrays = ("mean", "scale", "weights", "low", "high")
        found = {name: np.array(table.pop(name), np.float32) for name in arrays}
        table = {name: tuple(value) if isinstance(value, list) else value for name, value in table.items()}
        return Ranker(**{**table, **found})
    except (OSError, TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} does not contain ranking weights ({error}); fit them with python optimize.py --target retrieval."
        ) from error


@dataclass(frozen=True)
class Sample:
    """The turns of some questions that take part in a fit.

    Attributes:
        names: the features.
        rows: features of the turns, question by question, the evidence first; shape (turns, names).
        counts: number of evidence turns and of competitors of each question.
        shares: number of turns for which each competitor of a question stands, per question.
        means: means of the features over all turns of each question, shape (questions, names).
    """

    names: tuple[str, ...]
    rows: Floats
    counts: list[tuple[int, int]]
    shares: list[float]
    means: Floats


def sample(examples: Sequence[RankingExample], *, competitors: int = 100, seed: int = 0) -> Sample:
    """Draw the turns that compete with the evidence of each question.

    Args:
        examples: questions with at least one evidence turn each.
        competitors: turns without evidence per question. They are a random sample, which counts like all turns.
        seed: seed of the sample.
    """
    rng = np.random.default_rng(seed)
    rows: list[Floats] = []
    counts: list[tuple[int, int]] = []
    shares: list[float] = []
    for example in examples:
        evidence = np.array(example.evidence)
        others = np.setdiff1d(np.arange(len(example.features.matrix)), evidence)
        chosen = others if len(others) <= competitors else rng.choice(others, competitors, replace=False)
        rows.append(example.features.matrix[np.concatenate([evidence, chosen])])
        counts.append((len(evidence), len(chosen)))
        shares.append(len(others) / max(1, len(chosen)))
    means = np.stack([example.features.matrix.mean(0) for example in examples])
    return Sample(examples[0].features.names, np.concatenate(rows), counts, shares, means)


def fit(samples: Sequence[Sample], *, decay: float = 1000.0, fitted_on: Sequence[str] = ()) -> Ranker:
    """Fit weights to samples. The loss is convex; `scipy` finds its minimum.

    Args:
        samples: the turns of the questions.
        decay: L2 penalty, in questions.
        fitted_on: the conversations of the samples.
    """
    names = samples[0].names
    x = np.concatenate([each.rows for each in samples])
    spread = x.std(0)
    # A constant feature carries no information; without a floor on its scale, rounding errors would be amplified.
    mean, scale = (np.round(a, 3) for a in (x.mean(0), np.where(spread > 1e-2, spread, 1.0)))
    styles = _styles(x, names)
    x -= mean
    x /= scale
    np.clip(x, -CLIP, CLIP, out=x)
    counts = [count for each in samples for count in each.counts]
    shares = np.array([share for each in samples for share in each.shares])
    with one_thread():
        weights = _minimum(x, styles, counts, shares, decay)
    low, high = np.quantile(np.concatenate([each.means for each in samples]), (0.002, 0.998), axis=0)
    arrays = (mean, scale, weights, low, high)
    mean, scale, weights, low, high = (np.round(a, 3).astype(np.float32) for a in arrays)
    return Ranker(names, mean, scale, weights, low, high, fitted_on=tuple(fitted_on))


def _minimum(
    x: Floats, styles: Floats, counts: Sequence[tuple[int, int]], shares: np.ndarray, decay: float
) -> np.ndarray:
    """Return the weights with the least listwise loss, shape (1 + styles, features)."""
    from scipy.optimize import minimize

    sizes = np.array([evidence + others for evidence, others in counts])
    starts = np.append(0, np.cumsum(sizes)[:-1])
    question = np.repeat(np.arange(len(sizes)), sizes)
    target, log_share = np.zeros(len(x), np.float32), np.repeat(np.log(shares), sizes).astype(np.float32)
    for start, (evidence, _) in zip(starts, counts, strict=True):
        target[start : start + evidence] = 1 / evidence
        log_share[start : start + evidence] = 0
    shape = styles.shape[1], x.shape[1]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        scores = ((x @ flat.reshape(shape).astype(np.float32).T) * styles).sum(1)
        total = (scores + log_share).astype(float)
        highest = np.maximum.reduceat(total, starts)
        softmax = np.exp(total - highest[question])
        sums = np.add.reduceat(softmax, starts)
        softmax /= sums[question]
        value = float((highest + np.log(sums)).sum() - target @ scores) + decay * float(flat @ flat) / 2
        error = (softmax - target).astype(np.float32)
        gradient = ((styles * error[:, None]).T @ x).ravel() + decay * flat
        return value / len(counts), gradient / len(counts)

    start = np.zeros(shape[0] * shape[1])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 300, "ftol": 1e-10})
    weights: np.ndarray = found.x.reshape(shape)
    return weights


def calibrated(ranker: Ranker, examples: Iterable[RankingExample]) -> Ranker:
    """Return a ranker whose probabilities are fitted to questions that it has not seen (Platt scaling).

    Args:
        ranker: the ranker.
        examples: validation questions.
    """
    raw = replace(ranker, calibration=(1.0, 0.0))
    scores, labels = [], []
    for example in examples:
        log_p = raw.scores(example.features)[example.features.positions].astype(float)
        scores.append(log_p - np.log1p(-np.minimum(np.exp(log_p), 1 - 1e-6)))  # back to the log of the softmax
        label = np.zeros(len(log_p))
        label[list(example.evidence)] = 1
        labels.append(label)
    s, y = np.concatenate(scores), np.concatenate(labels)
    design = np.stack([s, np.ones_like(s)], axis=1)
    w = np.array([1.0, 0.0])
    for _ in range(25):  # Newton's method
        p = 1 / (1 + np.exp(-np.clip(design @ w, -30, 30)))
        hessian = design.T @ (design * (p * (1 - p))[:, None]) + 1e-6 * np.eye(2)
        w = w + np.linalg.solve(hessian, design.T @ (y - p))
    return replace(ranker, calibration=(round(float(w[0]), 3), round(float(w[1]), 3)))
