"""Lines of a run's files: parsed, checked and upgraded from earlier versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from memometer.errors import UserError
from memometer.run import chain

Record = dict[str, Any]
"""One attempt at one question, as `memometer.harness.attempt` makes it."""


FIELDS = ("system", "budget_tokens", "question_id", "option_order", "attempt", "answer", "recall", "verdicts", "error",
"model",
          "calls", "unreported", "prompt_tokens", "completion_tokens", "seconds", "truncated")  # fmt: skip
"""The fields that every record has, also one of imported results."""
VERDICT_FIELDS = ("judge", "prompt", "label")


class RunFolderError(UserError, ValueError):
    """The folder cannot be used for the command. The message is one sentence for the user."""


def read_lines(path: Path) -> list[Record]:
    """The complete lines of a file. An incomplete last line is ignored."""
    if not path.exists():
        return []
    content = path.read_bytes()
    return parse_lines(content[: content.rfind(b"\n") + 1], path)


def parse_lines(content: bytes, path: Path) -> list[Record]:
    """Parse lines of JSON and upgrade those of earlier versions.

    Args:
        content: Complete lines.
        path: Their file, for the message.

    Raises:
        RunFolderError: A line is not JSON, or not a record of any version.
    """
    try:
        lines = [json.loads(line) for line in content.split(b"\n") if line]
    except (ValueError, RecursionError) as error:
        raise RunFolderError(
            f"{path} has a line that is not JSON ({error}); restore the file, or start a new run."
        ) from error
    for line in lines:
        _upgrade(line)
        if isinstance(line, dict):
            line.pop(chain.FIELD, None)
    if missing := next(filter(None, (_missing(line, path.name) for line in lines)), ""):
        raise RunFolderError(
            f"{path} has a line that is not a record (it has no {missing}); restore the file, or start a new run."
        )
    return lines


RENAMED = {"form": "option_order", "said": "raw_answer", "cited": "citations"}
"""Field of a record of an earlier version -> its name in this version."""


def _upgrade(line: Any) -> None:
    """Rename the fields that earlier versions wrote, also in verdicts (`key`, and the label `ungraded`)."""
    if not isinstance(line, dict):
        return
    for old, new in RENAMED.items():
        if old in line:
            line[new] = line.pop(old)
    if "question_id" in line:
        line.setdefault("conversation", str(line["question_id"]).rpartition("#")[0])
    verdicts = line.get("verdicts") or []
    for verdict in (*(verdicts if isinstance(verdicts, list) else ()), line.get("verdict")):
        if isinstance(verdict, dict):
            if "key" in verdict:
                verdict["label_set"] = verdict.pop("key")
            if verdict.get("label") == "ungraded":
                verdict["label"] = "missing"


def _missing(line: Any, name: str) -> str:
    """The first field that a line of records.jsonl, verdicts.jsonl or labels.jsonl lacks; empty if it is complete."""
    if not isinstance(line, dict):
        return "fields"
    fields = {
        "records.jsonl": FIELDS,
        "verdicts.jsonl": (*FIELDS[:4], "verdict"),
        "labels.jsonl": (*FIELDS[:4], "label", "labeller"),
    }.get(name, ())
    if missing := [field for field in fields if field not in line]:
        return missing[0]
    verdicts = line["verdicts"] if name == "records.jsonl" else [line["verdict"]] if "verdict" in line else []
    for verdict in verdicts:
        if not isinstance(verdict, dict) or any(field not in verdict for field in VERDICT_FIELDS):
            return "verdict with judge, prompt and label"
    return ""
