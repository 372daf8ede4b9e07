"""The files that a memory writes: an export, a store and its backup, searched for the text of deleted turns."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memometer.memory import Memory, State
from memometer.systems.plugin_memory import PluginMemory

Left = dict[str, dict[str, bool]]
"""Kind of file -> id of a deleted turn -> True if its text is still in the file."""


def saved_and_loaded(memory: Memory[Any], state: State, deleted: Mapping[str, str]) -> tuple[State | None, Left]:
    """Write a memory to files, search these for deleted turns, and load the state again.

    Args:
        memory: The memory.
        state: Its state.
        deleted: Id -> text of each deleted turn.

    Returns:
        The loaded state, or None if the memory cannot be written; and what was found.
    """
    if isinstance(memory, PluginMemory):
        return None, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if getattr(memory, "memory_url", None):
            return None, _of_store(memory, state, deleted, folder)
        from memometer.cartridge.load import load_cartridge, open_records
        from memometer.cartridge.save import NotWritten, save_cartridge

        path = folder / "memory.cartridge"
        try:
            save_cartridge(path, memory, state)
        except (NotWritten, ValueError):  # not every memory has a file
            return None, {}
        rows = json.dumps(list(open_records(path)), ensure_ascii=False).encode()
        left = {"an export": _left(path.read_bytes() + rows, deleted)}
        return load_cartridge(path, count=memory.count, encoder=getattr(memory, "encoder", None)).state, left


def _of_store(memory: Any, state: State, deleted: Mapping[str, str], folder: Path) -> Left:
    from memometer.store.backup import backup, restore
    from memometer.store.sqlite import SQLite

    store = memory.store(state) if hasattr(memory, "store") else None
    if not isinstance(store, SQLite):
        return {}
    store.erase()
    path = store.file.path
    files = b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*") if file.is_file())
    copy = folder / "backup.db"
    backup(store, copy)
    with SQLite(folder / "restored.db") as restored:
        restore(copy, restored)
        texts = "\n".join(episode.text for scope in restored.scopes() for episode in restored.scan(scope))
    return {
        "the raw files": _left(files, deleted),
        "a backup": _left(copy.read_bytes(), deleted),
        "a restored backup": _left(texts.encode(), deleted),
    }


def _left(content: bytes, deleted: Mapping[str, str]) -> dict[str, bool]:
    return {id: text.encode() in content for id, text in deleted.items()}
