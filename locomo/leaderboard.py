"""One table of a run for a README or a paper, with others' published answers to the same questions below it.

    python -m locomo.leaderboard RUN [PUBLISHED …]

prints Markdown. RUN is a folder of evaluate.py; the others are compared with its first system, paired on the same
questions. Each PUBLISHED is a folder of `python -m locomo.published`; it is scored on RUN's questions alone,
beside all that it answers, and stands apart: others chose the reader, the prompt and the judge.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from locomo import conclusion
from locomo.dataset import ANSWERABLE, DataError
from locomo.page_data import Run
from locomo.report_text import grid, number, p_value, rate
from locomo.run_folder import RunFolderError, latest
from locomo.summary import Results, summary
from locomo.view import follow

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
            raise NotABoard(f"{other.name} is no import of python -m locomo.published; compare it with locomo.compare.")
        if other.data.sha256 != run.data.sha256:
            raise NotABoard(f"{other.name} answers other data than {run.name}.")
    told = summary(run.manifest, run.results)
    asked = {q.id for q in run.data.questions if q.category in ANSWERABLE} & {r["question_id"] for r in run.records}
    parts = [
        _heading(run, told, asked),
        "\n".join(f"> {text}" for text in [*told["warnings"], *told["withheld"]]),
        grid(_ours(told)),
    ]
    if published:
        parts += [
            "Others' answers with others' verdicts, on the same questions and on all that they answered:",
            grid([_OTHERS, *(row for other in published for row in _others(other, asked))]),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _heading(run: Run, told: Results, asked: set[str]) -> str:
    conversations = len({q.conversation for q in run.data.questions if q.id in asked})
    results = run.results
    parts = [
        f"{len(asked):,} answerable questions (categories 1-4) of {conversations} conversations, split "
        f"{results['split']}, seed {run.manifest['config']['seed']}; read by {results['reader'] or 'nobody'}"
    ]
    if results["judge"]:
        parts.append(f"judged by {results['judge']}")
    for found in told["certificates"]:
        accepts, rejects = (rate({**found[name], "value": found[name]["rate"]}) for name in _ERRORS if found.get(name))
        parts.append(f"which accepts {accepts} % of wrong and rejects {rejects} % of right answers")
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
                *([rate(scored.get("corrected"))] if corrected else []),
                rate(row["gap"].get(headline["key"])),
                number(row["tokens"]),
                rate(difference, signed=True),
                p_value((difference or {}).get("p_holm")),
            ]
        )
    return [header, *body]


def _value(row: Results, measure: str) -> float:
    return float((row["scores"].get(measure) or {}).get("value") or 0.0)


def _against(comparisons: Sequence[Results], measure: str, row: Results, reference: str) -> Results | None:
    """The paired difference of a row to the reference at the same budget, as a score with its p."""
    for c in comparisons:
        places = [(c[side]["system"], int(c[side]["budget"])) for side in "ab"]
        mine = (row["system"], row["budget"])
        if (c.get("grading") or c["measure"]) != measure or mine not in places or row["system"] == reference:
            continue
        if places[1 - places.index(mine)][0] != reference or (row["budget"] and c["level"] != row["budget"]):
            continue
        sign = 1 if places[0] == mine else -1
        bounds = sorted(sign * c[bound] for bound in ("low", "high")) if c["low"] is not None else [None, None]
        return {"value": sign * c["difference"], "low": bounds[0], "high": bounds[1], "p_holm": c.get("p_holm")}
    return None


_OTHERS = ["others' answers", "read by", "J on these", "n", "J on all", "n"]


def _others(run: Run, asked: set[str]) -> list[list[str]]:
    keys = [k for k in latest(run.records) if k[2] in asked]
    same: dict[str, Any] = conclusion.amounts(run.manifest, run.records, [], run.data, keys, run.results)
    told = summary(run.manifest, run.results)
    headline = told["measures"][0]["key"]
    here = {row["system"]: row["scores"] for row in summary(run.manifest, same)["rows"]}
    body = []
    for row in told["rows"]:
        invalid = " (INVALID)" if run.results["status"] == "invalid" else ""
        cells = [row["system"] + invalid, run.results["reader"] or "unknown"]
        for scored in (here[row["system"]].get(headline), row["scores"].get(headline)):
            cells += [rate(scored), number((scored or {}).get("n"))]
        body.append(cells)
    return body


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m locomo.leaderboard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run of evaluate.py")
    parser.add_argument("published", nargs="*", type=Path, metavar="PUBLISHED", help="folders of locomo.published")
    args = parser.parse_args(argv)
    try:
        run, *published = (followed.run() for followed in follow([args.run, *args.published]))
        text = board(run, published)
    except (RunFolderError, DataError, NotABoard) as error:
        print(f"locomo.leaderboard: {error}", file=sys.stderr)
        return USAGE
    print("".join(f"{run.data.mark}{line}\n" for line in text.splitlines()), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
