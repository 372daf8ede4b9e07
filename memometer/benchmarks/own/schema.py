"""The documented shape of own conversations as types. `own-data.schema.json` is generated from them.

{"name": "support", "conversations": [{"id": "c1", "turns": [...], "questions": [...]}]}
"""

from __future__ import annotations

import json
import unicodedata
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictStr
from pydantic_core import PydanticCustomError

MAX_LINE = 10_000
"""Characters of an id or a name."""

FILE = Path(__file__).with_name("own-data.schema.json")


def _whole(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("surrogate", "contains half a character (an unpaired surrogate)") from error
    return value


def _not_blank(value: str) -> str:
    """Refuse a text without a visible character, also one of zero-width characters only."""
    if not any(unicodedata.category(c)[0] not in "ZC" for c in value):
        raise PydanticCustomError("blank", "is blank")
    return _whole(value)


def _one_line(value: str) -> str:
    if not _not_blank(value).isprintable():
        raise PydanticCustomError("one_line", "contains a line break or another control character")
    return value


def _number_as_text(value: Any) -> Any:
    return str(value) if type(value) is int else value


def _decimal_as_text(value: Any) -> Any:
    return str(value) if type(value) is float and isfinite(value) else _number_as_text(value)


Text = Annotated[StrictStr, AfterValidator(_whole)]
Words = Annotated[StrictStr, AfterValidator(_not_blank)]
Line = Annotated[StrictStr, Field(max_length=MAX_LINE), AfterValidator(_one_line)]
Id = Annotated[Line, BeforeValidator(_number_as_text, json_schema_input_type=str | int)]
Answer = Annotated[Words, BeforeValidator(_decimal_as_text, json_schema_input_type=str | int | float)]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="allow", title=None, allow_inf_nan=False)


class OwnTurn(_Shape):
    """One message."""

    id: Id = Field(description="Unique in the conversation. Evidence refers to it.")
    speaker: Line = Field(description="The speaker's name.")
    text: Text = Field("", description="The words. May be empty if there is a caption.")
    time: Text | None = Field(
        None,
        description="ISO 8601, with or without a zone: 2024-03-03T18:12:00+01:00. Without it, the turn has the time of "
        "the turn before; the first turn needs one.",
        examples=["2024-03-03T18:12:00+01:00"],
    )
    caption: Text | None = Field(None, description="A description of the turn's picture.")
    role: Line | None = Field(None, description="user, assistant or another role.")
    session: Id | None = Field(
        None, description="A label of the turn's session. Without labels, a pause of six hours starts a new session."
    )


class OwnQuestion(_Shape):
    """A question about the conversation, with one of answer, answers and unanswerable."""

    id: Id | None = Field(None, description="Unique in the conversation. Default: its position, from 0.")
    text: Words = Field(description="The question.")
    answer: Answer = Field("", description="The gold answer.")
    answers: list[Answer] = Field([], min_length=1, description="Several gold answers; any of them is right.")
    unanswerable: StrictBool = Field(False, description="True if the conversation does not contain an answer.")
    wrong_answer: Words | None = Field(None, description="A wrong answer that an unanswerable question suggests.")
    evidence: list[Id] = Field([], description="Ids of the turns that contain the answer, for evidence recall.")
    category: Id | None = Field(None, description="Any text; results are also reported by category.")


class OwnConversation(_Shape):
    """One conversation: its turns in time order, and the questions about it."""

    id: Id = Field(description="Unique in the data.")
    speakers: list[Line] | None = Field(None, description="The speakers, two or more. Default: those of the turns.")
    turns: list[OwnTurn] = Field(min_length=1, description="The turns, in time order.")
    questions: list[OwnQuestion] = Field([], description="The questions.")


class OwnFile(_Shape):
    """A data file. A list of conversations, one conversation, and JSON Lines of conversations are also read."""

    name: Line | None = Field(None, description="The name of the data in reports. Default: the name of the file.")
    licence: Line | None = Field(None, description="The licence of the data, for reports.")
    conversations: list[OwnConversation] = Field(min_length=1, description="The conversations.")


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a data file."""
    found = OwnFile.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found, "title": "Own conversations"}


def schema_text() -> str:
    """The content of own-data.schema.json."""
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"
