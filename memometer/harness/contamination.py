"""Search for held-out text (test-set contamination) in prompts, examples, programs, memories and training files.

The scanner finds

question   a held-out question, word for word;
answer     its gold answer, or the adversarial answer of an unanswerable question, if it has six words or more. A
           shorter answer, such as "yes" or "2022", counts only together with its question: in the same JSON object,
           or in the same plain file;
turn       at least four of the 8-word sequences of one held-out turn in one text. Eleven consecutive words give four.
           A sequence that also occurs in other conversations does not count. Image captions are ignored, because a
           model wrote them in similar phrases.

Case, punctuation, Unicode forms (NFKC) and zero-width characters are ignored. Paraphrases are not found. Archives
(zip, npz, gzip) are opened. Other binary files are searched for plain text, so that text in compressed formats such as
Parquet is not found.
"""

from __future__ import annotations

import gzip
import json
import re
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from memometer.benchmarks.metrics import comparable
from memometer.benchmarks.protocol import Conversation, Dataset

GRAM = 8
"""Consecutive words of a turn that are compared."""
MIN_GRAMS = 4
"""Sequences of one turn in one text that count. Of unrelated turns, 1 in 600 has three."""
LONG_ANSWER = 6
"""Words of an answer that counts without its question. Answers of five words also occur in other conversations."""
EXCERPT = 60
"""Maximum length of a printed excerpt, in characters."""

