"""Reading of MemoryStress: a thousand sessions of one user, with questions at the end of each phase.

Its file names the sessions that state a fact, not the turns. Without a model, a run measures whether a turn of these
sessions is shown and whether the text of the answer is, by the age that the question asks after.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memometer.benchmarks import json_files
from memometer.benchmarks.checkpoints import MEMORYSTRESS
from memometer.benchmarks.checkpoints.conversations import START, conversation, dataset, text_of, time_of
from memometer.benchmarks.checkpoints.question import Question
from memometer.benchmarks.protocol import Conversation, Dataset, Moment
from memometer.benchmarks.user_files import in_shape, locate
from memometer.memory import Turn

VARIABLE = "MEMORYSTRESS_PATH"
SOURCE = "https://huggingface.co/datasets/singularityjason/memorystress"


def load(path: str | Path | None) -> Dataset:
    """Load the file.

    Raises:
        DataError: The file is missing or has another shape.
    """
    place = locate(path, title=MEMORYSTRESS.title, variable=VARIABLE, source=SOURCE)
    value, digest = json_files.read_json(place)
    found = in_shape(lambda: _conversation(value), path=place, title=MEMORYSTRESS.title)
    return dataset("memorystress", place, [digest], [found], MEMORYSTRESS.categories, notice=MEMORYSTRESS.licence,
                   source=SOURCE)  # fmt: skip


def _conversation(raw: Mapping[str, Any]) -> Conversation:
    turns: list[Turn] = []
    of_session: dict[str, tuple[str, ...]] = {}
    end_of_phase: dict[int, int] = {}
    now = START
    for number, session in enumerate(sorted(raw["sessions"], key=lambda each: each["session_index"]), start=1):
        now = time_of(session.get("simulated_date"), now)
        id, agent = str(session["session_id"]), text_of(session, "agent_id") or "assistant"
        for at, turn in enumerate(session["turns"]):
            speaker = "User" if turn["role"] == "user" else agent
            turns.append(Turn(f"{id}:{at}", speaker, str(turn["content"]), number, now, role=str(turn["role"])))
        of_session[id] = tuple(f"{id}:{at}" for at in range(len(session["turns"])))
        end_of_phase[int(session.get("phase", 1))] = len(turns)
    facts = {str(fact["fact_id"]): fact for fact in raw.get("facts", ())}
    questions = []
    for number, asked in enumerate(raw["questions"]):
        named = [facts[str(id)] for id in asked.get("target_fact_ids", ()) if str(id) in facts]
        sessions = dict.fromkeys(
            str(id) for fact in named for id in (fact.get("mention_sessions") or [fact.get("session_planted")])
        )
        kind = str(asked.get("question_type", "other"))
        answer = text_of(asked, "answer")
        questions.append(
            Question(
                "memorystress",
                number,
                str(asked["question"]),
                kind if kind in MEMORYSTRESS.categories else "other",
                answer or None,
                (),
                moment=Moment(end_of_phase.get(int(asked.get("phase_asked", 0)), len(turns))),
                name=str(asked.get("question_id", number)),
                group=f"phase {asked['phase_asked']}" if "phase_asked" in asked else "",
                needed=(answer,) if answer else (),
                sessions=tuple(of_session[id] for id in sessions if id in of_session),
            )
        )
    return conversation("memorystress", turns, questions)
