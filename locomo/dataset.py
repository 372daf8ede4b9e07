"""LOCOMO as typed values: found or downloaded, verified byte for byte, its known faults repaired or listed.

    memometer data [--data FILE]      prints the invariants, exits 1 on any mismatch

Source: https://github.com/snap-research/locomo at the pinned commit, CC BY-NC 4.0; never part of this project.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from locomo import metrics, splits
from memometer.benchmarks import protocol
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
"""Where LOCOMO is looked for, and downloaded to: a folder below the working folder."""
SAMPLE = Path(__file__).resolve().parent / "sample.json"
SIMULATED = "simulated"
"""The key that every conversation of a file by `locomo.synthetic.simulate` has, and no conversation of LOCOMO's."""

CATEGORIES = {"1": "multi-hop", "2": "temporal", "3": "open-domain", "4": "single-hop", "5": "adversarial"}
"""The number in the file and its name. Most published tables rotate these names."""


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
    """The data set from `data`, else LOCOMO_PATH, else data/locomo10.json, else the network, else the sample.

    Raises DataError for a file that is missing, unreadable, or not LOCOMO byte for byte.
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
                f"No LOCOMO file and no way to download it ({type(error).__name__}); using the built-in sample instead."
            )
            path = SAMPLE
    return read(path)


def local_file() -> Path:
    """The file to use without a download: LOCOMO if it was downloaded, otherwise the sample."""
    path = DATA / "locomo10.json"
    return path if path.exists() else SAMPLE


NOTICES = {
    "SAMPLE": "This is the built-in sample: its metrics say nothing about a memory system.",
    "SIMULATED": "These are synthetic conversations (memometer simulate): no metric below is a LOCOMO score.",
}
"""Kinds of data that are accepted although they are not LOCOMO, and the sentence that explains each."""


def read(path: Path) -> Dataset:
    """Parse and verify one file. Raises DataError unless it is LOCOMO or this project's sample, to the byte, or a
    file that says of every conversation that it is simulated."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r} ({error.strerror}); give the path of locomo10.json.") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest == SHA256:
        kind = ""
    elif SAMPLE.exists() and content == SAMPLE.read_bytes():
        kind = "SAMPLE"
    elif _is_simulated(content):
        kind = "SIMULATED"
    else:
        raise DataError(
            f"{str(path)!r} is not the pinned LOCOMO file (sha256 {digest[:12]}…, expected {SHA256[:12]}…) and is "
            "refused for scoring; give locomo10.json of the pinned commit, or leave the path out to have it downloaded."
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


def _is_simulated(content: bytes) -> bool:
    try:
        raw = json.loads(content)
    except ValueError:
        return False
    return isinstance(raw, list) and bool(raw) and all(isinstance(e, dict) and e.get(SIMULATED) for e in raw)


def parse(raw: list[dict[str, Any]]) -> list[Conversation]:
    """LOCOMO's JSON as conversations. What a memory must not see (summaries, image search words) is not kept."""
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
    """(turn ids that exist, strings that name none). Mends `D:11:26`, `D30:05` and lists in one string."""
    found: dict[str, None] = {}
    unresolved = []
    for string in strings:
        ids = [f"D{session}:{turn}" for session, turn in re.findall(r"D:?(\d+):0*(\d+)", string)]
        found.update(dict.fromkeys(id for id in ids if id in known))
        if not ids or not all(id in known for id in ids):
            unresolved.append(string)
    return tuple(found), tuple(unresolved)


def download(path: Path, *, url: str = URL, sha256: str = SHA256, log: Callable[[str], None] = eprint) -> None:
    """Fetch the file to `path`: resumed where a broken download stopped, verified, then moved into place whole.

    Raises OSError when the network fails (what arrived is kept for the next try) and DataError for wrong bytes.
    """
    import requests
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with FileLock(path.with_name(path.name + ".lock")):
        if path.exists():  # another process was faster
            return
        have = part.stat().st_size if part.exists() else 0
        # Compressed transfers cannot be resumed by the bytes on disk.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, headers=headers, stream=True, timeout=(5, 30)) as response:
            if response.status_code != 416:  # 416: the part is already whole
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
            raise DataError(
                f"{url} sent other bytes than LOCOMO's (sha256 {digest[:12]}…); nothing was kept. Try again."
            )
        part.replace(path)


EXPECTED = {
    "conversations": 10,
    "sessions": 272,
    "session dates without turns": 16,
    "turns": 5882,
    "captions (blip_caption)": 1226,
    "captions without img_url": 316,
    "questions": 1986,
    "questions of category 1 (multi-hop)": 282,
    "questions of category 2 (temporal)": 321,
    "questions of category 3 (open-domain)": 96,
    "questions of category 4 (single-hop)": 841,
    "questions of category 5 (adversarial)": 446,
    "questions of categories 1-4 without evidence": 4,
    "gold answers that are integers": 6,
    "evidence strings": 2815,
    "evidence strings that are faulty": 9,
    "evidence strings unresolved": "conv-42#58 D10:19, conv-42#88 D, conv-47#38 D4:36",
}


def invariants(raw: list[dict[str, Any]]) -> dict[str, int | str]:
    """What LOCOMO.json must hold, counted from the file; the keys are those of EXPECTED."""
    conversations = parse(raw)
    questions = [question for conversation in conversations for question in conversation.questions]
    items = [item for entry in raw for item in entry["qa"]]
    talks = [entry["conversation"] for entry in raw]
    turns = [turn for talk in talks for value in talk.values() if isinstance(value, list) for turn in value]
    captioned = [turn for turn in turns if "blip_caption" in turn]
    categories = Counter(question.category for question in questions)
    strings = [(c.id, i, s) for c, e in zip(conversations, raw, strict=True) for i, q in enumerate(e["qa"])
               for s in q["evidence"]]  # fmt: skip
    known = {c.id: {turn.id for turn in c.turns} for c in conversations}
    return {
        "conversations": len(conversations),
        "sessions": sum(len(c.sessions) for c in conversations),
        "session dates without turns": sum(
            key.endswith("_date_time") and key.removesuffix("_date_time") not in talk for talk in talks for key in talk
        ),
        "turns": len(turns),
        "captions (blip_caption)": len(captioned),
        "captions without img_url": sum("img_url" not in turn for turn in captioned),
        "questions": len(questions),
        **{f"questions of category {n} ({name})": categories[n] for n, name in CATEGORIES.items()},
        "questions of categories 1-4 without evidence": sum(
            q.answerable and not q.evidence and not q.unresolved for q in questions
        ),
        "gold answers that are integers": sum(isinstance(item.get("answer"), int) for item in items),
        "evidence strings": len(strings),
        "evidence strings that are faulty": sum(s not in known[c] for c, _, s in strings),
        "evidence strings unresolved": ", ".join(f"{q.id} {s}" for q in questions for s in q.unresolved),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="memometer data", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", metavar="FILE", help="locomo10.json (default: LOCOMO_PATH, data/, or a download)")
    args = parser.parse_args(argv)
    try:
        data = load(args.data)
    except DataError as error:
        print(f"locomo.dataset: {error}", file=sys.stderr)
        return 1
    found = invariants(json.loads(data.path.read_bytes()))
    if data.kind:
        for name, value in found.items():
            print(f"{data.prefix}{name}: {value}")
        print(f"{data.prefix}{data.notice} LOCOMO's invariants do not apply to it.")
        return 0
    wrong = 0
    for name, expected in EXPECTED.items():
        ok = found[name] == expected
        wrong += not ok
        print(f"{'ok   ' if ok else 'WRONG'} {name}: {found[name]}" + ("" if ok else f" (expected {expected})"))
    print(f"{data.path.name}, sha256 {data.sha256}: {len(EXPECTED) - wrong} of {len(EXPECTED)} invariants hold")
    return 1 if wrong else 0
