"""The neutral table: memory systems of several projects under one exact budget, without a model.

    python benchmarks/neutral_table.py --model-folder FOLDER --out docs/neutral-table.md
    python benchmarks/neutral_table.py --only mem0,txtai --run-dir runs/neutral-table       some systems now
    python benchmarks/neutral_table.py --from runs/neutral-table/* --out docs/neutral-table.md     from finished runs

Every system has a run folder of its own below --run-dir. A finished one is not repeated, and one that was stopped goes
on. Each adapter of examples/systems runs with `uv` in an environment of its own, with the versions that its file names;
--environments FOLDER uses FOLDER/NAME/bin/python instead. --model-folder is all-MiniLM-L6-v2 as sentence-transformers
saves it; without it, the systems download the model.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from memometer.judging import sample_scores
from memometer.report.results import Run, read_results
from memometer.report.write import data_of
from memometer.run.folder import latest, read_lines, read_manifest, read_records
from memometer.stats import number_format
from memometer.stats.intervals import clustered_mean, paired
from memometer.stats.pairwise import align, conversations

ADAPTERS = {
    "mem0": "mem0_memory.py:Mem0",
    "mem0hybrid": "mem0_hybrid.py:Mem0Hybrid",
    "langgraph": "langgraph_store.py:LangGraphStore",
    "llamaindex": "llamaindex_vectors.py:LlamaIndexVectors",
    "haystack": "haystack_hybrid.py:HaystackHybrid",
    "txtai": "txtai_hybrid.py:TxtaiHybrid",
    "hindsight": "hindsight_memory.py:Hindsight",
}
BUILT_IN = {
    "adaptive-words": ("adaptive", False),
    "adaptive": ("adaptive", True),
    "search-adaptive": ("search:adaptive", True),
    "untrained": ("untrained", False),
    "rrf": ("rrf", True),
    "bm25_neighbours": ("bm25_neighbours", False),
    "bm25": ("bm25", False),
    "vector": ("vector", True),
}
"""Name in the table -> the system, and True if it has the encoder."""
BASELINES = ("bm25", "bm25_neighbours", "vector", "rrf")
"""The strongest of these at each budget is the reference of the differences."""
PEAK = "peak_memory.json"


PAGE = """# The neutral table

Memory systems of several projects on LOCOMO, under one exact budget and without a model. Each cell is evidence recall
in percent, and in brackets the difference to the strongest baseline in points, with its 95 % interval clustered by
conversation.

{scope} {made}

{table}

Ingest: seconds for 1,000 turns; search: milliseconds; memory: MB at most, of the worker of a system in a process of its
own, of the whole evaluation for the others. Times are those of one run on a shared, busy machine and tell orders of
magnitude only. A star marks a degraded system, see below.

`adaptive` packs its own ranking; `search-adaptive` returns it through the plug-in protocol, and the harness packs it
like everyone else's. `adaptive-words`, `untrained`, `bm25` and `bm25_neighbours` match words only; all others use
all-MiniLM-L6-v2. No system was fitted on LOCOMO: the weights of `adaptive` are fitted on generated conversations.

{notes}

