"""The interface of every memory system: turns, states, recalls, and the base class of memories. Plain Python.

A memory (`Memory`) holds parameters only. Its content is a value (`State`) that the caller holds:

    memory = AdaptiveMemory()
    state = memory.new()
    memory.observe(state, turns)                                  # session by session, in time order
    recall = memory.recall(state, question, budget_tokens=2048)   # recall.tokens <= 2048, always

A new memory system is a subclass with one method, `recall`, and a line in `memometer/systems/__init__.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import cached_property
from itertools import groupby
from typing import ClassVar, Generic, Protocol, TypeVar, cast

from memometer.token_counters import TokenCounter, default_counter

DEFAULT_BUDGET_TOKENS = 20_000


def format_date(day: date) -> str:
    """Format a date like `5 May 2023`, the way people and gold answers write it; an ISO date costs a token more."""
    return f"{day.day} {day:%B %Y}"


@dataclass(frozen=True)
class Turn:
    """One utterance.

    Attributes:
        id: unique in its conversation.
        speaker: the speaker's name.
        text: the words.
        session: the number of its session.
        said_at: its own time if the data have one, otherwise the time of its session. With a zone, the date is the
            speaker's local day.
        caption: the description of its picture.
        role: `user`, `assistant` or another role, if the data have one.
        audience: the persons who may be shown the turn; None for everyone. The speaker may be shown it always.
    """

    id: str
    speaker: str
    text: str
    session: int
    said_at: datetime
    caption: str | None = None
    role: str | None = None
    audience: tuple[str, ...] | None = None

    def may_be_shown_to(self, asker: str) -> bool:
        """Return True if a person may be shown the turn."""
        return self.audience is None or asker in (self.speaker, *self.audience)

    @cached_property
    def line(self) -> str:
        """The turn as a reader sees it: one line with single spaces, ending in a newline.

        Token counts of such lines add up exactly, because no tokenizer joins tokens across the newline.
        """
        image = f" [image: {self.caption}]" if self.caption else ""
        return " ".join(f"{self.speaker}: {self.text}{image}".split()) + "\n"

    @cached_property
    def header(self) -> str:
        """The date line above the turn, such as `# Mon 8 May 2023`. A session has one for each of its days."""
        return f"# {self.said_at:%a} {format_date(self.said_at)}\n"

    @cached_property
    def day(self) -> int:
        """The day of the turn (`date.toordinal`). Turns of one session and day share a date line."""
        return self.said_at.toordinal()


@dataclass(frozen=True, slots=True)
class Item:
    """A result of a search, such as a turn, a chunk or a fact (memometer/systems/plugin.py).

    Attributes:
        text: what a reader is shown; None for the text of the turns.
        turn_ids: the turns that it comes from; None if the system does not know.
        score: as the system returned it; None without one.
    """

    text: str | None
    turn_ids: tuple[str, ...] | None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Recall:
    """The text that a reader is shown for one question.

    Attributes:
        text: the text.
        tokens: the exact size of `text` in the memory's own token counter.
        turn_ids: the turns shown, in time order, those of `partial_ids` included.
        partial_ids: the turns of which only an excerpt is shown, because they are longer than the budget allows.
        ranked: the same turns by rank, if the system ranks turns.
        speaker_gap: how much better the question fits the other speaker's turns than those of the person it names
            (memometer/retrieval/speakers.py). None if it names nobody or both, or if the system scores no turns.
        items: the items shown, by rank, if the system returns items (memometer/systems/plugin.py).
        provenance: how exactly the source of the text is known: `turn` if `turn_ids` are exact, `batch` if an item
            comes from somewhere in several turns (`source_ids`), `none` if it is unknown.
        source_ids: the turns that the items name, exactly or not.
    """

    text: str = ""
    tokens: int = 0
    turn_ids: tuple[str, ...] = ()
    ranked: tuple[str, ...] = ()
    speaker_gap: float | None = None
    items: tuple[Item, ...] = ()
    provenance: str = "turn"
    source_ids: tuple[str, ...] = ()
    partial_ids: tuple[str, ...] = ()

    @property
    def whole_ids(self) -> tuple[str, ...]:
        """The turns of which every word is shown; only these count as recalled evidence."""
        partial = set(self.partial_ids)
        return tuple(id for id in self.turn_ids if id not in partial)


class TurnFormat(Protocol):
    """Prints turns as records in place of lines under dates (memometer/reader/context_formats.py)."""

    @property
    def name(self) -> str: ...

    def row(self, turn: Turn, line: str) -> str:
        """Return the text that one turn adds to the whole, as far as that turn alone determines it."""
        ...

    def text(self, shown: Sequence[tuple[Turn, str]]) -> str:
        """Return the whole text for turns in time order, each with its line."""
        ...


class BudgetExceeded(RuntimeError):
    """A memory showed more than its budget, or miscounted its text: a fault of that memory."""


class BudgetTooSmall(ValueError):
    """The budget is too small for a system that cannot show a part of its text."""


@dataclass
class State:
    """The remembered content of one conversation: its turns in time order, their printed lines, and the costs.

    `header_tokens` holds the cost of the date line of each `Turn.day`.
    """

    turns: list[Turn] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    line_tokens: list[int] = field(default_factory=list)
    header_tokens: dict[int, int] = field(default_factory=dict)
    least_line_tokens: int = 0


S = TypeVar("S", bound=State)


class Memory(Generic[S]):
    """A memory system. It holds parameters only, so one instance serves all conversations and threads.

    Args:
        count: counts tokens as the answering model does; every budget is measured with it. None counts with
            o200k_base, or with UTF-8 bytes if that vocabulary is not on this machine.
    """

    state_type: ClassVar[type[State]] = State
    """The class of states that `new` makes."""

    shows_everything: ClassVar[bool] = False
    """True for a system that gets the reader's whole window instead of the budget."""

    needs_model: ClassVar[bool] = False
    """True for a system whose `observe` calls DSPy's language model."""

    needs_encoder: ClassVar[bool] = False
    """True for a system that does not work without an `encoder` (memometer/models/encoders.py)."""

    takes_token_encoder: ClassVar[bool] = False
    """True for a system that can use an encoder of token vectors, and works without one."""

    takes_ranking: ClassVar[bool] = False
    """True for a system with learned weights, which `ranking` chooses by name."""

    reads_in_rounds: ClassVar[bool] = False
    """True for a system that a reader can ask in several rounds (memometer/reader/reader.py)."""

    takes_memory_url: ClassVar[bool] = False
    """True for a system that accepts `memory_url` and then keeps its episodes in that store (memometer/store/)."""

    shows_turns: ClassVar[bool] = True
    """False for a system that shows text written by a model, which no `TurnFormat` can print."""

    recall_only_computes: ClassVar[bool] = False
    """True for a system whose `recall` calls no model but its `encoder`, and waits for no other process. An evaluation
    without an encoder then recalls in one thread, ahead of the calls of the reader."""

    skipped: str = ""
    """The reason why a system takes no further part in a run; empty if it does."""

    form: TurnFormat | None = None
    """How turns are printed; None prints lines under dates."""

    def __init__(self, *, count: TokenCounter | None = None) -> None:
        self.count: TokenCounter = count or default_counter()

    @property
    def fitted_on(self) -> tuple[str, ...]:
        """Conversations whose labels the weights were fitted to; their recall is not a valid result."""
        return ()

    def new(self) -> S:
        """Return an empty state."""
        return cast(S, self.state_type())

    def line(self, turn: Turn) -> str:
        """Return the line that shows a turn, ending in a newline."""
        return turn.line

    def observe(self, state: S, turns: Sequence[Turn]) -> None:
        """Append turns, in time order. One call or many calls give the same state."""
        for turn in turns:
            line = self.line(turn)
            state.turns.append(turn)
            state.lines.append(line)
            state.line_tokens.append(cost := self.count(line))
            state.least_line_tokens = min(state.least_line_tokens or cost, cost)
            if turn.day not in state.header_tokens:
                state.header_tokens[turn.day] = self.count(turn.header)

    def ready(self, state: S) -> None:
        """Wait until everything observed can be recalled. Most memories have nothing to wait for."""

    def finish(self, state: S) -> None:
        """Complete an ingest after its last turn. Most memories have nothing to do."""

    def forget(self, state: S, turn_ids: Collection[str]) -> None:
        """Delete turns and all that was derived from them: the state becomes that of the turns that remain.

        Args:
            state: what `new` made and `observe` filled.
            turn_ids: the turns to delete; unknown ids are ignored.
        """
        gone = set(turn_ids)
        fresh = self.new()
        for _, session in groupby((t for t in state.turns if t.id not in gone), key=lambda turn: turn.session):
            self.observe(fresh, list(session))
        vars(state).update(vars(fresh))

    def asked_by(self, asker: str) -> Memory[S]:
        """Return the memory for the questions of one person. Most memories show every turn to everyone.

        Args:
            asker: the name of the person.
        """
        return self

    def returned(self, state: S, question: str) -> Sequence[Item]:
        """Return all items that the search for a question found, by rank; empty if the system returns no items."""
        return ()

    def take_usage(self, stage: str) -> Mapping[str, int]:
        """Return the model calls that were made outside this process since the last call, as counts by name.

        Args:
            stage: `ingest` or `search`.
        """
        return {}

    def close(self, state: S) -> None:
        """Free what `new` opened, such as a memory in another process. Most memories have nothing to do."""

    def stop(self) -> None:
        """End what the memory started, such as a process. Most memories have nothing to do."""

    def recall(self, state: S, question: str, budget_tokens: int) -> Recall:
        """Return the text to show for a question. It does not change the state.

        Args:
            state: what `new` made and `observe` filled.
            question: any text.
            budget_tokens: a hard bound: `Recall.tokens <= budget_tokens`, always.
        """
        raise NotImplementedError(f"{type(self).__name__} must define recall")

    def checked_recall(self, state: S, question: str, budget_tokens: int) -> Recall:
        """Call `recall` and count its text again.

        Raises:
            BudgetExceeded: the text exceeds the budget, or `Recall.tokens` is wrong.
        """
        recall = self.recall(state, question, budget_tokens)
        tokens = self.count(recall.text)
        if tokens > budget_tokens or tokens != recall.tokens:
            raise BudgetExceeded(
                f"{type(self).__name__} shows {tokens} tokens and reports {recall.tokens}; the budget is "
                f"{budget_tokens} tokens"
            )
        return recall
