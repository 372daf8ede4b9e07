"""Answers that others published, as run folders of ours, so that all that scores a run scores them too.

    memometer import-results FILE... --run-dir DIR [--format NAME] [--label-corrections FILE]

makes a folder DIR/STEM of each file with its answers, its verdicts and results, and verifies before that the file asks
each answerable question exactly once, with the text and the gold answer of the data. What a file does not tell,
such as tokens, stays unknown. Formats belong to the benchmark.

Exit codes: 0, 2 refused (nothing was written), 3 a file mixes runs or leaves too much ungraded (all were written).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memometer import benchmarks
from memometer.benchmarks.metrics import comparable
from memometer.benchmarks.protocol import FREE, Dataset, Question
from memometer.budget import UNBOUNDED
from memometer.errors import UserError
from memometer.harness import rerun_detection
from memometer.harness.import_formats import Format, at, first, recognise
from memometer.harness.options import EvaluateOptions
from memometer.judging import label_sets
from memometer.report import aggregate
from memometer.report.summary import STATUS
from memometer.report.write import write_results
from memometer.run.environment import digest, provenance
from memometer.run.folder import Key, Record, RunFolder, RunFolderError, key

FAIL_ON_ERROR = 0.02
"""The share of ungraded answers from which a run is invalid, as in evaluate.py."""


class PublishedError(UserError, ValueError):
    """The file cannot be imported; the message is one sentence for the user."""


@dataclass(frozen=True, slots=True)
class Published:
    """A verified file: its records by system, and what is to be said of it. `questions` are those it answers."""

    path: Path
    sha256: str
    format: Format
    model: str | None
    judge: str | None
    questions: tuple[Question, ...]
    records: tuple[Record, ...]
    merges: tuple[tuple[str, rerun_detection.Merge], ...]
    left_out: int
    """Entries of unanswerable questions, which have no gold answer."""


def read(
    path: Path, *, data: Dataset, format: str | None = None, model: str | None = None, judge: str | None = None
) -> Published:
    """A file of others, verified against the data set. `model` and `judge` name who answered and who judged where the
    file does not. Raises PublishedError."""
    try:
        raw = path.read_bytes()
        content = json.loads(raw)
    except OSError as error:
        raise PublishedError(f"cannot read {str(path)!r} ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise PublishedError(f"{path} is not JSON ({error}).") from error
    formats = benchmarks.load(data.benchmark).result_formats()
    if format and format not in formats:
        raise PublishedError(f"--format is {format!r}; it may be {', '.join(formats)}.")
    found = formats[format] if format else recognise(content, formats.values())
    if found is None:
        raise PublishedError(
            f"{path} has no known format ({', '.join(formats)}); name one with --format, or add it to the benchmark's "
            "result formats."
        )
    asked = [(entry, _question(entry, found, data)) for entry in at(content, found.entries) if isinstance(entry, dict)]
    _verify(path, asked, found, data)
    mine = [(entry, question) for entry, question in asked if question and question.gold is not None]
    model = _text(first(content, found.model)) or model
    judge = _text(first(content, found.judge)) or judge
    records: list[Record] = []
    merges: list[tuple[str, rerun_detection.Merge]] = []
    subsets = rerun_detection.subsets(content, [entry for entry, _ in mine], [str(first(e, found.id)) for e, _ in mine])
    place = {question.id: i for i, question in enumerate(data.questions)}
    for system, variant in _systems(path, mine, found).items():
        own = [_record(system, variant(entry), question, found, model, judge) for entry, question in mine]
        records += sorted(own, key=lambda record: place[record["question_id"]])
        if any(record["verdicts"] for record in own):
            for record in own:
                if not (record["verdicts"] or record["error"]):  # what their judge passed over is ungraded
                    record["verdicts"] = [_verdict(None, 0, found, judge)]
            merges += [
                (system, merge) for merge in rerun_detection.merges([_majority(record) for record in own], subsets)
            ]
    return Published(
        path,
        hashlib.sha256(raw).hexdigest(),
        found,
        model,
        judge,
        tuple(sorted((question for _, question in mine), key=lambda question: place[question.id])),
        tuple(records),
        tuple(merges),
        len(asked) - len(mine),
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _question(entry: dict[str, Any], format: Format, data: Dataset) -> Question | None:
    match = format.id_pattern.fullmatch(str(first(entry, format.id)))
    return data.question_at(int(match[1]), int(match[2])) if match else None


def _verify(path: Path, asked: Sequence[tuple[dict[str, Any], Question | None]], format: Format, data: Dataset) -> None:
    """Each answerable question exactly once, known by its place, with our text and our gold."""
    due = {question.id for question in data.questions if question.answerable}
    counts = Counter(question.id for _, question in asked if question)
    faults = {
        "missing": [id for id in sorted(due) if id not in counts],
        "twice": [id for id, n in counts.items() if n > 1],
        "unknown": [str(first(entry, format.id)) for entry, question in asked if question is None],
        "with another text": [
            q.id for entry, q in asked if q and comparable(first(entry, format.question)) != comparable(q.text)
        ],
        "with another gold": [
            q.id
            for entry, q in asked
            if q and q.gold is not None and comparable(first(entry, format.gold)) != comparable(q.gold)
        ],
    }
    told = [f"{len(ids):,} {what} ({_some(ids)})" for what, ids in faults.items() if ids]
    if told:
        raise PublishedError(
            f"{path} ({format.name}) does not hold each of the {len(due):,} questions once, as {data.path.name} has "
            f"them: {', '.join(told)}."
        )


def _some(ids: Sequence[str], most: int = 5) -> str:
    return ", ".join(ids[:most]) + (f" and {len(ids) - most:,} more" if len(ids) > most else "")


def _systems(path: Path, mine: Sequence[tuple[dict[str, Any], Question]], format: Format) -> dict[str, Any]:
    """System name -> what of an entry is its answer. A file with several variants holds several systems."""
    if not format.variants:
        return {path.stem: lambda entry: entry}
    names = list(first(mine[0][0], format.variants) or ())
    for entry, question in mine:
        if not names or list(first(entry, format.variants) or ()) != names:
            raise PublishedError(
                f"{path}: {question.id} has other {format.variants} than {', '.join(names) or 'none'}."
            )

    def variant(name: str) -> Any:
        return lambda entry: first(entry, format.variants)[name]

    return {(f"{path.stem} {name}" if names[1:] else path.stem): variant(name) for name in names}


def _record(
    system: str, answer: Any, question: Question, format: Format, model: str | None, judge: str | None
) -> Record:
    text = first(answer, format.answer)
    if not isinstance(text, str | int) or isinstance(text, bool):
        text = None  # a structure, or no number: what a failed call leaves
    verdicts = [_verdict(value, n, format, judge) for n, value in enumerate(at(answer, format.verdicts))]
    # An empty answer that was judged is an answer; where nothing says what became of it, it is a failure.
    failed = text is None or (not str(text).strip() and all(v["label"] == "missing" for v in verdicts))
    return {
        "system": system,
        "budget_tokens": UNBOUNDED,
        "question_id": question.id,
        "conversation": question.conversation,
        "category": question.category,
        "gold": question.gold,
        "evidence": question.evidence,
        "option_order": FREE,
        "attempt": 1,
        "answer": None if failed else str(text),
        "recall": {"turn_ids": None, "ranked": [], "tokens": None, "counter": None},
        "verdicts": [] if failed else verdicts,
        "calls": None,
        "unreported": None,
        "prompt_tokens": None,
        "completion_tokens": None,
        "truncated": None,
        "seconds": None,
        "model": model,
        "error": f"{format.name}: the file holds no answer" if failed else "",
        "at": None,
    }


def _verdict(value: Any, repeat: int, format: Format, judge: str | None) -> dict[str, Any]:
    label = format.labels.get(value, "missing") if isinstance(value, str | bool) else "missing"
    return {
        "judge": judge or "unknown",
        "prompt": "published",
        "prompt_hash": None,
        "label_set": "original",
        "repeat": repeat,
        "label": label,
        "raw": value if isinstance(value, str) else json.dumps(value),
        "reason": "" if label != "missing" else f"the file's label is {value!r}",
        "prompt_tokens": None,
        "completion_tokens": None,
        "unreported": None,
    }


def _share(record: Record) -> float | None:
    """The share of an answer's judgings that call it correct; None where none gave a label."""
    labels = [verdict["label"] for verdict in record["verdicts"] if verdict["label"] != "missing"]
    return labels.count("correct") / len(labels) if labels else None


