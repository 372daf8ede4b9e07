"""`memometer label`: label answers of a run by hand, to check its judge and to report an accuracy that people gave."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from memometer.commands.argument_types import positive
from memometer.errors import UserError

if TYPE_CHECKING:
    from memometer.judging.human_labels import HumanLabel
    from memometer.judging.label_session import LabelSession

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
    options.add_argument("--browser", action="store_true", help="label on a page in the browser, on this machine only")
    options.add_argument("--port", type=int, default=0, metavar="N", help="port of the page (default: any free one)")
    options.add_argument("--no-browser", action="store_true", help="with --browser: print the address, open nothing")
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
    from memometer.judging.label_session import LabelSession
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
        session = LabelSession(folder, data, drawn, args.labeller or human_labels.user_name(), args.seed)
        try:
            if args.browser:
                _in_browser(session, args.port, opened=not args.no_browser)
            else:
                ask(session, sys.stdin, sys.stdout)
        except (KeyboardInterrupt, EOFError):
            print()
        if folder.labels():
            _, text = rewrite_results(folder, data)
            print(f"\n{text}")
        print(f"{data.prefix}{session.done():,} of {len(drawn):,} answers labelled; continue with the same command.")
    return 0


def ask(session: LabelSession, source: TextIO, screen: TextIO) -> None:
    """Show each answer without a label and append the label that the person types.

    Args:
        session: The labelling.
        source: The person's input, one key a line.
        screen: The text is written here.

    Raises:
        EOFError: The input ended.
    """
    first = session.next_unlabelled()
    position = len(session.drawn) if first is None else first
    while position < len(session.drawn):
        print(f"\n{position + 1} of {len(session.drawn)}", *_shown(session, position), sep="\n", file=screen)
        reply = _reply(source, screen)
        if reply == "q":
            return
        if reply == "b":
            position = max(0, position - 1)
            continue
        session.add(position, LABELS[reply])
        following = session.next_unlabelled(position)
        position = len(session.drawn) if following is None or following <= position else following


def _shown(session: LabelSession, position: int) -> Iterator[str]:
    draw = session.drawn[position]
    yield f"Question: {draw.question.text}"
    yield f"Gold:     {draw.question.gold}"
    yield f"Answer:   {' '.join(session.answer(draw).split())}"
    yield from (f"Evidence: {line}" for line in session.evidence(draw))


def _in_browser(session: LabelSession, port: int, *, opened: bool) -> None:
    """Serve the label page until the person stops it there or with Ctrl-C."""
    from memometer.report.label_server import LabelServer

    try:
        server = LabelServer(session, port)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on port {port} ({error}); choose another one with --port.") from error
    print(f"{session.data.prefix}Label at {server.url} (q on the page or Ctrl-C to stop)", flush=True)
    if opened:
        import webbrowser

        webbrowser.open(server.url)
    try:
        server.serve_forever()
    finally:
        server.server_close()


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
