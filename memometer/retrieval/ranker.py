"""The learned ranker: a small network over the features of a turn, fitted to evidence labels and stored as JSON.

It has one hidden layer. A question's turns compete in a softmax; the loss is the cross-entropy of the evidence turns
(listwise loss, Cao et al., 2007). Training in NumPy takes seconds, scoring microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from memometer.retrieval.adam import Adam
from memometer.retrieval.blas_threads import one_thread
from memometer.retrieval.features import Features, Floats

SHIPPED = Path(__file__).parent / "weights.json"
SHIPPED_WITH_ENCODER = Path(__file__).parent / "weights-minilm.json"
CLIP = 6.0  # standardised features are clipped, because values beyond those of the training data mean nothing


@dataclass(frozen=True)
class RankingExample:
    """A training question: its features, and the rows (0-based) of its evidence turns."""

    features: Features
    evidence: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Ranker:
    """The weights of `score = output · relu(hidden · (x - mean) / scale + bias)`.

    Attributes:
        names: the features x, in order.
        mean: shape (names,).
        scale: standard deviations, shape (names,).
        hidden: shape (names, units).
        bias: shape (units,).
        output: shape (units,).
        fitted_on: the conversations with whose labels it was fitted; its scores there prove nothing.
        encoder: the encoder whose similarities are among the features; empty for none.
        made_by: the command that fitted it.
    """

    names: tuple[str, ...]
    mean: Floats
    scale: Floats
    hidden: Floats
    bias: Floats
    output: Floats
    fitted_on: tuple[str, ...] = ()
    encoder: str = ""
    made_by: str = ""

    def __deepcopy__(self, memo: dict[int, object]) -> Ranker:
        return self  # it never changes, and optimisers copy programs often

    def scores(self, features: Features) -> Floats:
        """Return the score of every turn, shape (turns,), higher is better.

        Turns outside `features.positions` rank after all others, ordered by their first score.

        Raises:
            ValueError: the weights were fitted to other features.
        """
        if features.names != self.names:
            missing = sorted(set(self.names) ^ set(features.names))
            raise ValueError(f"the ranking weights were fitted to other features (different: {', '.join(missing[:5])})")
        x = np.clip((features.matrix - self.mean) / self.scale, -CLIP, CLIP)
        ranked = np.maximum(x @ self.hidden + self.bias, 0) @ self.output
        scores = features.first - features.first.max() - 1 + ranked.min()
        scores[features.positions] = ranked
        return scores

    def save(self, path: Path) -> None:
        """Write JSON with one line per feature and four significant digits."""
        rounded = {name: _rounded(getattr(self, name)) for name in ("mean", "scale", "hidden", "bias", "output")}
        table = asdict(replace(self, **rounded))
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in table.items() if name != "hidden"]
        rows = ",\n".join(f"    {json.dumps(row)}" for row in rounded["hidden"])
        path.write_text("{\n" + ",\n".join(lines) + f',\n  "hidden": [\n{rows}\n  ]\n}}\n')


def _rounded(values: Floats) -> Any:
    return json.loads(json.dumps(values.tolist()), parse_float=lambda text: float(f"{float(text):.4g}"))


@lru_cache(maxsize=16)
def load(path: Path) -> Ranker:
    """Load weights that `save` wrote.

    Raises:
        ValueError: the file does not contain ranking weights.
    """
    try:
        table: dict[str, Any] = json.loads(path.read_text())
        arrays = {name: np.array(table.pop(name), np.float32) for name in ("mean", "scale", "hidden", "bias", "output")}
        table = {name: tuple(value) if isinstance(value, list) else value for name, value in table.items()}
        return Ranker(**{**table, **arrays})
    except (OSError, TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} does not contain ranking weights ({error}); fit them with python optimize.py --target retrieval."
        ) from error


def fit(
    examples: Sequence[RankingExample],
    *,
    units: int = 32,
    epochs: int = 12,
    rows: int = 600,
    batch: int = 16,
    learning_rate: float = 3e-3,
    weight_decay: float = 1e-4,
    dropout: float = 0.2,
    networks: int = 2,
    seed: int = 0,
    fitted_on: Sequence[str] = (),
) -> Ranker:
    """Fit weights to examples.

    Args:
        examples: questions with at least one evidence turn each.
        units: hidden units per network.
        epochs: passes over the examples.
        rows: turns that compete per question: its evidence, the best others by the first score, and random ones.
        batch: questions per step.
        learning_rate: peak learning rate of Adam.
        weight_decay: of Adam.
        dropout: share of hidden units that are dropped in each step.
        networks: networks to average; together they form one wider network.
        seed: seed of the random numbers.
        fitted_on: the conversations of the examples.
    """
    names = examples[0].features.names
    every = np.concatenate([example.features.matrix[::7] for example in examples])
    spread = every.std(0)
    # A constant feature carries no information; without a floor on its scale, rounding errors would be amplified.
    mean, scale = (np.array(_rounded(x), np.float32) for x in (every.mean(0), np.where(spread > 1e-3, spread, 1.0)))
    del every, spread
    questions = [_TrainingQuestion(example, mean, scale) for example in examples]
    with one_thread():
        fitted = [
            _train(questions, units, epochs, rows, batch, learning_rate, weight_decay, dropout, rng)
            for rng in (np.random.default_rng(seed + n) for n in range(networks))
        ]
    return Ranker(
        fitted_on=tuple(fitted_on),
        names=names,
        mean=mean,
        scale=scale,
        hidden=np.concatenate([w["hidden"] for w in fitted], axis=1),
        bias=np.concatenate([w["bias"] for w in fitted]),
        output=(np.concatenate([w["output"] for w in fitted]) / networks).astype(np.float32),
    )


def _train(
    questions: Sequence[_TrainingQuestion],
    units: int,
    epochs: int,
    rows: int,
    batch: int,
    learning_rate: float,
    weight_decay: float,
    dropout: float,
    rng: np.random.Generator,
) -> dict[str, Floats]:
    inputs = questions[0].rows.shape[1]
    weights: dict[str, Floats] = {
        "hidden": rng.normal(0, np.sqrt(1 / inputs), (inputs, units)).astype(np.float32),
        "bias": np.zeros(units, np.float32),
        "output": rng.normal(0, np.sqrt(1 / units), units).astype(np.float32),
    }
    steps = epochs * -(-len(questions) // batch)
    adam = Adam(weights, steps=steps, learning_rate=learning_rate, weight_decay=weight_decay)
    for _ in range(epochs):
        order = rng.permutation(len(questions))
        for start in range(0, len(order), batch):
            samples = [questions[i].sample(rows, rng) for i in order[start : start + batch]]
            x, targets = np.stack([matrix for matrix, _ in samples]), np.stack([target for _, target in samples])
            adam.step(_gradients(weights, x, targets, dropout, rng))
    return weights


class _TrainingQuestion:
    """An example with standardised rows; `others` are the rows without evidence, by the first score."""

    def __init__(self, example: RankingExample, mean: Floats, scale: Floats) -> None:
        self.rows = np.clip((example.features.matrix - mean) / scale, -CLIP, CLIP)
        self.evidence = np.array(example.evidence)
        order = np.argsort(-example.features.first[example.features.positions], kind="stable")
        self.others = order[~np.isin(order, self.evidence)]

    def sample(self, rows: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Return `rows` rows and their target distribution.

        Random rows are drawn with replacement, so that short histories need no special case.
        """
        evidence = self.evidence[:rows]
        missing = rows - len(evidence)
        best = self.others[: min(missing, rows * 2 // 3)]
        rest = self.others[len(best) :]
        if not len(rest):
            rest = np.append(best, evidence)
        chosen = np.concatenate([evidence, best, rest[rng.integers(0, len(rest), missing - len(best))]])
        target = np.isin(chosen, evidence).astype(np.float32)
        return self.rows[chosen], target / target.sum()


def _gradients(
    weights: dict[str, Floats], x: Floats, targets: Floats, dropout: float, rng: np.random.Generator
) -> dict[str, Floats]:
    """Return the gradients of the mean cross-entropy; `x` has shape (questions, rows, features)."""
    questions, rows, inputs = x.shape
    flat = x.reshape(-1, inputs)
    hidden = flat @ weights["hidden"] + weights["bias"]
    mask = (rng.random(hidden.shape, np.float32) >= dropout) / np.float32(1 - dropout)
    active = np.maximum(hidden, 0) * mask
    scores = (active @ weights["output"]).reshape(questions, rows)
    softmax = np.exp(scores - scores.max(axis=1, keepdims=True))
    softmax /= softmax.sum(axis=1, keepdims=True)
    error = ((softmax - targets) / questions).reshape(-1)
    back = np.outer(error, weights["output"]) * mask * (hidden > 0)
    return {"hidden": flat.T @ back, "bias": back.sum(0), "output": active.T @ error}
