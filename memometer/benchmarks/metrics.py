"""Deterministic metrics that need no benchmark: token F1, detection of abstentions, evidence recall."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from functools import lru_cache

from memometer.retrieval.tokenize import stem

ABSTENTION = "No information available"
"""The answer that the prompts ask for if the memory does not contain an answer."""


def normalize(text: str) -> list[str]:
    """Return the tokens for token F1: lower case, without commas, punctuation, articles and `and`, Porter-stemmed."""
    text = text.replace(",", "").lower()
    text = "".join(character for character in text if character not in string.punctuation)
    text = re.sub(r"\b(a|an|the|and)\b", " ", text)
    return [stem(word) for word in text.split()]


@lru_cache(maxsize=1 << 17)  # every table of a report scores the same answers again
def token_f1(prediction: str, gold: str) -> float:
    """Multiset F1 over normalised tokens, 0 to 1."""
    predicted, expected = normalize(prediction), normalize(gold)
    same = (Counter(predicted) & Counter(expected)).total()
    return 2 * same / (len(predicted) + len(expected)) if same else 0.0


def list_f1(prediction: str, gold: str) -> float:
    """F1 over the items of two comma-separated lists, 0 to 1, in any order.

    Recall is the mean over the gold items of the best token F1 with a predicted item. Precision is the mean over the
    predicted items of the best token F1 with a gold item. LOCOMO's official score of lists is the recall alone, so
    that it does not notice wrong items.
    """
    predicted, expected = ([part for part in text.split(",") if part.strip()] for text in (prediction, gold))
    if not predicted or not expected:
        return 0.0
    scores = [[token_f1(part, item) for item in expected] for part in predicted]
    precision = sum(map(max, scores)) / len(predicted)
    recall = sum(map(max, zip(*scores, strict=True))) / len(expected)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def parts_f1(prediction: str, gold: str) -> float:
    """The published F1 of lists: the mean over the comma-separated gold parts of the best F1 with a predicted part."""
    parts = [part.strip() for part in prediction.split(",")]
    golds = [part.strip() for part in gold.split(",")]
    return sum(max(token_f1(part, one) for part in parts) for one in golds) / len(golds)


def abstains(answer: str) -> bool:
    """True if an answer contains one of the two phrases that count as an abstention."""
    lowered = answer.lower()
    return "no information available" in lowered or "not mentioned" in lowered


def evidence_recall(evidence: Sequence[str], shown: Collection[str]) -> float | None:
    """The fraction of the evidence turns that were shown; None (not 1.0) if there is no evidence."""
    if not evidence:
        return None
    return sum(id in shown for id in evidence) / len(evidence)


def comparable(text: object) -> str:
    """Return a text in a normal form, for the comparison of texts from two files.

    NFKC, without zero-width characters, case-folded, one space between words. Published files often lack the
    zero-width characters of the original.
    """
    folded = unicodedata.normalize("NFKC", str(text)).casefold()
    if not folded.isascii():
        folded = "".join(c for c in folded if unicodedata.category(c) != "Cf")
    return " ".join(folded.split())
