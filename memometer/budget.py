"""Exact packing of turns into a token budget, and the order of turns by score."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from memometer.memory import Recall, State, TurnFormat
from memometer.retrieval.passages import excerpt_line, has_passages
from memometer.token_counters import TokenCounter

UNBOUNDED = 10_000_000
"""The budget of a system that shows everything if no reader limits it."""

PATIENCE = 2_000
"""Packing ends after this many consecutive lines that do not fit. This happens only if the history is much longer
than the budget, and lines at such ranks are not relevant."""

EXCERPT_SHARE = 3
"""An excerpt of a turn that is longer than the whole budget takes at most one part in this many of the budget, so that
other turns are shown too."""

LEAST_EXCERPT = 24
"""Least tokens for an excerpt in what other turns leave of the budget."""


class _Packing:
    """The lines chosen so far, and what they leave of the budget."""

    def __init__(
        self, state: State, budget_tokens: int, count: TokenCounter, first_number: int | None, form: TurnFormat | None
    ) -> None:
        self.state, self.count, self.first_number, self.form = state, count, first_number, form
        self.left = budget_tokens
        self.chosen: list[int] = []
        self.excerpts: dict[int, str] = {}
        self._dated: set[tuple[int, int]] = set()
        self._number_tokens = self._number_cost()

    def _number_cost(self) -> int:
        # The numbers are assigned at the end, but n lines have the same n numbers in any order.
        if self.first_number is None:
            return 0
        return self.count(f"{self.first_number + len(self.chosen)} A") - self.count("A")

    def cost(self, position: int, excerpt: str | None = None) -> int:
        """Return the tokens that a turn, or an excerpt of it, adds to the text."""
        turn, line = self.state.turns[position], excerpt or self.state.lines[position]
        if self.form:  # the cost of the first turn includes the text around all turns
            return self.count(self.form.row(turn, line) if self.chosen else self.form.text([(turn, line)]))
        header = 0 if (turn.session, turn.day) in self._dated else self.state.header_tokens[turn.day]
        tokens = self.state.line_tokens[position] if excerpt is None else self.count(excerpt)
        return tokens + header + self._number_tokens

    def add(self, position: int, cost: int, excerpt: str | None = None) -> None:
        self.chosen.append(position)
        self._dated.add((self.state.turns[position].session, self.state.turns[position].day))
        self.left -= cost
        self._number_tokens = self._number_cost()
        if excerpt is not None:
            self.excerpts[position] = excerpt

    def remove_excerpt(self, position: int) -> None:
        """Take back the excerpt of a turn, if there is one; what it took can be spent again."""
        if (excerpt := self.excerpts.pop(position, None)) is None:
            return
        self.chosen.remove(position)
        turn = self.state.turns[position]
        if not any(
            (t.session, t.day) == (turn.session, turn.day) for t in map(self.state.turns.__getitem__, self.chosen)
        ):
            self._dated.discard((turn.session, turn.day))
        self._number_tokens = self._number_cost()
        self.left += self.cost(position, excerpt)

    def add_excerpt(self, position: int, question: str, limit: int) -> None:
        """Add the best excerpt of a turn that takes at most `limit` tokens, if there is one."""
        turn, line = self.state.turns[position], self.state.lines[position]
        best = excerpt_line(turn, line, question, lambda text: self.cost(position, text) <= limit)
        if best is not None:
            self.add(position, self.cost(position, best), best)


def pack(
    state: State,
    ranking: Iterable[int],
    budget_tokens: int,
    count: TokenCounter,
    *,
    question: str = "",
    first_number: int | None = None,
    form: TurnFormat | None = None,
) -> Recall:
    """Fill the budget by rank, skip turns that do not fit, and print the chosen ones in time order.

    A turn of several passages that is longer than the whole budget is shown as an excerpt: its passages that fit the
    question best, or its end without a question. If nothing fits, a shorter turn is shown as an excerpt too.

    Args:
        state: the state that `ranking` refers to.
        ranking: turn positions (0-based), the best first.
        budget_tokens: a hard bound on the printed text, date lines included.
        count: the counter that measured the state's lines. The joined text is counted again, because a tokenizer may
            join tokens across lines; if the text is too long, the lowest-ranked turns are dropped.
        question: the question, for the choice of an excerpt.
        first_number: the number of the first printed line, so that a reader can cite lines; None prints no numbers.
        form: how turns are printed, and therefore counted; None prints lines. Only lines have numbers.

    Returns:
        The recall, with `tokens <= budget_tokens`. It is empty if not even an excerpt fits.
    """
    packing = _Packing(state, budget_tokens, count, first_number, form)
    least = 1 if form else state.least_line_tokens
    misses = 0  # lines in a row that did not fit
    long: list[int] = []
    for position in ranking:
        if misses > PATIENCE or (packing.left < least and (packing.chosen or len(long) == EXCERPT_SHARE)):
            break
        misses += 1
        cost = packing.cost(position)
        if cost <= packing.left:
            packing.add(position, cost)
            misses = 0
        elif cost > budget_tokens and len(long) < EXCERPT_SHARE:
            if has_passages(state.lines[position]):
                limit = min(packing.left, max(budget_tokens // EXCERPT_SHARE, LEAST_EXCERPT))
                packing.add_excerpt(position, question, limit)
            long.append(position)
    for position in long:
        if packing.chosen and not has_passages(state.lines[position]):
            continue
        packing.remove_excerpt(position)
        packing.add_excerpt(position, question, packing.left)
    while packing.chosen:
        recall = show(state, packing.chosen, count, first_number=first_number, form=form, excerpts=packing.excerpts)
        if recall.tokens <= budget_tokens:
            return replace(recall, ranked=tuple(state.turns[position].id for position in packing.chosen))
        packing.chosen.pop()
    return Recall()


def show(
    state: State,
    positions: Iterable[int],
    count: TokenCounter,
    *,
    first_number: int | None = None,
    form: TurnFormat | None = None,
    excerpts: Mapping[int, str] | None = None,
) -> Recall:
    """Print turns in time order, one date line per session and day, or in another format, without a budget.

    Args:
        state: the state that `positions` refer to.
        positions: turn positions (0-based), in any order.
        count: counts the tokens of the text.
        first_number: as in `pack`.
        form: as in `pack`.
        excerpts: position -> line, for turns that are shown in part.
    """
    excerpts = excerpts or {}
    positions = sorted(positions)
    partial = tuple(state.turns[position].id for position in positions if position in excerpts)
    printed = [excerpts.get(position, state.lines[position]) for position in positions]
    if form and positions:
        text = form.text([(state.turns[n], line) for n, line in zip(positions, printed, strict=True)])
        return Recall(text, count(text), tuple(state.turns[n].id for n in positions), partial_ids=partial)
    lines: list[str] = []
    ids: list[str] = []
    dated = None
    for position, line in zip(positions, printed, strict=True):
        turn = state.turns[position]
        if (turn.session, turn.day) != dated:
            dated = turn.session, turn.day
            lines.append(turn.header)
        lines.append(line if first_number is None else f"{first_number + len(ids)} {line}")
        ids.append(turn.id)
    text = "".join(lines)
    return Recall(text=text, tokens=count(text), turn_ids=tuple(ids), partial_ids=partial)


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