_START = 3
"""Words by which questions and answers are indexed; shorter questions are ignored."""
_CHUNK = 1 << 20
UNREADABLE = (
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,
)  # RuntimeError: a ZIP file with a password
_SKIPPED = {".git", "__pycache__", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache"}


@dataclass(frozen=True, slots=True)
class Leak:
    """A held-out question, answer or turn in a text.

    Attributes:
        where: the file, with its line or archive member, or the name of the text.
        kind: the kind of the held-out text.
        of: the id of the held-out text, such as `conv-42#7` or `conv-42 D3:4`.
        excerpt: the start of the held-out text.
    """

    where: str
    kind: Literal["question", "answer", "turn"]
    of: str
    excerpt: str


def words(text: str) -> list[str]:
    """Split a text into words without case, punctuation and zero-width characters."""
    return re.findall(r"[^\W_]+", comparable(text))


class HeldOut:
    """An index of held-out text.

    Args:
        conversations: the held-out conversations.
        others: the other conversations; phrases that occur in them do not count.
    """

    def __init__(self, conversations: Sequence[Conversation], *, others: Iterable[Conversation] = ()) -> None:
        self._phrases: dict[tuple[str, ...], list[tuple[Literal["question", "answer"], str, list[str]]]]
        self._phrases = defaultdict(list)
        self._short: dict[str, list[str]] = {}
        for question in (question for c in conversations for question in c.questions):
            question_words, answer = words(question.text), words(question.gold or question.adversarial_answer or "")
            if len(question_words) >= _START:
                self._phrases[tuple(question_words[:_START])].append(("question", question.id, question_words))
            if len(answer) >= LONG_ANSWER:
                self._phrases[tuple(answer[:_START])].append(("answer", question.id, answer))
            elif answer:
                self._short[question.id] = answer
        known = {gram for c in others for turn in c.turns for gram in _grams(words(turn.text))}
        self._turns: dict[str, set[str]] = defaultdict(set)
        for conversation in conversations:
            for turn in conversation.turns:
                for gram in _grams(words(turn.text)):
                    if gram not in known:
                        self._turns[gram].add(f"{conversation.id} {turn.id}")

    @classmethod
    def of(cls, data: Dataset, split: str = "test") -> HeldOut:
        """Index the held-out part of a data set; `split` is a name that `Dataset.part` accepts."""
        chosen = data.held_out(split)
        ids = {conversation.id for conversation in chosen}
        return cls(chosen, others=[c for c in data.conversations if c.id not in ids])

    def find(self, where: str, text: str) -> Iterator[Leak]:
        """Search a text; yield each held-out question, answer and turn once."""
        found: dict[tuple[str, str], Leak] = {}
        self._find(where, text, found)
        if "\0" in text:  # characters of two or four bytes, as in text arrays
            self._find(where, text.replace("\0", ""), found)
        yield from found.values()

    def _find(self, where: str, text: str, found: dict[tuple[str, str], Leak]) -> None:
        text_words = words(text)
        for i in range(len(text_words) - _START + 1):
            for kind, id, phrase in self._phrases.get(tuple(text_words[i : i + _START]), ()):
                if (kind, id) not in found and text_words[i : i + len(phrase)] == phrase:
                    found[kind, id] = Leak(where, kind, id, _excerpt(phrase))
        line = f" {' '.join(text_words)} "
        for id in [id for kind, id in found if kind == "question"]:
            short = self._short.get(id)
            if short and f" {' '.join(short)} " in line:
                found["answer", id] = Leak(where, "answer", id, _excerpt(short))
        shared: dict[str, set[str]] = defaultdict(set)
        for gram in _grams(text_words):
            for turn in self._turns.get(gram, ()):
                shared[turn].add(gram)
        for turn, grams in shared.items():
            if len(grams) >= MIN_GRAMS:
                found["turn", turn] = Leak(where, "turn", turn, _excerpt([min(grams)]))


def scan(texts: Iterable[tuple[str, str]], held_out: HeldOut) -> list[Leak]:
    """Search texts, given as pairs (where, text)."""
    return [leak for where, text in texts for leak in held_out.find(where, text)]


def summary(leaks: Sequence[Leak], *, limit: int = 20) -> list[str]:
    """Return a line per file and kind, most frequent first, with the count and the first excerpt."""
    groups: dict[tuple[str, str], list[Leak]] = defaultdict(list)
    for leak in leaks:
        groups[file_of(leak.where), leak.kind].append(leak)
    ranked = sorted(groups.items(), key=lambda item: -len(item[1]))
    lines = [
        f"{place}: {len(found)} held-out {kind}{'s' if len(found) > 1 else ''}, first {found[0].of} "
        f"in {found[0].where}: “{found[0].excerpt}”"
        for (place, kind), found in ranked[:limit]
    ]
    return lines + ([f"… and {len(ranked) - limit} more places and kinds"] if len(ranked) > limit else [])


def texts_of(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (where, text) of a file, or of all files in a folder.

    JSON files give one text per object, JSON lines one per line and object, other files their text in blocks.

    Raises:
        OSError: a file cannot be read. Damaged archives raise the other errors in UNREADABLE.
    """
    if path.is_dir():
        for inner in sorted(path.rglob("*")):
            if inner.is_file() and not _SKIPPED & set(inner.relative_to(path).parts):
                yield from texts_of(inner)
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    yield from _texts(f"{path}!{name}", name, member)
    else:
        with path.open("rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if is_gzip else path.open("rb") as file:
            yield from _texts(str(path), path.name.removesuffix(".gz") if is_gzip else path.name, file)


def texts_in(where: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield (where, text) of a JSON value: one text per object or list, from its own strings."""
    parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    own = [part for part in parts if isinstance(part, str)]
    if own:
        yield where, "\n".join(own)
    for part in parts:
        if isinstance(part, dict | list | tuple):
            yield from texts_in(where, part)
        elif isinstance(part, str) and part.lstrip()[:1] in ("{", "["):  # nested JSON escapes its line ends
            yield from _parsed(where, part)


def _texts(where: str, name: str, file: IO[bytes] | gzip.GzipFile) -> Iterator[tuple[str, str]]:
    if name.endswith(".jsonl"):
        for number, line in enumerate(file, start=1):
            yield from _parsed(f"{where}:{number}", line.decode(errors="replace"))
    elif name.endswith(".json"):
        yield from _parsed(where, file.read().decode(errors="replace"))
    else:
        tail = ""
        while chunk := file.read(_CHUNK):
            text = tail + chunk.decode(errors="replace")
            yield where, text
            tail = text[-4096:]  # finds text that crosses a block boundary


def _parsed(where: str, text: str) -> Iterator[tuple[str, str]]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        yield where, text
        return
    yield from texts_in(where, value if isinstance(value, dict | list) else [value])


def file_of(where: str) -> str:
    """Return a place without its line number."""
    return re.sub(r":\d+$", "", where)


def _grams(words: Sequence[str]) -> list[str]:
    return [" ".join(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)]


def _excerpt(phrase: Sequence[str]) -> str:
    text = " ".join(phrase)
    return text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"
