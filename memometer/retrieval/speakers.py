"""Which speaker a question is about, and the fit of the question to the other speaker's turns.

A question names a speaker, uses a name by which the others call the speaker, or, in a conversation with an assistant,
says `I` or `you`. Most of LOCOMO's unanswerable questions ask about one speaker what the other one said; the speaker
gap detects that. It helps little with questions about things that nobody mentioned.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from memometer.retrieval.tokenize import mentions, normalized

TOP = 3  # best turns of each side that are compared: an answer often has a turn before or after it

ASSISTANTS = frozenset("assistant ai bot chatbot chatgpt gpt claude gemini llama model agent system copilot".split())
"""Names of speakers that are programs."""

_GREETED = re.compile(
    r"(?:^|[.!?]\s+)(?:hi|hey|hello|hiya|dear|good\s+(?:morning|afternoon|evening|night)|morning|thanks|thank\s+you|bye"
    r"|goodbye|congrats|congratulations|sorry|welcome\s+back|happy\s+birthday)[,!]?\s+(?:there,?\s+)?([A-Z]\w{2,})\b",
    re.IGNORECASE,
)
_CALLED = re.compile(r",\s+([A-Z][a-z]{2,})\s*[.!?]")
_CAPITAL = re.compile(r"\b[A-Z]\w{2,}")

_REQUEST = re.compile(
    r"\b(?:can|could|would|will)\s+you(?:\s+please)?\b|\bdo\s+you\s+(?:remember|know|recall)\b"
    r"|\b(?:tell|give|show|remind|help) me\b",
    re.IGNORECASE,
)
_ASKS_I = re.compile(r"\b(?:i|my|mine|myself|me|i'm|i've|i'd)\b", re.IGNORECASE)
_ASKS_YOU = re.compile(r"\b(?:you|your|yours)\b", re.IGNORECASE)

LEAST_CALLS = 3
"""A name is another name of a speaker if the other one uses it this often, at least, to address the speaker."""


def addressed(text: str) -> list[str]:
    """Return the names with which a turn addresses somebody: `Hey Kate!`, `Thanks, Kate.`"""
    return [*(name for name in _GREETED.findall(text) if name[0].isupper()), *_CALLED.findall(text)]


def other_names(speakers: Sequence[str], calls: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Return the other names of the two speakers of a conversation.

    Args:
        speakers: the speakers.
        calls: for each speaker, the names with which the speaker addresses others, and how often.

    Returns:
        Name -> position of the speaker so called. Empty if there are not two speakers.
    """
    if len(speakers) != 2:
        return {}
    found: dict[str, int] = {}
    for caller, names in enumerate(calls):
        least = max(LEAST_CALLS, 0.15 * sum(names.values()))
        for name, count in names.items():
            if count >= least and not any(mentions(speaker, name) or mentions(name, speaker) for speaker in speakers):
                found[name] = 1 - caller
    return found


def asked_about(
    question: str,
    speakers: Sequence[str],
    calls: Sequence[Mapping[str, int]] = (),
    known_words: Mapping[str, object] | None = None,
    roles: Sequence[str] = (),
) -> tuple[list[int], list[str]]:
    """Return the speakers whom a question is about, and the names with which it names them.

    Args:
        question: any text.
        speakers: the speakers.
        calls: as in `other_names`.
        known_words: the words of the conversation; a word of the question that is one of these is not a misspelt name.
        roles: the role of each speaker, such as `assistant`; by default, the name tells.

    Returns:
        Positions in `speakers`, ascending, and the names. Both are empty if the question names no speaker.
    """
    named = {n: speakers[n] for n in range(len(speakers)) if mentions(question, speakers[n])}
    if not named:
        named = {n: name for name, n in other_names(speakers, calls).items() if mentions(question, name)}
    if not named and len(speakers) <= 8:
        for word in _CAPITAL.findall(question):
            if normalized(word) in (known_words or {}):
                continue
            alike = [n for n, speaker in enumerate(speakers) if _alike(normalized(word), _first(speaker))]
            if len(alike) == 1:
                named[alike[0]] = word
    if not named:
        named = dict.fromkeys(_by_pronoun(question, roles if any(roles) else [_first(each) for each in speakers]), "")
    return sorted(named), [name for name in named.values() if name]


def _first(speaker: str) -> str:
    return normalized(next(iter(speaker.split()), ""))


def _alike(word: str, name: str) -> bool:
    """Return True if a word can be a misspelling or a short form of a name."""
    if min(len(word), len(name)) < 4:
        return min(len(word), len(name)) == 3 and word != name and (word.startswith(name) or name.startswith(word))
    if word.startswith(name) or name.startswith(word):
        return True
    if abs(len(word) - len(name)) > 1 or word[0] != name[0]:
        return False
    return _one_edit(word, name) or (word[:3] == name[:3] and max(len(word), len(name)) <= 5)


def _one_edit(one: str, other: str) -> bool:
    """Return True if one letter replaced, added, left out, or two swapped make a word the other."""
    short, long = sorted((one, other), key=len)
    at = next((i for i, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    if len(short) != len(long):
        return short[at:] == long[at + 1 :]
    swapped = short[at : at + 2][::-1] == long[at : at + 2] and short[at + 2 :] == long[at + 2 :]
    return short[at + 1 :] == long[at + 1 :] or swapped


def _by_pronoun(question: str, roles: Sequence[str]) -> list[int]:
    """Return whom `I` and `you` mean, if exactly one of two speakers is an assistant."""
    programs = [n for n, role in enumerate(roles) if role in ASSISTANTS]
    if len(roles) != 2 or len(programs) != 1:
        return []
    asked = _REQUEST.sub(" ", question)
    found = [1 - programs[0]] if _ASKS_I.search(asked) else []
    return [*found, *programs] if _ASKS_YOU.search(asked) else found


def named_speaker(question: str, speakers: Iterable[str]) -> str | None:
    """Return the one speaker that a question names, or None if it names nobody or several."""
    named = {speaker for speaker in set(speakers) if mentions(question, speaker)}
    return named.pop() if len(named) == 1 else None


def speaker_gap(scores: np.ndarray, is_named: np.ndarray | list[bool]) -> float | None:
    """Return the mean of the other speaker's best scores minus that of the named speaker's best scores.

    Args:
        scores: the ranking scores of one question, shape (turns,).
        is_named: for each turn, True if the named speaker said it.

    Returns:
        The gap in standard deviations of `scores`, so that rankings of any scale compare; None if one side has no
        turns.
    """
    mine = np.asarray(is_named, dtype=bool)
    if not mine.any() or mine.all():
        return None
    others, own = (float(np.sort(scores[side])[-TOP:].mean()) for side in (~mine, mine))
    spread = float(scores.std())
    return (others - own) / spread if spread > 0 else 0.0
