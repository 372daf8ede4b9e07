"""Finding the files of benchmarks that are never downloaded: `--data PATH`, or an environment variable."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from memometer.benchmarks.protocol import DataError

T = TypeVar("T")


def locate(path: str | Path | None, *, title: str, variable: str, source: str) -> Path:
    """The path that the user names.

    Args:
        path: The value of `--data`, or None.
        title: The benchmark, for messages.
        variable: The environment variable that names the path.
        source: Where to get the files.

    Raises:
        DataError: No path is named, or it does not exist.
    """
    named = path or os.environ.get(variable)
    if not named:
        raise DataError(
            f"{title} is not part of memometer and is not downloaded. Get it from {source}, and name it with "
            f"--data PATH or {variable}."
        )
    found = Path(named).expanduser()
    if not found.exists():
        raise DataError(f"{'--data' if path else variable} names {str(found)!r}, which does not exist.")
    return found


def in_shape(read: Callable[[], T], *, path: Path, title: str) -> T:
    """Call a reader, and report a file of another shape in one sentence.

    Args:
        read: The reader.
        path: Its file, for messages.
        title: The benchmark.

    Raises:
        DataError: The file does not have the published shape.
    """
    try:
        return read()
    except DataError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path} does not have the published shape of {title} ({type(error).__name__}: {error})."
        ) from error


def texts(value: object) -> list[str]:
    """A list of texts.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError(f"expected a list of texts, got {str(value)[:60]!r}")
    return value


def digest_of(digests: Sequence[str]) -> str:
    """One digest for several files; that of the file for one."""
    import hashlib

    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
