"""Import of published result files: each file becomes a run folder with its answers, its verdicts and results.

A file must contain each answerable question exactly once, with the text and the gold answer of the data. Values that a
file lacks, such as token counts, are None. The benchmark defines the file formats.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memometer import benchmarks
from memometer.benchmarks.metrics import comparable
from memometer.benchmarks.protocol import Dataset, Question
from memometer.errors import UserError
from memometer.harness.import_files import match, parse, text_of
from memometer.harness.import_formats import TOOL_FORMATS, Format, at, first, named, of_file, outline, recognise
from memometer.harness.import_records import answer_record, majority, scores, verdict_record
from memometer.harness.options import EvaluateOptions
from memometer.judging import label_sets, rerun_detection
from memometer.report import aggregate
from memometer.report.summary import STATUS
from memometer.report.write import write_results
from memometer.run.environment import digest, provenance
from memometer.run.folder import Key, Record, RunFolder, RunFolderError, key

FAIL_ON_ERROR = 0.02
"""A run is invalid if a larger share of its answers has no label. Same default as evaluate.py."""


EXAMPLE_TABLE = (
    '{"entries": "results.*", "question": "question", "gold": "reference", "answer": "response", '
    '"verdicts": "label", "labels": {"right": "correct", "false": "wrong"}}'
)


class ImportResultsError(UserError, ValueError):
    """The file cannot be imported. The message is one sentence for the user."""


@dataclass(frozen=True, slots=True)
class PublishedResults:
    """A verified result file.

    Attributes:
        path: The file.
        sha256: Digest of the file.
        format: Its format.
        model: Name of the model that answered; None if unknown.
        judge: Name of the judge model; None if unknown.
        questions: The questions that the file answers, in the order of the data.
        records: Records of all answers, by system.
        merges: Signs of re-runs, each with its system.
        left_out: Number of entries of unanswerable questions. They are excluded, because they have no gold answer.
    """

    path: Path
    sha256: str
    format: Format
    model: str | None
    judge: str | None
    questions: tuple[Question, ...]
    records: tuple[Record, ...]
    merges: tuple[tuple[str, rerun_detection.Merge], ...]
    left_out: int


def read(
    path: Path, *, data: Dataset, format: str | None = None, model: str | None = None, judge: str | None = None
) -> PublishedResults:
    """Read a result file and verify it against the data.

    Args:
        path: The file.
        data: The data.
        format: Name of the format, or a JSON file with its table; None to recognise it.
        model: Name of the model that answered, if the file does not name it.
        judge: Name of the judge model, if the file does not name it.

    Raises:
        ImportResultsError: The file cannot be read, has no known format, or has other questions than the data.
    """
    try:
        raw = path.read_bytes()
        content = parse(raw)
    except OSError as error:
        raise ImportResultsError(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise ImportResultsError(f"{path} is not JSON or JSON lines ({error}).") from error
    formats = {**benchmarks.load(data.benchmark).result_formats(), **TOOL_FORMATS}
    if format and format not in formats and not format.endswith(".json"):
        raise ImportResultsError(f"--format is {format!r}; allowed are {', '.join(formats)}, and a table in JSON.")
    if format:
        found = formats[format] if format in formats else of_file(Path(format))
    elif (recognised := recognise(content, formats.values())) is None:
        raise ImportResultsError(
            f"The format of {path} is not one of {', '.join(formats)}. Describe it in a JSON file and name that with "
            f"--format FILE.json. It needs the paths of entries, question, gold and answer, and of the verdicts if "
            f"there are any, such as {EXAMPLE_TABLE}. The file has {outline(content)}."
        )
    else:
        found = recognised
    entries_found = [entry for entry in at(content, found.entries) if isinstance(entry, dict)]
    if not entries_found:
        raise ImportResultsError(
            f"{path} has no entries at {found.entries!r} ({found.name}); it has {outline(content)}."
        )
    found_questions = list(zip(entries_found, match(entries_found, found, data), strict=True))
    _verify(path, found_questions, found, data)
    answerable = [(entry, question) for entry, question in found_questions if question and question.gold is not None]
    model = _text(named(content, found.model)) or model
    judge = _text(named(content, found.judge)) or judge
    records: list[Record] = []
    merges: list[tuple[str, rerun_detection.Merge]] = []
    entries = [entry for entry, _ in answerable]
    ids = [str(first(entry, found.id)) if found.id else question.id for entry, question in answerable]
    subsets = rerun_detection.subsets(content, entries, ids)
    place = {question.id: i for i, question in enumerate(data.questions)}
    for system, variant in _systems(path, answerable, found).items():
        own = [answer_record(system, variant(entry), question, found, model, judge) for entry, question in answerable]
        records += sorted(own, key=lambda record: place[record["question_id"]])
        if any(record["verdicts"] for record in own):
            for record in own:
                if not (record["verdicts"] or record["error"]):  # a missing verdict
                    record["verdicts"] = [verdict_record(None, 0, found, judge)]
            merges += [
                (system, merge) for merge in rerun_detection.merges([majority(record) for record in own], subsets)
            ]
    return PublishedResults(
        path,
        hashlib.sha256(raw).hexdigest(),
        found,
        model,
        judge,
        tuple(sorted((question for _, question in answerable), key=lambda question: place[question.id])),
        tuple(records),
        tuple(merges),
        len(found_questions) - len(answerable),
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _verify(
    path: Path, entries: Sequence[tuple[dict[str, Any], Question | None]], format: Format, data: Dataset
) -> None:
    """Verify that a file has each answerable question exactly once, with the text and the gold answer of the data."""

    def same(entry: dict[str, Any], where: str, expected: str) -> bool:
        # The input of an inspect_ai sample may be a whole prompt, which contains the question.
        text = comparable(text_of(first(entry, where)) or "")
        return text == comparable(expected) or (bool(format.id) and comparable(expected) in text)

    due = {question.id for question in data.questions if question.answerable}
    counts = Counter(question.id for _, question in entries if question)
    faults = {
        "missing": [id for id in sorted(due) if id not in counts],
        "duplicate": [id for id, n in counts.items() if n > 1],
        "unknown": [
            str(first(entry, format.id or format.question))[:60] for entry, question in entries if question is None
        ],
        "with another text": [
            q.id for entry, q in entries if q and format.question and not same(entry, format.question, q.text)
        ],
        "with another gold": [
            q.id
            for entry, q in entries
            if q and q.gold is not None and format.gold and not same(entry, format.gold, q.gold)
        ],
    }
    counted = [f"{len(ids):,} {fault} ({_some(ids)})" for fault, ids in faults.items() if ids]
    if counted:
        raise ImportResultsError(
            f"{path} ({format.name}) must contain each of the {len(due):,} answerable questions of {data.path.name} "
            f"once, with the same text and gold answer, but has {', '.join(counted)}."
        )


def _some(ids: Sequence[str], most: int = 5) -> str:
    return ", ".join(ids[:most]) + (f" and {len(ids) - most:,} more" if len(ids) > most else "")


def _systems(path: Path, entries: Sequence[tuple[dict[str, Any], Question]], format: Format) -> dict[str, Any]:
    """Return system name -> a function that takes the system's answer from an entry. Each variant is a system."""
    if not format.variants:
        return {path.stem: lambda entry: entry}
    names = list(first(entries[0][0], format.variants) or ())
    for entry, question in entries:
        if not names or list(first(entry, format.variants) or ()) != names:
            raise ImportResultsError(
                f"{path}: {question.id} has other {format.variants} than the first question, which has "
                f"{', '.join(names) or 'none'}."
            )

    def variant(name: str) -> Any:
        return lambda entry: first(entry, format.variants)[name]

    return {(f"{path.stem} {name}" if names[1:] else path.stem): variant(name) for name in names}


