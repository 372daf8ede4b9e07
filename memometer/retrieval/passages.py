"""Passages of a long turn: parts of a few sentences, list items or lines of code that are matched and shown alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

from memometer.memory import Turn
from memometer.retrieval.tokenize import terms

LONGEST_WHOLE = 700
"""A text of this many characters (about 120 English words) or fewer is one passage."""

TARGET = 420
"""Characters at which a passage is complete, about 70 English words."""

LONGEST = 700
"""Most characters of a passage. A longer sentence is cut between words, a longer word is cut anywhere."""

ELLIPSIS = "…"

MISSES = 8
"""An excerpt is complete after this many passages in a row that do not fit."""

_BOUNDARY = re.compile(
    r"\n\s*\n+"  # a blank line
    r"|\n(?=\s*(?:[-*•#>|`]|\d+[.)]\s))"  # a list item, a heading, a quotation, a table or a code fence
    r"|\n"
    r"|(?<=[.!?…][\"')\]])\s+|(?<=[.!?…])\s+"  # a sentence
    r"|(?<=[。！？؟।])\s*"
)


def has_passages(text: str) -> bool:
    """Return True if a text is so long that it is divided into passages."""
    return len(text) > LONGEST_WHOLE


@lru_cache(maxsize=4096)
def spans(text: str) -> tuple[tuple[int, int], ...]:
    """Divide a text into passages.

    Args:
        text: the text of a turn.

    Returns:
        The start and end of each passage in `text`, in order. They cover all characters but the white space at the
        cuts. A text that is not long is one passage.
    """
    if len(text) <= LONGEST_WHOLE:
        return ((0, len(text)),)
    pieces = [piece for start, end in _pieces(text) for piece in _cut(text, start, end)]
    joined: list[tuple[int, int]] = []
    for start, end in pieces:
        if joined and joined[-1][1] - joined[-1][0] < TARGET and end - joined[-1][0] <= LONGEST:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return tuple(joined) or ((0, len(text)),)


def _pieces(text: str) -> list[tuple[int, int]]:
    """Return the sentences and lines of a text, without the white space between them."""
    found, start = [], 0
    for match in _BOUNDARY.finditer(text):
        if text[start : match.start()].strip():
            found.append((start, match.start()))
            start = match.end()
    if text[start:].strip():
        found.append((start, len(text)))
    return found


def _cut(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Cut a piece into parts of at most LONGEST characters, between words if it has any."""
    parts = []
    while end - start > LONGEST:
        stop = text.rfind(" ", start + LONGEST // 2, start + LONGEST)
        stop = stop if stop > 0 else start + LONGEST
        parts.append((start, stop))
        start = stop + (text[stop] == " ")
    return [*parts, (start, end)]


def excerpt_line(turn: Turn, line: str, question: str, fits: Callable[[str], bool]) -> str | None:
    """Return the best part of a turn as a line: `Speaker [D1:5]: … the best passages …`.

    Args:
        turn: the turn.
        line: its whole line.
        question: the question; without one, the end of the turn is the best part.
        fits: returns True if a line fits the budget.

    Returns:
        The line, ending in a newline; None if not even a few words fit.
    """
    speaker = " ".join(turn.speaker.split()) or line.partition(":")[0]
    body = line.removesuffix("\n").removeprefix(f"{speaker}:").strip()
    found = spans(body)
    order, asked = _best_first(body, found, question)

    def line_of(parts: Sequence[tuple[int, int]]) -> str:
        texts, last = [], 0
        for start, end in sorted(parts):
            texts.append(body[start:end] if start <= last + 1 else f"{ELLIPSIS} {body[start:end]}")
            last = end
        text = " ".join(" ".join(texts).split()) + (f" {ELLIPSIS}" if last < len(body) else "")
        return f"{speaker} [{turn.id}]: {text}\n"

    chosen: list[tuple[int, int]] = []
    misses = 0
    for n in order:
        if fits(line_of([*chosen, found[n]])):
            chosen.append(found[n])
            misses = 0
        elif (misses := misses + 1) > MISSES or not chosen:
            break
    if not chosen:
        chosen = _window(body, found[order[0]], asked, lambda part: fits(line_of([part])))
    return line_of(chosen) if chosen else None


def _best_first(body: str, found: Sequence[tuple[int, int]], question: str) -> tuple[list[int], frozenset[str]]:
    """Return the passages in the order of their match with a question, and the question's terms."""
    if not question:
        return list(range(len(found)))[::-1], frozenset()
    asked = frozenset(terms(question))
    held = [asked & set(terms(body[start:end])) for start, end in found]
    frequency = Counter(term for each in held for term in each)
    scores = [sum(1 / frequency[term] for term in sorted(each)) + 0.1 * len(each) for each in held]
    return sorted(range(len(found)), key=lambda n: -scores[n]), asked


def _window(
    body: str, passage: tuple[int, int], asked: frozenset[str], fits: Callable[[tuple[int, int]], bool]
) -> list[tuple[int, int]]:
    """Return the longest run of words around the first word that the question asks for, as one part or none."""
    start, end = passage
    words = [(start + m.start(), start + m.end()) for m in re.finditer(r"\S+", body[start:end])]
    words = [(a, min(b, a + 40)) for a, b in words]  # a word without end is cut
    if not words:
        return []
    centre = next(
        (n for n, (a, b) in enumerate(words) if asked & set(terms(body[a:b]))), 0 if asked else len(words) - 1
    )

    def part(size: int) -> tuple[int, int]:
        first = max(0, min(centre - size // 3, len(words) - size))
        return words[first][0], words[min(first + size, len(words)) - 1][1]

    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(part(middle)) else (low, middle - 1)
    return [part(low)] if low else []
