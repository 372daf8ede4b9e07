"""Claims about runs, each supported, not supported or underpowered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from memometer.errors import UserError
from memometer.report.compare import compare
from memometer.stats.intervals import READABLE_CLUSTERS, min_sign_flip_p

Verdict = Literal["supported", "not supported", "underpowered"]
FIELDS = {"run", "system", "better_than", "measure", "budget", "by", "expect"}
VERDICTS = ("supported", "not supported", "underpowered")


@dataclass(frozen=True, slots=True)
class Claim:
    """The claim that one system of a run is better than another.

    Attributes:
        run: The run folder.
        system: The system that is said to be better.
        better_than: The other system.
        measure: judge, f1 or evidence_recall; None for the first that the run has.
        budget: The budget in tokens; needed if the run has several.
        by: Least difference in points.
        expect: The verdict that the author expects.
    """

    run: Path
    system: str
    better_than: str
    measure: str | None = None
    budget: int | None = None
    by: float = 0.0
    expect: str = "supported"


@dataclass(frozen=True, slots=True)
class CheckedClaim:
    """A claim with its verdict and the figures behind it."""

    claim: Claim
    verdict: Verdict
    figures: str

    def __str__(self) -> str:
        claim = self.claim
        by = f" by {claim.by:g} points" if claim.by else ""
        unexpected = "" if self.verdict == claim.expect else f" (expected: {claim.expect})"
        return f"{claim.run}: {claim.system} is better than {claim.better_than}{by}: {self.verdict}{unexpected}. " + (
            self.figures
        )


def read_claims(path: Path) -> list[Claim]:
    """Read a claims file: a YAML list of mappings, or a mapping with the list under `claims`.

    Run folders are relative to the file.

    Raises:
        UserError: The file cannot be read or has another shape.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    entries = content.get("claims") if isinstance(content, Mapping) else content
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} has no claims; write a list with run, system and better_than.")
    return [_claim(entry, f"{path}, claim {number}", path.parent) for number, entry in enumerate(entries, start=1)]


def _claim(entry: Any, place: str, folder: Path) -> Claim:
    if not isinstance(entry, Mapping):
        raise UserError(f"{place} is {entry!r}; it must be a mapping with run, system and better_than.")
    if missing := [name for name in ("run", "system", "better_than") if not isinstance(entry.get(name), str)]:
        raise UserError(f"{place} has no {missing[0]}; it needs run, system and better_than as text.")
    if unknown := sorted(str(name) for name in entry if name not in FIELDS):
        raise UserError(f"{place} has the unknown field {unknown[0]}; allowed are {', '.join(sorted(FIELDS))}.")
    by, budget, expect = entry.get("by", 0.0), entry.get("budget"), entry.get("expect", "supported")
    if not isinstance(by, int | float) or isinstance(by, bool) or not 0 <= by <= 100:
        raise UserError(f"{place}: by is {by!r}; it must be a number of points from 0 to 100.")
    if budget is not None and (not isinstance(budget, int) or isinstance(budget, bool)):
        raise UserError(f"{place}: budget is {budget!r}; it must be an integer.")
    if expect not in VERDICTS:
        raise UserError(f"{place}: expect is {expect!r}; allowed are {', '.join(VERDICTS)}.")
    if (measure := entry.get("measure")) not in (None, "judge", "f1", "evidence_recall"):
        raise UserError(f"{place}: measure is {measure!r}; allowed are judge, f1, evidence_recall.")
    return Claim(folder / entry["run"], entry["system"], entry["better_than"], measure, budget, float(by), str(expect))


def check_claims(claims: Sequence[Claim]) -> list[CheckedClaim]:
    """Check claims against the records of their runs.

    A claim is supported if the difference is significant and the lower limit of its interval is above `by`. It is not
    supported if the upper limit is not above `by`. Otherwise the run cannot decide, and the claim is underpowered.

    Raises:
        UserError: A run cannot be compared, or a claim fits several budgets.
    """
    return [_checked(claim) for claim in claims]


def _checked(claim: Claim) -> CheckedClaim:
    found = compare(
        [claim.run],
        measure=claim.measure,
        systems=(claim.system, claim.better_than),
        budgets=None if claim.budget is None else (claim.budget,),
    )
    if len(found.pairs) != 1:
        raise UserError(f"{claim.run} compares {claim.system} and {claim.better_than} at several budgets; name budget.")
    (pair,) = found.pairs
    sign = 1 if pair["a"]["system"] == claim.system else -1
    difference, p = pair["difference"], pair["p_adjusted"]
    if difference is None or pair["low"] is None:
        return CheckedClaim(claim, "underpowered", "One conversation gives no interval.")
    low, high = sorted((sign * pair["low"], sign * pair["high"]))
    least = claim.by / 100
    readable = pair["clusters"] >= READABLE_CLUSTERS and min_sign_flip_p(pair["clusters"]) <= 0.05
    verdict: Verdict
    if readable and p is not None and p < 0.05 and low > least:
        verdict = "supported"
    elif high <= least:
        verdict = "not supported"
    else:
        verdict = "underpowered"
    figures = (
        f"{100 * sign * difference:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}] in {found.measure}, p {p:.4f}, "
        f"{pair['n']:,} questions of {pair['clusters']} conversations."
    )
    return CheckedClaim(claim, verdict, figures)
