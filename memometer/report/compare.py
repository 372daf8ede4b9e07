"""Compare systems, of one run or of several, on the questions that all were asked.

    memometer compare runs/A runs/B [--system adaptive] [--budget 1024] [--by-category]
    memometer compare runs/A --measure f1                      the systems of one run with each other

prints each system's score and, for every two at the same budget, the paired difference with its interval and tests,
corrected by Holm over all that is printed; the controls none, refusal and oracle are compared where --system names
them. Where runs differ in what makes scores comparable, the first line says so.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from memometer import benchmarks
from memometer.benchmarks.protocol import DataError, Dataset, Question
from memometer.budget import UNBOUNDED
from memometer.judging import misclassification
from memometer.judging.graders import Grading, gradings, prompt_hashes
from memometer.report import aggregate, terminal
from memometer.run.folder import Record, RunFolderError, failed, latest, read_manifest, read_records
from memometer.stats import sample_scores
from memometer.stats.intervals import FEW_CLUSTERS
from memometer.stats.pairwise import Entrant, corrected, place, versus
from memometer.stats.sample_scores import MEASURES, Pair
from memometer.systems import BASELINES

USAGE = 2


class NotComparable(ValueError):
    """These runs cannot be compared as asked; the message is one sentence with the next step."""


@dataclass(frozen=True)
class Run:
    """A run as it is compared: the attempts that count, by system and budget and then question, and what it asked."""

    name: str
    manifest: dict[str, Any]
    status: str
    records: list[Record]
    asked: frozenset[str]
    withheld: dict[str, str]
    """Name of a grading that may not be shown as accuracy -> why."""

    @classmethod
    def read(cls, path: Path, name: str) -> Run:
        """Raises RunFolderError, or NotComparable for a run without a record."""
        manifest, records = read_manifest(path), list(latest(read_records(path)).values())
        if not records:
            raise NotComparable(f"{path} holds no answer yet; go on with python evaluate.py --resume {path}")
        # An older or imported run does not say what was planned: then it is what any of its systems was asked.
        asked = manifest.get("questions") or [record["question_id"] for record in records]
        try:
            results = json.loads((path / "results.json").read_bytes())
            status, withheld = str(results["status"]), dict(results.get("withheld", {}))
        except (OSError, ValueError, KeyError, TypeError):
            status, withheld = "not finished", misclassification.settle({}, records, [])
        return cls(name, manifest, status, records, frozenset(asked), withheld)

    @property
    def places(self) -> list[tuple[str, int]]:
        """Its systems, each at each of its budgets, in order of appearance."""
        return list(dict.fromkeys((record["system"], record["budget_tokens"]) for record in self.records))

    def pairs(self, place: tuple[str, int], questions: Sequence[Question]) -> list[Pair]:
        """Each question with the attempt of one system; None where there is none."""
        by_question: dict[str, list[Record | None]] = defaultdict(list)
        for record in self.records:
            if (record["system"], record["budget_tokens"]) == place:
                by_question[record["question_id"]].append(record)
        return [(question, record) for question in questions for record in by_question.get(question.id, [None])]


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="memometer compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    p.add_argument("--measure", choices=list(MEASURES), help="default the first that all runs have")
    p.add_argument(
        "--categories", metavar="A,B,…", help="keys of categories (default: those with answerable questions)"
    )
    p.add_argument("--by-category", action="store_true", help="each category by itself as well")
    p.add_argument("--judge", metavar="NAME", help="whose verdicts, where there are several")
    p.add_argument("--prompt", metavar="P", help="under which prompt of the judge")
    p.add_argument("--key", metavar="K", help="against which answer key")
    p.add_argument("--rule", choices=["mean", "majority"], default="mean", help="what repeated verdicts amount to")
    p.add_argument("--system", metavar="A,B,…", help="these systems only")
    p.add_argument("--budget", metavar="N,M,…", help="these budgets only")
    p.add_argument("--data", metavar="FILE", help="the benchmark's file (by default it is looked for, or downloaded)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        data, lines = _compare(args)
    except (NotComparable, RunFolderError, DataError, OSError) as error:
        print(f"memometer.report.compare: {error}", file=sys.stderr)
        return USAGE
    for line in "\n\n".join(lines).split("\n"):
        print(f"{data.prefix}{line}")
    return 0


def _compare(args: argparse.Namespace) -> tuple[Dataset, list[str]]:
    """(the data, what to print, in parts)."""
    runs = [Run.read(path, name) for path, name in zip(args.runs, _names(args.runs), strict=True)]
    data = _data(runs, args.data)
    categories = _categories(args.categories, data)
    measure = args.measure or _common_measure(runs)
    grading = _grading(runs, args) if measure == "judge" else None
    possible = [question for question in data.questions if question.category in categories]
    shared = _shared(runs, possible)
    entrants = _entrants(runs, shared, measure, grading, args)
    family = []
    for category in [None, *(categories if args.by_category and len(categories) > 1 else [])]:
        chosen = {question.id for question in shared if category in (None, question.category)}
        for a, b in _matches(entrants if args.system else _contestants(entrants)):
            family.append(versus(_only(a, chosen), _only(b, chosen), measure, grading=grading, category=category))
    comparisons = corrected(family)
    told = f"{len(shared):,} questions of categories {', '.join(categories)}{_beside(runs, possible)}."
    if len(shared) < len(possible):
        told += f" A subset: there are {len(possible):,}."
    clusters = len({question.conversation for question in shared})
    title = f"{MEASURES[measure]}{f' under {grading.name}, {args.rule} of repeats' if grading else ''}"
    return data, [
        *_unfair(runs, entrants, measure),
        told,
        _scores(runs, entrants, shared, measure, title),
        *terminal.comparison_grid(comparisons, data.categories),
        *([aggregate.few_clusters(clusters, len(comparisons))] if clusters <= FEW_CLUSTERS else []),
    ]


# ---------------------------------------------------------------- what is compared


def _names(paths: Sequence[Path]) -> list[str]:
    if len({path.resolve() for path in paths}) < len(paths):
        raise NotComparable("a run was named twice; name each once.")
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _categories(text: str | None, data: Dataset) -> list[str]:
    """The keys that `--categories` names; by default all with answerable questions."""
    if text is None:
        return [key for key in data.categories if any(q.answerable for q in data.questions if q.category == key)]
    keys = list(dict.fromkeys(part.strip() for part in text.split(",")))
    if unknown := [key for key in keys if key not in data.categories]:
        raise NotComparable(f"--categories got {unknown[0]}; it may be {', '.join(data.categories)}.")
    return keys


def _integers(text: str, flag: str) -> list[int]:
    try:
        values = list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError as error:
        raise NotComparable(f"{flag} is {text!r}; give numbers with commas between.") from error
    return values


def _data(runs: Sequence[Run], named: str | None) -> Dataset:
    digests = {run.name: run.manifest["identity"].get("data") for run in runs}
    if len(known := {digest for digest in digests.values() if digest}) > 1:
        told = ", ".join(f"{name} {str(digest)[:12]}" for name, digest in digests.items())
        raise NotComparable(f"the runs were asked about different data ({told}); compare runs over the same file.")
    config = runs[0].manifest["config"]
    data = benchmarks.load(config.get("benchmark")).load(named or config.get("data"))
    if known and data.sha256 not in known:
        raise NotComparable(f"the runs were asked about other data than {data.path}; name theirs with --data FILE.")
    return data


def _common_measure(runs: Sequence[Run]) -> str:
    """The first measure that every run has."""
    if all(any(grading.name not in run.withheld for grading in gradings(run.records)) for run in runs):
        return "judge"
    if all(any(record["answer"] is not None for record in run.records) for run in runs):
        return "f1"
    return "evidence_recall"


def _grading(runs: Sequence[Run], args: argparse.Namespace) -> Grading:
    """The one grading, of those asked for, that every run has."""
    wanted = {"judge": args.judge, "prompt": args.prompt, "key": args.key}
    found = {
        run.name: [g for g in gradings(run.records) if all(v in (None, getattr(g, k)) for k, v in wanted.items())]
        for run in runs
    }
    told = "; ".join(f"{name}: {' or '.join(g.name for g in of) or 'nobody'}" for name, of in found.items())
    common = [g for g in found[runs[0].name] if all(g in of for of in found.values())]
    withheld = {g: f"in {run.name}: {run.withheld[g.name]}" for run in runs for g in common if g.name in run.withheld}
    if common and len(withheld) == len(common):
        raise NotComparable(f"J of {common[0].name} is withheld {withheld[common[0]]} Compare by --measure f1.")
    common = [g for g in common if g not in withheld]
    if not common:
        raise NotComparable(
            f"no grading is common to the runs ({told}), and figures of two gradings cannot be compared; grade again "
            "with memometer rescore, or compare by --measure f1."
        )
    if len(common) > 1:
        raise NotComparable(
            f"the runs have several gradings in common ({'; '.join(g.name for g in common)}); choose one with --judge, "
            "--prompt and --key."
        )
    versions = {run.name: prompt_hashes(run.records, common[0]) for run in runs}
    if len(set().union(*versions.values())) > 1:
        told = "; ".join(f"{name}: {', '.join(sorted(hashes))}" for name, hashes in versions.items())
        raise NotComparable(f"{common[0].name} was given in several versions of its prompt ({told}); grade again.")
    return common[0]


def _shared(runs: Sequence[Run], possible: Sequence[Question]) -> list[Question]:
    """The questions that every run asked."""
    asked = frozenset.intersection(*(run.asked for run in runs))
    if shared := [question for question in possible if question.id in asked]:
        return shared
    raise NotComparable(
        f"{' and '.join(run.name for run in runs)} share no question of the chosen --categories; compare runs over the "
        "same split."
    )


def _beside(runs: Sequence[Run], possible: Sequence[Question]) -> str:
    """How many questions are in one run only."""
    told = []
    for run in runs:
        others = frozenset[str]().union(*(other.asked for other in runs if other is not run))
        alone = sum(question.id in run.asked - others for question in possible)
        told += [f"{alone:,} only in {run.name}"] if alone and len(runs) > 1 else []
    return f" in every run ({', '.join(told)})" if told else ""


def _entrants(
    runs: Sequence[Run],
    questions: Sequence[Question],
    measure: str,
    grading: Grading | None,
    args: argparse.Namespace,
) -> list[Entrant]:
    places = [(run, place) for run in runs for place in run.places]
    systems = [name.strip() for name in args.system.split(",")] if args.system else None
    budgets = _integers(args.budget, "--budget") if args.budget else None
    known_systems = list(dict.fromkeys(system for _, (system, _) in places))
    known_budgets = sorted({budget for _, (_, budget) in places})
    if systems and (unknown := [name for name in systems if name not in known_systems]):
        raise NotComparable(f"--system {unknown[0]} is in no run; there are {', '.join(known_systems)}.")
    if budgets and (missing := [budget for budget in budgets if budget not in known_budgets]):
        listed = ", ".join(map(str, known_budgets))
        raise NotComparable(f"--budget {missing[0]} is in no run; there are {listed}.")
    entrants = [
        Entrant(
            *place,
            sample_scores.by_question(run.pairs(place, questions), measure, grading, rule=args.rule),
            run=run.name if len(runs) > 1 else "",
        )
        for run, place in places
        if (systems is None or place[0] in systems) and (budgets is None or place[1] in budgets)
    ]
    if len(entrants) < 2:
        raise NotComparable("fewer than two systems are left to compare; name more runs, or drop --system or --budget.")
    for name in dict.fromkeys(entrant.run for entrant in entrants):
        if not any(entrant.scores for entrant in entrants if entrant.run == name):
            raise NotComparable(
                f"no answer of {name or runs[0].name} has {MEASURES[measure]}; choose another --measure."
            )
    return entrants


def _contestants(entrants: Sequence[Entrant]) -> Sequence[Entrant]:
    """All but the controls, which are compared where they are named, or where there is nothing else: each comparison
    more takes from the others what Holm's correction leaves them."""
    contestants = [entrant for entrant in entrants if entrant.system not in BASELINES]
    return contestants if len(contestants) > 1 else entrants


