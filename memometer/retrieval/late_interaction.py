"""Late interaction: a question's tokens each find their best match in a turn (ColBERT: Khattab and Zaharia, 2020).

The encoder stays as it is; a small linear map of its token vectors is what is learned
(memometer/retrieval/late_interaction_fit.py), with
weights that say which tokens matter in a question and in a turn. What is kept of a text is the same whether it is asked
or said: some 130 bytes a token.
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
from memometer.retrieval.blas_threads import one_thread

Floats = np.ndarray[Any, Any]  # float32, or in a test of the gradients float64

SHIPPED = Path(__file__).parent / "minilm.npz"
ARRAYS = ("tokens", "pooled", "asked", "said", "scales")
BLOCK = 4096  # tokens compared at a time: as float32 they stay in the cache


class Encoder(Protocol):
    """What is asked of an encoder here (memometer.models.encoders.CachedTokens)."""

    @property
    def name(self) -> str: ...

    @property
    def dimensions(self) -> int: ...

    def compact(self, texts: Sequence[str], token_map: TokenMap) -> list[bytes]:
        """`token_map.compact` of each text's token vectors and pooled vector."""
        ...


def document(turn: Turn) -> str:
    """A turn as it is encoded: `8 May 2023. Nadia: …`, for a day and a name are much of what is asked for."""
    return f"{format_date(turn.said_at)}. {turn.line.strip()}"


@dataclass
class TokenVectors:
    """What is kept of a conversation's turns; append-only, plain values that compare and pickle.

    `tokens` and `pooled` are records of a TokenMap, `ends` the number of tokens up to and including each turn.
    """

    tokens: bytearray = field(default_factory=bytearray)
    ends: array[int] = field(default_factory=lambda: array("q"))
    pooled: bytearray = field(default_factory=bytearray)

    def __len__(self) -> int:
        return len(self.ends)


