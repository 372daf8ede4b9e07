"""What memories are given beside their own parameters: a form to print turns in, a store to keep episodes in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import unquote

from memometer.memory import Memory, TurnFormat
from memometer.reader.reader import Reader

LoadForm = Callable[[str], TurnFormat | None]


class Unfit(ValueError):
    """A memory cannot have what is asked for; the message is one sentence for the user."""


def print_as(
    name: str | None, load_form: LoadForm, memories: Mapping[str, Memory[Any]], readers: Mapping[str, Reader]
) -> TurnFormat | None:
    """Let memories print turns in a format; None is lines. Raises Unfit."""
    if name in (None, "lines"):
        return None
    for system, memory in memories.items():
        if not memory.shows_turns:
            raise Unfit(
                f"{system} shows what a model wrote, which has no fields, so --context-format {name} cannot print it; "
                "leave out one of the two."
            )
        if readers[system].rounds:
            raise Unfit(
                f"{system} is read in rounds, which cite numbered lines; leave out either --rounds (or the --program "
                f"that asks for them) or --context-format {name}."
            )
    try:
        form = load_form(str(name))
    except (ValueError, RuntimeError) as error:  # an unknown name, a library that is not installed
        raise Unfit(f"--context-format: {error}") from error
    for memory in memories.values():
        memory.form = form
    return form


def check_url(url: str | None) -> None:
    """Raises Unfit for a URL that would put a password into the run's manifest."""
    if url and re.search(r"://[^/@]*:[^/@]*@", unquote(url)):
        raise Unfit(
            "--memory-url holds a password, which would be written into the run's manifest; leave it out, and let the "
            "server's client find it (PGPASSWORD, ~/.pgpass)."
        )


def check_taken(url: str | None, memories: Iterable[Memory[Any]]) -> None:
    """Raises Unfit where no memory takes a store."""
    if url and not any(memory.takes_memory_url for memory in memories):
        raise Unfit("--memory-url is for systems that keep episodes (episodic, codebook); name one with --systems.")


def try_store(name: str, memory: Memory[Any]) -> None:
    """Raises Unfit where a memory's store cannot be opened."""
    try:
        memory.new()
    except RuntimeError as error:  # memometer.store.episode.StoreError
        raise Unfit(f"--memory-url: {name} cannot use it: {error}") from error
