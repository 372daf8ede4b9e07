"""Files that memory systems must not open while they observe and recall: the data with the gold answers.

An audit hook refuses `open`, `os.open`, copies and links of a protected file, and commands that name it. It compares
device and inode, so other paths to the same file are refused too. It sees this process alone. It cannot see files that
were read before (when a module was imported), other copies of the data, or native code that opens files itself.
"""

from __future__ import annotations

import os
import shlex
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_OPENING = {"open", "shutil.copyfile", "os.link", "os.symlink", "os.rename"}
_COMMANDS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn"}

_protected: dict[tuple[int, int], str] = {}
_refused: list[str] = []
_lock = threading.Lock()
_depth = 0
_installed = False


def protect(*paths: Path) -> None:
    """Name the files that `closed` closes, in place of those named before."""
    global _installed
    _protected.clear()
    for path in paths:
        for file in path.rglob("*") if path.is_dir() else [path]:
            if file.is_file() and (found := _inode(file)) is not None:
                _protected[found] = str(file.resolve())
    if not _installed:
        sys.addaudithook(_audit)  # a hook cannot be removed, so that it is added once
        _installed = True


@contextmanager
def closed() -> Iterator[list[str]]:
    """Refuse protected files in all threads until the block ends.

    Yields:
        The refused operations, filled when the block ends; operations of other threads may be among them.
    """
    global _depth
    refused: list[str] = []
    with _lock:
        _depth += 1
        start = len(_refused)
    try:
        yield refused
    finally:
        with _lock:
            _depth -= 1
            refused += _refused[start:]


def without_protected(environment: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return environment variables without those that name a protected file."""
    return {name: value for name, value in environment if _inode(value) not in _protected}


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _depth or not _protected or (event not in _OPENING and event not in _COMMANDS):
        return
    if event in _OPENING:
        paths = arguments[:1] if event == "open" else arguments[:2]
        found = any(_inode(path) in _protected for path in paths)
    else:
        found = any(_names_protected(word) for word in _words(arguments))
    if found:
        _refused.append(event)
        raise PermissionError("a memory system may not open the data file while it observes or recalls")


def _inode(path: Any) -> tuple[int, int] | None:
    if isinstance(path, int) or path is None:
        return None
    try:
        found = os.stat(path)
    except (OSError, ValueError, TypeError):
        return None
    return found.st_dev, found.st_ino


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, bytes | os.PathLike):
        value = os.fsdecode(value)
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _words(part)


def _names_protected(text: str) -> bool:
    if any(path in text for path in _protected.values()):
        return True
    try:
        words = shlex.split(text)
    except ValueError:
        words = text.split()
    return any(_inode(word) in _protected for word in words)
