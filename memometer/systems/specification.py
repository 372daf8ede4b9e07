"""The systems of `--systems`: built-in names, plug-ins in this process, commands and URLs, with parameters.

adaptive                             a built-in system
summary_buffer?recent=5              with a parameter of its constructor
search:adaptive                      a built-in system through the plug-in protocol
my_module:MyMemory?top_k=200         a class in this process
./my_memory.py:MyMemory              a class in a file
cmd:uv run worker.py                 a command that exchanges JSON lines
http://127.0.0.1:8000/               an HTTP server
mem0=cmd:uv run worker.py            any of these under a short name
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from memometer import systems
from memometer.systems.worker import split_parameters

ENTRY_POINTS = "memometer.systems"
"""The entry-point group in which an installed package names its systems."""

BUILT_IN, THROUGH_SEARCH, IN_PROCESS, COMMAND, HTTP = "built-in", "search", "in process", "command", "HTTP"


class SpecificationError(ValueError):
    """A system of --systems cannot be read. The message is one sentence for the user."""


@dataclass(frozen=True, slots=True)
class Specification:
    """A system as the user named it.

    Attributes:
        name: The name in reports: the label, or the whole text without one.
        kind: How it is reached: one of the constants of this module.
        target: The built-in name, the class, the command or the URL.
        parameters: Arguments of the constructor.
    """

    name: str
    kind: str
    target: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


def read(text: str) -> Specification:
    """Read a system of --systems.

    Args:
        text: As in this module's documentation.

    Returns:
        The specification. Nothing is imported or started.

    Raises:
        SpecificationError: A name is unknown, or the text has no known form.
    """
    labelled = re.fullmatch(r"([A-Za-z0-9][\w.+-]*)=(.+)", text, re.DOTALL)
    name, rest = (labelled[1], labelled[2]) if labelled else (text, text)
    if labelled and (name in systems.SYSTEMS or name in systems.BASELINES):
        raise SpecificationError(f"{name} is a built-in system; choose another label than {name!r} for {rest}")
    if rest.startswith("cmd:"):
        if not rest[4:].strip():
            raise SpecificationError("cmd: names no command; write cmd:COMMAND, such as 'cmd:uv run worker.py'")
        return Specification(name, COMMAND, rest[4:].strip())
    if rest.startswith(("http://", "https://")):
        from memometer.systems.http_client import check_url

        if problem := check_url(rest):
            raise SpecificationError(problem)
        return Specification(name, HTTP, rest)
    target, parameters = split_parameters(rest)
    if target.startswith("search:"):
        return Specification(name, THROUGH_SEARCH, _built_in(target.removeprefix("search:")), parameters)
    if ":" in target:
        return Specification(name, IN_PROCESS, target, parameters)
    if target in systems.SYSTEMS or target in systems.BASELINES:
        return Specification(name, BUILT_IN, target, parameters)
    if (found := installed().get(target)) is not None:
        return Specification(name, IN_PROCESS, found.value, parameters)
    return Specification(name, BUILT_IN, _built_in(target), parameters)


def installed() -> dict[str, EntryPoint]:
    """Return the systems that installed packages name as entry points. Built-in names come first."""
    return {point.name: point for point in entry_points(group=ENTRY_POINTS) if point.name not in systems.SYSTEMS}


def _built_in(name: str) -> str:
    if name in systems.SYSTEMS:
        return name
    if name.endswith(".py") or "/" in name:
        raise SpecificationError(f"{name!r} names no class; write ./file.py:Class")
    known = ", ".join([*sorted(systems.SYSTEMS), *sorted(installed())])
    raise SpecificationError(
        f"unknown memory system {name!r}; known: {known}. Others are module:Class, ./file.py:Class, cmd:COMMAND and "
        "http://HOST:PORT/."
    )


def split_list(text: str) -> tuple[str, ...]:
    """Split a comma-separated list of systems; a comma inside quotes or after a backslash does not split.

    Args:
        text: The list.

    Returns:
        The systems, each once.
    """
    parts, quote, part, escaped = [], "", "", False
    for character in text:
        if escaped:
            part += character if character == "," else f"\\{character}"
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == "," and not quote:
            parts.append(part)
            part = ""
        else:
            if character in "'\"":
                quote = "" if quote == character else quote or character
            part += character
    parts.append(part + ("\\" if escaped else ""))
    return tuple(dict.fromkeys(stripped for part in parts if (stripped := part.strip())))
