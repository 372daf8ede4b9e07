"""Reading of GateMem (arXiv 2606.18829): episodes of several people, and checkpoints with an asker.

A domain is a folder with episodes.jsonl and checkpoints.jsonl. Without a model, a run measures at each checkpoint the
needed texts (utility) and the texts that must not be disclosed (access) or that were deleted (forgetting) in what a
system shows. It cannot measure refusals. Who may see what is said in the conversation only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memometer.benchmarks import json_files
from memometer.benchmarks.checkpoints import GATEMEM
from memometer.benchmarks.checkpoints.conversations import START, conversation, dataset, text_of, texts_of, time_of
from memometer.benchmarks.checkpoints.question import Question
from memometer.benchmarks.protocol import Conversation, DataError, Dataset, Moment
from memometer.benchmarks.user_files import in_shape, locate
from memometer.memory import Turn

VARIABLE = "GATEMEM_PATH"
SOURCE = "the repository or data set of GateMem (arXiv 2606.18829)"
KINDS = {
    "utility": "utility", "answer": "utility",
    "privacy": "access", "access": "access", "access_control": "access",
    "safety": "forgetting", "forgetting": "forgetting", "forget": "forgetting", "deletion": "forgetting",
}  # fmt: skip
"""Published type of a query -> category."""


def load(path: str | Path | None) -> Dataset:
    """Load a domain, or all domains of a folder.

    Raises:
        DataError: The files are missing or have another shape.
    """
    place = locate(path, title=GATEMEM.title, variable=VARIABLE, source=SOURCE)
    folder = place if place.is_dir() else place.parent
    found: list[Conversation] = []
    digests = []
    for episodes_file in sorted(folder.rglob("*episodes*.json*")):
        checkpoints_file = episodes_file.with_name(episodes_file.name.replace("episodes", "checkpoints"))
        if not checkpoints_file.is_file():
            raise DataError(f"{episodes_file} has no {checkpoints_file.name} next to it.")
        (episodes, first), (checkpoints, second) = map(_rows, (episodes_file, checkpoints_file))
        found += in_shape(lambda e=episodes, c=checkpoints: _conversations(e, c), path=episodes_file, title="GateMem")  # type: ignore[misc]
        digests += [first, second]
    if not found:
        raise DataError(f"{folder} has no episodes.jsonl; name the folder of a domain of {SOURCE}.")
    return dataset(
        "gatemem", place, digests, found, GATEMEM.categories, notice=GATEMEM.licence, source="arXiv 2606.18829"
    )


def _rows(path: Path) -> tuple[list[Any], str]:
    """Read JSON Lines, or a JSON list."""
    content = json_files.read_bytes(path)
    found = [value for _, value in json_files.values(path, content)]
    rows = found[0] if len(found) == 1 and isinstance(found[0], list) else found
    return rows, json_files.sha256(content)


def _conversations(episodes: Sequence[Any], checkpoints: Sequence[Any]) -> list[Conversation]:
    asked: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for checkpoint in checkpoints:
        asked[str(checkpoint["episode_id"])].append(checkpoint)
    unknown = set(asked) - {str(episode["episode_id"]) for episode in episodes}
    if unknown:
        raise DataError(f"checkpoints name the episode {sorted(unknown)[0]}, which does not exist.")
    return [_conversation(episode, asked[str(episode["episode_id"])]) for episode in episodes]


def _conversation(episode: Mapping[str, Any], checkpoints: Sequence[Mapping[str, Any]]) -> Conversation:
    id = str(episode["episode_id"])
    entities = episode.get("entities")
    people = entities.get("principals") or [] if isinstance(entities, Mapping) else []
    names = {str(p.get("principal_id")): text_of(p, "display_name", "name", "principal_id") for p in people}
    turns: list[Turn] = []
    now = START
    for number, raw in enumerate(episode["turns"]):
        now = time_of(raw.get("timestamp", raw.get("time")), now)
        principal = text_of(raw.get("speaker"), "principal_id", "id", "name") or "unknown"
        session = turns[-1].session + (turns[-1].said_at.date() != now.date()) if turns else 1
        role = "assistant" if text_of(raw.get("speaker"), "role") in ("agent", "assistant") else "user"
        text = text_of(raw, "text", "content")
        turns.append(
            Turn(str(raw.get("turn_id", number)), names.get(principal, principal), text, session, now, role=role)
        )
    place = {turn.id: number + 1 for number, turn in enumerate(turns)}
    questions = []
    for number, raw in enumerate(checkpoints):
        as_of = raw.get("as_of_turn_id")
        if as_of is not None and str(as_of) not in place:
            checkpoint = raw.get("checkpoint_id", number)
            raise DataError(f"{id}: the checkpoint {checkpoint} names the turn {as_of!r}, which does not exist.")
        given = raw.get("judge_spec")
        spec: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
        asker = text_of(raw.get("asker"), "principal_id", "id", "name")
        needed = texts_of(spec.get("include"))
        leaks = texts_of(raw.get("leak_targets")) or texts_of(spec.get("not_include"))
        kind = KINDS.get(str(raw.get("query_type", "")).casefold(), "access" if leaks else "utility")
        questions.append(
            Question(
                id,
                number,
                text_of(raw, "query_text", "query", "question"),
                kind,
                "; ".join(needed) or None if kind == "utility" else None,
                (),
                moment=Moment(place[str(as_of)] if as_of is not None else len(turns)),
                asker=names.get(asker, asker),
                name=str(raw.get("checkpoint_id", number)),
                group=text_of(raw, "attack_type").replace("_", " "),
                needed=needed,
                leaks=leaks if kind != "utility" else (),
            )
        )
    return conversation(id, turns, questions)