Make it again with `python benchmarks/neutral_table.py --out docs/neutral-table.md`; a stopped command goes on where it
was. Each adapter is one file in `examples/systems/`, with the versions of its packages.
"""


def specification(name: str, args: argparse.Namespace) -> list[str]:
    """The options of the evaluation that name a system."""
    if name in BUILT_IN:
        system, encoded = BUILT_IN[name]
        label = f"{name}={system}" if name != system else name
        return ["--systems", label, *(["--encoder", args.encoder] if encoded else [])]
    folder = ROOT / "examples" / "systems"
    worker = ROOT / "memometer" / "systems" / "worker.py"
    file = folder / ADAPTERS[name].split(":")[0]
    python = ["uv", "run", "--no-project", "--with-requirements", str(file), "python"]
    if args.environments:
        python = [str(args.environments / name / "bin" / "python")]
    target = str(folder / ADAPTERS[name]) + (f"?encoder={args.model_folder}" if args.model_folder else "")
    return ["--systems", f"{name}=cmd:{shlex.join([*python, str(worker), target])}"]


def evaluate(name: str, args: argparse.Namespace) -> Path:
    """Run or finish the evaluation of a system; returns its run folder."""
    place = Path(args.run_dir) / name
    if (place / "results.json").exists():
        return place
    words = ["eval", "--recall-only", "--no-mlflow", "--split", args.split, "--categories", "1,2,3,4"]
    words += ["--budgets", args.budgets, "--run-dir", str(place), *specification(name, args)]
    if (place / "manifest.json").exists():
        words = ["eval", "--resume", str(place)]
    print(f"{name} ...", file=sys.stderr, flush=True)
    process = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-m", "memometer", *words])
    _, status, usage = os.wait4(process, 0)
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(f"the evaluation of {name} ended with exit code {code}; the same command goes on")
    (place / PEAK).write_text(json.dumps({"bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)}))
    return place


def load(path: Path) -> Run:
    """Read a finished run."""
    manifest = read_manifest(path)
    return Run(path.name, manifest, read_records(path), read_results(path), data_of(path, manifest))


def rows(runs: Sequence[tuple[Path, Run]], budgets: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """The rows of the table, and its notes."""
    scores: dict[tuple[str, int], dict[str, float]] = {}
    facts: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    skipped: dict[str, str] = {}
    for path, run in runs:
        by_id = {question.id: question for question in run.data.questions}
        groups: dict[tuple[str, int], list[Any]] = {}
        for record in latest(run.records).values():
            if record["system"] not in run.results["skipped"]:
                groups.setdefault((record["system"], record["budget_tokens"]), []).append(record)
        ingests = read_lines(path / "ingest.jsonl")
        for (system, budget), records in groups.items():
            found = sample_scores.by_question([(by_id[r["question_id"]], r) for r in records], "evidence_recall")
            scores[system, budget] = {id: value for id, value in found.items() if by_id[id].answerable}
            own = [line for line in ingests if line["system"] == system]
            seconds = sum(record["seconds"] for record in records) / len(records)
            fact = facts.setdefault(system, {"search": 0.0})
            fact["search"] = max(fact["search"], seconds)  # other budgets pack what the first one found
            fact["ingest"] = 1000 * sum(line["seconds"] for line in own) / max(1, sum(line["turns"] for line in own))
            fact["plug_in"] = (run.results.get("plug_ins") or {}).get(system, {})
            fact["git"] = str(run.manifest["git"])
            if (path / PEAK).exists():
                fact["peak"] = json.loads((path / PEAK).read_text())["bytes"]
        skipped |= run.results["skipped"]
    names = [name for name in facts if name not in ("none", "oracle", "refusal")]
    names.sort(key=lambda name: -sum(mean(scores.get((name, budget), {})) for budget in budgets))
    strongest = {b: max(BASELINES, key=lambda name, b=b: mean(scores.get((name, b), {}))) for b in budgets}
    table = []
    for name in names:
        plug_in = facts[name]["plug_in"]
        cells = [f"{name} *" if plug_in.get("degraded") else name]
        for budget in budgets:
            cells.append(cell(scores.get((name, budget), {}), scores.get((strongest[budget], budget), {})))
        memory = plug_in.get("peak_memory_bytes") or facts[name].get("peak")
        cells += [f"{facts[name]['ingest']:.1f}", f"{1000 * facts[name]['search']:,.0f}"]
        cells.append(f"{memory / 1e6:,.0f}" if memory else "-")
        table.append(cells)
        versions = ", ".join(f"{package} {version}" for package, version in (plug_in.get("versions") or {}).items())
        described = "; ".join(filter(None, [versions, *(plug_in.get("degraded") or ())]))
        notes += [f"{name}: {described}."] if described else []
    for git in dict.fromkeys(facts[name]["git"] for name in names):
        state = " with changes that are not committed" if git.endswith("+") else ", clean"
        notes.append(f"Commit {git.rstrip('+')}{state}: {', '.join(n for n in names if facts[n]['git'] == git)}.")
    notes += [f"{name} was skipped: {reason}." for name, reason in skipped.items() if name not in facts]
    reference = ", ".join(f"{strongest[budget]} at {budget:,}" for budget in budgets)
    return table, [f"The strongest baseline is {reference}.", *notes]


def mean(scores: dict[str, float]) -> float:
    """The mean score; 0 without scores."""
    return sum(scores.values()) / len(scores) if scores else 0.0


def cell(own: dict[str, float], reference: dict[str, float]) -> str:
    """Recall in percent, and the difference to the reference with its interval."""
    if not own:
        return "-"
    value = number_format.percent(clustered_mean(list(own.values()), conversations(own)).mean)
    ids, (a, b) = align(own, reference)
    found = paired(a, b, conversations(ids))
    if own == reference or found.difference is None:
        return value
    return f"{value} ({number_format.rate(found.difference, found.low, found.high, signed=True)})"


def page(runs: Sequence[tuple[Path, Run]], budgets: Sequence[int]) -> str:
    """The page as Markdown."""
    table, notes = rows(runs, budgets)
    _, first = runs[0]
    manifest = first.manifest
    held = len({r["conversation"] for r in first.records})
    headers = ["system", *(f"{budget:,}" for budget in budgets), "ingest", "search", "memory"]
    split = manifest["config"]["split"]
    commits = ", ".join(dict.fromkeys(str(run.manifest["git"]) for _, run in runs))
    dates = sorted({run.manifest["created_at"][:10] for _, run in runs})
    by_id = {question.id: question for question in first.data.questions}
    scored = {r["question_id"] for r in first.records if by_id[r["question_id"]].evidence}
    scope = f"{len(scored):,} questions with evidence of {held} conversations (split {split})"
    return PAGE.format(
        scope=f"{scope}; budgets in tokens ({first.results['token_counter']}).",
        made=f"Commit {commits}; {' to '.join(dict.fromkeys([dates[0], dates[-1]]))}.",
        table="\n".join("| " + " | ".join(cells) + " |" for cells in [headers, ["---"] * len(headers), *table]),
        notes="\n".join(f"- {note}" for note in notes),
    )


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--split", default="all")
    p.add_argument("--budgets", default="512,1024,2048,4096")
    p.add_argument("--encoder", default="minilm")
    p.add_argument("--model-folder", type=Path)
    p.add_argument("--environments", type=Path, help="a folder with an environment for each system, in place of uv")
    p.add_argument("--only", help="these systems, separated by commas")
    p.add_argument("--run-dir", type=Path, default=Path("runs/neutral-table"))
    p.add_argument("--from", dest="runs", nargs="+", type=Path, help="finished runs, in place of new ones")
    p.add_argument("--out", type=Path, help="the Markdown file; without it, only the runs are made")
    args = p.parse_args()
    known = [*BUILT_IN, *ADAPTERS]
    names = args.only.split(",") if args.only else known
    if unknown := [name for name in names if name not in known]:
        p.error(f"--only: {unknown[0]} is unknown; known: {', '.join(known)}")
    paths = args.runs or [evaluate(name, args) for name in names]
    if args.out:
        budgets = [int(budget) for budget in args.budgets.split(",")]
        args.out.write_text(page([(path, load(path)) for path in paths], budgets), encoding="utf-8")
        print(f"Written to {args.out}")


if __name__ == "__main__":
    main()
