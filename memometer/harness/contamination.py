"""The leak scanner: what is held out may stand in no prompt, demo, compiled program, memory, training file or weights.

    memometer contamination FILE_OR_FOLDER... [--split test] [--data FILE]

prints what it finds by file and kind, exit code 3, or 0 where there is nothing. It looks for

question   a held-out question, word for word;
answer     its gold answer, or the adversarial answer of an unanswerable question: of six words or more, or shorter and
beside its question (in the same
           JSON object, or anywhere in the same plain file), because "yes", "2022" and names stand everywhere;
turn       four or more of the 8-word sequences of one held-out turn in one text, as eleven words in a row are; a
           sequence that a conversation outside the held-out ones has too is a stock phrase and does not count, and
           captions, which a machine wrote from a stock of phrases, are not looked at.

Letter case, punctuation, NFKC forms and zero-width characters make no difference. Paraphrases are not found. Archives
(zip, npz, gzip) are opened; anything else that is not text is read as the text inside it, so what another format has
compressed (parquet, say) is not seen.

Exit codes: 0 nothing found, 2 something cannot be read, 3 leaks.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from memometer.benchmarks.arguments import add_data_arguments, load_data
from memometer.benchmarks.metrics import comparable
from memometer.benchmarks.protocol import Conversation, DataError, Dataset

GRAM = 8
"""Words of a turn that are looked for in a row."""
GRAMS_OF_A_TURN = 4
"""So many of them from one turn in one text are an overlap. Of a fresh conversation's turns 1 in 600 has three."""
LONG_ANSWER = 6
"""Words from which an answer is looked for without its question: of five, some stand in other conversations."""
EXCERPT = 60
"""Characters of a text that are printed at most."""

