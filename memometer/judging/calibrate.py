"""Measure a judge before its numbers are believed.

    memometer calibrate --judge-model embedded:base
    memometer calibrate --judge-model openai/gpt-4o-mini --judge lenient --wrong-answers FILE

Prints the certificate and keeps it, so that evaluate.py and memometer.harness.rescore need not measure again.
Exit codes: 0
passed, 1 the judge cannot be measured, 2 usage, 3 failed, 4 stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from memometer import benchmarks
from memometer.benchmarks.arguments import add_data_arguments, load_data
from memometer.benchmarks.protocol import DataError, Dataset
from memometer.judging import judge_calibration
from memometer.judging.calibration_set import Probe, draw
from memometer.judging.judge import Judge
from memometer.judging.judge_calibration import Certificate, Unmeasured
from memometer.models.downloads import WeightsUnavailable
from memometer.models.errors import FATAL, describe
from memometer.models.resolve_models import Model
from memometer.run import cost as accounting
from memometer.run import progress
from memometer.run.folder import RunFolder
from memometer.run.interrupts import stopping
from memometer.run.progress import eprint

FIELD_NAMES = 24
"""Tokens around what a judge is shown: the names of the fields and a chat template."""


MOST_REPEATS = 100


class Certifier:
    """Finds the certificate of a judge, or measures it.

    Args:
        wrong_answers: the file of specific wrong answers; None for the one that the benchmark's variable names, if
            any, but not for data that is not the benchmark's own.
        per_set: answers in a set (of golds, twice as many).

    Raises DataError for a file that holds something else.
    """

    def __init__(
        self,
        data: Dataset,
        model: Model,
        judge: Judge,
        *,
        address: str | None = None,
        wrong_answers: str | None = None,
        per_set: int = judge_calibration.PER_SET,
        repeats: int = judge_calibration.REPEATS,
    ) -> None:
        file = benchmarks.load(data.benchmark).wrong_answers
        named = wrong_answers or (os.environ.get(file.variable) if file and not data.kind else None)
        if named and file is None:
            raise DataError("--wrong-answers: the benchmark has no format for wrong answers; leave it out.")
        wrong = Path(named) if named else None
        self._answers = file.read(wrong, data) if wrong and file else None
        self.data, self.model, self.judge = data, model, judge
        self.per_set, self.repeats = per_set, repeats
        self.identity = judge_calibration.identify(
            judge, revision=model.revision, address=address, data=data.sha256, wrong=wrong
        )

    @cached_property
    def sets(self) -> dict[str, list[Probe]]:
        """What the judge is shown."""
        return draw(self.data, self.per_set, wrong=self._answers)

    @property
    def calls(self) -> int:
        n = sum(map(len, self.sets.values()))
        return n + min(judge_calibration.STEADY, n) * (self.repeats - 1)

    def kept(self) -> Certificate | None:
        """The certificate from the cache, where there is a valid one of this version."""
        found = judge_calibration.kept(self.identity, per_set=self.per_set)
        try:
            return found if found and judge_calibration.judged(found) else None
        except (KeyError, TypeError):
            return None

    def forecast(self) -> str:
        """What measuring costs, without retries."""
        shown = [f"{p.question.text}{p.question.gold}{p.answer}" for drawn in self.sets.values() for p in drawn]
        each = sum(map(self.model.count, shown)) / max(1, len(shown))
        each += self.model.count(self.judge.instructions) + FIELD_NAMES
        prompts, replies = round(self.calls * each), self.calls * self.model.max_tokens
        cost = accounting.money(accounting.forecast(self.model, prompts, replies), self.model)
        return f"{self.calls} calls, at most {prompts + replies:,} tokens, {cost}"

    def measure(
        self,
        *,
        num_threads: int,
        stop: threading.Event | None = None,
        mark: str = "",
        folder: RunFolder | None = None,
    ) -> Certificate:
        """Measure, with a bar on standard error, and keep what comes out; what it cost is the run's in `folder`.

        Raises Unmeasured, also once `stop` is set, and what a judge raises for a rejected key; nothing is kept then.
        """
        with progress.bar(total=self.calls, desc=f"{mark}certifying") as bar:
            found = judge_calibration.measure(
                self.judge, self.sets, repeats=self.repeats, num_threads=num_threads, stop=stop, progress=bar.update
            )
        if folder:
            folder.append_measuring({"judge": found["judge"], "prompt": found["prompt"], **found["usage"]})
        try:
            return judge_calibration.keep(found, self.identity, per_set=self.per_set)
        except OSError as error:  # what was paid for counts all the same
            eprint(f"{mark}The certificate cannot be kept ({error}), and the judge will be measured again next time.")
            return found


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="memometer calibrate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_judge(p)
    p.add_argument(
        "--per-set", type=int, default=judge_calibration.PER_SET, metavar="N", help="answers a set (golds twice)"
    )
    p.add_argument(
        "--repeats", type=int, default=judge_calibration.REPEATS, metavar="N", help="of a few, for stability"
    )
    p.add_argument("--again", action="store_true", help="measure although a certificate is kept")
    return p


def add_judge(p: argparse.ArgumentParser) -> None:
    """The flags that name a judge, and how it is asked."""
    p.add_argument("--judge-model", required=True, metavar="NAME", help="a DSPy model string, or embedded:base")
    p.add_argument("--judge-api-base", metavar="URL", help="an OpenAI-compatible server")
    p.add_argument("--judge", metavar="PROMPT", help="the judge prompt of the benchmark (default its first)")
    add_data_arguments(p)
    p.add_argument("--wrong-answers", metavar="FILE", help="specific wrong answers (default: the benchmark's variable)")
    p.add_argument("--max-false-accept", type=float, default=judge_calibration.MAX_FALSE_ACCEPT, metavar="SHARE")
    p.add_argument("--num-threads", type=int, metavar="N", help="calls at once (default 4, embedded 1)")
    p.add_argument("--retries", type=int, default=4, metavar="N")
    p.add_argument("--timeout-seconds", type=float, default=120.0, metavar="S")


def load_judge(args: argparse.Namespace) -> tuple[Model, Judge]:
    """The judge that `add_judge`'s flags name. Raises ValueError or WeightsUnavailable with one sentence."""
    from memometer.models import resolve_models

    model = resolve_models.load(
        args.judge_model,
        api_base=args.judge_api_base,
        max_tokens=16,
        timeout_seconds=args.timeout_seconds,
        retries=args.retries,
        log=eprint,
    )
    return model, Judge(model.lm, benchmarks.load(args.benchmark).judge_prompt(args.judge))


