"""Cursors of paged lists: the position of the last item, opaque to the caller."""

from __future__ import annotations

import base64
import json
from typing import Annotated, TypeVar

from fastapi import Query
from pydantic import TypeAdapter

from memometer.serve.registry import NotFound

Limit = Annotated[int, Query(ge=1, le=1000)]
Cursor = Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_-]{1,1000}$")]

T = TypeVar("T")


def encoded(*position: str | float) -> str:
    """Return the cursor of the page after a position."""
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")


def decoded(cursor: str, kind: TypeAdapter[T]) -> T:
    """Return the position of a cursor. Raises NotFound if it is invalid."""
    try:
        return kind.validate_json(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except ValueError as error:
        raise NotFound("invalid cursor; omit it to start from the first page.") from error
