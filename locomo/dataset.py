"""LOCOMO's data: find or download the file, verify its digest, and parse it into typed values.

Source: https://github.com/snap-research/locomo at a pinned commit (CC BY-NC 4.0). It is not part of this project.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from locomo import metrics, splits
from memometer.benchmarks import protocol
from memometer.benchmarks.json_files import MAX_BYTES
from memometer.benchmarks.protocol import Conversation, DataError, Dataset, Session
from memometer.memory import Turn
from memometer.run.progress import bar, eprint

COMMIT = "3eb6f2c585f5e1699204e3c3bdf7adc5c28cb376"
URL = f"https://raw.githubusercontent.com/snap-research/locomo/{COMMIT}/data/locomo10.json"
SHA256 = "79fa87e90f04081343b8c8debecb80a9a6842b76a7aa537dc9fdf651ea698ff4"
LICENCE = (
    "LOCOMO (Maharana et al., 2024, github.com/snap-research/locomo) is licensed CC BY-NC 4.0: "
    "attribution, no commercial use. https://creativecommons.org/licenses/by-nc/4.0/"
)
DATA = Path("data")
"""The default folder of LOCOMO, relative to the working folder. Downloads are written to it."""
SAMPLE = Path(__file__).resolve().parent / "sample.json"
SIMULATED = "simulated"
"""Every conversation that `memometer simulate` writes has this key; those of LOCOMO do not."""

CATEGORIES = {"1": "multi-hop", "2": "temporal", "3": "open-domain", "4": "single-hop", "5": "adversarial"}
"""Category number in the file -> name. Most published tables give these names to the wrong numbers."""


@dataclass(frozen=True, slots=True)
class Question(protocol.Question):
    """A question with LOCOMO's official scores.

    Only the id identifies a question: conv-48 asks eleven questions twice, and conv-30 asks one twice with opposite
    answers. In category 5 `gold` is None and `adversarial_answer` is the wrong answer that the question suggests.
    """

    @property
    def reference(self) -> str:
        """The gold answer; in category 3 its part before the first semicolon."""
        return metrics.reference(self)

    @property
    def gold_is_list(self) -> bool:
        """True in category 1."""
        return self.category == "1"

    @property
    def has_twins(self) -> bool:
        """True in category 4: a question of category 5 swaps the speakers of one of these."""
        return self.category == "4"

    def session_of(self, turn_id: str) -> str:
        """The session of a turn: `D3` for `D3:4`."""
        return turn_id.partition(":")[0]

    @property
    def option_orders(self) -> tuple[str, ...]:
        """Both orders of the two options in category 5."""
        return () if self.answerable else (metrics.ABSTAIN_FIRST, metrics.TRAP_FIRST)

    def options(self, order: str) -> str:
        """The official two options of category 5."""
        return metrics.options(self, order)

    def score(self, answer: str, order: str = protocol.FREE) -> float:
        """The official F1 of an answer."""
        return metrics.official_f1(self, metrics.chosen_option(self, order, answer))


def load(data: str | Path | None = None, *, log: Callable[[str], None] = eprint) -> Dataset:
    """Load LOCOMO.

    Args:
        data: The file; by default the one that LOCOMO_PATH names, then data/locomo10.json, then a download, and
            without a network the built-in sample.
        log: Receives messages about the source.

    Raises:
        DataError: The file is missing or unreadable, or is neither LOCOMO nor one of the kinds in NOTICES.
    """
    named = data or os.environ.get("LOCOMO_PATH")
    path = Path(named) if named else DATA / "locomo10.json"
    if not path.exists():
        if named:
            source = "--data" if data else "LOCOMO_PATH"
            raise DataError(f"{source} names {str(path)!r}, which does not exist; give the path of locomo10.json.")
        try:
            download(path, log=log)
        except OSError as error:
            log(
                f"LOCOMO is not on this machine and the download failed ({type(error).__name__}); using the sample. To "
                f"fetch it by hand, save {URL} (sha256 {SHA256}) as {path}, or set LOCOMO_PATH to your copy."
            )
            path = SAMPLE
    return read(path)


def local_file() -> Path:
    """The file to use without a download: LOCOMO of LOCOMO_PATH or of an earlier download, otherwise the sample."""
    named = os.environ.get("LOCOMO_PATH")
    path = Path(named) if named and Path(named).exists() else DATA / "locomo10.json"
    return path if path.exists() else SAMPLE


NOTICES = {
    "SAMPLE": "This is the built-in sample: its metrics say nothing about a memory system.",
    "SIMULATED": "These are synthetic conversations (memometer simulate): no metric here is a LOCOMO score.",
}
"""Kinds of data that are accepted although they are not LOCOMO, and the sentence that explains each."""


def read(path: Path) -> Dataset:
    """Verify and parse a file.

    Args:
        path: LOCOMO byte for byte, the built-in sample, or a file of `memometer simulate`.

    Raises:
        DataError: The file cannot be read or is something else.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r} ({error.strerror}); give the path of locomo10.json.") from error
    digest = hashlib.sha256(content).hexdigest()
    kind = _kind_of(content)
    if kind is None:
        raise DataError(
            f"{str(path)!r} is not the pinned LOCOMO file (sha256 {digest[:12]}…, expected {SHA256[:12]}…) and is "
            "refused for scoring; give locomo10.json of the pinned commit, leave the path out to have it downloaded, "
            "or evaluate your own conversations with --benchmark own."
        )
    return dataset(parse(json.loads(content)), path, digest, kind)


