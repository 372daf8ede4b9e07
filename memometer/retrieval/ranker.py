"""The learned ranking: a small network over the features of a turn, fitted to evidence labels, kept as readable JSON.

One hidden layer; a question's turns compete in a softmax, and the loss is the cross-entropy of its evidence turns (the
listwise loss of Cao et al., 2007). It is trained and applied in NumPy, in seconds and microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from memometer.retrieval.blas_threads import one_thread
from memometer.retrieval.features import Features, Floats
from memometer.retrieval.optimizer import Adam

SHIPPED = Path(__file__).parent / "weights.json"
SHIPPED_WITH_ENCODER = Path(__file__).parent / "weights-minilm.json"
CLIP = 6.0  # in standard deviations: what lies further out than the training conversations ever did


@dataclass(frozen=True)
class Example:
    """One question of training: its features, and which of their rows (0-based) are evidence."""

    features: Features
    evidence: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Ranker:
    """Weights of `score = output · relu(hidden · (x - mean) / scale + bias)`, x the features named `names`.

    `fitted_on` names the conversations whose labels it has seen: it says nothing about how it ranks those.
    `encoder` is the encoder whose similarities are among the features, empty for none. `made_by` is the command.
    """

    names: tuple[str, ...]
    mean: Floats
    scale: Floats
    hidden: Floats  # (names, units)
    bias: Floats  # (units,)
    output: Floats  # (units,)
    fitted_on: tuple[str, ...] = ()
    encoder: str = ""
    made_by: str = ""

    def __deepcopy__(self, memo: dict[int, object]) -> Ranker:
        return self  # never changes, and DSPy's optimisers copy programs by the hundred

    def scores(self, features: Features) -> Floats:
        """The score of every turn, shape (turns,); those not looked at closely come after all others, by their first
        score. Raises ValueError where the features are not the ones that the weights are for."""
        if features.names != self.names:
            missing = sorted(set(self.names) ^ set(features.names))
            raise ValueError(f"the ranking weights are for other features (they differ in {', '.join(missing[:5])})")
        x = np.clip((features.matrix - self.mean) / self.scale, -CLIP, CLIP)
        close = np.maximum(x @ self.hidden + self.bias, 0) @ self.output
        scores = features.first - features.first.max() - 1 + close.min()
        scores[features.positions] = close
        return scores

    def save(self, path: Path) -> None:
        """As JSON, one line a feature, four significant digits."""
        rounded = {name: _rounded(getattr(self, name)) for name in ("mean", "scale", "hidden", "bias", "output")}
        table = asdict(replace(self, **rounded))
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in table.items() if name != "hidden"]
        rows = ",\n".join(f"    {json.dumps(row)}" for row in rounded["hidden"])
        path.write_text("{\n" + ",\n".join(lines) + f',\n  "hidden": [\n{rows}\n  ]\n}}\n')


def _rounded(values: Floats) -> Any:
    return json.loads(json.dumps(values.tolist()), parse_float=lambda text: float(f"{float(text):.4g}"))


@lru_cache(maxsize=16)
def load(path: Path) -> Ranker:
    """Raises ValueError with one sentence where the file holds no ranking weights."""
    try:
        table: dict[str, Any] = json.loads(path.read_text())
        arrays = {name: np.array(table.pop(name), np.float32) for name in ("mean", "scale", "hidden", "bias", "output")}
        table = {name: tuple(value) if isinstance(value, list) else value for name, value in table.items()}
        return Ranker(**{**table, **arrays})
    except (OSError, TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} holds no ranking weights ({error}); make them with python optimize.py --target retrieval."
        ) from error


def fit(
    examples: Sequence[Example],
    *,
    units: int = 32,
    epochs: int = 12,
    rows: int = 600,
    batch: int = 16,
    rate: float = 3e-3,
    decay: float = 1e-4,
    dropout: float = 0.2,
    networks: int = 2,
    seed: int = 0,
    fitted_on: Sequence[str] = (),
) -> Ranker:
    """Weights from examples with at least one evidence row each.

    Args:
        units: hidden units of each of `networks`, which are averaged: together they are one wider network.
        rows: turns that compete for each question: its evidence, the likeliest by the first score, and random ones.
        rate: the highest learning rate of Adam, reached after a tenth of the steps and lowered to zero by cosine.
        dropout: share of hidden units left out in each step.
        fitted_on: the conversations that the examples are from.
    """
    names = examples[0].features.names
    every = np.concatenate([example.features.matrix[::7] for example in examples])
    spread = every.std(0)
    # What never varied says nothing, and must not be blown up by what differs in its last digit; rounded as on disk.
    mean, scale = (np.array(_rounded(x), np.float32) for x in (every.mean(0), np.where(spread > 1e-3, spread, 1.0)))
    del every, spread
    fields = [_Field(example, mean, scale) for example in examples]
    with one_thread():
        fitted = [
            _train(fields, units, epochs, rows, batch, rate, decay, dropout, np.random.default_rng(seed + n))
            for n in range(networks)
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
    fields: Sequence[_Field],
    units: int,
    epochs: int,
    rows: int,
    batch: int,
    rate: float,
    decay: float,
    dropout: float,
    rng: np.random.Generator,
) -> dict[str, Floats]:
    inputs = fields[0].rows.shape[1]
    weights: dict[str, Floats] = {
        "hidden": rng.normal(0, np.sqrt(1 / inputs), (inputs, units)).astype(np.float32),
        "bias": np.zeros(units, np.float32),
        "output": rng.normal(0, np.sqrt(1 / units), units).astype(np.float32),
    }
    adam = Adam(weights, steps=epochs * -(-len(fields) // batch), highest=rate, decay=decay)
    for _ in range(epochs):
        order = rng.permutation(len(fields))
        for start in range(0, len(order), batch):
            drawn = [fields[i].draw(rows, rng) for i in order[start : start + batch]]
            x, wanted = np.stack([matrix for matrix, _ in drawn]), np.stack([share for _, share in drawn])
            adam.step(_gradients(weights, x, wanted, dropout, rng))
    return weights


class _Field:
    """An example ready for training: its standardised rows, and the others in the order of the first score."""

    def __init__(self, example: Example, mean: Floats, scale: Floats) -> None:
        self.rows = np.clip((example.features.matrix - mean) / scale, -CLIP, CLIP)
        self.evidence = np.array(example.evidence)
        order = np.argsort(-example.features.first[example.features.positions], kind="stable")
        self.others = order[~np.isin(order, self.evidence)]

    def draw(self, rows: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """`rows` rows, and the share of the evidence in each: the evidence, the likeliest others by the first score,
        and random ones; with replacement, so that a short history is no special case."""
        evidence = self.evidence[:rows]
        need = rows - len(evidence)
        near = self.others[: min(need, rows * 2 // 3)]
        far = self.others[len(near) :]
        if not len(far):
            far = np.append(near, evidence)
        at = np.concatenate([evidence, near, far[rng.integers(0, len(far), need - len(near))]])
        wanted = np.isin(at, evidence).astype(np.float32)
        return self.rows[at], wanted / wanted.sum()


def _gradients(
    weights: dict[str, Floats], x: Floats, wanted: Floats, dropout: float, rng: np.random.Generator
) -> dict[str, Floats]:
    """Of the mean cross-entropy between softmax(scores) and `wanted`; x is (questions, rows, features)."""
    questions, rows, inputs = x.shape
    flat = x.reshape(-1, inputs)
    before = flat @ weights["hidden"] + weights["bias"]
    kept = (rng.random(before.shape, np.float32) >= dropout) / np.float32(1 - dropout)
    active = np.maximum(before, 0) * kept
    scores = (active @ weights["output"]).reshape(questions, rows)
    share = np.exp(scores - scores.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    error = ((share - wanted) / questions).reshape(-1)
    back = np.outer(error, weights["output"]) * kept * (before > 0)
    return {"hidden": flat.T @ back, "bias": back.sum(0), "output": active.T @ error}
