"""Word matching for the memories here: BM25 over documents of any kind, as counts of their terms."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from memory_system import IndexedState, bm25, terms


def counted(text: str) -> Counter[str]:
    """How often each index term stands in a text."""
    return Counter(terms(text))


def scores(documents: Sequence[Counter[str]], question: str) -> np.ndarray:
    """BM25 of every document, shape (documents,), zero where none of the question's terms stands in it."""
    query = sorted(set(terms(question)))
    postings = {term: [(i, counts[term]) for i, counts in enumerate(documents) if term in counts] for term in query}
    lengths = [counts.total() for counts in documents]
    # `bm25` asks of the turns only how many there are.
    return bm25(IndexedState(turns=cast(list[Any], documents), postings=postings, lengths=lengths), query)


def best_first(scores: np.ndarray) -> list[int]:
    """Positions by falling score; of equal ones the later first, since what is newer is likelier to still hold."""
    return np.lexsort((-np.arange(len(scores)), -scores)).tolist()