_START = 3
"""Questions and answers are found by their first words; a question of fewer is not looked for."""
_CHUNK = 1 << 20
_UNREADABLE = (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError)  # RuntimeError: a zip with a password
_SKIPPED = {".git", "__pycache__", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache"}


@dataclass(frozen=True, slots=True)
class Leak:
    """One held-out thing in one text: where, what kind, which (`conv-42#7` or `conv-42 D3:4`), and a short excerpt."""

    where: str
    kind: Literal["question", "answer", "turn"]
    of: str
    excerpt: str


def words(text: str) -> list[str]:
    """The words of a text as they are compared: no case, punctuation or zero-width characters."""
    return re.findall(r"[^\W_]+", comparable(text))


class HeldOut:
    """What may leak, indexed once for many texts.

    Args:
        conversations: the held-out ones.
        others: the rest of the data, whose phrases are nobody's secret.
    """

    def __init__(self, conversations: Sequence[Conversation], *, others: Iterable[Conversation] = ()) -> None:
        self._phrases: dict[tuple[str, ...], list[tuple[Literal["question", "answer"], str, list[str]]]]
        self._phrases = defaultdict(list)
        self._short: dict[str, list[str]] = {}
        for question in (question for c in conversations for question in c.questions):
            asked, answer = words(question.text), words(question.gold or question.adversarial_answer or "")
            if len(asked) >= _START:
                self._phrases[tuple(asked[:_START])].append(("question", question.id, asked))
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
        """What `split` (a name as `Dataset.part` reads) holds out of a data set."""
        chosen = data.held_out(split)
        ids = {conversation.id for conversation in chosen}
        return cls(chosen, others=[c for c in data.conversations if c.id not in ids])

    def find(self, where: str, text: str) -> Iterator[Leak]:
        """What of it stands in one text, each thing once."""
        found: dict[tuple[str, str], Leak] = {}
        self._find(where, text, found)
        if "\0" in text:  # letters of two or four bytes, as arrays of text have them
            self._find(where, text.replace("\0", ""), found)
        yield from found.values()

    def _find(self, where: str, text: str, found: dict[tuple[str, str], Leak]) -> None:
        said = words(text)
        for i in range(len(said) - _START + 1):
            for kind, id, phrase in self._phrases.get(tuple(said[i : i + _START]), ()):
                if (kind, id) not in found and said[i : i + len(phrase)] == phrase:
                    found[kind, id] = Leak(where, kind, id, _excerpt(phrase))
        line = f" {' '.join(said)} "
        for id in [id for kind, id in found if kind == "question"]:
            short = self._short.get(id)
            if short and f" {' '.join(short)} " in line:
                found["answer", id] = Leak(where, "answer", id, _excerpt(short))
        shared: dict[str, set[str]] = defaultdict(set)
        for gram in _grams(said):
            for turn in self._turns.get(gram, ()):
                shared[turn].add(gram)
        for turn, grams in shared.items():
            if len(grams) >= GRAMS_OF_A_TURN:
                found["turn", turn] = Leak(where, "turn", turn, _excerpt([min(grams)]))


def scan(texts: Iterable[tuple[str, str]], held_out: HeldOut) -> list[Leak]:
    """Every held-out thing in `texts`, which are pairs of where a text stands and the text."""
    return [leak for where, text in texts for leak in held_out.find(where, text)]


def summary(leaks: Sequence[Leak], *, most: int = 20) -> list[str]:
    """A line for each kind of leak in each place, the commonest first: how many, and the first with its excerpt."""
    groups: dict[tuple[str, str], list[Leak]] = defaultdict(list)
    for leak in leaks:
        groups[_file(leak.where), leak.kind].append(leak)
    ranked = sorted(groups.items(), key=lambda item: -len(item[1]))
    lines = [
        f"{place}: {len(found)} held-out {kind}{'s' if len(found) > 1 else ''}, first {found[0].of} "
        f"in {found[0].where}: “{found[0].excerpt}”"
        for (place, kind), found in ranked[:most]
    ]
    return lines + ([f"… and {len(ranked) - most} more places and kinds"] if len(ranked) > most else [])


def texts_of(path: Path) -> Iterator[tuple[str, str]]:
    """(where, text) of a file, or of every file under a folder: of JSON each object's own strings, of JSON lines each
    line's, of anything else its text. Raises OSError."""
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
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            yield from _texts(str(path), path.name.removesuffix(".gz") if packed else path.name, file)


def texts_in(where: str, value: Any) -> Iterator[tuple[str, str]]:
    """(where, text) of what JSON can hold: the strings of an object, or of a list, as one text, and those of what lies
    deeper as their own."""
    parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    own = [part for part in parts if isinstance(part, str)]
    if own:
        yield where, "\n".join(own)
    for part in parts:
        if isinstance(part, dict | list | tuple):
            yield from texts_in(where, part)
        elif isinstance(part, str) and part.lstrip()[:1] in ("{", "["):  # JSON within JSON hides its line ends
            yield from _parsed(where, part)


def _texts(where: str, name: str, file: IO[bytes] | gzip.GzipFile) -> Iterator[tuple[str, str]]:
    if name.endswith(".jsonl"):
        for number, line in enumerate(file, start=1):
            yield from _parsed(f"{where}:{number}", line.decode(errors="replace"))
    elif name.endswith(".json"):
        yield from _parsed(where, file.read().decode(errors="replace"))
    else:
        before = ""
        while chunk := file.read(_CHUNK):
            text = before + chunk.decode(errors="replace")
            yield where, text
            before = text[-4096:]  # what lies across two chunks is found in the second


def _parsed(where: str, text: str) -> Iterator[tuple[str, str]]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        yield where, text
        return
    yield from texts_in(where, value if isinstance(value, dict | list) else [value])


def _file(where: str) -> str:
    """Where, without the line."""
    return re.sub(r":\d+$", "", where)


def _grams(said: Sequence[str]) -> list[str]:
    return [" ".join(said[i : i + GRAM]) for i in range(len(said) - GRAM + 1)]


def _excerpt(phrase: Sequence[str]) -> str:
    text = " ".join(phrase)
    return text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="memometer contamination", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("paths", nargs="+", type=Path, metavar="FILE_OR_FOLDER")
    parser.add_argument("--split", default="test", metavar="PART", help="what is held out: test, memory-r1:test …")
    add_data_arguments(parser)
    args = parser.parse_args(argv)
    try:
        data = load_data(args)
        index = HeldOut.of(data, args.split)
        places = data.held_out(args.split)
        if not places:
            raise DataError(f"--split {args.split} holds nothing out; give test, or memory-r1:test")
    except DataError as error:
        print(f"memometer.harness.contamination: {error}", file=sys.stderr)
        return 2
    read: set[str] = set()
    found: list[Leak] = []
    try:
        for path in args.paths:
            for where, text in texts_of(path):
                read.add(_file(where))
                found += index.find(where, text)
    except _UNREADABLE as error:
        print(
            f"memometer.harness.contamination: cannot read all of {str(path)!r} ({error}); nothing is said of it.",
            file=sys.stderr,
        )
        return 2
    if not read:
        print(
            f"memometer.harness.contamination: {', '.join(map(str, args.paths))} holds no text to read; name others.",
            file=sys.stderr,
        )
        return 2
    for line in summary(found):
        print(f"{data.prefix}{line}")
    held = f"{len(places)} held-out conversations ({args.split})"
    print(f"{data.prefix}{len(found)} leaks of {held} in {len(read)} files")
    return 3 if found else 0
