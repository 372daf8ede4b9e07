"""The judge panel: what every prompt makes of the same answers, and whether the ranking of the systems survives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from memometer.stats.intervals import Estimate, clustered_mean, paired

Scores = Mapping[str, Mapping[str, Mapping[str, float]]]
"""System -> prompt -> question id -> score, 0 to 1."""

Panel = dict[str, Any]

NOTHING = 1e-9
"""A difference of means up to this is rounding: thirds, of three repeats, do not add up to the digit."""


def panel(scores: Scores) -> Panel:
    """Of each system's answers that have a label under all of the prompts:

    `systems`: name -> {`scores`: prompt -> {mean, low, high, n}, `range`: the largest less the smallest mean}.
    `pairs`: of each two systems, over the questions that both have, the `differences` of their means (prompt -> {mean,
    low, high, n}, paired, clustered by conversation), whether they `flip` (some prompt puts one ahead, some the other)
    and whether `significantly` (two intervals exclude zero on both sides), and the prompts they differ `under` (an
    interval that excludes zero).
    `survives`: no pair flips.
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


def _system(by_prompt: Mapping[str, Mapping[str, float]]) -> Panel:
    found = {prompt: _mean(scores) for prompt, scores in by_prompt.items()}
    means = [estimate.mean for estimate in found.values() if estimate.mean is not None]
    return {
        "scores": {
            prompt: {"mean": estimate.mean, "low": estimate.low, "high": estimate.high, "n": estimate.n}
            for prompt, estimate in found.items()
        },
        "range": max(means) - min(means) if means else None,
    }


def _pair(a: str, b: str, scores: Scores) -> Panel:
    differences = {prompt: _difference(mine, scores[b][prompt]) for prompt, mine in scores[a].items()}
    means = [found["mean"] for found in differences.values() if found["mean"] is not None]
    ahead = [prompt for prompt, found in differences.items() if found["low"] is not None and found["low"] > 0]
    behind = [prompt for prompt, found in differences.items() if found["high"] is not None and found["high"] < 0]
    return {
        "a": a,
        "b": b,
        "differences": differences,
        "flips": any(mean > NOTHING for mean in means) and any(mean < -NOTHING for mean in means),
        "significantly": bool(ahead and behind),
        "under": ahead + behind,
    }


def _mean(scores: Mapping[str, float]) -> Estimate:
    return clustered_mean(list(scores.values()), [id.split("#")[0] for id in scores])


def _difference(mine: Mapping[str, float], theirs: Mapping[str, float]) -> Panel:
    ids = [id for id in mine if id in theirs]
    found = paired([mine[id] for id in ids], [theirs[id] for id in ids], [id.split("#")[0] for id in ids])
    return {"mean": found.difference, "low": found.low, "high": found.high, "n": found.n}


def table(found: Panel) -> str:
    """The panel for people."""
    from tabulate import tabulate

    prompts = found["prompts"]
    body = [
        [
            name,
            str(max(entry["scores"][prompt]["n"] for prompt in prompts)),
            *(_points(entry["scores"][prompt]) for prompt in prompts),
            "-" if entry["range"] is None else f"{100 * entry['range']:.1f}",
        ]
        for name, entry in found["systems"].items()
    ]
    headers = ["system and budget", "n", *prompts, "range"]
    aligned = ["left"] + ["right"] * (len(headers) - 1)
    grid = tabulate(body, headers, tablefmt="simple", disable_numparse=True, colalign=aligned) if body else ""
    title = "What each prompt calls correct, with 95 % intervals clustered by conversation; a score, not an accuracy"
    return f"{title}\n{grid}\n\n{verdict(found)}"


def verdict(found: Panel) -> str:
    """Whether the ranking survives, and which pairs change places."""
    pairs = found["pairs"]
    if not pairs:
        return "One system: there is no ranking."
    flips = [pair for pair in pairs if pair["flips"]]
    unsure = [pair for pair in pairs if not pair["flips"] and 0 < len(pair["under"]) < len(found["prompts"])]
    if not flips:
        lines = [f"The ranking survives: none of {len(pairs)} pairs changes places under any prompt."]
    else:
        serious = sum(pair["significantly"] for pair in flips)
        lines = [
            f"The ranking does not survive: {len(flips)} of {len(pairs)} pairs change places, {serious} of them with "
            "intervals that exclude zero on both sides."
        ]
        lines += [f"{pair['a']} - {pair['b']}: {_differences(pair)}" for pair in flips]
    if unsure:
        lines.append(f"{len(unsure)} pairs keep their order, but differ significantly under some of the prompts only.")
    return "\n".join(lines)


def _differences(pair: Panel) -> str:
    return ", ".join(f"{prompt} {_points(found, signed=True)}" for prompt, found in pair["differences"].items())


def _points(found: Panel, *, signed: bool = False) -> str:
    if found["mean"] is None:
        return "-"
    form = "+.1f" if signed else ".1f"
    ends = "" if found["low"] is None else f" [{100 * found['low']:{form}}, {100 * found['high']:{form}}]"
    return f"{100 * found['mean']:{form}}{ends}"