def _matches(entrants: Sequence[Entrant]) -> Iterator[tuple[Entrant, Entrant]]:
    """Every two at the same budget; a system with one budget of its own meets the others at theirs. Where that leaves
    nothing, as with one system at two budgets, every two."""
    budgets: dict[tuple[str, str], set[int]] = defaultdict(set)
    for entrant in entrants:
        budgets[entrant.run, entrant.system].add(entrant.budget)
    pairs = list(combinations(entrants, 2))
    fair = [
        (a, b)
        for a, b in pairs
        if a.budget == b.budget or 1 in (len(budgets[a.run, a.system]), len(budgets[b.run, b.system]))
    ]
    yield from fair or pairs


def _only(entrant: Entrant, ids: set[str]) -> Entrant:
    return replace(entrant, scores={id: value for id, value in entrant.scores.items() if id in ids})


# ---------------------------------------------------------------- what is said


def _scores(
    runs: Sequence[Run], entrants: Sequence[Entrant], questions: Sequence[Question], measure: str, title: str
) -> str:
    by_name = {run.name if len(runs) > 1 else "": run for run in runs}
    body = []
    for entrant in entrants:
        pairs = by_name[entrant.run].pairs((entrant.system, entrant.budget), questions)
        found = aggregate.rate(entrant.scores, sample_scores.asked(pairs, measure))
        gave_up = len({question.id for question, record in pairs if record and failed(record)})
        simple = None if found["naive"] is None else (found["naive"][1] - found["naive"][0]) / 2
        worth = [
            terminal.points(found["score"]),
            terminal.span(found["interval"]),
            terminal.points(found["half_width"]),
        ]
        worth += [terminal.points(simple), "-" if found["design_effect"] is None else f"{found['design_effect']:.1f}"]
        bounds = terminal.percent(found["worst"]), terminal.percent(found["best"])
        counts = [str(count) for count in (found["n"], gave_up, found["ungraded"])]
        body.append([terminal.who(place(entrant)), *worth, *counts, *bounds])
    headers = ["system", MEASURES[measure], "interval", "±", "naive ±", "design effect", "n", "failed", "ungraded"]
    headers += ["worst", "best"]
    return terminal.grid(f"{title}, with 95 % intervals clustered by conversation", headers, body)


