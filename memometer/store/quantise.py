"""Quantisation of vectors to 2 or 4 bits per dimension, with identical results on every machine.

A vector is rotated and each number is rounded to the nearest level. The rotation makes the numbers nearly normal for
any encoder, so evenly spaced levels need no training. Levels and queries are small integers: their float32 product is
exact in any order of summation, and all back ends compute the same cosine to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, cached_property

import numpy as np

STEP = {2: 0.9957, 4: 0.3352}
"""Distance between levels by bits, in standard deviations: the optimum for a normal distribution (Max 1960)."""

MAX_DIMENSIONS = 4096
"""With more, a sum of products could exceed 2 ** 24 and lose exactness in float32."""

_BLOCK_ROWS = 1024  # decoded at a time, to fit the processor's cache


class Quantiser:
    """Encodes vectors and computes cosines with them.

    Args:
        dimensions: length of a vector, 1 to 4,096.
        bits: bits per dimension, 2 or 4.

    Raises:
        ValueError: `dimensions` or `bits` is out of range.
    """

    def __init__(self, dimensions: int, bits: int) -> None:
        if bits not in STEP or not 1 <= dimensions <= MAX_DIMENSIONS:
            raise ValueError(
                f"cannot store vectors with {dimensions} dimensions at {bits} bits; supported are 1 to "
                f"{MAX_DIMENSIONS} dimensions at {' or '.join(map(str, STEP))} bits."
            )
        self.dimensions = dimensions
        self.bits = bits
        self.bytes = -(-dimensions * bits // 8)

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """Return the codes, shape (n, bytes), uint8, of non-zero vectors, shape (n, dimensions)."""
        count = 2**self.bits
        steps = np.floor(self._rotate(vectors) / STEP[self.bits]) + count // 2
        numbers = np.clip(steps, 0, count - 1).astype(np.uint8)
        per_byte = 8 // self.bits
        padded = np.zeros((len(numbers), self.bytes * per_byte), np.uint8)
        padded[:, : self.dimensions] = numbers
        shifts = np.arange(per_byte, dtype=np.uint8) * self.bits
        return np.bitwise_or.reduce(padded.reshape(len(numbers), self.bytes, per_byte) << shifts, axis=2)

    def levels(self, codes: np.ndarray) -> np.ndarray:
        """Decode to shape (n, dimensions), float32: odd integers from 1 - 2 ** bits to 2 ** bits - 1."""
        return self._decoded(codes)[:, : self.dimensions]

    def matrix(self, codes: Sequence[bytes]) -> np.ndarray:
        """Stack codes into an array, shape (n, bytes), uint8."""
        return np.frombuffer(b"".join(codes), np.uint8).reshape(len(codes), self.bytes)

    def norms(self, codes: np.ndarray) -> np.ndarray:
        """Return the Euclidean length of each row of levels, shape (n,), float32."""
        blocks = (codes[start : start + _BLOCK_ROWS] for start in range(0, len(codes), _BLOCK_ROWS))
        found = [np.sqrt(np.einsum("ij,ij->i", rows := self.levels(block), rows)) for block in blocks]
        return np.concatenate(found) if found else np.zeros(0, np.float32)

    def query(self, vector: np.ndarray) -> np.ndarray:
        """Prepare a query vector for `cosines`: shape (dimensions,), float32 integers from -127 to 127."""
        rotated = self._rotate(vector)[0]
        return np.rint(rotated * (127 / max(float(np.abs(rotated).max()), 1e-30))).astype(np.float32)

    def cosines(self, codes: np.ndarray, norms: np.ndarray, query: np.ndarray) -> np.ndarray:
        """Return the cosine of each row with the result of `query`, shape (n,), float64."""
        dots = np.empty(len(codes))
        padded = np.zeros(self.bytes * (8 // self.bits), np.float32)
        padded[: self.dimensions] = query
        for start in range(0, len(codes), _BLOCK_ROWS):
            block = codes[start : start + _BLOCK_ROWS]
            dots[start : start + len(block)] = self._decoded(block) @ padded
        return dots / (norms * max(float(np.linalg.norm(query)), 1e-30))

    def code_cosine(self, cosine: float) -> float:
        """Return the expected cosine of two vectors' levels if the vectors themselves have the given cosine.

        The rotation makes numbers nearly normal, so it is that of two quantised normal variables.
        """
        count, step = 2**self.bits, STEP[self.bits]
        edges = np.concatenate([[-np.inf], step * np.arange(1 - count // 2, count // 2), [np.inf]])
        levels = np.arange(1 - count, count, 2)
        x = np.linspace(-6, 6, 2401)
        density = np.exp(-x * x / 2)
        of_x = levels[np.searchsorted(edges, x, "right") - 1]
        spread = max(1e-6, math.sqrt(max(0.0, 1 - cosine * cosine)))
        below = np.vectorize(math.erf)((edges[:, None] - cosine * x) / (spread * math.sqrt(2)))
        of_y = (np.diff(below, axis=0) / 2 * levels[:, None]).sum(axis=0)
        return float((density * of_x * of_y).sum() / (density * of_x * of_x).sum())

    def _decoded(self, codes: np.ndarray) -> np.ndarray:
        items = _levels_of_bytes(self.bits).take(codes, mode="clip")
        return items.view(np.float32).reshape(len(codes), -1)

    def _rotate(self, vectors: np.ndarray) -> np.ndarray:
        """Rotate rows and scale them to length sqrt(dimensions).

        The rotation is three rounds of permutation, random signs and blockwise Hadamard transforms. It uses only sums
        and differences in a fixed order, so that results agree to the last bit on every machine.
        """
        rows = np.array(vectors, np.float32).reshape(-1, self.dimensions)
        size = self.dimensions & -self.dimensions  # the largest power of two that divides it
        for order, signs in self._rounds:
            rows = rows[:, order] * signs
            width = 1
            while width < size:
                pairs = rows.reshape(len(rows), self.dimensions // (2 * width), 2, width)
                rows = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2)
                width *= 2
            rows = rows.reshape(-1, self.dimensions)
        lengths = np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1, keepdims=True))
        return rows * (np.sqrt(self.dimensions) / np.maximum(lengths, 1e-30))

    @cached_property
    def _rounds(self) -> list[tuple[np.ndarray, np.ndarray]]:
        draws = np.random.Generator(np.random.PCG64(self.dimensions)).integers(0, 2**32, (3, 2, self.dimensions))
        return [(np.argsort(o, kind="stable"), np.where(s & 1, 1, -1).astype(np.float32)) for o, s in draws]


@cache
def quantiser(dimensions: int, bits: int) -> Quantiser:
    """Return a shared quantiser; see `Quantiser`."""
    return Quantiser(dimensions, bits)


@cache
def _levels_of_bytes(bits: int) -> np.ndarray:
    """Return the levels of each byte, shape (256,), packed into one item per byte so that NumPy copies them at once."""
    numbers = np.arange(256)[:, None] >> np.arange(8 // bits) * bits & 2**bits - 1
    levels = (2 * numbers + 1 - 2**bits).astype(np.float32)
    return levels.view({2: np.complex128, 4: np.float64}[bits]).ravel()
