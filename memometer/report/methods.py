"""A methods paragraph of a run, to be pasted into a paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memometer.report.summary import summarize


def methods(manifest: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """Describe how a run was made and analysed.

    Args:
        manifest: The content of manifest.json.
        results: The content of results.json.

    Returns:
        One paragraph of plain text; figures and names are those of the run.
    """
    config, identity = manifest["config"], manifest["identity"]
    summary = summarize(manifest, results)
    systems = list(dict.fromkeys(row.system for row in summary.rows if not row.baseline))
    baselines = list(dict.fromkeys(row.system for row in summary.rows if row.baseline))
    budgets = sorted({row.budget for row in summary.rows if 0 < row.budget < 10**7})
    clusters = max((c["clusters"] for c in results.get("comparisons", ())), default=0)
    data = f"{results.get('data_kind') or results.get('data_name') or results.get('benchmark')}"
    sample = (
        f", a stratified sample of {config['num_test']} questions (seed {config['seed']})" if config["num_test"] else ""
    )
    sentences = [
        f"We evaluated {_listed(systems)} on {data} (sha256 {str(identity.get('data'))[:12]}), split {config['split']}"
        f"{sample}, categories {', '.join(str(c) for c in config['categories'] or ())}.",
        f"Each system returned at most {_listed([f'{budget:,}' for budget in budgets])} {summary.unit} of memory."
        if budgets
        else "",
        f"The reader was {results['reader']}."
        if results.get("reader")
        else "No reader was used; evidence recall is reported.",
        f"Answers were graded by {results['judge']}." if results.get("judge") else "",
        f"Judge accuracy is withheld for {', '.join(results['withheld'])}." if results.get("withheld") else "",
        f"The baselines were {_listed(baselines)}." if baselines else "",
        "Intervals are 95 % intervals clustered by conversation (cluster-robust variance, t distribution), never "
        "narrower than intervals that treat questions as independent.",
        f"Systems were compared pairwise on the same questions of {clusters} conversations by sign-flip tests over "
        "conversations, adjusted by the maximum statistic (Westfall and Young) within each measure and budget."
        if clusters
        else "",
        f"Failed model calls are missing ({100 * results.get('missing_share', 0.0):.1f} %) and excluded from means; "
        "failures of a memory system count as wrong.",
        f"memometer, commit {manifest['git'] or 'unknown'}, Python {manifest['python']}.",
    ]
    return " ".join(filter(None, sentences))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1] if names else "no system"
