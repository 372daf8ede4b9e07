"""`memometer label`: label answers of a run by hand, to check its judge and to report an accuracy that people gave."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from memometer.commands.argument_types import positive
from memometer.errors import UserError

if TYPE_CHECKING:
    from memometer.benchmarks.protocol import Dataset
    from memometer.judging.human_labels import Draw, HumanLabel
    from memometer.run.folder import RunFolder

LABELS: Mapping[str, HumanLabel] = {"c": "correct", "w": "wrong", "u": "unclear"}
KEYS = "c correct, w wrong, u unclear, b back, q stop"


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    options = argparse.ArgumentParser(
        description=f"{__doc__} Answers are drawn at random, balanced over judge verdict and F1, and shown with "
        "question, gold answer and evidence, without the verdict. Labels are appended to labels.jsonl in the run "
        "folder. The order is fixed, so you can stop and continue at any time.",
        allow_abbrev=False,
    )
    options.add_argument("run", type=Path, metavar="RUN", help="run folder")
    options.add_argument("--sample", type=positive, default=100, metavar="N", help="answers to label (default 100)")
    options.add_argument("--system", metavar="NAME", help="only answers of this system (default: of all systems)")
    options.add_argument("--budget", type=positive, metavar="TOKENS", help="only answers at this budget")
    options.add_argument("--labeller", metavar="NAME", help="your name (default: the user name)")
    options.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the order (default 0)")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Ask for labels, then write the results of the run again.

    Returns:
        0.

    Raises:
        UserError: The run cannot be read or has nothing to label.
    """
    args = parser().parse_args(argv)
    from memometer.harness.rescore import rewrite_results
    from memometer.judging import human_labels
    from memometer.report.write import data_of
    from memometer.run.folder import RunFolder

    with RunFolder.reopen(args.run) as folder:
        data = data_of(args.run, folder.manifest)
        if other := {line["seed"] for line in folder.labels()} - {args.seed}:
            raise UserError(f"{args.run} was labelled with --seed {min(other)}; use the same seed.")
        drawn = [
            draw
            for draw in human_labels.draws(folder.records(), data, seed=args.seed)
            if args.system in (None, draw.record["system"]) and args.budget in (None, draw.record["budget_tokens"])
        ][: args.sample]
        if not drawn:
            raise UserError(
                f"{args.run} has no such answers to label; see its systems with memometer compare {args.run}."
            )
        session = Session(folder, data, drawn, args.labeller or human_labels.user_name(), args.seed)
        try:
            session.ask(sys.stdin, sys.stdout)
        except (KeyboardInterrupt, EOFError):
            print()
        if folder.labels():
            _, text = rewrite_results(folder, data)
            print(f"\n{text}")
        print(f"{data.prefix}{session.done():,} of {len(drawn):,} answers labelled; continue with the same command.")
    return 0


@dataclass(frozen=True)
class Session:
    """One person's labelling of a run.

    Attributes:
        folder: The run.
        data: Its data.
        drawn: The answers to label, in order.
        labeller: Name of the person.
        seed: Seed of the order.
    """

    folder: RunFolder
    data: Dataset
    drawn: Sequence[Draw]
    labeller: str
    seed: int

    def done(self) -> int:
        """The number of drawn answers that this person has labelled."""
        return sum(label != "" for label in self._given())

    def _given(self) -> list[str]:
        from memometer.judging.human_labels import by_labeller
        from memometer.run.folder import key

        mine = by_labeller(self.folder.labels()).get(self.labeller, {})
        return [mine.get(key(draw.record), "") for draw in self.drawn]

    def ask(self, source: TextIO, screen: TextIO) -> None:
        """Show each answer without a label and append the label that the person types.

        Args:
            source: The person's input, one key a line.
            screen: The text is written here.

        Raises:
            EOFError: The input ended.
        """
        from memometer.judging.human_labels import label_line

        given = self._given()
        position = next((n for n, label in enumerate(given) if not label), len(given))
        while position < len(self.drawn):
            draw = self.drawn[position]
            print(f"\n{position + 1} of {len(self.drawn)}", *self._shown(draw), sep="\n", file=screen)
            reply = _reply(source, screen)
            if reply == "q":
                return
            if reply == "b":
                position = max(0, position - 1)
                continue
            at = datetime.now(UTC).isoformat(timespec="seconds")
            label = label_line(draw.record, LABELS[reply], labeller=self.labeller, at=at, seed=self.seed)
            self.folder.append_label(label)
            given[position] = LABELS[reply]
            position = next((n for n in range(position + 1, len(given)) if not given[n]), len(given))

    def _shown(self, draw: Draw) -> Iterator[str]:
        question = draw.question
        conversation = next(c for c in self.data.conversations if c.id == question.conversation)
        turns = {turn.id: turn for turn in conversation.turns}
        yield f"Question: {question.text}"
        yield f"Gold:     {question.gold}"
        # An answer is a model's text: control characters would reach the terminal.
        yield f"Answer:   {''.join(c if c.isprintable() else ' ' for c in draw.record['answer'])}"
        yield from (
            f"Evidence: {turns[id].said_at:%Y-%m-%d} {turns[id].line.strip()}"
            for id in question.evidence
            if id in turns
        )


def _reply(source: TextIO, screen: TextIO) -> str:
    """Read one of the keys; other input is asked again."""
    while True:
        print(f"[{KEYS}] ", end="", flush=True, file=screen)
        line = source.readline()
        if not line:
            raise EOFError
        key = line.strip().lower()[:1]
        if key in LABELS or key in ("b", "q"):
            return key
