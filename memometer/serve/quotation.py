"""Quotation of recalled text for a language model, so that it is read as data."""

from __future__ import annotations

from collections.abc import Callable

from memometer.memory import Recall
from memometer.token_counters import TokenCounter

START, END = "<recalled>\n", "</recalled>"


def quoted(recall: Callable[[int], Recall], budget_tokens: int, count: TokenCounter) -> str:
    """Recall a text and return it between delimiters; an empty text without them.

    Args:
        recall: recalls within a number of tokens.
        budget_tokens: upper limit of the result, delimiters included.
        count: counts tokens.
    """
    text = recall(max(1, budget_tokens - count(START) - count(END))).text
    if not text:
        return ""
    for word in ("<recalled", "</recalled"):
        text = text.replace(word, word.replace("<", "&lt;"))  # a quotation cannot end itself
    return f"{START}{text}{END}"
