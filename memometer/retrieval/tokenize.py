"""Index terms, character n-grams and mentions of people: how texts are split for lexical matching."""

from __future__ import annotations

import hashlib
import re
import unicodedata
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


def _ranges(first: int, last: int, categories: str) -> str:
    """Return the characters of these Unicode categories as the content of a character class."""
    return "".join(chr(c) for c in range(first, last) if unicodedata.category(chr(c)) in categories.split())


_MARKS = re.escape(_ranges(0x0300, 0x1D00, "Mn Mc"))
"""Vowel signs of Indic and other scripts, which belong to their word but are not letters for `re`."""

_FOLDED = re.compile(f"[{_ranges(0x0300, 0x0370, 'Mn')}{_ranges(0x0591, 0x0700, 'Mn')}\u0640]+")
"""Accents, Hebrew points, Arabic vowel signs and the Arabic tatweel: people leave them out when they ask."""

_WORD = re.compile(rf"[^\W_](?:[^\W_]|[{_MARKS}])*")

_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u3130-\u318f\u3400-\u4dbf"
    "\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]+"
)
"""Scripts without spaces between words (Thai, Khmer, Chinese, Japanese), and Korean, whose words have endings."""


def normalized(text: str) -> str:
    """Return a text in the form in which words are compared: NFKC, case-folded, without accents and vowel points."""
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    return unicodedata.normalize("NFC", _FOLDED.sub("", decomposed))


def words_of(text: str) -> list[str]:
    """Return the words and numbers of a text in order, normalized. A run of an unspaced script gives pairs of
    neighbouring characters."""
    lowered = normalized(text)
    found = _WORD.findall(lowered)
    if lowered.isascii():
        return found
    words: list[str] = []
    for word in found:
        start = 0
        for run in _UNSPACED.finditer(word):
            if run.start() > start:
                words.append(word[start : run.start()])
            characters = run.group()
            words.extend(characters[i : i + 2] for i in range(max(1, len(characters) - 1)))
            start = run.end()
        if start < len(word):
            words.append(word[start:])
    return words


@lru_cache(maxsize=200_000)
def stem(word: str) -> str:
    """Return the Porter stem of a lowercase word."""
    return stemmer.stem(word)


def terms(text: str) -> list[str]:
    """Return the index terms of a text: its words without stop words, Porter-stemmed.

    No term is longer than `MAX_TERM_CHARACTERS`; of a longer word, the end is replaced by a digest of the whole.
    """
    return [_term(word) for word in words_of(text) if word not in STOP_WORDS]


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
    text, person = (unicodedata.normalize("NFKC", each) for each in (text, person))
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
    words = (f"<{word}>" for word in words_of(text) if word not in STOP_WORDS)
    return [f"_{word[i : i + 4]}" for word in words for i in range(max(1, len(word) - 3))]
