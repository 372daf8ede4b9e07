"""Judge sensitivity: how scores and the ranking of systems depend on the judge prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from memometer.stats.intervals import Estimate, clustered_mean, paired
from memometer.stats.number_format import rate

Scores = Mapping[str, Mapping[str, Mapping[str, float]]]
"""System -> prompt -> question id -> score, 0 to 1."""

Sensitivity = dict[str, Any]

ROUNDING = 1e-9
"""Differences of means up to this size are rounding: means of three repeats are not exact."""


def sensitivity(scores: Scores) -> Sensitivity:
    """Compare judge prompts on the answers that have a label under all of them.

    Args:
        scores: The scores of each system under each prompt.

    Returns:
        `prompts`: their names.
        `systems`: name -> `scores` (prompt -> {mean, low, high, n}) and `range` (largest minus smallest mean).
        `pairs`: for each two systems the paired `differences` (prompt -> {mean, low, high, n}, clustered by
        conversation), `flips` (prompts disagree about which system is better), `significantly` (two intervals exclude
        zero on opposite sides), and `under` (the prompts whose interval excludes zero).
        `survives`: True if no pair flips.
    """
    prompts = list(dict.fromkeys(prompt for by_prompt in scores.values() for prompt in by_prompt))
    shared = {name: _shared(by_prompt, prompts) for name, by_prompt in scores.items()}
    pairs = [_pair(a, b, shared) for a, b in combinations(shared, 2)]
    return {
        "prompts": prompts,
        "systems": {name: _system(by_prompt) for name, by_prompt in shared.items()},
        "pairs": pairs,
        "survives": not any(pair["flips"] for pair in pairs),
    }


def _shared(by_prompt: Mapping[str, Mapping[str, float]], prompts: Sequence[str]) -> dict[str, dict[str, float]]:
    found = [by_prompt.get(prompt, {}) for prompt in prompts]
    ids = [id for id in found[0] if all(id in scores for scores in found[1:])]
    return {prompt: {id: scores[id] for id in ids} for prompt, scores in zip(prompts, found, strict=True)}


def _system(by_prompt: Mapping[str, Mapping[str, float]]) -> Sensitivity:
    found = {prompt: _mean(scores) for prompt, scores in by_prompt.items()}
    means = [estimate.mean for estimate in found.values() if estimate.mean is not None]
    return {
        "scores": {
            prompt: {"mean": estimate.mean, "low": estimate.low, "high": estimate.high, "n": estimate.n}
            for prompt, estimate in found.items()
        },
        "range": max(means) - min(means) if means else None,
    }


def _pair(a: str, b: str, scores: Scores) -> Sensitivity:
    differences = {prompt: _difference(by_id, scores[b][prompt]) for prompt, by_id in scores[a].items()}
    means = [found["mean"] for found in differences.values() if found["mean"] is not None]
    ahead = [prompt for prompt, found in differences.items() if found["low"] is not None and found["low"] > 0]
    behind = [prompt for prompt, found in differences.items() if found["high"] is not None and found["high"] < 0]
    return {
        "a": a,
        "b": b,
        "differences": differences,
        "flips": any(mean > ROUNDING for mean in means) and any(mean < -ROUNDING for mean in means),
        "significantly": bool(ahead and behind),
        "under": ahead + behind,
    }


def _mean(scores: Mapping[str, float]) -> Estimate:
    return clustered_mean(list(scores.values()), [id.rpartition("#")[0] for id in scores])


def _difference(a: Mapping[str, float], b: Mapping[str, float]) -> Sensitivity:
    ids = [id for id in a if id in b]
    found = paired([a[id] for id in ids], [b[id] for id in ids], [id.rpartition("#")[0] for id in ids])
    return {"mean": found.difference, "low": found.low, "high": found.high, "n": found.n}


def conclusion(found: Sensitivity) -> str:
    """State if the ranking is the same under all prompts, and which pairs change places."""
    pairs = found["pairs"]
    if not pairs:
        return "One system: there is no ranking."
    flips = [pair for pair in pairs if pair["flips"]]
    unclear = [pair for pair in pairs if not pair["flips"] and 0 < len(pair["under"]) < len(found["prompts"])]
    if not flips:
        lines = [f"The ranking is the same under all prompts: none of {len(pairs)} pairs changes places."]
    else:
        significant = sum(pair["significantly"] for pair in flips)
        lines = [
            f"The ranking depends on the prompt: {len(flips)} of {len(pairs)} pairs change places, {significant} of "
            "them with intervals that exclude zero on opposite sides."
        ]
        lines += [f"{pair['a']} - {pair['b']}: {_differences(pair)}" for pair in flips]
    if unclear:
        lines.append(f"{len(unclear)} pairs keep their order but differ significantly under some prompts only.")
    return "\n".join(lines)


def _differences(pair: Sensitivity) -> str:
    return ", ".join(
        f"{prompt} {rate(found['mean'], found['low'], found['high'], signed=True)}"
        for prompt, found in pair["differences"].items()
    )
