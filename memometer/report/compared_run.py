"""A run as a comparison reads it, and the settings in which two runs differ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memometer.benchmarks.protocol import Question
from memometer.budget import UNBOUNDED
from memometer.errors import UserError
from memometer.judging import withheld as withholding
from memometer.judging.sample_scores import Pair
from memometer.report.results import read_results
from memometer.run import resume
from memometer.run.folder import Record, RunFolderError, latest, read_manifest, read_records
from memometer.stats.number_format import number
from memometer.stats.pairwise import SystemScores


class ComparisonError(UserError, ValueError):
    """These runs cannot be compared as requested."""


@dataclass(frozen=True)
class ComparedRun:
    """A run: the attempts that count, the questions asked, and the graders whose accuracy is withheld."""

    name: str
    manifest: dict[str, Any]
    status: str
    records: list[Record]
    asked: frozenset[str]
    withheld: dict[str, str]

    @classmethod
    def read(cls, path: Path, name: str) -> ComparedRun:
        manifest, records = read_manifest(path), list(latest(read_records(path)).values())
        if not records:
            raise ComparisonError(f"{path} has no answers yet; continue it with {resume.command('eval', path)}")
        # Older and imported runs do not list the planned questions.
        asked = manifest.get("questions") or [record["question_id"] for record in records]
        try:
            results = read_results(path)
            status, withheld = str(results["status"]), dict(results.get("withheld", {}))
        except (RunFolderError, KeyError):
            status, withheld = "not finished", withholding.withhold({}, records, [])
        return cls(name, manifest, status, records, frozenset(asked), withheld)

    @property
    def keys(self) -> list[tuple[str, int]]:
        """Its (system, budget) keys in order of appearance."""
        return list(dict.fromkeys((record["system"], record["budget_tokens"]) for record in self.records))

    def pairs(self, key: tuple[str, int], questions: Sequence[Question]) -> list[Pair]:
        """Each question with the attempts of one system; None if there is none."""
        by_question: dict[str, list[Record | None]] = defaultdict(list)
        for record in self.records:
            if (record["system"], record["budget_tokens"]) == key:
                by_question[record["question_id"]].append(record)
        return [(question, record) for question in questions for record in by_question.get(question.id, [None])]


def differences(
    runs: Sequence[ComparedRun], systems: Sequence[SystemScores], measure: str
) -> tuple[list[str], list[str]]:
    """Compare the settings of the runs.

    Returns:
        Warnings (a status that is not valid, another split), and sentences that name every other setting that differs:
        it is the subject of the comparison.
    """
    warnings = [f"caution: {run.name} is {run.status}." for run in runs if run.status != "valid"]
    subjects = []
    first = runs[0]
    for run in runs[1:]:
        split = first.manifest["config"].get("split"), run.manifest["config"].get("split")
        if split[0] != split[1]:
            warnings.append(f"not comparable: {first.name} and {run.name} differ in split ({split[0]} / {split[1]}).")
        found = [
            f"{name} ({a or 'not recorded'} / {b or 'not recorded'})"
            for name, (a, b) in _settings(first, run, systems, measure).items()
            if a != b
        ]
        if len(found) == 1:
            subjects.append(f"{first.name} and {run.name} differ in {found[0]}: the subject of this comparison.")
        elif found:
            subjects.append(
                f"{first.name} and {run.name} differ in {', '.join(found)}: differences cannot be assigned to one of "
                "them."
            )
    return warnings, subjects


def _settings(
    a: ComparedRun, b: ComparedRun, systems: Sequence[SystemScores], measure: str
) -> dict[str, tuple[Any, Any]]:
    """Settings that influence scores: name -> value in either run."""

    def both(part: str, name: str) -> tuple[Any, Any]:
        return a.manifest[part].get(name), b.manifest[part].get(name)

    settings: dict[str, tuple[Any, Any]] = {}
    if measure != "evidence_recall":
        settings |= {
            "reader": both("identity", "reader"),
            "answer prompt": _prompts(a, b),
            # None is the default of 64, which a model that writes thoughts first may exceed.
            "max answer tokens": tuple(limit or 64 for limit in both("config", "max_answer_tokens")),  # type: ignore[dict-item]
        }
    code, commits = both("identity", "systems"), (a.manifest.get("git"), b.manifest.get("git"))
    settings["code"] = code if commits[0] == commits[1] or code[0] == code[1] else commits
    settings["token counter"] = both("identity", "token counter")
    first, second = ({s.budget for s in systems if s.run == run.name and 0 < s.budget < UNBOUNDED} for run in (a, b))
    if not (first <= second or second <= first):
        settings["budget"] = tuple(", ".join(map(number, sorted(of))) for of in (first, second))  # type: ignore[assignment]
    return settings


def _prompts(a: ComparedRun, b: ComparedRun) -> tuple[Any, Any]:
    """The first differing answer prompts of the systems that both runs have; else the digest of all prompts."""
    first, second = (run.manifest.get("answer_prompts") for run in (a, b))
    if not first or not second:
        return a.manifest["identity"].get("answer prompts"), b.manifest["identity"].get("answer prompts")
    different = [(first[name], second[name]) for name in first if name in second and first[name] != second[name]]
    return different[0] if different else ("", "")
