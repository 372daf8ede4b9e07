"""Late interaction: each question token is matched with the best token of a turn (ColBERT: Khattab and Zaharia, 2020).

The encoder is not trained. `late_interaction_fit` fits a small linear projection of its token vectors, and weights
that say which tokens matter in a question and in a turn. Questions and turns are stored in the same form, about 130
bytes per token.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from memometer.memory import Turn, format_date
from memometer.retrieval import passages
from memometer.retrieval.blas_threads import one_thread

Floats = np.ndarray[Any, Any]  # float32, or in a test of the gradients float64

SHIPPED = Path(__file__).parent / "weights" / "locomo-minilm.npz"
"""The projection of earlier versions, fitted on LOCOMO (non-commercial). Their cartridges hold vectors of it."""

ARRAYS = ("tokens", "pooled", "asked", "said", "scales")
BLOCK = 4096  # tokens per matrix product; as float32 they fit the processor's cache


class MultiVectorEncoder(Protocol):
    """An encoder of texts as several vectors each (memometer.models.encoders.CachedTokenEncoder)."""

    @property
    def name(self) -> str: ...

    @property
    def dimensions(self) -> int: ...

    def compact(self, texts: Sequence[str], projection: Projection) -> list[bytes]:
        """Return `projection.compact` of each text's token vectors and pooled vector."""
        ...


def documents(turn: Turn) -> list[str]:
    """Return the texts to encode for a turn, one per passage: `8 May 2023. Nadia: …`.

    Questions often name a day or a person.
    """
    day = format_date(turn.said_at)
    parts = passages.spans(turn.text)
    if len(parts) == 1:
        return [f"{day}. {turn.line.strip()}"]
    texts = [f"{turn.speaker}: {turn.text[start:end]}" for start, end in parts]
    if turn.caption:
        texts[-1] += f" [image: {turn.caption}]"
    return [f"{day}. " + " ".join(text.split()) for text in texts]


@dataclass
class TokenVectors:
    """The vectors of a conversation's turns: append-only plain values, which can be compared and pickled.

    Attributes:
        tokens: token records of a Projection.
        ends: number of tokens up to and including each turn.
        pooled: pooled records of a Projection, one per turn.
    """

    tokens: bytearray = field(default_factory=bytearray)
    ends: array[int] = field(default_factory=lambda: array("q"))
    pooled: bytearray = field(default_factory=bytearray)

    def __len__(self) -> int:
        return len(self.ends)


