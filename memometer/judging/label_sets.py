"""Answer keys: LOCOMO's own golds, the same with known errors corrected, and those without the questions in error.

    memometer label-sets [--errata FILE] [--data FILE]      prints what an honest reader can get at most

The errors come from an errata file that users fetch themselves (see SOURCE; CC BY-NC 4.0) and that is never part of
this project. A fault that only cites the wrong turn leaves the gold as it is. A corrected gold is a sentence for a
judge, often that the question cannot be answered, and no text for token F1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from locomo.dataset import ANSWERABLE, CATEGORIES, DataError, Dataset, Question, comparable
from locomo.dataset import load as load_data
from memometer.stats.intervals import clustered_mean

KEYS = ("original", "corrected", "clean")
"""`clean` is the original key without the questions whose gold is in error: they are dropped, not graded."""

SOURCE = "errors.json of github.com/dial481/locomo-audit at commit 9493fb4 (CC BY-NC 4.0)"
CITATION_ONLY = "WRONG_CITATION"
"""The one kind of fault that corrupts no score: the gold is right and the evidence cited for it is not."""

_ID = re.compile(r"locomo_(\d+)_qa(\d+)")


class ErrataError(ValueError):
    """The errata cannot be used; the message is one sentence for the user."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One audited fault: the question's id here, its kind in the file, and the answer that the audit finds right."""

    question_id: str
    kind: str
    answer: str


@dataclass(frozen=True, slots=True)
class Errata:
    """Verified faults, each question at most once."""

    faults: tuple[Fault, ...]

    @property
    def corrected(self) -> dict[str, str]:
        """Question id -> right answer, of the questions whose gold is in error."""
        return {fault.question_id: fault.answer for fault in self.faults if fault.kind != CITATION_ONLY}

    @property
    def flagged(self) -> frozenset[str]:
        """The ids of the questions whose gold is in error."""
        return frozenset(self.corrected)


def load(name: str, path: str | Path | None = None, *, data: Dataset | None = None) -> dict[str, str]:
    """Question id -> gold under the key `name`, categories 1-4; a question that the key does not grade is absent.

    `path` is the errata file, else LOCOMO_ERRATA; the original key needs none. `data` is LOCOMO, loaded where it is
    not given. Raises ErrataError for an unknown key, and for errata that are missing or of other questions.
    """
    if name not in KEYS:
        raise ErrataError(f"the answer key is {name!r}; it may be {', '.join(KEYS)}.")
    data = data or load_data()
    golds = {question.id: question.gold for question in data.questions if question.gold is not None}
    if name == "original":
        return golds
    errata = read(path, data=data)
    if name == "corrected":
        return golds | errata.corrected
    return {id: gold for id, gold in golds.items() if id not in errata.flagged}


def read(path: str | Path | None = None, *, data: Dataset) -> Errata:
    """The faults in `path`, else in the file that LOCOMO_ERRATA names, each verified by its question and its gold.

    Raises ErrataError.
    """
    named = path or os.environ.get("LOCOMO_ERRATA")
    if not named:
        raise ErrataError(f"no errata are here; download {SOURCE} and give it with --errata FILE or LOCOMO_ERRATA.")
    try:
        entries = json.loads(Path(named).read_bytes())
        found = [_fault(entry, data) for entry in entries]
    except OSError as error:
        raise ErrataError(f"cannot read {str(named)!r} ({error.strerror}); download {SOURCE}.") from error
    except ErrataError as error:
        raise ErrataError(f"{str(named)!r} holds no errata of {data.path.name}: {error}; download {SOURCE}.") from error
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise ErrataError(f"{str(named)!r} is no errata file ({error!r}); download {SOURCE}.") from error
    if twice := [id for id, n in Counter(fault.question_id for fault in found).items() if n > 1]:
        raise ErrataError(f"{str(named)!r} lists {', '.join(twice[:5])} more than once; download {SOURCE}.")
    if not found:
        raise ErrataError(f"{str(named)!r} lists no fault; download {SOURCE}.")
    return Errata(tuple(found))


def _fault(entry: dict[str, Any], data: Dataset) -> Fault:
    match = _ID.fullmatch(entry["question_id"])
    question = data.question_at(int(match[1]), int(match[2])) if match else None
    if question is None or question.gold is None:
        raise ErrataError(f"it has no question {entry['question_id']!r} in categories 1-4")
    for what, theirs, ours in (
        ("question", entry["question"], question.text),
        ("gold", entry["golden_answer"], question.gold),
        ("category", entry["category"], question.category),
    ):
        if comparable(theirs) != comparable(ours):
            raise ErrataError(f"{entry['question_id']} has another {what} than {question.id}")
    return Fault(question.id, str(entry["error_type"]), str(entry["correct_answer"]))


