"""What the service is told and what it says, as JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from memometer.budget import Recall
from memometer.serve.tenants import DEFAULT_NAME, DEFAULT_SYSTEM, MOST_AT_ONCE, NAME, Named, Said
from memometer.store.episode import Episode, ScopeSize, SearchResult
from memometer.store.protocol import Consolidated
from memometer.store.turn_conversion import turn_of
from memometer.systems import SYSTEMS


def _only(*kinds: type) -> BeforeValidator:
    """JSON's types are meant: no number in a string, no truth as a number."""

    def check(value: Any) -> Any:
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ValueError(f"it is {type(value).__name__}, not {kinds[0].__name__}")
        return value

    return BeforeValidator(check)


def _moment(value: Any) -> Any:
    if not isinstance(value, str) or value[4:5] != "-":  # pydantic would take a number, and a number in a string
        raise ValueError("it is no time; write one like 2024-05-08T14:30:00Z")
    return value


Text = Annotated[str, Field(min_length=1, max_length=10_000, pattern=r"^[^\x00]*$")]
Line = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
Name = Annotated[str, Field(pattern=f"^{NAME}$")]
Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,128}$")]
Tokens = Annotated[int, Field(ge=1, le=200_000), _only(int, float)]
Moment = Annotated[datetime, BeforeValidator(_moment)]


class Told(BaseModel):
    """What comes in: nothing that is not known here."""

    model_config = ConfigDict(extra="forbid")


class TurnIn(Told):
    """Something to remember. What is left out is filled in: time by the clock, session by the day, id by chance."""

    text: Text
    speaker: Line = "user"
    said_at: Moment | None = None
    session: Annotated[int, Field(ge=0, le=2**31), _only(int, float)] | None = None
    caption: Text | None = None
    id: Id | None = None

    def said(self) -> Said:
        return Said(self.text, self.speaker, self.said_at, self.session, self.caption, self.id)


class StoreIn(TurnIn):
    memory: Name = DEFAULT_NAME
    importance: Annotated[float, Field(ge=0, le=1), _only(float, int)] = 0.5


class ObserveIn(Told):
    turns: Annotated[list[TurnIn], Field(min_length=1, max_length=MOST_AT_ONCE)]


class CreateIn(Told):
    system: Annotated[str, Field(json_schema_extra={"enum": sorted(SYSTEMS)})] = DEFAULT_SYSTEM


class RecallIn(Told):
    question: Text
    budget_tokens: Tokens = 2048
    at: Moment | None = None


class AnswerIn(Told):
    question: Text
    budget_tokens: Tokens = 2048


class ConsolidateIn(Told):
    memory: Name = DEFAULT_NAME


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
    def of(cls, episode: Episode) -> TurnOut:
        return cls(**_turn(episode))


class FoundOut(TurnOut):
    """A turn and how well it fits: `score` is the weighted sum of the others."""

    score: float
    lexical: float
    dense: float
    recency: float

    @classmethod
    def found(cls, hit: SearchResult) -> FoundOut:
        return cls(**_turn(hit.episode), score=hit.score, lexical=hit.lexical, dense=hit.dense, recency=hit.recency)


class RetrievedOut(BaseModel):
    memory: str
    found: list[FoundOut]


class RecallOut(BaseModel):
    """`tokens` counts `text` exactly, and is at most what was asked for; `ids` are in the order of time."""

    text: str
    tokens: int
    ids: list[str]

    @classmethod
    def of(cls, recall: Recall) -> RecallOut:
        return cls(text=recall.text, tokens=recall.tokens, ids=list(recall.turn_ids))


class AnswerOut(BaseModel):
    answer: str
    recall: RecallOut


class ConsolidatedOut(BaseModel):
    """The id of each turn that now stands for others, with theirs; and those that were forgotten."""

    memory: str
    merged: dict[str, list[str]]
    forgotten: list[str]

    @classmethod
    def of(cls, name: str, done: Consolidated) -> ConsolidatedOut:
        merged = {id: list(others) for id, others in done.merged.items()}
        return cls(memory=name, merged=merged, forgotten=list(done.forgotten))


class MemoryOut(BaseModel):
    name: str
    system: str
    created_at: datetime
    turns: int
    archived: int

    @classmethod
    def of(cls, named: Named, size: ScopeSize) -> MemoryOut:
        created_at = datetime.fromtimestamp(named.created_at, UTC)
        return cls(
            name=named.name, system=named.system, created_at=created_at, turns=size.episodes, archived=size.archived
        )


class StatsOut(BaseModel):
    memories: int
    turns: int
    archived: int


class MemoriesOut(BaseModel):
    """A page, in the order of names. `next` is the cursor of the next one; null on the last."""

    memories: list[MemoryOut]
    next: str | None


class TurnsOut(BaseModel):
    """A page, the latest first. `next` is the cursor of the next one; null on the last."""

    turns: list[TurnOut]
    next: str | None


class HealthOut(BaseModel):
    status: str


def _turn(episode: Episode) -> dict[str, Any]:
    turn = turn_of(episode)
    return {
        "id": turn.id,
        "speaker": turn.speaker,
        "text": turn.text,
        "said_at": turn.said_at.replace(tzinfo=turn.said_at.tzinfo or UTC),
        "session": turn.session,
        "caption": turn.caption,
        "importance": episode.importance,
        "uses": episode.uses,
    }