@dataclass(frozen=True, eq=False)
class TokenMap:
    """A map of token vectors, of width `2 * dimensions`, and of a text's pooled vector, of width `dimensions`.

    A token vector h becomes `h · tokens` at unit length. In a question it counts softplus(h · asked), in a turn its
    cosines are multiplied by sigmoid(h · said); the last number of both is a constant. A pooled vector v becomes
    `v · pooled` at unit length.

    `fitted_on` names the conversations whose labels it has seen, `encoder` the encoder that it is for (empty for any of
    its width), `made_by` the command.
    """

    tokens: Floats  # (2 * dimensions, width)
    pooled: Floats  # (dimensions, dimensions)
    asked: Floats  # (2 * dimensions + 1,)
    said: Floats  # (2 * dimensions + 1,)
    scales: Floats  # (2,): logarithms of what `late` and `dense` count in `both`
    fitted_on: tuple[str, ...] = ()
    encoder: str = ""
    made_by: str = ""

    def __post_init__(self) -> None:
        for name in ARRAYS:  # as on disk, so that a map works the same before and after
            object.__setattr__(self, name, getattr(self, name).astype(np.float16).astype(np.float32))

    def __deepcopy__(self, memo: dict[int, object]) -> TokenMap:
        return self  # never changes, and DSPy's optimisers copy programs by the hundred

    @classmethod
    def identity(cls, dimensions: int) -> TokenMap:
        """The untrained map: the last layer's token vectors as they are, all of equal weight."""
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
        """12 hex digits of the sha256 of the weights."""
        content = hashlib.sha256()
        for name in ARRAYS:
            content.update(repr(getattr(self, name).shape).encode() + getattr(self, name).tobytes())
        return content.hexdigest()[:12]

    def save(self, path: Path) -> None:
        """As .npz in float16, without pickled objects."""
        table: dict[str, Any] = {name: getattr(self, name).astype(np.float16) for name in ARRAYS}
        table |= {f.name: np.array(getattr(self, f.name), np.str_) for f in fields(self) if f.name not in ARRAYS}
        with path.open("wb") as file:
            np.savez_compressed(file, **table)

    # ------------------------------------------------------------ texts as bytes

    @cached_property
    def _token(self) -> np.dtype[Any]:
        """`vector * scale` has the length of the token's weight in a turn; `asked` is its weight in a question."""
        return np.dtype([("scale", "<f4"), ("asked", "<f4"), ("vector", "i1", (self.tokens.shape[1],))])

    @cached_property
    def _pool(self) -> np.dtype[Any]:
        return np.dtype([("scale", "<f4"), ("vector", "i1", (len(self.pooled),))])

    def compact(self, hidden: Floats, pooled: Floats) -> bytes:
        """A text as bytes: its pooled record, then a record a token.

        Args:
            hidden: its token vectors, shape (tokens, 2 * dimensions), at least one.
            pooled: its pooled vector, shape (dimensions,).
        """
        with one_thread():  # the last bits of a product depend on the number of threads
            mapped, mapped_pool = hidden @ self.tokens, pooled[None] @ self.pooled
        tokens = np.empty(len(hidden), self._token)
        tokens["vector"], lengths = _rounded(mapped)
        tokens["scale"] = sigmoid(hidden @ self.said[:-1] + self.said[-1]) / lengths
        tokens["asked"] = softplus(hidden @ self.asked[:-1] + self.asked[-1])
        pool = np.empty(1, self._pool)
        pool["vector"], lengths = _rounded(mapped_pool)
        pool["scale"] = 1 / lengths
        return pool.tobytes() + tokens.tobytes()

    def is_compact(self, value: bytes) -> bool:
        """Whether these bytes can be a text of this map."""
        left = len(value) - self._pool.itemsize
        return left > 0 and left % self._token.itemsize == 0

    def append(self, vectors: TokenVectors, texts: Sequence[bytes]) -> None:
        """Add turns, as `compact` makes them, to what is kept."""
        for text in texts:
            vectors.pooled += text[: self._pool.itemsize]
            vectors.tokens += text[self._pool.itemsize :]
            vectors.ends.append(len(vectors.tokens) // self._token.itemsize)

    # ------------------------------------------------------------ comparing

    def similarities(
        self, vectors: TokenVectors, question: bytes, *, positions: np.ndarray | None = None
    ) -> dict[str, Floats]:
        """How near each turn is to a question, three times, each of shape (turns,).

        `late`: the mean, by their weights, of the question's tokens' best cosines in the turn; `dense`: the cosine of
        the pooled vectors; `both`: their sum, by the map's scales.

        Args:
            question: as `compact` makes it.
            positions: compare tokens only in these turns (0-based, at least one), for a long history; of the others,
                `late` is below all of these, in the order of `dense`. None for all turns.
        """
        if not len(vectors):
            return {name: np.zeros(0, np.float32) for name in ("late", "dense", "both")}
        with one_thread():  # 4 ms at 600 turns, 15 and more on two threads that wait spinning
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
            close = _best(tokens.take(chosen), np.cumsum(lengths), _directions(asked)) @ weights
            late = close.min() + dense - dense.max() - np.float32(1e-3)
            late[positions] = close
        scale = np.exp(self.scales)
        return {"late": late, "dense": dense, "both": late * scale[0] + dense * scale[1]}


@lru_cache(maxsize=16)
def load(path: Path) -> TokenMap:
    """Raises ValueError with one sentence where the file holds no map."""
    try:
        with np.load(path, allow_pickle=False) as table:
            about = {f.name: table[f.name].tolist() for f in fields(TokenMap) if f.name not in ARRAYS}
            about["fitted_on"] = tuple(about["fitted_on"])
            return TokenMap(**{name: table[name].astype(np.float32) for name in ARRAYS}, **about)
    except (OSError, KeyError, TypeError, ValueError, EOFError) as error:
        raise ValueError(f"{path} holds no token map ({error}); make one with python optimize.py.") from error


def softplus(x: Floats) -> Floats:
    return np.logaddexp(x, np.float32(0))


def sigmoid(x: Floats) -> Floats:
    return np.exp(-softplus(-x))


def _rounded(x: Floats) -> tuple[np.ndarray, Floats]:
    """The rows' directions in int8, the largest number of each 127, and how long these rows are."""
    whole = np.rint(x * (127 / np.maximum(np.abs(x).max(axis=1, keepdims=True), 1e-12)))
    return whole.astype(np.int8), np.maximum(np.linalg.norm(whole, axis=1), 1).astype(np.float32)


def _directions(records: np.ndarray) -> Floats:
    vectors: Floats = records["vector"].astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1)


def _best(tokens: np.ndarray, ends: np.ndarray, question: Floats) -> Floats:
    """The best match of each of the question's tokens in each turn, shape (turns, question tokens)."""
    similarity = np.empty((len(tokens), len(question)), np.float32)
    for start in range(0, len(tokens), BLOCK):
        block = tokens[start : start + BLOCK]
        np.matmul(block["vector"].astype(np.float32), question.T, out=similarity[start : start + BLOCK])
    similarity *= tokens["scale"][:, None]
    return np.maximum.reduceat(similarity, np.append(0, ends[:-1]), axis=0)
