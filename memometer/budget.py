"""What is remembered as a value, and packed exactly into what a reader is shown under a budget of tokens.

Nothing here needs a language model's library, so that what only stores and recalls starts at once and stays small.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Protocol

import numpy as np

from memometer.retrieval import dates

DEFAULT_BUDGET_TOKENS = 20_000

UNBOUNDED = 10_000_000
"""The budget of a system that shows everything if no reader limits it."""


@dataclass(frozen=True)
class Turn:
    """One utterance. `id` is unique in its conversation; `said_at` is the time of its session."""

    id: str
    speaker: str
    text: str
    session: int
    said_at: datetime
    caption: str | None = None

    @cached_property
    def line(self) -> str:
        """The turn as a reader sees it: one line, inner whitespace squeezed, ending in a newline.

        Squeezing is what makes token counts of lines add up exactly: no tokenizer joins across the newline.
        """
        image = f" [image: {self.caption}]" if self.caption else ""
        return " ".join(f"{self.speaker}: {self.text}{image}".split()) + "\n"

    @cached_property
    def header(self) -> str:
        """The date line that opens the turn's session, such as `# Mon 8 May 2023`."""
        return f"# {self.said_at:%a} {dates.written(self.said_at)}\n"


@dataclass(frozen=True, slots=True)
class Recall:
    """What a reader is shown for one question. `tokens` counts `text` exactly, in the memory's own counter; `turn_ids`
    are in time order, `ranked` the same by rank, where the system ranks turns. `speaker_gap` is how much better the
    question fits what the other speaker said than what the person it names said
    (memometer/reader/abstention.py); None where it
    names nobody or both, or where the system scores no turns."""

    text: str = ""
    tokens: int = 0
    turn_ids: tuple[str, ...] = ()
    ranked: tuple[str, ...] = ()
    speaker_gap: float | None = None


class TokenCounter(Protocol):
    """Counts the tokens of a text. `name` goes into every record, so that no count is anonymous."""

    @property
    def name(self) -> str: ...

    def __call__(self, text: str) -> int: ...


class Utf8Bytes:
    """An upper bound for any byte-level BPE tokenizer: each token covers at least one UTF-8 byte."""

    name = "utf8-bytes (upper bound)"

    def __call__(self, text: str) -> int:
        return len(text.encode())


class Form(Protocol):
    """How turns are printed as records, in place of lines under dates (memometer/reader/context_formats.py)."""

    @property
    def name(self) -> str: ...

    def row(self, turn: Turn, line: str) -> str:
        """What one turn adds to the text, as near as can be said of one alone."""
        ...

    def text(self, shown: Sequence[tuple[Turn, str]]) -> str:
        """All of it: turns in time order, each with its line."""
        ...


class BudgetExceeded(RuntimeError):
    """Raised when a memory shows more than it may, or miscounts what it shows: a fault of that memory."""


class BudgetTooSmall(ValueError):
    """Raised by a system that shows everything or nothing, when everything does not fit the budget."""


@dataclass
class State:
    """What is remembered of one conversation: its turns in time order, how each is shown, and what that costs."""

    turns: list[Turn] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    line_tokens: list[int] = field(default_factory=list)
    header_tokens: dict[int, int] = field(default_factory=dict)
    least_line_tokens: int = 0


PATIENCE = 2_000
"""After so many lines in a row that do not fit, the few tokens left stay empty: only a history much longer than a
budget has so many, and by then the ranking has nothing to say."""


def pack(
    state: State,
    ranking: Iterable[int],
    budget_tokens: int,
    count: TokenCounter,
    *,
    first_number: int | None = None,
    form: Form | None = None,
) -> Recall:
    """Fill the budget by rank, skipping what does not fit, and print in time order.

    Args:
        state: whose turns and costs `ranking` points into.
        ranking: turn positions (0-based), the most wanted first.
        budget_tokens: a hard bound on the printed text, date lines included.
        count: the counter that made the costs; the joined text is counted again, because a tokenizer may
            join across lines after all, and then the lowest-ranked lines go.
        first_number: number the printed lines from here, so that a reader can cite them; None prints no numbers.
        form: how turns are printed, and therefore counted; None for lines, the only ones that have numbers.
    """
    chosen: list[int] = []
    sessions: set[int] = set()
    left = budget_tokens
    least = 1 if form else state.least_line_tokens
    passed_over = 0  # lines in a row that did not fit

    def number_cost(lines_before: int) -> int:
        # Which line gets which number is settled last, but so many lines have the same numbers in any order.
        return 0 if first_number is None else count(f"{first_number + lines_before} A") - count("A")

    def cost_of(position: int) -> int:
        turn, line = state.turns[position], state.lines[position]
        if form:  # the first one brings what stands around all
            return count(form.row(turn, line) if chosen else form.text([(turn, line)]))
        header = 0 if turn.session in sessions else state.header_tokens[turn.session]
        return state.line_tokens[position] + header + number_tokens

    number_tokens = number_cost(0)
    for position in ranking:
        if left < least or passed_over > PATIENCE:
            break
        passed_over += 1
        session = state.turns[position].session
        cost = cost_of(position)
        if cost <= left:
            chosen.append(position)
            sessions.add(session)
            left -= cost
            passed_over = 0
            number_tokens = number_cost(len(chosen))
    while chosen:
        recall = show(state, chosen, count, first_number=first_number, form=form)
        if recall.tokens <= budget_tokens:
            return replace(recall, ranked=tuple(state.turns[position].id for position in chosen))
        chosen.pop()
    return Recall()


def show(
    state: State,
    positions: Iterable[int],
    count: TokenCounter,
    *,
    first_number: int | None = None,
    form: Form | None = None,
) -> Recall:
    """Print turns in time order, one date line a session, or in another form, whatever it costs."""
    positions = sorted(positions)
    if form and positions:
        text = form.text([(state.turns[position], state.lines[position]) for position in positions])
        return Recall(text, count(text), tuple(state.turns[position].id for position in positions))
    lines: list[str] = []
    ids: list[str] = []
    session = None
    for position in positions:
        turn = state.turns[position]
        if turn.session != session:
            session = turn.session
            lines.append(turn.header)
        line = state.lines[position]
        lines.append(line if first_number is None else f"{first_number + len(ids)} {line}")
        ids.append(turn.id)
    text = "".join(lines)
    return Recall(text=text, tokens=count(text), turn_ids=tuple(ids))


def best_first(scores: np.ndarray, *, at_once: int = 4096) -> Iterator[int]:
    """Positions by falling score; of equal ones the later first, since what is newer is likelier to still hold.

    Of a long history the best `at_once` are sorted first, for few budgets hold more.
    """
    positions = np.arange(len(scores))
    parts = [positions]
    if len(scores) > at_once:
        least = np.partition(scores, -at_once)[-at_once]
        parts = [np.flatnonzero(scores >= least), np.flatnonzero(scores < least)]
    for part in parts:
        yield from part[np.lexsort((-part, -scores[part]))].tolist()
