"""The cache of judge calibrations: one file for each judge, prompt, data and calibration set."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from memometer.judging.calibration_set import SOURCES
from memometer.judging.judge import Judge
from memometer.judging.judge_calibration import Calibration
from memometer.models.downloads import models_folder
from memometer.run.environment import digest

MAX_AGE = timedelta(days=30)
"""For a model that is served under a name, whose weights may change. A file of weights is identified by its bytes and
its calibration does not expire."""


def identify(
    judge: Judge, *, revision: str, address: str | None, data: str, wrong_answers: Path | None
) -> dict[str, str]:
    """Describe what must be the same for a cached calibration to be valid.

    Args:
        judge: The judge.
        revision: Revision of the weights; empty for a model that is served under a name.
        address: The API base, because a server may give any model that name.
        data: SHA-256 of the data.
        wrong_answers: The file of specific wrong answers, or None.

    Returns:
        Name -> value.
    """
    return {
        "judge": judge.lm.model,
        "prompt": judge.prompt,
        "prompt_hash": judge.prompt_hash,
        "revision": revision,
        "address": address or "",
        "data": data,
        "wrong_answers": hashlib.sha256(wrong_answers.read_bytes()).hexdigest() if wrong_answers else "",
        "calibration_set": digest([Path(__file__).with_name(f"{name}.py").read_text() for name in SOURCES]),
    }


def _path(identity: Mapping[str, str]) -> Path:
    slug = re.sub(r"[^\w.-]+", "_", f"{identity['judge']}-{identity['prompt']}")[-80:]
    return models_folder() / "judge_calibrations" / f"{slug}-{digest({**identity, 'wrong_answers': ''})}.json"


def cached(identity: Mapping[str, str], *, per_set: int = 0, now: datetime | None = None) -> Calibration | None:
    """Read a calibration from the cache.

    A calibration with specific wrong answers is also valid if none are given.

    Args:
        identity: As `identify` returns it.
        per_set: Minimum number of answers per set.
        now: The current time; None for the system's.

    Returns:
        The calibration; None if there is none, or it is too small, expired or damaged.
    """
    path = _path(identity)
    if not path.exists():  # versions before 0.2
        path = path.parents[1] / "certificates" / path.name
    try:
        found = _upgraded(json.loads(path.read_bytes()))
        age = (now or datetime.now(UTC)) - datetime.fromisoformat(found["date"])
        wrong_answers = identity["wrong_answers"] or found["identity"]["wrong_answers"]
        expired = age > MAX_AGE and not identity["revision"]
        if found["identity"] != {**identity, "wrong_answers": wrong_answers} or found["per_set"] < per_set or expired:
            return None
        return dict(found)
    except (OSError, ValueError, KeyError, TypeError):  # absent or damaged: measure again
        return None


def _upgraded(value: Any) -> Any:
    """Rename the field `ungraded` of earlier versions."""
    if not isinstance(value, dict):
        return value
    return {"missing" if name == "ungraded" else name: _upgraded(of) for name, of in value.items()}


def cache(calibration: Calibration, identity: Mapping[str, str], *, per_set: int) -> Calibration:
    """Write a calibration to the cache, atomically.

    Args:
        calibration: The measurement.
        identity: As `identify` returns it.
        per_set: Answers per set that were drawn.

    Returns:
        The calibration with `per_set` and `identity`.

    Raises:
        OSError: The cache cannot be written.
    """
    whole = {**calibration, "per_set": per_set, "identity": dict(identity)}
    path = _path(identity)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(whole, indent=1) + "\n")
    part.replace(path)
    return whole
