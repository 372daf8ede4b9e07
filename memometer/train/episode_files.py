"""Episodes of lookups as one JSON file, for machines that train elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from memometer import benchmarks
from memometer.benchmarks.protocol import Conversation, Session
from memometer.memory import Turn
from memometer.train.episodes import Episodes

LIMITS = ("rounds", "budget_tokens", "reply_tokens", "question_budget", "token_price", "benchmark")


def write(episodes: Episodes, path: Path, questions: Iterable[str]) -> None:
    """Write the episodes of some questions. Their conversations are written whole, without other questions."""
    chosen = [episodes.questions[id] for id in dict.fromkeys(questions)]
    ids = {question.conversation for question in chosen}
    conversations = [
        {
            "id": conversation.id,
            "speakers": conversation.speakers,
            "sessions": [asdict(session) for session in conversation.sessions],
        }
        for conversation in episodes.conversations.values()
        if conversation.id in ids
    ]
    content = {
        "limits": {name: getattr(episodes, name) for name in LIMITS},
        "questions": [asdict(question) for question in chosen],
        "conversations": conversations,
    }
    path.write_text(json.dumps(content, default=datetime.isoformat) + "\n", encoding="ascii")


def read(path: Path) -> Episodes:
    """Read episodes. The reward and the memory are those of the installed memometer."""
    content = json.loads(path.read_text(encoding="ascii"))
    kind = benchmarks.load(content["limits"]["benchmark"]).question_type
    questions = [kind(**_tuples(question)) for question in content["questions"]]
    return Episodes([_conversation(each) for each in content["conversations"]], questions, **content["limits"])


def _conversation(value: Mapping[str, Any]) -> Conversation:
    sessions = tuple(
        Session(
            session["number"],
            datetime.fromisoformat(session["said_at"]),
            tuple(Turn(**{**turn, "said_at": datetime.fromisoformat(turn["said_at"])}) for turn in session["turns"]),
        )
        for session in value["sessions"]
    )
    return Conversation(value["id"], tuple(value["speakers"]), sessions, ())


def _tuples(value: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(each) if isinstance(each, list) else each for name, each in value.items()}
