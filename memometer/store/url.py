"""Parsing and redaction of store URLs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl

from memometer.store.episode import StoreError


def without_password(url: str) -> str:
    """Return a URL without its passwords, also those of a percent-encoded URL inside it."""
    url = re.sub(r"(?i)((?://|%2F%2F)[^/@]*?(?::|%3A)).*(@|%40)", r"\1…\2", url)
    return re.sub(r"(?i)(password(?:=|%3D))[^&]*", r"\1…", url)


def options_of(url: str, allowed: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Return the options after the `?` of a URL.

    Args:
        url: URL of a store.
        allowed: values of each option, the default first.

    Returns:
        A value for each option of `allowed`.

    Raises:
        StoreError: an option or its value is unknown.
    """
    given = url[len(_without_options(url)) + 1 :]
    options = {name: values[0] for name, values in allowed.items()} | dict(parse_qsl(given))
    for name, value in options.items():
        if value not in allowed.get(name, ()):
            known = "; ".join(f"{option}={' or '.join(values)}" for option, values in allowed.items())
            raise StoreError(f"invalid store option {name}={value}; supported options: {known}.")
    return options


def check_exists(url: str) -> None:
    """Raise StoreError if a SQLite URL names a missing file, for commands that should not create it."""
    try:
        path = file_of(url) if url.startswith("sqlite:") else None
    except ValueError:
        return  # opening the store reports it
    if path and not path.exists():
        raise StoreError(f"store {path} does not exist; name an existing store.")


def bytes_of(url: str) -> int:
    """Return the size of a SQLite store's file; 0 for another store."""
    try:
        return file_of(url).stat().st_size if url.startswith("sqlite:") else 0
    except OSError:
        return 0


def file_of(url: str) -> Path:
    """Return the file that a SQLite URL names. The path is taken as it is, without percent-decoding.

    Raises:
        StoreError: the URL names no file.
    """
    path = _without_options(url.partition(":")[2])
    if not path.startswith("///") or len(path) < 4:
        raise StoreError(f"invalid SQLite URL {url!r}; expected sqlite:///relative.db or sqlite:////absolute.db")
    if Path(path[3:]).name == ":memory:":
        raise StoreError("sqlite:///:memory: would keep nothing; use memory: for this process, or name a file.")
    return Path(path[3:])


def _without_options(path: str) -> str:
    """Return a path without the options after its last `?`; other question marks belong to the path."""
    before, _, options = path.rpartition("?")
    return before if before and re.fullmatch(r"\w+=[^/?]*(&\w+=[^/?]*)*", options) else path
