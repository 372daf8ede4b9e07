"""Exact packing of turns into a token budget, and the order of turns by score."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from memometer.memory import Recall, State, TurnFormat
from memometer.token_counters import TokenCounter

UNBOUNDED = 10_000_000
"""The budget of a system that shows everything if no reader limits it."""

PATIENCE = 2_000
"""Packing ends after this many consecutive lines that do not fit. This happens only if the history is much longer
than the budget, and lines at such ranks are not relevant."""


def pack(
    state: State,
    ranking: Iterable[int],
    budget_tokens: int,
    count: TokenCounter,
    *,
    first_number: int | None = None,
    form: TurnFormat | None = None,
) -> Recall:
    """Fill the budget by rank, skip turns that do not fit, and print the chosen ones in time order.

    Args:
        state: the state that `ranking` refers to.
        ranking: turn positions (0-based), the best first.
        budget_tokens: a hard bound on the printed text, date lines included.
        count: the counter that measured the state's lines. The joined text is counted again, because a tokenizer may
            join tokens across lines; if the text is too long, the lowest-ranked turns are dropped.
        first_number: the number of the first printed line, so that a reader can cite lines; None prints no numbers.
        form: how turns are printed, and therefore counted; None prints lines. Only lines have numbers.

    Returns:
        The recall, with `tokens <= budget_tokens`. It is empty if no turn fits.
    """
    chosen: list[int] = []
    dated: set[tuple[int, int]] = set()
    left = budget_tokens
    least = 1 if form else state.least_line_tokens
    misses = 0  # lines in a row that did not fit

    def number_cost(lines_before: int) -> int:
        # The numbers are assigned at the end, but n lines have the same n numbers in any order.
        return 0 if first_number is None else count(f"{first_number + lines_before} A") - count("A")

    def cost_of(position: int) -> int:
        turn, line = state.turns[position], state.lines[position]
        if form:  # the cost of the first turn includes the text around all turns
            return count(form.row(turn, line) if chosen else form.text([(turn, line)]))
        header = 0 if (turn.session, turn.day) in dated else state.header_tokens[turn.day]
        return state.line_tokens[position] + header + number_tokens

    number_tokens = number_cost(0)
    for position in ranking:
        if left < least or misses > PATIENCE:
            break
        misses += 1
        cost = cost_of(position)
        if cost <= left:
            chosen.append(position)
            dated.add((state.turns[position].session, state.turns[position].day))
            left -= cost
            misses = 0
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
    form: TurnFormat | None = None,
) -> Recall:
    """Print turns in time order, one date line per session and day, or in another format, without a budget.

    Args:
        state: the state that `positions` refer to.
        positions: turn positions (0-based), in any order.
        count: counts the tokens of the text.
        first_number: as in `pack`.
        form: as in `pack`.
    """
    positions = sorted(positions)
    if form and positions:
        text = form.text([(state.turns[position], state.lines[position]) for position in positions])
        return Recall(text, count(text), tuple(state.turns[position].id for position in positions))
    lines: list[str] = []
    ids: list[str] = []
    dated = None
    for position in positions:
        turn = state.turns[position]
        if (turn.session, turn.day) != dated:
            dated = turn.session, turn.day
            lines.append(turn.header)
        line = state.lines[position]
        lines.append(line if first_number is None else f"{first_number + len(ids)} {line}")
        ids.append(turn.id)
    text = "".join(lines)
    return Recall(text=text, tokens=count(text), turn_ids=tuple(ids))


def best_first(scores: np.ndarray, *, first_part: int = 4096) -> Iterator[int]:
    """Yield positions by decreasing score. Of equal scores the later position comes first, because newer turns are
    more likely to be still true.

    Args:
        scores: shape (turns,).
        first_part: number of positions that are sorted first in a long history; few budgets hold more.
    """
    positions = np.arange(len(scores))
    parts = [positions]
    if len(scores) > first_part:
        least = np.partition(scores, -first_part)[-first_part]
        parts = [np.flatnonzero(scores >= least), np.flatnonzero(scores < least)]
    for part in parts:
        yield from part[np.lexsort((-part, -scores[part]))].tolist()
