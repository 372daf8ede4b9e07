"""Index terms, character n-grams and mentions of people: how texts are split for lexical matching."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

from memometer.retrieval import stemmer

STOP_WORDS = frozenset(
    """a about after again all also am an and any are as at be because been before being but by can could did do does
    doing down during each for from further had has have having he her here hers him his how i if in into is it its
    just me more most my no nor not now of off on once only or other our out over own same she should so some such
    than that the their them then there these they this those through to too under until up very was we were what
    when where which while who whom whose why will with would you your d ll m re s t ve""".split()
)

AMBIGUOUS_NAMES = frozenset("may mark rose grace hope faith joy art bill pat sue drew chase grant skip dawn".split())
"""First names that are also ordinary words. Some others are stop words, such as Will."""


MAX_TERM_CHARACTERS = 64
"""Longer words are shortened to this: databases cut or refuse index entries of some kilobytes."""


@lru_cache(maxsize=200_000)
def stem(word: str) -> str:
    """Return the Porter stem of a lowercase word."""
    return stemmer.stem(word)


def terms(text: str) -> list[str]:
    """Return the index terms of a text: words and numbers, lowercased, without stop words, Porter-stemmed.

    No term is longer than `MAX_TERM_CHARACTERS`; of a longer word, the end is replaced by a digest of the whole.
    """
    return [_term(word) for word in re.findall(r"[^\W_]+", text.lower()) if word not in STOP_WORDS]


def _term(word: str) -> str:
    if len(word) <= MAX_TERM_CHARACTERS:
        return stem(word)
    digest = hashlib.sha256(word.encode(errors="surrogatepass")).hexdigest()[: MAX_TERM_CHARACTERS // 2]
    return word[: MAX_TERM_CHARACTERS // 2] + digest


def mentions(text: str, person: str) -> bool:
    """Return True if a text contains a person's first name.

    A name that is also a word (Will, May) must have a capital letter. At the start of a text, where every word has one,
    it must be followed by `'s`.
    """
    first = next(iter(person.split()), "")
    if not first:
        return False
    found = list(re.finditer(rf"(?<![^\W_]){re.escape(first)}(?![^\W_])", text, re.IGNORECASE))
    if first.lower() not in STOP_WORDS and first.lower() not in AMBIGUOUS_NAMES:
        return bool(found)
    return any(m.group() == first and (m.start() > 0 or text.startswith("'s", m.end())) for m in found)


def char_ngrams(text: str) -> list[str]:
    """Return the character 4-grams of each word that is not a stop word, with word boundaries: `_<pho`, `_phot`, …

    They match words of one family that have different stems.
    """
    words = (f"<{word}>" for word in re.findall(r"[^\W_]+", text.lower()) if word not in STOP_WORDS)
    return [f"_{word[i : i + 4]}" for word in words for i in range(max(1, len(word) - 3))]