def threads(args: argparse.Namespace) -> int:
    """Calls at once: a server answers several, an embedded model keeps the processor busy alone."""
    return args.num_threads or (1 if args.judge_model.startswith("embedded:") else 4)


def mistake(args: argparse.Namespace) -> str:
    """What is wrong with `add_judge`'s flags, in one sentence; empty where nothing is."""
    if not 0 <= args.max_false_accept <= 1:
        return f"--max-false-accept is {args.max_false_accept}; it is a share from 0 to 1."
    if args.num_threads is not None and args.num_threads < 1:
        return f"--num-threads is {args.num_threads}; it is 1 or more."
    if args.retries < 0 or not 0 < args.timeout_seconds < 1e6:
        return "--retries may not be negative, and --timeout-seconds must be above 0 (and below a million)."
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        if problem := mistake(args):
            raise ValueError(problem)
        if args.per_set < 1 or not 0 < args.repeats <= MOST_REPEATS:
            raise ValueError(f"--per-set is 1 or more, and --repeats from 1 to {MOST_REPEATS}.")
        data = load_data(args)
        model, judge = load_judge(args)
        certifier = Certifier(
            data,
            model,
            judge,
            address=args.judge_api_base,
            wrong_answers=args.wrong_answers,
            per_set=args.per_set,
            repeats=args.repeats,
        )
    except (ValueError, WeightsUnavailable) as error:
        print(f"memometer.judging.calibrate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # once probes are graded, Ctrl-C is for the calls in flight
        print("memometer.judging.calibrate: stopped before anything was graded.", file=sys.stderr)
        return 4
    found = None if args.again else certifier.kept()
    if found is None:
        eprint(f"{data.prefix}Measuring {judge.lm.model} ({judge.prompt}): {certifier.forecast()}.")
        with stopping() as stop:
            try:
                found = certifier.measure(num_threads=threads(args), stop=stop, mark=data.prefix)
            except (Unmeasured, *FATAL) as error:
                told = str(error) if isinstance(error, Unmeasured) else describe(error)
                print(f"memometer.judging.calibrate: {told}; nothing was kept.", file=sys.stderr)
                return 4 if stop.is_set() else 1
    found = judge_calibration.judged(found, max_false_accept=args.max_false_accept)
    print("\n".join(f"{data.prefix}{line}" for line in judge_calibration.table(found).splitlines()))
    return 0 if found["passed"] else 3