def _majority(record: Record) -> bool:
    return (_share(record) or 0.0) > 0.5


def scores(records: Iterable[Record]) -> dict[str, float]:
    """Question id -> mean of its verdicts, 0 to 1; what is ungraded is absent. For the records of one system."""
    return {record["question_id"]: share for record in records if (share := _share(record)) is not None}


def manifest(found: Published, *, data: Dataset, named: str | None) -> dict[str, Any]:
    """What a run of ours keeps, where it makes sense, and where the answers came from; `named` is --data."""
    keys = [key(record) for record in found.records]
    answerable = {question.category for question in data.questions if question.answerable}
    options = EvaluateOptions(
        benchmark=data.benchmark,
        data=named,
        split="all",
        categories=tuple(key for key in data.categories if key in answerable),
        systems=tuple(dict.fromkeys(record["system"] for record in found.records)),
        model=found.model,
        judge_model=found.judge,
        judge="published",
        fail_on_error=FAIL_ON_ERROR,
        no_mlflow=True,
    )
    config = options.as_json()
    return {
        "config": config,
        "identity": {
            "configuration": digest(config),
            "data": data.sha256,
            "questions": digest([question.id for question in found.questions]),
            "tasks": digest(keys),
            "reader": found.model or "unknown",
            "judge": f"{found.judge or 'unknown'} published",
            "published": found.sha256,
        },
        "left_out": {},
        "stand_in": data.kind,
        "published": _source(found),
        **provenance(),
    }


