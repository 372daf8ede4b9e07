"""JSON schemas of the REST service: request bodies (`...In`) and responses (`...Out`)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from memometer.memory import Recall
from memometer.serve.new_turns import NewTurn
from memometer.serve.registry import DEFAULT_MEMORY, DEFAULT_SYSTEM, NAME_PATTERN, MemoryEntry
from memometer.serve.tenants import MAX_TURNS
from memometer.store.episode import Episode, ScopeSize, SearchResult
from memometer.store.protocol import Consolidated
from memometer.store.turn_conversion import turn_of
from memometer.systems import SYSTEMS
from memometer.systems.codebook import Codes


def _strictly(*types: type) -> BeforeValidator:
    """Accept these JSON types only: no number in a string, no boolean as a number."""

    def check(value: Any) -> Any:
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ValueError(f"expected {types[0].__name__}, got {type(value).__name__}")
        return value

    return BeforeValidator(check)


def _iso_time(value: Any) -> Any:
    if not isinstance(value, str) or value[4:5] != "-":  # pydantic also accepts Unix times
        raise ValueError("expected an ISO 8601 time such as 2024-05-08T14:30:00Z")
    return value


Text = Annotated[str, Field(min_length=1, max_length=10_000, pattern=r"^[^\x00]*$")]
ShortText = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
Name = Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")]
Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,128}$")]
Tokens = Annotated[int, Field(ge=1, le=200_000), _strictly(int, float)]
Count = Annotated[int, Field(ge=1, le=1000), _strictly(int)]
Time = Annotated[datetime, BeforeValidator(_iso_time)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TurnIn(_Body):
    """A turn to store. Missing fields get defaults: the current time, a session per day, a random id."""

    text: Text
    speaker: ShortText = "user"
    said_at: Time | None = None
    session: Annotated[int, Field(ge=0, le=2**31), _strictly(int, float)] | None = None
    caption: Text | None = None
    id: Id | None = None

    def turn(self) -> NewTurn:
        return NewTurn(self.text, self.speaker, self.said_at, self.session, self.caption, self.id)


class StoreIn(TurnIn):
    memory: Name = DEFAULT_MEMORY
    importance: Annotated[float, Field(ge=0, le=1), _strictly(float, int)] = 0.5


class ObserveIn(_Body):
    turns: Annotated[list[TurnIn], Field(min_length=1, max_length=MAX_TURNS)]


class SearchIn(_Body):
    question: Text
    k: Annotated[int, Field(ge=1, le=1000), _strictly(int, float)] = 10


class TurnPatch(_Body):
    text: Text


class CodebookIn(_Body):
    """`goals` are texts whose mean vector is the goal. `vectors` adds the vectors to the reply."""

    goals: Annotated[list[Text], Field(max_length=100)] = []
    vectors: Annotated[bool, _strictly(bool)] = False


class CreateIn(_Body):
    system: Annotated[str, Field(json_schema_extra={"enum": sorted(SYSTEMS)})] = DEFAULT_SYSTEM


class AnswerIn(_Body):
    question: Text
    budget_tokens: Tokens = 2048


class RecallIn(AnswerIn):
    at: Time | None = None


class ConsolidateIn(_Body):
    """`weights` are those of merging and forgetting: `default` forgets nothing. `dry_run` changes nothing."""

    memory: Name = DEFAULT_MEMORY
    weights: Literal["default", "seed"] = "default"
    dry_run: Annotated[bool, _strictly(bool)] = False


class ConsolidationIn(_Body):
    """As ConsolidateIn, for the memory of the address."""

    weights: Literal["default", "seed"] = "default"
    dry_run: Annotated[bool, _strictly(bool)] = False


class StoredOut(BaseModel):
    memory: str
    ids: list[str]


class TurnOut(BaseModel):
    id: str
    speaker: str
    text: str
    said_at: datetime
    session: int
    caption: str | None
    importance: float
    uses: int

    @classmethod
    def of(cls, episode: Episode, **scores: Any) -> Self:
        """Convert an episode; `scores` are the further fields of FoundOut. The values are valid already."""
        turn = turn_of(episode)
        return cls.model_construct(
            id=turn.id,
            speaker=turn.speaker,
            text=turn.text,
            said_at=turn.said_at if turn.said_at.tzinfo else turn.said_at.replace(tzinfo=UTC),
            session=turn.session,
            caption=turn.caption,
            importance=episode.importance,
            uses=episode.uses,
            **scores,
        )


class FoundOut(TurnOut):
    """A retrieved turn. `score` combines `lexical`, `dense` and `recency`; a higher score is better."""

    score: float
    lexical: float
    dense: float
    recency: float


class RetrievedOut(BaseModel):
    memory: str
    found: list[FoundOut]

    @classmethod
    def of(cls, memory: str, found: list[SearchResult]) -> RetrievedOut:
        rows = [
            FoundOut.of(hit.episode, score=hit.score, lexical=hit.lexical, dense=hit.dense, recency=hit.recency)
            for hit in found
        ]
        return cls(memory=memory, found=rows)


class RecallOut(BaseModel):
    """`tokens` is the exact count of `text`, at most the budget. `ids` are in time order."""

    text: str
    tokens: int
    ids: list[str]

    @classmethod
    def of(cls, recall: Recall) -> RecallOut:
        return cls(text=recall.text, tokens=recall.tokens, ids=list(recall.turn_ids))


class AnswerOut(BaseModel):
    answer: str
    recall: RecallOut


class RestoredOut(BaseModel):
    memory: str
    restored: list[str]


class ConsolidatedOut(BaseModel):
    """`merged` maps each remaining turn to the near-duplicates merged into it; `forgotten` are archived turns."""

    memory: str
    merged: dict[str, list[str]]
    forgotten: list[str]

    @classmethod
    def of(cls, memory: str, result: Consolidated) -> ConsolidatedOut:
        merged = {id: list(others) for id, others in result.merged.items()}
        return cls(memory=memory, merged=merged, forgotten=list(result.forgotten))


class CodebookOut(BaseModel):
    """`energy` has the count, sum, mean, min and max of the codes' energies now. `arrays` has the vectors, energies and
    times (in hours) of the ring (`short_...`) and of the codes (`long_...`), and the goal."""

    memory: str
    energy: dict[str, float]
    goal: list[float]
    arrays: dict[str, list[Any]] | None

    @classmethod
    def of(cls, memory: str, codes: Codes | None, *, at: float, vectors: bool) -> Self:
        if codes is None:
            return cls(memory=memory, energy={"count": 0}, goal=[], arrays={} if vectors else None)
        dumped = {name: array.tolist() for name, array in codes.dump().items()}
        energy = codes.energy_stats(time=at / 3600)
        return cls(memory=memory, energy=energy, goal=dumped.pop("goal"), arrays=dumped if vectors else None)


class JobOut(BaseModel):
    """`status` is `running`, `done` with a `result`, or `failed` with the reason in `detail`."""

    id: str
    kind: str
    memory: str
    status: str
    result: ConsolidatedOut | None = None
    detail: str | None = None


class MemoryOut(BaseModel):
    name: str
    system: str
    created_at: datetime
    turns: int
    archived: int

    @classmethod
    def of(cls, entry: MemoryEntry, size: ScopeSize) -> MemoryOut:
        created_at = datetime.fromtimestamp(entry.created_at, UTC)
        return cls(
            name=entry.name, system=entry.system, created_at=created_at, turns=size.episodes, archived=size.archived
        )


class StatsOut(BaseModel):
    memories: int
    turns: int
    archived: int


class MemoriesOut(BaseModel):
    """A page of memories, sorted by name. `next` is the cursor of the next page, null on the last one."""

    memories: list[MemoryOut]
    next: str | None


class TurnsOut(BaseModel):
    """A page of turns, newest first. `next` is the cursor of the next page, null on the last one."""

    turns: list[TurnOut]
    next: str | None


class ArchivedOut(BaseModel):
    turns: list[TurnOut]


class HealthOut(BaseModel):
    status: str
