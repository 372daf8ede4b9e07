"""The base of memories that a language model writes: notes, and the parsing of replies.

Small models often ignore the requested format, so replies are parsed line by line and unparseable lines are dropped. A
bad reply loses facts but does not end the run. A failed call raises an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TypeVar

import dspy
from dspy.utils.exceptions import AdapterParseError

from memometer.memory import Memory, Recall, State, Turn, format_date
from memometer.token_counters import TokenCounter

REPLY_TOKENS = 400
"""Upper bound on a reply, about twenty lines. Answers to questions have a lower one."""

NOTHING = "nothing"  # stands for an empty input, and models reply it for an empty output


@dataclass(frozen=True, slots=True)
class Note:
    """One line, ending in a newline, its tokens, and its source turns, if they are known."""

    line: str
    tokens: int
    turn_ids: tuple[str, ...] = ()


@dataclass
class NotesState(State):
    """A State with the notes that a model wrote about its turns."""

    notes: list[Note] = field(default_factory=list)


S = TypeVar("S", bound=State)


class WritingMemory(Memory[S]):
    """A memory that a model writes, one session at a time, so that one or many calls of `observe` give the same state.

    A session that is observed in two calls is written in two parts. If a model call fails, the whole session is left
    out, so it can be observed again.
    """

    needs_model = True
    shows_turns = False

    def observe(self, state: S, turns: Sequence[Turn]) -> None:
        for _, group in groupby(turns, key=lambda turn: turn.session):
            session = list(group)
            self.write(state, session)
            super().observe(state, session)

    def write(self, state: S, session: Sequence[Turn]) -> None:
        """Update the notes with the turns of one session, which are not in `state.turns` yet."""
        raise NotImplementedError(f"{type(self).__name__} must define write")

    def note(self, line: str, turn_ids: tuple[str, ...] = ()) -> Note:
        """Return a line as a note, with its tokens."""
        line = " ".join(line.split()) + "\n"
        return Note(line, self.count(line), turn_ids)


def ask(predictor: dspy.Predict, **inputs: str) -> list[str]:
    """Call a predictor and return the lines of its output, without bullets, duplicates and lines without words.

    Args:
        predictor: a predictor with one output.
        inputs: its inputs.

    Returns:
        The lines; empty if the reply is empty or does not parse.

    Raises:
        dspy.LMError: the call failed.
    """
    lm = predictor.lm or dspy.settings.lm
    # A reasoning model has a larger limit already, for its thoughts.
    limit = getattr(lm, "kwargs", {}).get("max_tokens") or 0
    config = {"max_tokens": REPLY_TOKENS} if 0 < limit < REPLY_TOKENS else {}
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
    """Split lines into sentences, so that a budget can hold a part of a paragraph."""
    for line in lines:
        yield from re.split(r"(?<=[^\W\d_]{2}[.!?])\s+(?=[A-Z])", line)


def transcript(session: Sequence[Turn]) -> str:
    """Return a session as text: the date line, then the turns."""
    return session[0].header + "".join(turn.line for turn in session)


def day(turn: Turn) -> str:
    """Return the date of a turn's session, such as 8 May 2023."""
    return format_date(turn.said_at)


def text(notes: Iterable[Note]) -> str:
    """Join the lines of notes."""
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
    """Fill the budget with notes by rank, skip notes that do not fit, and print the chosen ones in their own order.

    Args:
        state: the state; it gives the order of the source turns.
        notes: the notes.
        ranking: positions in `notes`, the most wanted first.
        budget_tokens: a hard bound on the whole text.
        count: counts tokens.
        turns: printed after the notes; it must fit the budget alone.
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
            provenance = "turn" if all(note.turn_ids for note in shown) else "none"
            return Recall(printed, tokens, tuple(sorted(ids, key=order.__getitem__)), provenance=provenance)
        chosen.pop()  # a tokenizer may join tokens across lines
    return turns if any(note.turn_ids for note in notes) or not notes else replace(turns, provenance="none")
