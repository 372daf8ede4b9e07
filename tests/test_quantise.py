"""Vectors at a few bits: near what they were, and the same on every machine."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from memometer.store.quantise import Quantiser

DIMENSIONS = [1, 3, 16, 100, 384, 1536]


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("dimensions", DIMENSIONS)
def test_cosines_are_those_of_the_levels_exactly(dimensions: int, bits: int) -> None:
    quantiser = Quantiser(dimensions, bits)
    vectors = np.random.default_rng(dimensions).normal(size=(1500, dimensions)).astype(np.float32)
    codes = quantiser.encode(vectors)
    assert codes.shape == (1500, quantiser.bytes)
    levels, query = quantiser.levels(codes), quantiser.query(vectors[0])
    assert set(np.unique(levels)) <= set(range(1 - 2**bits, 2**bits, 2))
    products = (levels.astype(np.int64) @ query.astype(np.int64)).astype(float)
    norms = quantiser.norms(codes)
    expected = products / (norms * max(float(np.linalg.norm(query)), 1e-30))
    assert np.array_equal(quantiser.cosines(codes, norms, query), expected)
    assert np.array_equal(quantiser.cosines(codes[7:9], norms[7:9], query), expected[7:9]), "whatever is beside it"


@pytest.mark.parametrize(("bits", "error"), [(2, 0.05), (4, 0.01)])
def test_a_cosine_loses_little(bits: int, error: float) -> None:
    quantiser = Quantiser(384, bits)
    draw = np.random.default_rng(0)
    vectors = np.abs(draw.normal(size=(500, 384))) * (draw.random(384) < 0.1)  # far from normal: few numbers, one sign
    codes = quantiser.encode(vectors)
    asked = vectors[:20]
    exact = asked @ vectors.T / np.outer(np.linalg.norm(asked, axis=1), np.linalg.norm(vectors, axis=1))
    found = [quantiser.cosines(codes, quantiser.norms(codes), quantiser.query(row)) for row in asked]
    others = exact < 0.99
    assert np.sqrt(np.mean((np.array(found) - exact)[others] ** 2)) < error


def test_codes_are_the_same_everywhere() -> None:
    vectors = np.arange(2 * 384, dtype=np.float32).reshape(2, 384) % 17 - 8
    digests = [hashlib.sha256(Quantiser(384, bits).encode(vectors).tobytes()).hexdigest()[:12] for bits in (2, 4)]
    assert digests == GOLDEN


GOLDEN = ["46717cdf6551", "b4c3f38da315"]


@pytest.mark.parametrize(("dimensions", "bits"), [(0, 2), (5000, 2), (384, 3)])
def test_what_cannot_be_stored_is_refused(dimensions: int, bits: int) -> None:
    with pytest.raises(ValueError, match=f"{dimensions} dimensions at {bits} bits"):
        Quantiser(dimensions, bits)