@dataclass(frozen=True, eq=False)
class Projection:
    """A linear projection of an encoder's token vectors h and pooled vectors v to unit length, with token weights.

    Attributes:
        tokens: projects h, shape (2 * dimensions, width).
        pooled: projects v, shape (dimensions, dimensions).
        asked: weight of a question token, softplus(h · asked), shape (2 * dimensions + 1,); the last one is a bias.
        said: weight of a turn token, sigmoid(h · said), shape (2 * dimensions + 1,); the last one is a bias.
        scales: logarithms of the weights of `late` and `dense` in `both`, shape (2,).
        fitted_on: the conversations with whose labels it was fitted.
        encoder: name of its encoder; empty for any encoder of this width.
        made_by: the command that fitted it.
    """

    tokens: Floats
    pooled: Floats
    asked: Floats
    said: Floats
    scales: Floats
    fitted_on: tuple[str, ...] = ()
    encoder: str = ""
    made_by: str = ""

    def __post_init__(self) -> None:
        for name in ARRAYS:  # the precision of a saved projection, so that saving changes nothing
            object.__setattr__(self, name, getattr(self, name).astype(np.float16).astype(np.float32))

    def __deepcopy__(self, memo: dict[int, object]) -> Projection:
        return self  # it never changes, and optimisers copy programs often

    @classmethod
    def identity(cls, dimensions: int) -> Projection:
        """Return the untrained projection: the encoder's last layer, with equal token weights."""
        constant = np.zeros(2 * dimensions + 1, np.float32)
        return cls(
            tokens=np.eye(2 * dimensions, dimensions, dtype=np.float32),
            pooled=np.eye(dimensions, dtype=np.float32),
            asked=constant,
            said=np.append(constant[1:], np.float32(40)),  # sigmoid(40) is 1 in float32
            scales=np.zeros(2, np.float32),
        )

    @cached_property
    def digest(self) -> str:
        """The first 12 hex digits of the weights' SHA-256."""
        content = hashlib.sha256()
        for name in ARRAYS:
            content.update(repr(getattr(self, name).shape).encode() + getattr(self, name).tobytes())
        return content.hexdigest()[:12]

    def save(self, path: Path) -> None:
        """Write an .npz file in float16, without pickled objects."""
        table: dict[str, Any] = {name: getattr(self, name).astype(np.float16) for name in ARRAYS}
        table |= {f.name: np.array(getattr(self, f.name), np.str_) for f in fields(self) if f.name not in ARRAYS}
        with path.open("wb") as file:
            np.savez_compressed(file, **table)

    # ------------------------------------------------------------ texts as bytes

    @cached_property
    def _token(self) -> np.dtype[Any]:
        """A token: the norm of `vector * scale` is its weight in a turn, `asked` its weight in a question."""
        return np.dtype([("scale", "<f4"), ("asked", "<f4"), ("vector", "i1", (self.tokens.shape[1],))])

    @cached_property
    def _pool(self) -> np.dtype[Any]:
        return np.dtype([("scale", "<f4"), ("vector", "i1", (len(self.pooled),))])

    def compact(self, hidden: Floats, pooled: Floats) -> bytes:
        """Return a text as bytes: its pooled record, then one record per token.

        Args:
            hidden: token vectors, shape (tokens, 2 * dimensions), at least one.
            pooled: pooled vector, shape (dimensions,).
        """
        with one_thread():  # the last bits of a product depend on the number of threads
            projected, projected_pool = hidden @ self.tokens, pooled[None] @ self.pooled
        tokens = np.empty(len(hidden), self._token)
        tokens["vector"], lengths = _quantise(projected)
        tokens["scale"] = sigmoid(hidden @ self.said[:-1] + self.said[-1]) / lengths
        tokens["asked"] = softplus(hidden @ self.asked[:-1] + self.asked[-1])
        pool = np.empty(1, self._pool)
        pool["vector"], lengths = _quantise(projected_pool)
        pool["scale"] = 1 / lengths
        return pool.tobytes() + tokens.tobytes()

    def is_compact(self, value: bytes) -> bool:
        """Return True if these bytes can be a text of this projection."""
        left = len(value) - self._pool.itemsize
        return left > 0 and left % self._token.itemsize == 0

    def joined(self, texts: Sequence[bytes]) -> bytes:
        """Return the passages of one turn, given as bytes from `compact`, as one text.

        It has the tokens of all passages, and the mean of their pooled vectors.
        """
        if len(texts) == 1:
            return texts[0]
        records = np.concatenate([np.frombuffer(text, self._pool, count=1) for text in texts])
        pool = np.empty(1, self._pool)
        pool["vector"], lengths = _quantise(_directions(records).mean(axis=0, keepdims=True))
        pool["scale"] = 1 / lengths
        return pool.tobytes() + b"".join(text[self._pool.itemsize :] for text in texts)

    def append(self, vectors: TokenVectors, texts: Sequence[bytes]) -> None:
        """Append turns, given as bytes from `compact`."""
        for text in texts:
            vectors.pooled += text[: self._pool.itemsize]
            vectors.tokens += text[self._pool.itemsize :]
            vectors.ends.append(len(vectors.tokens) // self._token.itemsize)

    # ------------------------------------------------------------ comparing

    def similarities(
        self, vectors: TokenVectors, question: bytes, *, positions: np.ndarray | None = None
    ) -> dict[str, Floats]:
        """Return three similarities of each turn with a question, each of shape (turns,).

        Args:
            vectors: the turns.
            question: bytes from `compact`.
            positions: compare tokens only in these turns (0-based, at least one), which saves time in a long history.
                None compares all turns.

        Returns:
            `late`: the weighted mean over the question's tokens of their best cosine in the turn; turns outside
            `positions` come below all others, in the order of `dense`. `dense`: the cosine of the pooled vectors.
            `both`: their sum, weighted by `scales`.
        """
        if not len(vectors):
            return {name: np.zeros(0, np.float32) for name in ("late", "dense", "both")}
        with one_thread():  # 4 ms for 600 turns; two threads that spin-wait take 15 ms and more
            return self._similarities(vectors, question, positions)

    def _similarities(self, vectors: TokenVectors, question: bytes, positions: np.ndarray | None) -> dict[str, Floats]:
        asked = np.frombuffer(question, self._token, offset=self._pool.itemsize)
        pool = np.frombuffer(question, self._pool, count=1)
        turns = np.frombuffer(vectors.pooled, self._pool)
        dense = turns["vector"].astype(np.float32) @ _directions(pool)[0] * turns["scale"]
        ends = np.frombuffer(vectors.ends, np.int64)
        tokens = np.frombuffer(vectors.tokens, self._token)
        weights = asked["asked"] / asked["asked"].sum()
        if positions is None or len(positions) == len(ends):
            late = _best(tokens, ends, _directions(asked)) @ weights
        else:
            starts = np.append(0, ends[:-1])
            lengths = (ends - starts)[positions]
            chosen = np.repeat(starts[positions] - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
            selected = _best(tokens.take(chosen), np.cumsum(lengths), _directions(asked)) @ weights
            late = selected.min() + dense - dense.max() - np.float32(1e-3)
            late[positions] = selected
        scale = np.exp(self.scales)
        return {"late": late, "dense": dense, "both": late * scale[0] + dense * scale[1]}


@lru_cache(maxsize=16)
def load(path: Path) -> Projection:
    """Load a projection that `Projection.save` wrote.

    Raises:
        ValueError: the file does not contain a projection.
    """
    try:
        with np.load(path, allow_pickle=False) as table:
            about = {f.name: table[f.name].tolist() for f in fields(Projection) if f.name not in ARRAYS}
            about["fitted_on"] = tuple(about["fitted_on"])
            return Projection(**{name: table[name].astype(np.float32) for name in ARRAYS}, **about)
    except (OSError, KeyError, TypeError, ValueError, EOFError) as error:
        raise ValueError(
            f"{path} does not contain a projection ({error}); fit one with python optimize.py --target retrieval."
        ) from error


def softplus(x: Floats) -> Floats:
    """Return log(1 + exp(x)), without overflow."""
    return np.logaddexp(x, np.float32(0))


def sigmoid(x: Floats) -> Floats:
    """Return 1 / (1 + exp(-x)), without overflow."""
    return np.exp(-softplus(-x))


def _quantise(x: Floats) -> tuple[np.ndarray, Floats]:
    """Return the rows in int8, each scaled to a maximum of 127, and the norms of these int8 rows."""
    whole = np.rint(x * (127 / np.maximum(np.abs(x).max(axis=1, keepdims=True), 1e-12)))
    return whole.astype(np.int8), np.maximum(np.linalg.norm(whole, axis=1), 1).astype(np.float32)


def _directions(records: np.ndarray) -> Floats:
    vectors: Floats = records["vector"].astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1)


def _best(tokens: np.ndarray, ends: np.ndarray, question: Floats) -> Floats:
    """Return the best match of each question token in each turn, shape (turns, question tokens)."""
    similarity = np.empty((len(tokens), len(question)), np.float32)
    for start in range(0, len(tokens), BLOCK):
        block = tokens[start : start + BLOCK]
        np.matmul(block["vector"].astype(np.float32), question.T, out=similarity[start : start + BLOCK])
    similarity *= tokens["scale"][:, None]
    return np.maximum.reduceat(similarity, np.append(0, ends[:-1]), axis=0)
