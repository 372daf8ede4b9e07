"""The words of the synthetic conversations, read from facts.txt, talk.txt and assistant.txt.

A block of facts.txt is a family of facts:

    # name                        the topic, as questions about both speakers call it
    ~ de                          the language, if it is not English
    = slot: value/class/topic, …  the values of a slot; after a slash, wider terms that a question may use instead
    - sentence                    a statement, with {slots}; {slot.1} is the wider term
    ? question => slot            a question with one answer
    * question => slot            a question whose answers are spread over several statements
    @ question => slot            the same with a date in place of other hints
    > question => slot            what the listener asks back, and which slot answers it
    ! sentence                    what the listener exclaims
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent


@dataclass
class Family:
    """A family of facts; see this module's documentation."""

    name: str
    language: str = "en"
    slots: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    tell: list[str] = field(default_factory=list)
    ask: list[tuple[str, str]] = field(default_factory=list)
    ask_list: list[tuple[str, str]] = field(default_factory=list)
    ask_dated: list[tuple[str, str]] = field(default_factory=list)
    reply: list[tuple[str, str]] = field(default_factory=list)
    exclaim: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Aspect:
    """A part of a user's project: its names, and what is said about it."""

    names: tuple[str, ...]
    tools: tuple[str, ...]
    metrics: tuple[tuple[str, str], ...]
    related: tuple[str, ...]


def blanks(sentence: str) -> set[str]:
    """Return the slots that a sentence mentions: `{pet}` and `{animal.1}` give pet and animal."""
    return set(re.findall(r"\{(\w+)(?:\.\d)?\}", sentence))


def stated(sentence: str) -> set[str]:
    """Return the slots whose value a sentence states; a wider term states nothing."""
    return {"when" if name.startswith("when") else name for name in re.findall(r"\{(\w+)\}", sentence)}


@cache
def families() -> tuple[Family, ...]:
    """Read facts.txt."""
    found: list[Family] = []
    lists = {"?": "ask", "*": "ask_list", "@": "ask_dated", ">": "reply"}
    for line in (FOLDER / "facts.txt").read_text(encoding="utf-8").splitlines():
        mark, text = line[:1], line[2:].strip()
        if mark == "#" and not text.startswith("Facts of"):
            found.append(Family(text))
        elif mark == "~":
            found[-1].language = text
        elif mark == "=":
            slot, _, values = text.partition(":")
            found[-1].slots[slot] = [tuple(value.strip().split("/")) for value in values.split(",")]
        elif mark == "-":
            found[-1].tell.append(text)
        elif mark == "!":
            found[-1].exclaim.append(text)
        elif mark in lists:
            question, _, slot = text.partition(" => ")
            getattr(found[-1], lists[mark]).append((question, slot))
    return tuple(found)


def _blocks(name: str) -> dict[str, list[str]]:
    blocks: dict[str, list[str]] = {}
    current: list[str] = []
    for line in (FOLDER / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            current = blocks.setdefault(line[2:].strip(), [])
        elif line.strip():
            current.append(line.strip().replace("\\n", "\n"))
    return blocks


@cache
def talk() -> dict[str, list[str]]:
    """Read talk.txt: block -> lines."""
    return _blocks("talk.txt")


@cache
def word_list(name: str) -> list[str]:
    """Read a list of words from talk.txt."""
    return [word.strip() for line in talk()[name] for word in line.split(",")]


ASSISTANT_LISTS = frozenset(("instructions", "advice", "intro", "outro", "code", "follow_up"))


@cache
def assistant_talk() -> dict[str, list[str]]:
    """Read the general sentences of assistant.txt: block -> lines."""
    return {name: lines for name, lines in _blocks("assistant.txt").items() if name in ASSISTANT_LISTS}


@cache
def projects() -> dict[str, tuple[Aspect, ...]]:
    """Read the projects of assistant.txt: project -> aspects."""
    found: dict[str, tuple[Aspect, ...]] = {}
    for name, lines in _blocks("assistant.txt").items():
        aspects = []
        for line in lines if name not in ASSISTANT_LISTS else ():
            names, _, rest = line.partition(":")
            tools, metrics, related = ([each.strip() for each in part.split(", ")] for part in rest.split(";"))
            aspects.append(
                Aspect(
                    tuple(names.split("/")),
                    tuple(tools),
                    tuple(_metric(each) for each in metrics if re.search(r"\d", each)),
                    tuple(related),
                )
            )
        if aspects:
            found[name] = tuple(aspects)
    return found


def _metric(text: str) -> tuple[str, str]:
    """Divide `sign-in time 320 ms` into its name and its value."""
    name = re.split(r"\s(?=\d)", text, maxsplit=1)
    return name[0], name[1] if len(name) > 1 else ""
