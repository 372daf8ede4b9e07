"""Compare memory systems by evidence recall on several data sets, with intervals, without a language model.

    python benchmarks/recall_table.py --data realtalk=FILE --data beam=FILE [--encoder minilm] [--out runs/recall]

LOCOMO is read from its usual place, and skipped with a reason if it is not there. --data adds a file in LOCOMO's shape
or in the shape of own data. A turn counts as recalled if every word of it is shown. `answer` is the share of questions
whose gold answer has all its content words in the text shown. Each row gives the mean with a 95 % interval over
conversations, and the last block the difference from the best baseline. --reliability also prints how often turns of
each predicted probability are evidence, and --plot FILE draws it as SVG.

    python benchmarks/recall_table.py --no-locomo --synthetic 4 --encoder minilm --similarity-weight 1.5

--synthetic N adds N synthetic conversations of each style that the default weights were not fitted on. Constants of the
ranking are chosen on these.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from memometer import benchmarks, synthetic, systems
from memometer.benchmarks.metrics import evidence_recall
from memometer.benchmarks.protocol import Conversation, DataError, Question, Session
from memometer.models import encoders
from memometer.retrieval import ranker
from memometer.retrieval.tokenize import terms
from memometer.stats.intervals import clustered_mean, paired
from memometer.token_counters import counter_for

SYSTEMS = ("adaptive", "untrained", "bm25_neighbours", "bm25", "session")
WITH_ENCODER = ("adaptive", "untrained", "rrf", "vector", "bm25_neighbours", "bm25")
BASELINES = ("bm25", "bm25_neighbours", "rrf", "vector")
FIRST_HELD_OUT = 200
"""The default weights are fitted on the first 120 synthetic conversations of a style, or fewer."""

BINS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 1.01)

Curve = list[tuple[float, float]]
"""Predicted and observed frequency of evidence in each bin."""

Values = dict[tuple[str, int], list[float]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--systems", default="", help="comma-separated names")
    parser.add_argument("--budgets", default="512,1024,2048,4096")
    parser.add_argument("--encoder", help="minilm adds its rows")
    parser.add_argument("--ranking", default="default", choices=["default", "locomo"])
    parser.add_argument("--conversations", type=int, default=10**6, help="only the first ones of each data set")
    parser.add_argument("--no-locomo", action="store_true")
    parser.add_argument("--synthetic", type=int, default=0, metavar="N", help="synthetic conversations of each style")
    parser.add_argument("--similarity-weight", type=float, help="weight of the encoder's similarity")
    parser.add_argument("--reliability", action="store_true")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the reliability as SVG")
    parser.add_argument("--out", type=Path, help="folder for results.json")
    args = parser.parse_args()
    if args.similarity_weight is not None:
        ranker.SIMILARITY_WEIGHT = args.similarity_weight
    encoder = encoders.load(args.encoder) if args.encoder else None
    names = args.systems.split(",") if args.systems else list(WITH_ENCODER if encoder else SYSTEMS)
    budgets = [int(budget) for budget in args.budgets.split(",")]
    written: dict[str, Any] = {}
    curves: dict[str, Curve] = {}
    data_sets = _data_sets(args.data, with_locomo=not args.no_locomo)
    for title, conversations in [*data_sets, *_synthetic(args.synthetic)]:
        conversations = conversations[: args.conversations]
        recall, answer, clusters = measure(conversations, names, budgets, encoder, args)
        print(f"\n{title}: n = {len(clusters)} in {len(set(clusters))} conversations; recall at {args.budgets} tokens")
        written[title] = report(names, budgets, recall, answer, clusters)
        if args.reliability or args.plot:
            curves[title] = reliability(conversations, encoder, args)
    if args.plot:
        args.plot.write_text(reliability_plot(curves), encoding="utf-8")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "results.json").write_text(json.dumps(written, indent=1))
    return 0


def _data_sets(given: list[str], *, with_locomo: bool) -> list[tuple[str, Sequence[Conversation]]]:
    """Return the data sets that can be read; print the reason for the others."""
    found = []
    for text in ["locomo=", *given] if with_locomo else given:
        title, _, path = text.partition("=")
        try:
            data = benchmarks.read(None if path else "locomo", path or None)
            if title == "locomo" and data.kind:
                raise DataError("LOCOMO's file is not on this machine")
            found.append((title, data.conversations))
        except DataError as error:
            print(f"SKIPPED {title}: {error}")
    return found


def _synthetic(number: int) -> list[tuple[str, Sequence[Conversation]]]:
    """Return synthetic conversations of each style, as those of a benchmark."""
    if not number:
        return []
    return [
        (f"synthetic {style}", [_conversation(style, FIRST_HELD_OUT + n) for n in range(number)])
        for style in synthetic.STYLES
    ]


def _conversation(style: str, number: int) -> Conversation:
    made = synthetic.generate(f"{style}/{number}", style)
    sessions = [
        Session(session, turns[0].said_at, turns)
        for session, turns in ((s, tuple(t)) for s, t in groupby(made.turns, key=lambda turn: turn.session))
    ]
    questions = [
        Question(made.id, n, q.text, q.kind, q.answer or "-", q.evidence) for n, q in enumerate(made.questions)
    ]
    speakers = tuple(dict.fromkeys(turn.speaker for turn in made.turns))
    return Conversation(made.id, speakers, tuple(sessions), tuple(questions))


def measure(
    conversations: Sequence[Conversation], names: list[str], budgets: list[int], encoder: Any, args: argparse.Namespace
) -> tuple[Values, Values, list[str]]:
    """Return recall and answer-in-context by system and budget, and the conversation of each question."""
    count = counter_for(tokenizer=None)
    recall: Values = defaultdict(list)
    answer: Values = defaultdict(list)
    clusters: list[str] = []
    for conversation in conversations:
        asked = [q for q in conversation.questions if q.answerable and q.evidence]
        clusters += [conversation.id] * len(asked)
        for name in names:
            kind = systems.load(name)
            parts = {"encoder": encoder} if encoder and (kind.needs_encoder or kind.takes_token_encoder) else {}
            if kind.takes_ranking:
                parts["ranking"] = args.ranking
            memory = kind(count=count, **parts)
            state = memory.new()
            started = time.perf_counter()
            for session in conversation.sessions:
                memory.observe(state, session.turns)
            ingest = time.perf_counter() - started
            started = time.perf_counter()
            for question in asked:
                gold = set(terms(str(question.gold or "")))
                for budget in budgets:
                    shown = memory.recall(state, question.text, budget)
                    recall[name, budget].append(evidence_recall(question.evidence, shown.whole_ids) or 0.0)
                    answer[name, budget].append(float(bool(gold) and gold <= set(terms(shown.text))))
            each = (time.perf_counter() - started) / max(1, len(asked) * len(budgets))
            print(f"  {conversation.id} {name}: ingest {ingest:.2f} s, recall {1000 * each:.1f} ms", file=sys.stderr)
    return recall, answer, clusters


def report(names: list[str], budgets: list[int], recall: Values, answer: Values, clusters: list[str]) -> dict[str, Any]:
    """Print a table, and return its figures."""
    written: dict[str, Any] = {}
    for name in names:
        estimates = [clustered_mean(recall[name, budget], clusters) for budget in budgets]
        rounded = [[100 * (value or 0.0) for value in (e.mean, e.low, e.high)] for e in estimates]
        cells = [f"{mean:5.1f} [{low:.1f}, {high:.1f}]" for mean, low, high in rounded]
        answers = [100 * float(np.mean(answer[name, budget])) for budget in budgets]
        print(f"  {name:16}" + "  ".join(cells) + "   answer " + " ".join(f"{value:.1f}" for value in answers))
        written[name] = {"recall": [mean for mean, _, _ in rounded], "answer": answers}
    rivals = [name for name in names if name in BASELINES]
    if "adaptive" in names and rivals:
        cells = []
        for budget in budgets:
            best = max(rivals, key=lambda name, at=budget: float(np.mean(recall[name, at])))  # type: ignore[misc]
            found = paired(recall["adaptive", budget], recall[best, budget], clusters)
            difference, low, high = (100 * (value or 0.0) for value in (found.difference, found.low, found.high))
            cells.append(f"{difference:+.1f} [{low:+.1f}, {high:+.1f}] {best}")
        print("  adaptive minus the best baseline: " + "; ".join(cells))
    return written


def reliability(conversations: Sequence[Conversation], encoder: Any, args: argparse.Namespace) -> Curve:
    """Print predicted against observed frequency of evidence, in bins of the predicted probability."""
    memory = systems.load("adaptive")(ranking=args.ranking, **({"encoder": encoder} if encoder else {}))
    predicted, observed = [], []
    for conversation in conversations:
        state = memory.new()
        memory.observe(state, conversation.turns)
        for question in conversation.questions:
            if question.answerable and question.evidence:
                predicted.append(np.exp(memory.scores(state, question.text)))
                observed.append(np.isin([turn.id for turn in state.turns], question.evidence))
    p, y = np.concatenate(predicted), np.concatenate(observed)
    print("  reliability: predicted / observed (turns)")
    curve = []
    for low, high in pairwise(BINS):
        inside = (p >= low) & (p < high)
        if inside.any():
            curve.append((float(p[inside].mean()), float(y[inside].mean())))
            print(f"    {curve[-1][0]:8.4f} {curve[-1][1]:8.4f}  ({inside.sum():,})")
    return curve


def reliability_plot(curves: dict[str, Curve]) -> str:
    """Return an SVG of observed against predicted frequencies, on logarithmic axes from 0.0001 to 1."""
    side, margin = 400, 50

    def place(value: float) -> float:
        return side * (4 + float(np.log10(max(value, 1e-4)))) / 4

    parts = [f'<rect x="{margin}" y="10" width="{side}" height="{side}" fill="white" stroke="#888"/>',
             f'<line x1="{margin}" y1="{10 + side}" x2="{margin + side}" y2="10" stroke="#bbb" stroke-dasharray="4"/>',
             f'<text x="{margin + side / 2}" y="{side + 48}" text-anchor="middle">predicted probability</text>',
             f'<text transform="translate(14 {side / 2}) rotate(-90)">observed</text>']  # fmt: skip
    for tick in (0.0001, 0.001, 0.01, 0.1, 1.0):
        at = place(tick)
        parts.append(f'<text x="{margin + at:.0f}" y="{side + 28}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<text x="{margin - 4}" y="{14 + side - at:.0f}" text-anchor="end">{tick:g}</text>')
    colours = ("#1b6ca8", "#c0392b", "#2a8c55", "#8e44ad", "#d68910", "#555555", "#16a085", "#7f4f24")
    for n, (title, curve) in enumerate(curves.items()):
        colour = colours[n % len(colours)]
        points = [(margin + place(p), 10 + side - place(y)) for p, y in curve]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        parts.append(f'<text x="{margin + 10}" y="{30 + 16 * n}" fill="{colour}">{title}</text>')
    size = f'viewBox="0 0 {side + margin + 20} {side + 60}" width="{side + margin + 20}"'
    text = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">\n{text}\n</svg>\n'


if __name__ == "__main__":
    sys.exit(main())
