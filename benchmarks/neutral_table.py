"""The neutral table: memory systems of several projects under one exact budget, without a model.

    python benchmarks/neutral_table.py --encoder minilm --model-folder FOLDER --out docs/neutral-table.md
    python benchmarks/neutral_table.py --from runs/A runs/B --out docs/neutral-table.md      from finished runs

Each adapter of examples/systems runs with `uv` in an environment of its own, with the versions that its file names.
FOLDER is all-MiniLM-L6-v2 as sentence-transformers saves it; without the option, the systems download it.
"""

from __future__ import annotations

import argparse
import subprocess
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
    "LangGraph": "langgraph_store.py:LangGraphStore",
    "LlamaIndex": "llamaindex_vectors.py:LlamaIndexVectors",
    "Haystack": "haystack_hybrid.py:HaystackHybrid",
    "txtai": "txtai_hybrid.py:TxtaiHybrid",
    "Hindsight": "hindsight_memory.py:Hindsight",
}
BUILT_IN = ("bm25", "vector", "adaptive", "search:adaptive")
BASELINES = ("bm25", "vector")
"""The strongest of these at each budget is the reference of the differences."""


PAGE = """# The neutral table

Memory systems of several projects on LOCOMO, under one exact budget and without a model. Each cell is evidence recall
in percent, and in brackets the difference to the strongest baseline in points, with its 95 % interval clustered by
conversation.

{scope} {made}

{table}

Ingest: seconds for 1,000 turns; search: milliseconds; memory: MB at most, of systems in a process of their own. Times
are those of one run on a shared, busy machine and tell orders of magnitude only. A star marks a degraded system, see
below.

`adaptive` packs its own ranking; `search:adaptive` returns it through the plug-in protocol, and the harness packs it
like everyone else's. Its weights were fitted on LOCOMO's training conversations; a conversation that they were fitted
on is evaluated with weights fitted on the others. The other systems were fitted on nothing of LOCOMO. All use all-
MiniLM-L6-v2, except `bm25`.

{notes}

Make it again with `python benchmarks/neutral_table.py --out docs/neutral-table.md`. Each adapter is one file in
`examples/systems/`, with the versions of its packages.
"""


def systems(model_folder: Path | None) -> list[str]:
    """The systems of the table, as --systems takes them."""
    folder = ROOT / "examples" / "systems"
    worker = ROOT / "memometer" / "systems" / "worker.py"
    parameter = f"?encoder={model_folder}" if model_folder else ""
    return [
        *BUILT_IN,
        *(
            f"{name}=cmd:uv run --no-project --with-requirements {folder / adapter.split(':')[0]} python {worker} "
            f"'{folder / adapter}{parameter}'"
            for name, adapter in ADAPTERS.items()
        ),
    ]


def evaluate(args: argparse.Namespace) -> Path:
    """Run the evaluation of every system; returns the run folder."""
    words = ["eval", "--recall-only", "--no-mlflow", "--split", args.split, "--categories", "1,2,3,4"]
    words += ["--budgets", args.budgets, "--encoder", args.encoder, "--run-dir", str(args.run_dir)]
    words += [word for system in systems(args.model_folder) for word in ("--systems", system)]
    subprocess.run([sys.executable, "-m", "memometer", *words], cwd=ROOT, check=True)
    return Path(args.run_dir)


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
        memory = plug_in.get("peak_memory_bytes")
        cells += [f"{facts[name]['ingest']:.1f}", f"{1000 * facts[name]['search']:,.0f}"]
        cells.append(f"{memory / 1e6:,.0f}" if memory else "-")
        table.append(cells)
        versions = ", ".join(f"{package} {version}" for package, version in (plug_in.get("versions") or {}).items())
        described = "; ".join(filter(None, [versions, *(plug_in.get("degraded") or ())]))
        notes += [f"{name}: {described}."] if described else []
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
    questions = len({r["question_id"] for r in first.records})
    held = len({r["conversation"] for r in first.records})
    headers = ["system", *(f"{budget:,}" for budget in budgets), "ingest", "search", "memory"]
    split = manifest["config"]["split"]
    commits = ", ".join(dict.fromkeys(str(run.manifest["git"]) for _, run in runs))
    scope = f"{questions:,} questions of {held} conversations (split {split})"
    return PAGE.format(
        scope=f"{scope}; budgets in tokens ({first.results['token_counter']}).",
        made=f"Commit {commits}, {manifest['created_at'][:10]}.",
        table="\n".join("| " + " | ".join(cells) + " |" for cells in [headers, ["---"] * len(headers), *table]),
        notes="\n".join(f"- {note}" for note in notes),
    )


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--split", default="all")
    p.add_argument("--budgets", default="512,1024,2048,4096")
    p.add_argument("--encoder", default="minilm")
    p.add_argument("--model-folder", type=Path)
    p.add_argument("--run-dir", type=Path, default=Path("runs/neutral-table"))
    p.add_argument("--from", dest="runs", nargs="+", type=Path, help="finished runs, in place of a new one")
    p.add_argument("--out", type=Path, required=True)
    args = p.parse_args()
    paths = args.runs or [evaluate(args)]
    budgets = [int(budget) for budget in args.budgets.split(",")]
    args.out.write_text(page([(path, load(path)) for path in paths], budgets), encoding="utf-8")
    print(f"Written to {args.out}")


if __name__ == "__main__":
    main()