def _by_category(questions: Collection[Question]) -> dict[str, list[Question]]:
    """`overall`, then each category from 1 to 4 that there is."""
    groups = {"overall": [question for question in questions if question.category in ANSWERABLE]}
    groups |= {str(c): [question for question in questions if question.category == c] for c in ANSWERABLE}
    return {name: group for name, group in groups.items() if group}


def ceilings(questions: Collection[Question], flagged: Collection[str]) -> dict[str, float]:
    """`overall`, `1` … `4` -> the share of these questions, 0 to 1, whose gold is right: who answers all of them
    truthfully is called wrong on the others."""
    return {
        name: sum(question.id not in flagged for question in group) / len(group)
        for name, group in _by_category(questions).items()
    }


def side_by_side(scores: Mapping[str, float], flagged: Collection[str]) -> dict[str, dict[str, Any]]:
    """`clean`, `flagged` -> {accuracy, interval, n} of scores in [0, 1] by question id.

    The interval is [low, high] at 95 %, clustered by conversation, or None.
    """
    parts = {"clean": [id for id in scores if id not in flagged], "flagged": [id for id in scores if id in flagged]}
    figures = {}
    for name, ids in parts.items():
        found = clustered_mean([scores[id] for id in ids], [id.split("#")[0] for id in ids])
        interval = None if found.low is None else [found.low, found.high]
        figures[name] = {"accuracy": found.mean, "interval": interval, "n": found.n}
    return figures


def sentence(system: str, parts: Mapping[str, Mapping[str, Any]]) -> str:
    """`side_by_side` for people; each part with its accuracy by `majority` of the repeats too."""
    listed = [
        f"{100 * part['accuracy']:.2f} on the {part['n']:,} {name} questions"
        for name, part in parts.items()
        if part["n"]
    ]
    majority = [f"{100 * part['majority']:.2f}" for part in parts.values() if part["n"]]
    repeated = any(part["majority"] != part["accuracy"] for part in parts.values())
    return f"{system}: J {', '.join(listed)}" + (f"; by majority {', '.join(majority)}." if repeated else ".")


def alarms(scores: Mapping[str, float], questions: Collection[Question], flagged: Collection[str]) -> list[str]:
    """A sentence for the whole and for each category that scores above the ceiling of the questions scored.

    `scores` are by question id, in [0, 1], under the original key; the ceiling does not bound those under another.
    """
    scored = [question for question in questions if question.id in scores]
    told = []
    for name, group in _by_category(scored).items():
        ceiling = ceilings(group, flagged)["overall"]
        accuracy = sum(scores[question.id] for question in group) / len(group)
        if accuracy > ceiling + 1e-9:
            where = "overall" if name == "overall" else f"in category {name} ({CATEGORIES[int(name)]})"
            told.append(
                f"{100 * accuracy:.2f} {where} is above the ceiling of {100 * ceiling:.2f} (n = {len(group):,}), more "
                "than an honest reader can get: leniency or key-fitting."
            )
    return told


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="memometer label-sets", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--errata", metavar="FILE", help="errors.json of the audit (default: LOCOMO_ERRATA)")
    parser.add_argument("--data", metavar="FILE", help="locomo10.json (default: LOCOMO_PATH, data/, the network)")
    args = parser.parse_args(argv)
    try:
        data = load_data(args.data)
        errata = read(args.errata, data=data)
    except (DataError, ErrataError) as error:
        print(f"memometer.judging.label_sets: {error}", file=sys.stderr)
        return 2
    citations = len(errata.faults) - len(errata.flagged)
    print(f"{data.mark}{len(errata.faults)} faults: {len(errata.flagged)} golds in error, {citations} wrong citations")
    groups = _by_category(data.questions)
    for name, ceiling in ceilings(data.questions, errata.flagged).items():
        of = name if name == "overall" else f"category {name} ({CATEGORIES[int(name)]})"
        wrong = sum(question.id in errata.flagged for question in groups[name])
        clean = len(groups[name]) - wrong
        print(f"{data.mark}{of:<26}{clean:>6,} clean{wrong:>5} flagged, at most {100 * ceiling:.2f}")
    return 0
