"""Conversion of LOCOMO's shape to the documented one. Values keep their types, so that the checks see any fault."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from memometer.benchmarks.own.faults import kind

NAMES = {
    "id": "sample_id",
    "speakers": "speaker_a, speaker_b",
    "turns": "conversation",
    "questions": "qa",
    "turns.id": "dia_id",
    "turns.time": "said",
    "turns.caption": "blip_caption",
    "questions.text": "question",
    "questions.wrong_answer": "adversarial_answer",
}
"""Field of the documented shape -> its name in LOCOMO's."""

UNREAD = {
    "img_url",
    "re-download",
    "query",
    "observation",
    "session_summary",
    "event_summary",
    "raw_evidence",
    "simulated",
}
"""Fields of LOCOMO that no memory may see, or that are not needed."""

_TURN = {"dia_id": "id", "speaker": "speaker", "text": "text", "blip_caption": "caption", "said": "time"}
_QUESTION = {
    "question": "text",
    "answer": "answer",
    "answers": "answers",
    "evidence": "evidence",
    "category": "category",
    "adversarial_answer": "wrong_answer",
}
UNANSWERABLE = "5"
"""LOCOMO's category of unanswerable questions."""


def is_locomo_shaped(entry: Any) -> bool:
    """True for an object that has LOCOMO's field `conversation`."""
    return isinstance(entry, Mapping) and "conversation" in entry


def convert(entry: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Convert one conversation.

    Args:
        entry: An object that `is_locomo_shaped`.

    Returns:
        The conversation in the documented shape, and what is wrong with its sessions, each without the conversation.
        Without usable sessions it has no field `turns`.
    """
    talk = entry["conversation"]
    rest = {k: v for k, v in entry.items() if k not in ("conversation", "qa", "sample_id", *UNREAD)}
    found: dict[str, Any] = {**rest, **_renamed(entry, {"sample_id": "id"})}
    faults: list[str] = []
    qa = entry.get("qa", [])
    found["questions"] = [_question(item) for item in qa] if isinstance(qa, list) else qa
    if not isinstance(talk, Mapping):
        return found, [
            f"conversation is {kind(talk)}; expected an object with session_1, session_1_date_time and so on"
        ]
    speakers = [talk[key] for key in ("speaker_a", "speaker_b") if key in talk]
    if speakers:
        found["speakers"] = speakers
    numbers = sorted({int(match[1]) for key in talk if (match := re.fullmatch(r"session_(\d{1,9})", str(key)))})
    turns: list[Any] = []
    for number in numbers:
        session, time = talk[f"session_{number}"], talk.get(f"session_{number}_date_time")
        if not isinstance(session, list):
            faults.append(f"session_{number} is not a list of turns")
            continue
        if time is None and session:
            faults.append(f"session_{number}_date_time is missing")
        elif time is not None and not isinstance(time, str):
            faults.append(f"session_{number}_date_time is not text")
        for turn in session:
            if isinstance(turn, Mapping):
                read = {_TURN.get(k, k): v for k, v in turn.items() if k not in UNREAD}
                turns.append({"session": str(number), "time": time if isinstance(time, str) else None, **read})
            else:
                turns.append(turn)
    found["turns"] = turns
    return found, faults


def _question(item: Any) -> Any:
    if not isinstance(item, Mapping):
        return item
    read = {_QUESTION.get(k, k): v for k, v in item.items() if k not in UNREAD}
    if str(read.get("category")) == UNANSWERABLE:
        read.pop("answer", None)  # two questions of LOCOMO have one
        return {**read, "unanswerable": True}
    read.pop("wrong_answer", None)
    return read


def _renamed(value: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names[k]: v for k, v in value.items() if k in names}


def repaired_evidence(id: str) -> list[str]:
    """The turn ids in an evidence string of LOCOMO, such as `D:11:26`, `D30:05` or `D8:6; D9:17`."""
    return [f"D{session}:{turn}" for session, turn in re.findall(r"D:?(\d+):0*(\d+)", id)]
