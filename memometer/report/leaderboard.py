"""One table of a run for a README or a paper, with others' published answers to the same questions below it.

    memometer leaderboard RUN [PUBLISHED …]

prints Markdown. RUN is a folder of evaluate.py; the others are compared with its first system, paired on the same
questions. Each PUBLISHED is a folder of `memometer import-results`; it is scored on RUN's questions alone,
beside all that it answers, and stands apart: others chose the reader, the prompt and the judge.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memometer.benchmarks.protocol import DataError
from memometer.report import results as conclusion
from memometer.report.markdown import grid, number, p_value, rate
from memometer.report.summary import Results, summary
from memometer.report.viewer import follow
from memometer.report.viewer_data import Run
from memometer.run.folder import RunFolderError, latest

USAGE = 2


class NotABoard(ValueError):
    """These runs make no leaderboard; the message is one sentence for the user."""


def board(run: Run, published: Sequence[Run]) -> str:
    """Markdown: a row a system and budget, the controls too, then others' rows. Raises NotABoard."""
    if "published" in run.manifest:
        raise NotABoard(f"{run.name} holds others' answers; name a run of evaluate.py first.")
    if not run.results.get("systems"):
        raise NotABoard(f"{run.name} has no results.json; finish it with: python evaluate.py --resume RUN.")
    for other in published:
        if "published" not in other.manifest:
            raise NotABoard(
                f"{other.name} is no import of memometer import-results; compare it with memometer.report.compare."
            )
        if other.data.sha256 != run.data.sha256:
            raise NotABoard(f"{other.name} answers other data than {run.name}.")
    told = summary(run.manifest, run.results)
    asked = {q.id for q in run.data.questions if q.answerable} & {r["question_id"] for r in run.records}
    if not asked:
        raise NotABoard(f"{run.name} asked no answerable question; name a run that did.")
    left_out = [f"{name} is not in the table: {reason}." for name, reason in run.results["left_out"].items()]
    parts = [
        _heading(run, told, asked),
        _quoted([*told["warnings"], *told["withheld"], *left_out]),
        grid(_ours(told)),
    ]
    if published:
        parts += [
            "Others' answers with others' verdicts, on the same questions and on all that they answered:",
            _quoted(_merged(published)),
            grid([_OTHERS, *(row for other in published for row in _others(other, asked))]),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _quoted(told: Sequence[str]) -> str:
    return "\n".join(f"> {text}" for text in told)


def _merged(published: Sequence[Run]) -> list[str]:
    merges = [(other.name, merge) for other in published for merge in other.manifest["published"]["merges"]]
    return [f"{name}: {merge['said']}" for name, merge in merges if merge["flagged"]]


def _heading(run: Run, told: Results, asked: set[str]) -> str:
    conversations = len({q.conversation for q in run.data.questions if q.id in asked})
    results = run.results
    parts = [
        f"{len(asked):,} answerable questions of {conversations} conversations, split "
        f"{results['split']}, seed {run.manifest['config']['seed']}; read by {results['reader'] or 'nobody'}"
    ]
    if results["judge"]:
        parts.append(f"judged by {results['judge']}")
    judged = [measure for measure in told["measures"] if measure["judged"]]
    for found in told["certificates"]:
        if found["passed"]:  # why another one failed stands with what is withheld
            accepts, rejects = (rate({**found[name], "value": found[name]["rate"]}) for name in _ERRORS)
            who = "which" if len(judged) == 1 else f"{found['judge']} ({found['prompt']})"
            parts.append(f"{who} accepts {accepts} % of wrong and rejects {rejects} % of right answers")
    if len(judged) > 1:
        parts += [f"{measure['short']} is {measure['under']}" for measure in judged]
    return ", ".join(parts) + ". Brackets: 95 %, clustered by conversation."


_ERRORS = ("false_accept", "false_reject")


def _ours(told: Results) -> list[list[str]]:
    measures = told["measures"]
    headline = measures[0]
    reference = next((row["system"] for row in told["rows"] if not row["control"]), "")
    corrected = any((row["scores"].get(headline["key"]) or {}).get("corrected") for row in told["rows"])
    header = [
        "tokens",
        "system",
        *(measure["short"] for measure in measures),
        f"n ({headline['short']})",
        *(["J corrected"] if corrected else []),
        "none to oracle, %",
        "tokens a question",
        f"{headline['short']} minus {reference}'s",
        "p (Holm)",
    ]
    body = []
    for row in sorted(told["rows"], key=lambda row: (row["budget"], row["control"], -_value(row, headline["key"]))):
        scored = row["scores"].get(headline["key"]) or {}
        difference = _against(told["comparisons"], headline["key"], row, reference)
        body.append(
            [
                row["shown_budget"],
                f"{row['system']} (control)" if row["control"] else row["system"],
                *(rate(row["scores"].get(measure["key"])) for measure in measures),
                _n(scored),
                *([rate(scored.get("corrected"))] if corrected else []),
                rate(row["gap"].get(headline["key"])),
                number(row["tokens"]),
                rate(difference, signed=True),
                p_value((difference or {}).get("p_holm")),
            ]
        )
    return [header, *body]


def _n(scored: Results) -> str:
    ungraded = scored.get("ungraded")
    return number(scored.get("n")) + (f", {ungraded:,} ungraded" if ungraded else "")


def _value(row: Results, measure: str) -> float:
    return float((row["scores"].get(measure) or {}).get("value") or 0.0)


def _against(comparisons: Sequence[Results], measure: str, row: Results, reference: str) -> Results | None:
    """The paired difference of a row to the reference at the same budget, as a score with its p. A row with a budget of
    its own has one where the reference has only one budget."""
    mine = (row["system"], row["budget"])
    found = [
        (c, sign)
        for c in comparisons
        for side, other, sign in (("a", "b", 1), ("b", "a", -1))
        if (c.get("grading") or c["measure"]) == measure
        and (c[side]["system"], int(c[side]["budget"])) == mine
        and c[other]["system"] == reference != row["system"]
    ]
    found = [(c, sign) for c, sign in found if c["level"] == row["budget"]] or found
    if len(found) != 1 or found[0][0]["difference"] is None:
        return None
    c, sign = found[0]
    bounds = sorted(sign * c[bound] for bound in ("low", "high")) if c["low"] is not None else [None, None]
    return {"value": sign * c["difference"], "low": bounds[0], "high": bounds[1], "p_holm": c.get("p_holm")}


_OTHERS = ["others' answers", "read by", "J on these", "n", "J on all", "n"]


def _others(run: Run, asked: set[str]) -> list[list[str]]:
    keys = [k for k in latest(run.records) if k[2] in asked]
    certificates = run.results["certificates"]
    same: dict[str, Any] = conclusion.compute_results(
        run.manifest, run.records, [], run.data, keys, run.results, certificates=certificates
    )
    told = summary(run.manifest, run.results)
    judged = next((measure["key"] for measure in told["measures"] if measure["judged"]), "")
    here = {row["system"]: row["scores"] for row in summary(run.manifest, same)["rows"]}
    status = "" if run.results["status"] == "valid" else f" ({run.results['status'].upper()})"
    body = []
    for row in told["rows"]:
        cells = [row["system"] + status, run.results["reader"] or "unknown"]
        for scored in (here.get(row["system"], {}).get(judged) or {}, row["scores"].get(judged) or {}):
            cells += [rate(scored), _n(scored)]
        body.append(cells)
    return body


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="memometer leaderboard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run of evaluate.py")
    parser.add_argument(
        "published", nargs="*", type=Path, metavar="PUBLISHED", help="folders of memometer.harness.import_results"
    )
    args = parser.parse_args(argv)
    try:
        run, *published = (followed.run() for followed in follow([args.run, *args.published]))
        text = board(run, published)
    except (RunFolderError, DataError, NotABoard) as error:
        print(f"memometer.report.leaderboard: {error}", file=sys.stderr)
        return USAGE
    print("".join(f"{run.data.prefix}{line}\n" for line in text.splitlines()), end="")
    return 0
