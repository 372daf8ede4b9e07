"""The items that plug-ins return and show: items.jsonl holds each text once, searches.jsonl each search once."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path

from memometer.memory import Item, Recall
from memometer.run.folder import Record, RunFolder, read_lines

ITEMS, SEARCHES = "items.jsonl", "searches.jsonl"


def item_key(item: Item) -> str:
    """Return the key of an item in items.jsonl: a digest of its text and its turns."""
    content = json.dumps([item.text, item.turn_ids])
    return hashlib.sha256(content.encode("ascii")).hexdigest()[:16]


class ItemTable:
    """Writes items and searches of a run, each once.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._items = {(line["system"], line["key"]) for line in read_lines(folder.path / ITEMS)}
        self._searches = {(line["system"], line["question_id"]) for line in read_lines(folder.path / SEARCHES)}

    def record(self, system: str, question_id: str, recall: Recall, returned: Sequence[Item]) -> Record:
        """Write what a search returned, and return the fields of a record about what was shown.

        Args:
            system: The system.
            question_id: The question.
            recall: The recall.
            returned: All items of the search, by rank; empty for a system that returns no items.

        Returns:
            `items`, the keys of the items shown, by rank, or the `text` of a system that returns no items;
            `provenance` and `source_ids` as in Recall. Empty if turns are shown.
        """
        with self._lock:
            if returned and (system, question_id) not in self._searches:
                self._searches.add((system, question_id))
                keys = [self._add(system, item) for item in returned]
                line = {"system": system, "question_id": question_id, "items": keys}
                scores = [item.score for item in returned]
                self._folder.append_to(SEARCHES, {**line, "scores": scores})
        if not recall.items and recall.provenance == "turn":
            return {}
        return {
            **({} if recall.items else {"text": recall.text}),
            "items": [item_key(item) for item in recall.items],
            "provenance": recall.provenance,
            "source_ids": recall.source_ids,
        }

    def _add(self, system: str, item: Item) -> str:
        key = item_key(item)
        if (system, key) not in self._items:
            self._items.add((system, key))
            self._folder.append_to(ITEMS, {"system": system, "key": key, "text": item.text, "turn_ids": item.turn_ids})
        return key


def texts(path: Path) -> dict[tuple[str, str], Record]:
    """Return the items of a run by system and key.

    Args:
        path: The run folder.
    """
    return {(line["system"], line["key"]): line for line in read_lines(path / ITEMS)}