def dataset(conversations: Sequence[Conversation], path: Path, sha256: str, kind: str = "") -> Dataset:
    """Conversations in LOCOMO's form as a data set.

    Args:
        conversations: The conversations.
        path: Their file.
        sha256: Its digest.
        kind: Empty for LOCOMO, otherwise a key of NOTICES.
    """
    return Dataset(
        conversations=tuple(conversations),
        path=path,
        sha256=sha256,
        benchmark="locomo",
        categories=CATEGORIES,
        splits=splits.of_other_data([c.id for c in conversations]) if kind else splits.SPLITS,
        kind=kind,
        notice=NOTICES[kind] if kind else "",
        licence="" if kind else LICENCE,
        source="" if kind else URL,
    )


def _kind_of(content: bytes) -> str | None:
    """The kind of a file: empty for LOCOMO, a key of NOTICES, or None for anything else."""
    if hashlib.sha256(content).hexdigest() == SHA256:
        return ""
    if SAMPLE.exists() and content == SAMPLE.read_bytes():
        return "SAMPLE"
    return "SIMULATED" if _is_simulated(content) else None


def _is_simulated(content: bytes) -> bool:
    if SIMULATED.encode() not in content:
        return False
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(raw, list) and bool(raw) and all(isinstance(e, dict) and _is_seeded(e) for e in raw)


def _is_seeded(entry: dict[str, Any]) -> bool:
    return isinstance(entry.get(SIMULATED), dict)


def recognizes(path: Path) -> bool:
    """True if a file is LOCOMO, the built-in sample, or was written by `memometer simulate`."""
    try:
        small = path.is_file() and path.stat().st_size <= MAX_BYTES
        return small and _kind_of(path.read_bytes()) is not None
    except OSError:
        return False


def parse(raw: list[dict[str, Any]]) -> list[Conversation]:
    """Parse LOCOMO's JSON. Summaries and image search words are dropped, because a memory must not see them."""
    return [_conversation(entry) for entry in raw]


def _conversation(entry: dict[str, Any]) -> Conversation:
    talk = entry["conversation"]
    numbers = sorted(int(key[8:]) for key in talk if re.fullmatch(r"session_\d+", key))
    sessions = tuple(_session(number, talk) for number in numbers)
    known = {turn.id for session in sessions for turn in session.turns}
    return Conversation(
        id=entry["sample_id"],
        speakers=(talk["speaker_a"], talk["speaker_b"]),
        sessions=sessions,
        questions=tuple(_question(entry["sample_id"], i, item, known) for i, item in enumerate(entry["qa"])),
    )


def _session(number: int, talk: dict[str, Any]) -> Session:
    said_at = datetime.strptime(talk[f"session_{number}_date_time"], "%I:%M %p on %d %B, %Y")
    turns = tuple(
        Turn(t["dia_id"], t["speaker"], t["text"], number, said_at, t.get("blip_caption"))
        for t in talk[f"session_{number}"]
    )
    return Session(number, said_at, turns)


def _question(conversation: str, index: int, item: dict[str, Any], known: set[str]) -> Question:
    evidence, unresolved = repair_evidence(item["evidence"], known)
    answerable = str(item["category"]) != "5"
    return Question(
        conversation=conversation,
        index=index,
        text=item["question"],
        category=str(item["category"]),
        gold=str(item["answer"]) if answerable else None,
        evidence=evidence,
        unresolved=unresolved,
        adversarial_answer=None if answerable else str(item["adversarial_answer"]),
    )


def repair_evidence(strings: list[str], known: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Repair evidence strings such as `D:11:26`, `D30:05` and several ids in one string.

    Args:
        strings: The evidence strings of one question.
        known: The turn ids of its conversation.

    Returns:
        The turn ids, each once, and the strings that name an unknown turn.
    """
    found: dict[str, None] = {}
    unresolved = []
    for string in strings:
        ids = [f"D{session}:{turn}" for session, turn in re.findall(r"D:?(\d+):0*(\d+)", string)]
        found.update(dict.fromkeys(id for id in ids if id in known))
        if not ids or not all(id in known for id in ids):
            unresolved.append(string)
    return tuple(found), tuple(unresolved)


def download(path: Path, *, url: str = URL, sha256: str = SHA256, log: Callable[[str], None] = eprint) -> None:
    """Download and verify the file. An interrupted download continues where it stopped.

    Args:
        path: The target. It appears only when the file is complete and correct.
        url: The source.
        sha256: The expected digest.
        log: Receives the licence.

    Raises:
        OSError: The network failed. The received part is kept for the next attempt.
        DataError: The server sent something else.
    """
    import requests
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with FileLock(path.with_name(path.name + ".lock")):
        if path.exists():  # another process has downloaded it
            return
        have = part.stat().st_size if part.exists() else 0
        # The bytes of a compressed transfer do not match those on disk, so it cannot be resumed.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, headers=headers, stream=True, timeout=(5, 30)) as response:
            if response.status_code != 416:  # 416: the part is complete
                response.raise_for_status()
                if response.status_code != 206:
                    have = 0
                log(LICENCE)
                total = have + int(response.headers.get("Content-Length", 0)) or None
                with (
                    part.open("ab" if have else "wb") as file,
                    bar(total=total, initial=have, unit="B", unit_scale=True, desc=path.name) as shown,
                ):
                    for chunk in response.iter_content(1 << 16):
                        file.write(chunk)
                        shown.update(len(chunk))
        if (digest := hashlib.sha256(part.read_bytes()).hexdigest()) != sha256:
            part.unlink()
            raise DataError(f"{url} sent another file than LOCOMO (sha256 {digest[:12]}…); it was deleted. Try again.")
        part.replace(path)