def _source(found: Published) -> dict[str, Any]:
    empty = sum(record["answer"] is not None and not record["answer"].strip() for record in found.records)
    return {
        "note": "the answers and verdicts are others', imported as they were published",
        "file": found.path.name,
        "sha256": found.sha256,
        "format": found.format.name,
        "licence": found.format.licence,
        "empty_answers": empty,
        "unanswerable_excluded": found.left_out,
        "merges": [{"system": system, **merge.as_json()} for system, merge in found.merges],
    }


def write(
    found: Published,
    path: Path,
    *,
    data: Dataset,
    corrections: label_sets.LabelCorrections | None = None,
    named: str | None = None,
) -> tuple[str, str]:
    """Make the run folder; (its status, what to print). `named` is what --data said. Raises RunFolderError, OSError."""
    keys: list[Key] = [key(record) for record in found.records]
    with RunFolder.create(path, manifest(found, data=data, named=named)) as folder:
        for record in found.records:
            folder.append(record)
        records = folder.records()
        share = aggregate.missing_share(records, keys)
        status = "invalid" if share > FAIL_ON_ERROR or any(merge.flagged for _, merge in found.merges) else "valid"
        told, figures = _told(found)
        facts = {
            "status": status,
            "split": "all",
            "subset": False,
            "reader": found.model,
            "judge": f"{found.judge or 'unknown'} (published)" if any(r["verdicts"] for r in records) else None,
            "token_counter": None,
            "left_out": {},
            "test_set_usage": {"test_scored": None, "duplicate_attempts": []},
            "published": {**_source(found), "scores": figures},
        }
        _, table = write_results(
            folder,
            data,
            keys,
            facts,
            no_judge="the file holds no verdicts.",
            notes=[*told, STATUS.get(status, "")],
            corrections=corrections,
        )
    return status, table


def _told(found: Published) -> tuple[list[str], dict[str, Any]]:
    """What to say of a file below its table, and the figures in it by system."""
    told = [
        f"Others' answers: {found.path.name} ({found.format.licence}), {found.model or 'an unnamed model'} answers, "
        f"{found.judge or 'an unnamed model'} judges."
    ]
    told += [f"{system}: {merge}" for system, merge in found.merges]
    if found.left_out:
        told.append(
            f"{found.left_out:,} answers to unanswerable questions are excluded, because they have no gold answer."
        )
    figures: dict[str, Any] = {}
    for system in dict.fromkeys(record["system"] for record in found.records):
        mine = [record for record in found.records if record["system"] == system]
        if not (of := scores(mine)):
            continue
        majority = sum(_majority(record) for record in mine if record["question_id"] in of) / len(of)
        repeats = max(len(record["verdicts"]) for record in mine)
        mean = sum(of.values()) / len(of)
        figures[system] = {"mean": mean, "majority": majority, "n": len(of), "repeats": repeats}
        of_repeats = f" as the mean of {repeats} verdicts, {100 * majority:.2f} by majority" if repeats > 1 else ""
        told.append(f"{system}: J {100 * mean:.2f}{of_repeats}, n = {len(of):,}, {len(mine) - len(of):,} missing.")
    return told, figures


def refuse_taken(places: Mapping[Path, Published], files: int) -> None:
    """Refuse folders that are not empty, and remove what an interrupted import of the same file left.

    Args:
        places: Folder -> the results that will be written to it.
        files: Number of result files.

    Raises:
        PublishedError: A folder is not empty, or two files have the same name.
    """
    if len(places) < files:
        raise PublishedError("two files have the same name, so their folders would be the same; rename one.")
    unfinished = [path for path, found in places.items() if path.exists() and _is_unfinished(path, found)]
    for path in set(places) - set(unfinished):
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise PublishedError(f"{path} is not empty; name another folder with --run-dir.")
    for path in unfinished:
        shutil.rmtree(path)


def _is_unfinished(path: Path, found: Published) -> bool:
    """True if a folder holds an interrupted import of this file."""
    try:
        with RunFolder.reopen(path) as folder:
            source = folder.manifest.get("published", {})
    except (RunFolderError, OSError):
        return False
    written = {"results.json", "verdicts.jsonl"} & {entry.name for entry in path.iterdir()}
    return source.get("sha256") == found.sha256 and not written
