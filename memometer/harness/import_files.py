"""Reading of published result files: JSON, JSON lines and logs of inspect_ai, and the questions of their entries."""

from __future__ import annotations

import json
import zipfile
from collections import defaultdict, deque
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from memometer.benchmarks.metrics import comparable
from memometer.benchmarks.protocol import Dataset, Question
from memometer.harness.import_formats import Format, first, named


def parse(raw: bytes) -> Any:
    """Parse a result file.

    Args:
        raw: Its bytes: JSON, JSON lines, or the ZIP archive of an inspect_ai log.

    Returns:
        The content; a list for JSON lines.

    Raises:
        ValueError: The file has none of these formats.
    """
    if raw[:4] == b"PK\x03\x04":
        return _inspect_log(raw)
    try:
        return json.loads(raw)
    except ValueError:
        lines = [line for line in raw.splitlines() if line.strip()]
        if len(lines) < 2:
            raise
        return [json.loads(line) for line in lines]


def _inspect_log(raw: bytes) -> Any:
    try:
        with zipfile.ZipFile(BytesIO(raw)) as archive:
            names = archive.namelist()
            header = json.loads(archive.read("header.json")) if "header.json" in names else {}
            samples = [json.loads(archive.read(n)) for n in names if n.startswith("samples/") and n.endswith(".json")]
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"the archive cannot be read: {error}; convert it with inspect log convert --to json"
        ) from error
    return {**header, "samples": samples}


def text_of(value: Any) -> str | None:
    """Return the text of a question, gold answer or answer: a text, a number, parts of a message, or a list of one."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, list):
        parts = [text_of(part) for part in value]
        return " ".join(part for part in parts if part) if any(parts) else None
    if isinstance(value, dict):
        return text_of(value.get("text", value.get("content")))
    return str(value) if isinstance(value, str | int | float) else None


def match(entries: Sequence[dict[str, Any]], format: Format, data: Dataset) -> list[Question | None]:
    """Find the question of each entry, by its id or by its text and gold answer.

    Args:
        entries: The entries of a file, in order.
        format: The format of the file.
        data: The data.

    Returns:
        The question of each entry, or None. Of several questions with one text, each is used once, in the order of the
        data.
    """
    by_id = {question.id: question for question in data.questions}
    for conversation in data.conversations:
        if len(conversation.questions) == 1:
            by_id.setdefault(conversation.id, conversation.questions[0])
    pools: dict[tuple[str, str | None], deque[Question]] = defaultdict(deque)
    for question in data.questions:
        pools[comparable(question.text), comparable(question.gold or "")].append(question)
        pools[comparable(question.text), None].append(question)
    used: set[str] = set()

    def by_text(entry: dict[str, Any]) -> Question | None:
        text = comparable(text_of(named(entry, format.question)) or "")
        gold = comparable(text_of(named(entry, format.gold)) or "")
        for pool in (pools.get((text, gold)), pools.get((text, None))):
            while pool:
                question = pool.popleft()
                if question.id not in used:
                    used.add(question.id)
                    return question
        return None

    def found(entry: dict[str, Any]) -> Question | None:
        if not format.id:
            return by_text(entry)
        id = str(first(entry, format.id))
        if format.id_pattern:
            places = format.id_pattern.fullmatch(id)
            return data.question_at(int(places[1]), int(places[2])) if places else None
        return by_id.get(id) or (by_text(entry) if format.question else None)

    return [found(entry) for entry in entries]
