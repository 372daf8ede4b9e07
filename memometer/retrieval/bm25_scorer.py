"""Word matching for the memories here: BM25 over documents of any kind, as counts of their terms."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from memometer.retrieval.bm25 import idf, saturated
from memometer.retrieval.tokenize import terms


def counted(text: str) -> Counter[str]:
    """How often each index term stands in a text."""
    return Counter(terms(text))


def scores(documents: Sequence[Counter[str]], question: str) -> np.ndarray:
    """BM25 of every document, shape (documents,), zero where none of the question's terms stands in it."""
    total = np.zeros(len(documents))
    lengths = np.array([counts.total() for counts in documents], float)
    for term in sorted(set(terms(question))):
        counts = np.array([document[term] for document in documents], float)
        if holding := int(np.count_nonzero(counts)):
            total += idf(len(documents), holding) * saturated(counts, lengths, float(lengths.mean()))
    return total