def _unfair(runs: Sequence[Run], entrants: Sequence[Entrant], measure: str) -> list[str]:
    """`not comparable because …`, one line for each run that is not like the first, or did not end well."""
    told = [f"not comparable because {run.name} is {run.status}" for run in runs if run.status != "valid"]
    first = runs[0]
    for run in runs[1:]:
        reasons = [
            f"{name} ({a or 'not recorded'} / {b or 'not recorded'})"
            for name, (a, b) in _settings(first, run, entrants, measure).items()
            if a != b
        ]
        if reasons:
            told.append(f"not comparable because {first.name} and {run.name} differ in {', '.join(reasons)}")
    return ["\n".join(told)] if told else []


def _settings(a: Run, b: Run, entrants: Sequence[Entrant], measure: str) -> dict[str, tuple[Any, Any]]:
    """name -> what it was in either run, of what two scores must have in common."""

    def both(part: str, name: str) -> tuple[Any, Any]:
        return a.manifest[part].get(name), b.manifest[part].get(name)

    settings: dict[str, tuple[Any, Any]] = {}
    if measure != "evidence_recall":
        settings |= {
            "reader": both("identity", "reader"),
            "answer prompt": _prompts(a, b),
            "max answer tokens": both("config", "max_answer_tokens"),
        }
    code, commits = both("identity", "systems"), (a.manifest.get("git"), b.manifest.get("git"))
    settings["code"] = code if commits[0] == commits[1] or code[0] == code[1] else commits
    settings["token counter"] = both("identity", "token counter")
    settings["split"] = both("config", "split")
    budgets = [{e.budget for e in entrants if e.run == run.name and 0 < e.budget < UNBOUNDED} for run in (a, b)]
    if not (budgets[0] <= budgets[1] or budgets[1] <= budgets[0]):
        settings["budget"] = tuple(", ".join(f"{budget:,}" for budget in sorted(of)) for of in budgets)  # type: ignore[assignment]
    return settings


def _prompts(a: Run, b: Run) -> tuple[Any, Any]:
    """The answer prompts of the systems that both runs have, the first that differs; else those of all systems."""
    mine, theirs = a.manifest.get("answer_prompts"), b.manifest.get("answer_prompts")
    if not mine or not theirs:
        return a.manifest["identity"].get("answer prompts"), b.manifest["identity"].get("answer prompts")
    differing = [(mine[name], theirs[name]) for name in mine if name in theirs and mine[name] != theirs[name]]
    return differing[0] if differing else ("", "")
