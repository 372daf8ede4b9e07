"""Okapi BM25 (Robertson and Zaragoza, 2009), its two halves."""

from __future__ import annotations

import math

import numpy as np

K1, B = 0.9, 0.3  # as commonly set for short texts


def idf(documents: int, holding: int) -> float:
    """How much a term says that stands in `holding` of so many documents; the form that is never negative."""
    return math.log(1 + (documents - holding + 0.5) / (holding + 0.5))


def saturated(counts: np.ndarray, lengths: np.ndarray, mean_length: float) -> np.ndarray:
    """What repeating a term is worth in documents of these lengths."""
    return counts * (K1 + 1) / (counts + K1 * (1 - B + B * lengths / mean_length))
