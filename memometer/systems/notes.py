"""Notes, the lines that a model wrote, and what the memories that write them have in common.

Small models write as they please, so replies are read line by line, and what cannot be read is dropped: a bad reply
costs facts, never the run. A failed call does end the writing, since it is a failure and no memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TypeVar

import dspy
from dspy.utils.exceptions import AdapterParseError

from memometer.memory import Memory, Recall, State, Turn, format_date
from memometer.token_counters import TokenCounter

REPLY_TOKENS = 400
"""The room for one reply: about twenty lines. Answers are cut much earlier."""

NOTHING = "nothing"  # what an empty input is called, and what models call an empty reply


@dataclass(frozen=True, slots=True)
class Note:
    """One line, ending in a newline, what it costs to show, and the turns that it is known to come from."""

    line: str
    tokens: int
    turn_ids: tuple[str, ...] = ()


@dataclass
class NotesState(State):
    """A State beside what a model wrote about its turns."""

    notes: list[Note] = field(default_factory=list)


S = TypeVar("S", bound=State)


class WritingMemory(Memory[S]):
    """A memory that a model writes, session by session, so that one call of `observe` or many give the same state.

    A session that comes in two calls is written down in two parts, each read once. A call to the model that fails
    leaves the session out whole, so it can be observed again.
    """

    needs_model = True
    shows_turns = False

    def observe(self, state: S, turns: Sequence[Turn]) -> None:
        for _, group in groupby(turns, key=lambda turn: turn.session):
            session = list(group)
            self.write(state, session)
            super().observe(state, session)

    def write(self, state: S, session: Sequence[Turn]) -> None:
        """Bring what is written up to date with the turns of one session, which `state.turns` does not hold yet."""
        raise NotImplementedError(f"{type(self).__name__} must define write")

    def note(self, line: str, turn_ids: tuple[str, ...] = ()) -> Note:
        """The line as a note, its cost counted."""
        line = " ".join(line.split()) + "\n"
        return Note(line, self.count(line), turn_ids)


def ask(predictor: dspy.Predict, **inputs: str) -> list[str]:
    """The lines of the predictor's one output, without bullets, repetitions, and lines that hold no word.

    Empty where the reply holds nothing; raises what a failed call raises.
    """
    lm = predictor.lm or dspy.settings.lm
    # A reply of a reasoning model has room for its thoughts, which is more.
    room = getattr(lm, "kwargs", {}).get("max_tokens") or 0
    config = {"max_tokens": REPLY_TOKENS} if 0 < room < REPLY_TOKENS else {}
    try:
        prediction = predictor(config=config, **{name: text.strip() or NOTHING for name, text in inputs.items()})
    except AdapterParseError:
        return []
    (output,) = predictor.signature.output_fields
    return list(dict.fromkeys(_lines(str(prediction[output] or ""))))


def _lines(reply: str) -> Iterable[str]:
    for line in reply.splitlines():
        line = re.sub(r"^(?:[-*•#>]+|\d+[.)])\s+", "", " ".join(line.split())).replace("**", "")
        if re.search(r"\w", line) and line.strip("(). ").lower() != NOTHING:
            yield line


def sentences(lines: Iterable[str]) -> Iterable[str]:
    """Lines of prose cut where a sentence ends, so that a budget can hold the first half of a paragraph."""
    for line in lines:
        yield from re.split(r"(?<=[^\W\d_]{2}[.!?])\s+(?=[A-Z])", line)


def transcript(session: Sequence[Turn]) -> str:
    """A session as a model reads it: the date line, then the turns."""
    return session[0].header + "".join(turn.line for turn in session)


def day(turn: Turn) -> str:
    """The date of a turn's session, such as 8 May 2023."""
    return format_date(turn.said_at)


def text(notes: Iterable[Note]) -> str:
    return "".join(note.line for note in notes)


def show_notes(
    state: State,
    notes: Sequence[Note],
    ranking: Iterable[int],
    budget_tokens: int,
    count: TokenCounter,
    *,
    turns: Recall | None = None,
) -> Recall:
    """Fill the budget with notes by rank, skipping what does not fit, and print them in their own order.

    Args:
        ranking: positions in `notes`, the most wanted first.
        budget_tokens: a hard bound on everything printed.
        turns: printed after the notes, and within the budget already.
    """
    turns = turns or Recall()
    chosen: list[int] = []
    left = budget_tokens - turns.tokens
    for position in ranking:
        if notes[position].tokens <= left:
            chosen.append(position)
            left -= notes[position].tokens
    order = {turn.id: i for i, turn in enumerate(state.turns)}
    while chosen:
        shown = [notes[position] for position in sorted(chosen)]
        printed = text(shown) + turns.text
        if (tokens := count(printed)) <= budget_tokens:
            ids = {*turns.turn_ids, *(id for note in shown for id in note.turn_ids)}
            return Recall(printed, tokens, tuple(sorted(ids, key=order.__getitem__)))
        chosen.pop()  # a tokenizer may join across lines after all
    return turns