def manifest(found: PublishedResults, *, data: Dataset, data_option: str | None) -> dict[str, Any]:
    """Return the manifest of the run folder, with the source of the answers.

    Args:
        found: The results.
        data: The data.
        data_option: The value of --data.
    """
    keys = [key(record) for record in found.records]
    answerable = {question.category for question in data.questions if question.answerable}
    options = EvaluateOptions(
        benchmark=data.benchmark,
        data=data_option,
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


def _source(found: PublishedResults) -> dict[str, Any]:
    empty = sum(record["answer"] is not None and not record["answer"].strip() for record in found.records)
    return {
        "note": "answers and verdicts were imported from a published file",
        "file": found.path.name,
        "sha256": found.sha256,
        "format": found.format.name,
        "licence": found.format.licence,
        "empty_answers": empty,
        "unanswerable_excluded": found.left_out,
        "merges": [{"system": system, **merge.as_json()} for system, merge in found.merges],
    }


def write(
    found: PublishedResults,
    path: Path,
    *,
    data: Dataset,
    corrections: label_sets.LabelCorrections | None = None,
    data_option: str | None = None,
) -> tuple[str, str]:
    """Write the run folder.

    Args:
        found: The results.
        path: The folder.
        data: The data.
        corrections: Label corrections, for separate metrics of clean and flagged questions.
        data_option: The value of --data, for the manifest.

    Returns:
        The status of the run, and the text to print.

    Raises:
        RunFolderError: The folder is in use, or is not empty.
        OSError: It cannot be written.
    """
    keys: list[Key] = [key(record) for record in found.records]
    with RunFolder.create(path, manifest(found, data=data, data_option=data_option)) as folder:
        for record in found.records:
            folder.append(record)
        records = folder.records()
        share = aggregate.missing_share(records, keys)
        status = "invalid" if share > FAIL_ON_ERROR or any(merge.flagged for _, merge in found.merges) else "valid"
        notes, metrics = _notes(found)
        facts = {
            "status": status,
            "split": "all",
            "subset": False,
            "reader": found.model,
            "judge": f"{found.judge or 'unknown'} (published)" if any(r["verdicts"] for r in records) else None,
            "token_counter": None,
            "left_out": {},
            "test_set_usage": {"test_scored": None, "duplicate_attempts": []},
            "published": {**_source(found), "scores": metrics},
        }
        _, table = write_results(
            folder,
            data,
            keys,
            facts,
            no_judge="the file has no verdicts.",
            notes=[*notes, STATUS.get(status, "")],
            corrections=corrections,
        )
    return status, table


def _notes(found: PublishedResults) -> tuple[list[str], dict[str, Any]]:
    """Return the lines to print below the table, and the metrics that the file's own verdicts give each system."""
    notes = [
        f"Imported from {found.path.name} ({found.format.licence}); reader: {found.model or 'unknown'}; "
        f"judge: {found.judge or 'unknown'}."
    ]
    notes += [f"{system}: {merge}" for system, merge in found.merges]
    if found.left_out:
        notes.append(
            f"{found.left_out:,} answers to unanswerable questions are excluded, because they have no gold answer."
        )
    metrics: dict[str, Any] = {}
    for system in dict.fromkeys(record["system"] for record in found.records):
        own = [record for record in found.records if record["system"] == system]
        if not (scored := scores(own)):
            continue
        by_majority = sum(majority(record) for record in own if record["question_id"] in scored) / len(scored)
        repeats = max(len(record["verdicts"]) for record in own)
        mean = sum(scored.values()) / len(scored)
        metrics[system] = {"mean": mean, "majority": by_majority, "n": len(scored), "repeats": repeats}
        of_repeats = f" as the mean of {repeats} verdicts, {100 * by_majority:.2f} by majority" if repeats > 1 else ""
        missing = len(own) - len(scored)
        notes.append(f"{system}: J {100 * mean:.2f}{of_repeats}, n = {len(scored):,}, {missing:,} missing.")
    return notes, metrics


def refuse_taken(places: Mapping[Path, PublishedResults], files: int) -> None:
    """Refuse folders that are not empty, and delete interrupted imports of the same file.

    Args:
        places: Folder -> the results that will be written to it.
        files: Number of result files.

    Raises:
        ImportResultsError: A folder is not empty, or two files have the same name.
    """
    if len(places) < files:
        raise ImportResultsError("Two files have the same name and would be written to the same folder; rename one.")
    unfinished = [path for path, found in places.items() if path.exists() and _is_unfinished(path, found)]
    for path in set(places) - set(unfinished):
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ImportResultsError(f"{path} is not empty; name another folder with --run-dir.")
    for path in unfinished:
        shutil.rmtree(path)


def _is_unfinished(path: Path, found: PublishedResults) -> bool:
    """Return True if a folder is an interrupted import of this file."""
    try:
        with RunFolder.reopen(path) as folder:
            source = folder.manifest.get("published", {})
    except (RunFolderError, OSError):
        return False
    written = {"results.json", "verdicts.jsonl"} & {entry.name for entry in path.iterdir()}
    return source.get("sha256") == found.sha256 and not written
