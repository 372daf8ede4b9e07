"""What URLs of stores say, and what of them may be printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from memometer.store.episode import StoreError

OPTIONS = ("bits", "compression", "synchronous")


def without_password(url: str) -> str:
    """A URL as it may be printed, also where another one stands in it, percent-encoded."""
    url = re.sub(r"(?i)((?://|%2F%2F)[^/@]*?(?::|%3A)).*(@|%40)", r"\1…\2", url)
    return re.sub(r"(?i)(password(?:=|%3D))[^&]*", r"\1…", url)


def options_of(url: str) -> dict[str, Any]:
    """What stands behind its `?`, as arguments of the store."""
    options: dict[str, Any] = dict(parse_qsl(urlsplit(url).query))
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise StoreError(f"a SQLite store has no option {', '.join(unknown)}; it has {', '.join(OPTIONS)}.")
    if options.get("bits") in ("2", "4"):
        options["bits"] = int(options["bits"])
    return options


def must_be_there(url: str) -> None:
    """Raises StoreError where a URL names a file that is not there, for those who would only read it."""
    try:
        path = file_of(url) if url.startswith("sqlite:") else None
    except ValueError:
        return  # opening it says why
    if path and not path.exists():
        raise StoreError(f"there is no store at {path}; name one that is there.")


def file_of(url: str) -> Path:
    """The file that it names."""
    address = urlsplit(url)
    if address.netloc or len(address.path) < 2:
        raise StoreError(f"{url!r} names no file; write sqlite:///relative.db or sqlite:////absolute.db.")
    return Path(unquote(address.path[1:]))
