"""Paired comparison of systems, of one run or of several, on the questions that all runs asked."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

from memometer import benchmarks
from memometer.benchmarks.protocol import Dataset, Question
from memometer.judging import sample_scores
from memometer.judging.graders import Grader, Rule, graders_of, prompt_hashes
from memometer.judging.sample_scores import MEASURES
from memometer.report import aggregate, presenter, variance
from memometer.report.compared_run import ComparedRun, ComparisonError, differences
from memometer.report.comparisons import few_clusters
from memometer.report.presenter import Table
from memometer.report.results import Results
from memometer.report.tables import comparison_tables, side_name
from memometer.report.write import alarm
from memometer.run.folder import changes, failed
from memometer.stats.intervals import FEW_CLUSTERS
from memometer.stats.number_format import interval, number, percent
from memometer.stats.pairwise import Match, SystemScores, compare_family, strongest
from memometer.systems import BASELINES, SIMPLE


@dataclass(frozen=True, slots=True)
class RunComparison:
    """The comparison of systems. `str()` gives it as text.

    Attributes:
        measure: Key of the measure: judge, f1 or evidence_recall.
        grader: Name of the grader, for the measure judge.
        scores: For each system `system`, `budget`, `run` if there are several, `failed`, and the fields of
            `memometer.report.aggregate.rate`.
        pairs: For each pair the fields of `memometer.stats.pairwise.compare_family`.
        warnings: Runs without a valid status, and another split, which makes scores incomparable.
        subjects: Every other setting that differs between the runs, such as the reader: what the comparison is about.
        notes: Sentences about the questions and the number of conversations.
        categories: Key -> name of the benchmark's categories.
        prefix: The start of every printed line; empty for a benchmark's own data.
        variance: The parts of the variance (`memometer.report.variance`), if all runs have one configuration.
    """

    measure: str
    grader: str | None
    scores: list[Results]
    pairs: list[Results]
    warnings: list[str]
    subjects: list[str]
    notes: list[str]
    categories: dict[str, str]
    prefix: str
    variance: list[Results] = field(default_factory=list)

    def __str__(self) -> str:
        first, *rest = self.notes
        tables = [self._table(), *comparison_tables(self.pairs, self.categories), *variance.tables(self.variance)]
        parts: list[Table | str] = ["\n".join([*self.warnings, *self.subjects]), first, *tables, *rest]
        # A file gets whole lines, a terminal lines that fit.
        shown = presenter.screen(parts, prefix=self.prefix) if sys.stdout.isatty() else presenter.text(parts)
        return "".join(f"{self.prefix}{line}\n" for line in shown.split("\n"))

    def _table(self) -> Table:
        rows = []
        for found in self.scores:
            independent = None if found["naive"] is None else (found["naive"][1] - found["naive"][0]) / 2
            rows.append(
                [
                    side_name(found),
                    percent(found["score"], 2),
                    interval(*(found["interval"] or (None, None))),
                    percent(found["half_width"], 2),
                    percent(independent, 2),
                    number(found["design_effect"], 1),
                    *(number(found[name]) for name in ("n", "failed", "missing")),
                    percent(found["worst"]),
                    percent(found["best"]),
                ]
            )
        under = f" under {self.grader}" if self.grader else ""
        title = f"{MEASURES[self.measure]}{under}, percent with 95 % intervals clustered by conversation"
        headers = ["system", MEASURES[self.measure], "interval", "±", "independent ±", "design effect", "n", "failed"]
        return Table(title, [*headers, "missing", "worst", "best"], rows)


def compare(
    runs: Sequence[str | Path],
    *,
    measure: str | None = None,
    categories: Collection[str] | None = None,
    by_category: bool = False,
    judge: str | None = None,
    prompt: str | None = None,
    label_set: str | None = None,
    rule: Rule = "mean",
    systems: Collection[str] | None = None,
    budgets: Collection[int] | None = None,
    reference: str | None = None,
    data: str | Path | None = None,
) -> RunComparison:
    """Compare systems pairwise on the questions that all runs asked.

    Systems are compared at the same budget; a system with a single budget is compared at every budget. The baselines
    none, refusal and oracle are compared only if `systems` names them or nothing else is left. If the runs share a
    system, it is compared with itself in the other runs, and other pairs only if `systems` names them. Otherwise each
    system is compared with one reference; without a reference all pairs are compared. The tests are adjusted together
    by the maximum of their statistics.

    Args:
        runs: Run folders.
        measure: judge, f1 or evidence_recall; None for the first that all runs have.
        categories: Categories of the questions; None for all with answerable questions.
        by_category: True also compares each category by itself.
        judge: The judge model, if the runs have several graders in common.
        prompt: The judge prompt.
        label_set: The label set.
        rule: How repeated verdicts are combined.
        systems: Systems to compare; None for all.
        budgets: Budgets to compare; None for all.
        reference: The system that all others are compared with; None for the strongest simple system
            (`memometer.systems.SIMPLE`), or for all pairs if `systems` is given or there is none.
        data: The benchmark's file; None for the one that the first run names.

    Returns:
        The scores and the paired comparisons.

    Raises:
        ComparisonError: The runs have nothing to compare.
        RunFolderError: A run folder cannot be read.
        DataError: The data cannot be read.
    """
    paths = [Path(run) for run in runs]
    read = [ComparedRun.read(path, name) for path, name in zip(paths, _names(paths), strict=True)]
    dataset = _dataset(read, data)
    answerable = {question.category for question in dataset.questions if question.answerable}
    if unknown := [c for c in categories or () if c not in dataset.categories]:
        raise ComparisonError(f"--categories got {unknown[0]}; allowed are {', '.join(dataset.categories)}.")
    chosen = [c for c in dataset.categories if c in (categories or answerable)]
    measure = measure or _common_measure(read)
    grader = _common_grader(read, judge, prompt, label_set) if measure == "judge" else None
    possible = [question for question in dataset.questions if question.category in chosen]
    shared = _shared(read, possible)
    compared = _system_scores(read, shared, measure, grader, rule, systems, budgets)
    if reference and reference not in {one.system for one in compared}:
        listed = ", ".join(dict.fromkeys(one.system for one in compared))
        raise ComparisonError(f"--reference {reference} is not compared; allowed are {listed}.")
    family: list[Match] = []
    for category in [None, *(chosen if by_category and len(chosen) > 1 else [])]:
        ids = {question.id for question in shared if category in (None, question.category)}
        for a, b in _pairs(
            compared if systems or reference else _without_baselines(compared),
            matched=not systems and not reference,
            reference=reference or ("" if systems else strongest(compared, SIMPLE)),
        ):
            family.append((_only(a, ids), _only(b, ids), category))
    pairs = compare_family(family, measure, grader=grader.name if grader else None)
    subset = f" A subset: there are {len(possible):,}." if len(shared) < len(possible) else ""
    notes = [f"{len(shared):,} questions of categories {', '.join(chosen)}{_unshared(read, possible)}.{subset}"]
    clusters = len({question.conversation for question in shared})
    if clusters <= FEW_CLUSTERS:
        notes.append(few_clusters(clusters))
    warnings, subjects = differences(read, compared, measure)
    return RunComparison(
        measure=measure,
        grader=grader.name if grader else None,
        scores=[_score_row(read, one, shared, measure) for one in compared],
        pairs=pairs,
        warnings=[
            *(
                f"{run.name}: {alarm(change)}"
                for run, path in zip(read, paths, strict=True)
                for change in changes(path)
            ),
            *warnings,
        ],
        subjects=subjects,
        notes=notes,
        categories=dict(dataset.categories),
        prefix=dataset.prefix,
        variance=[]
        if subjects or warnings or len(read) < 2 or measure == "evidence_recall"
        else variance.measure([run.records for run in read], shared, grader),
    )


def _names(paths: Sequence[Path]) -> list[str]:
    if len({path.resolve() for path in paths}) < len(paths):
        raise ComparisonError("a run is named twice; name each run once.")
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _dataset(runs: Sequence[ComparedRun], path: str | Path | None) -> Dataset:
    digests = {run.name: run.manifest["identity"].get("data") for run in runs}
    if len(known := {digest for digest in digests.values() if digest}) > 1:
        listed = ", ".join(f"{name} {str(digest)[:12]}" for name, digest in digests.items())
        raise ComparisonError(f"the runs used different data ({listed}); compare runs over the same file.")
    config = runs[0].manifest["config"]
    data = benchmarks.read(config.get("benchmark"), path or config.get("data"), ages=config.get("ages") or ())
    if known and data.sha256 not in known:
        raise ComparisonError(f"the runs used other data than {data.path}; name their file with --data FILE.")
    return data


def _common_measure(runs: Sequence[ComparedRun]) -> str:
    """The first measure that every run has."""
    if all(any(grader.name not in run.withheld for grader in graders_of(run.records)) for run in runs):
        return "judge"
    if all(any(record["answer"] is not None for record in run.records) for run in runs):
        return "f1"
    return "evidence_recall"


def _common_grader(runs: Sequence[ComparedRun], judge: str | None, prompt: str | None, label_set: str | None) -> Grader:
    """The only grader of the requested kind that every run has."""
    wanted = {"judge": judge, "prompt": prompt, "label_set": label_set}
    found = {
        run.name: [g for g in graders_of(run.records) if all(v in (None, getattr(g, k)) for k, v in wanted.items())]
        for run in runs
    }
    common = [g for g in found[runs[0].name] if all(g in of for of in found.values())]
    withheld = {g: f"in {run.name}: {run.withheld[g.name]}" for run in runs for g in common if g.name in run.withheld}
    if common and len(withheld) == len(common):
        raise ComparisonError(f"Judge accuracy of {common[0].name} is withheld {withheld[common[0]]} Use --measure f1.")
    common = [g for g in common if g not in withheld]
    if not common:
        listed = "; ".join(f"{name}: {' or '.join(g.name for g in of) or 'none'}" for name, of in found.items())
        raise ComparisonError(
            f"the runs have no grader in common ({listed}); grade them again with memometer rescore, or use --measure "
            "f1."
        )
    if len(common) > 1:
        raise ComparisonError(
            f"the runs have several graders in common ({'; '.join(g.name for g in common)}); choose one with --judge, "
            "--prompt and --label-set."
        )
    versions = {run.name: prompt_hashes(run.records, common[0]) for run in runs}
    if len(set().union(*versions.values())) > 1:
        listed = "; ".join(f"{name}: {', '.join(sorted(hashes))}" for name, hashes in versions.items())
        raise ComparisonError(
            f"{common[0].name} used several versions of its prompt ({listed}); grade the runs again with memometer "
            "rescore."
        )
    return common[0]


def _shared(runs: Sequence[ComparedRun], possible: Sequence[Question]) -> list[Question]:
    """The questions that every run asked."""
    asked = frozenset.intersection(*(run.asked for run in runs))
    if shared := [question for question in possible if question.id in asked]:
        return shared
    raise ComparisonError(
        f"{' and '.join(run.name for run in runs)} share no question of the chosen categories; compare runs over the "
        "same split."
    )


def _unshared(runs: Sequence[ComparedRun], possible: Sequence[Question]) -> str:
    """The number of questions that only one run asked."""
    found = []
    for run in runs:
        others = frozenset[str]().union(*(other.asked for other in runs if other is not run))
        alone = sum(question.id in run.asked - others for question in possible)
        found += [f"{alone:,} only in {run.name}"] if alone and len(runs) > 1 else []
    return f" in every run ({', '.join(found)})" if found else ""


def _system_scores(
    runs: Sequence[ComparedRun],
    questions: Sequence[Question],
    measure: str,
    grader: Grader | None,
    rule: Rule,
    systems: Collection[str] | None,
    budgets: Collection[int] | None,
) -> list[SystemScores]:
    keys = [(run, key) for run in runs for key in run.keys]
    for flag, wanted, known in (
        ("--system", systems, list(dict.fromkeys(system for _, (system, _) in keys))),
        ("--budget", budgets, sorted({budget for _, (_, budget) in keys})),
    ):
        if wanted and (unknown := [value for value in wanted if value not in known]):
            raise ComparisonError(f"{flag} {unknown[0]} is in no run; the runs have {', '.join(map(str, known))}.")
    found = [
        SystemScores(
            *key,
            sample_scores.by_question(run.pairs(key, questions), measure, grader, rule=rule),
            run=run.name if len(runs) > 1 else "",
        )
        for run, key in keys
        if (not systems or key[0] in systems) and (not budgets or key[1] in budgets)
    ]
    if len(found) < 2:
        raise ComparisonError(
            "fewer than two systems are left to compare; name more runs, or omit --system or --budget."
        )
    for name in dict.fromkeys(one.run for one in found):
        if not any(one.scores for one in found if one.run == name):
            raise ComparisonError(
                f"no answer of {name or runs[0].name} has {MEASURES[measure]}; choose another --measure."
            )
    return found


def _without_baselines(systems: Sequence[SystemScores]) -> Sequence[SystemScores]:
    """Remove the baselines, because further comparisons reduce the power of the others; keep them if fewer than two
    other systems are left."""
    found = [one for one in systems if one.system not in BASELINES]
    return found if len(found) > 1 else systems


def _pairs(
    systems: Sequence[SystemScores], *, matched: bool, reference: str = ""
) -> list[tuple[SystemScores, SystemScores]]:
    """The pairs to compare.

    Args:
        systems: The systems of all runs.
        matched: True prefers pairs of one system in two runs, in which only the subject of the comparison differs.
        reference: A system; only pairs with it are returned, in which it is the second.

    Returns:
        Pairs at the same budget and pairs with a system that has a single budget; all pairs if there are none.
    """
    budgets: dict[tuple[str, str], set[int]] = defaultdict(set)
    for one in systems:
        budgets[one.run, one.system].add(one.budget)
    pairs = list(combinations(systems, 2))
    fair = [
        (a, b)
        for a, b in pairs
        if a.budget == b.budget or 1 in (len(budgets[a.run, a.system]), len(budgets[b.run, b.system]))
    ]
    same = [(a, b) for a, b in fair if a.system == b.system and a.run != b.run]
    if matched and same:
        return same
    with_reference = [(b, a) if a.system == reference else (a, b) for a, b in fair if reference in (a.system, b.system)]
    return with_reference or fair or pairs


def _only(system: SystemScores, ids: set[str]) -> SystemScores:
    return replace(system, scores={id: value for id, value in system.scores.items() if id in ids})


def _score_row(
    runs: Sequence[ComparedRun], system: SystemScores, questions: Sequence[Question], measure: str
) -> Results:
    run = next(run for run in runs if len(runs) == 1 or run.name == system.run)
    pairs = run.pairs((system.system, system.budget), questions)
    gave_up = len({question.id for question, record in pairs if record and failed(record)})
    rate = aggregate.rate(system.scores, sample_scores.expected(pairs, measure))
    return {**system.key, "failed": gave_up, **rate}
