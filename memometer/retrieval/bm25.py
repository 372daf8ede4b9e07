"""Okapi BM25 (Robertson and Zaragoza, 2009)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from memometer.retrieval.tokenize import terms

K1, B = 0.9, 0.3  # common values for short texts


def idf(documents: int, document_frequency: int) -> float:
    """Return the inverse document frequency of a term, in the variant that is never negative.

    Args:
        documents: number of documents.
        document_frequency: number of documents that contain the term.
    """
    return math.log(1 + (documents - document_frequency + 0.5) / (document_frequency + 0.5))


def saturation(counts: np.ndarray, lengths: np.ndarray, mean_length: float) -> np.ndarray:
    """Return BM25's saturated term frequency.

    Args:
        counts: occurrences of a term in each document, shape (documents,).
        lengths: terms per document, shape (documents,).
        mean_length: mean of `lengths` over the collection.
    """
    return counts * (K1 + 1) / (counts + K1 * (1 - B + B * lengths / mean_length))


def term_counts(text: str) -> Counter[str]:
    """Count the index terms of a text."""
    return Counter(terms(text))


def bm25_scores(documents: Sequence[Counter[str]], question: str) -> np.ndarray:
    """Score every document for a question.

    Args:
        documents: the `term_counts` of each document.
        question: any text.

    Returns:
        Shape (documents,); zero for a document that contains no term of the question.
    """
    total = np.zeros(len(documents))
    lengths = np.array([sum(counts.values()) for counts in documents], float)
    for term in sorted(set(terms(question))):
        counts = np.array([document.get(term, 0) for document in documents], float)
        if frequency := int(np.count_nonzero(counts)):
            total += idf(len(documents), frequency) * saturation(counts, lengths, float(lengths.mean()))
    return total
