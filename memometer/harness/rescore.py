"""Grade a run's answers again: under any judge, prompt and answer key, without asking for an answer again.

    memometer rescore RUN... --judge-model M [--judge strict|lenient|...] [--label-set corrected]
    memometer rescore RUN... --judge-model M --panel

Verdicts are put beside the earlier ones; what has a label under this judge, prompt, key and repeat is not asked for
again, so that a stopped command goes on where it was. Then results.json and table.txt are written anew. The judge is
certified first. `--panel` grades under every prompt and says whether the ranking of the systems survives.

Exit codes: 0 done, 1 no call can succeed, 2 usage, 3 too much stayed ungraded, 4 stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from memometer import benchmarks
from memometer.benchmarks.arguments import load_data
from memometer.benchmarks.protocol import FREE, Dataset
from memometer.benchmarks.sampling import sample
from memometer.budget import UNBOUNDED
from memometer.harness.options import EvaluateOptions
from memometer.harness.plan import chosen_questions
from memometer.judging import calibrate, judge_calibration, judge_sensitivity, label_sets
from memometer.judging.graders import Grading, gradings, score
from memometer.judging.judge import Judge
from memometer.judging.judge_calibration import Certificate
from memometer.judging.regrading import Todo, grade, missing
from memometer.models.downloads import WeightsUnavailable
from memometer.models.errors import FATAL, describe
from memometer.report import aggregate
from memometer.report.results import write_results
from memometer.run import progress, test_set_usage
from memometer.run.folder import Key, Record, RunFolder, RunFolderError, asked_of, latest
from memometer.run.interrupts import stopping
from memometer.run.progress import eprint

FAIL_ON_ERROR = 0.02
FORGOTTEN = (
    "Clean and flagged questions were reported apart before; name the label corrections again with --label-corrections."
)


def planned(folder: RunFolder, data: Dataset, records: Sequence[Record]) -> list[Key]:
    """What the run asks, or was to ask, of the systems and at the budgets that it has begun with."""
    options = EvaluateOptions.of_saved(asked_of(folder.manifest, folder.path))
    asked = {record["question_id"] for record in records}
    if folder.manifest["config"].get("split"):
        questions = chosen_questions(options, data)
    else:
        questions = tuple(question for question in data.questions if question.id in asked)
    two_options = options.two_options and any(record["model"] for record in records)
    return [
        (system, budget, question.id, form)
        for system, budget in dict.fromkeys((record["system"], record["budget_tokens"]) for record in records)
        for question in questions
        for form in ((two_options and question.option_orders) or (FREE,))
    ]


def rewrite(
    folder: RunFolder, data: Dataset, new: Sequence[Certificate], corrections: label_sets.LabelCorrections | None = None
) -> tuple[dict[str, Any], str]:
    """All that the folder's records amount to, written anew; `new` are certificates beside those known."""
    records = folder.records()
    keys = planned(folder, data, records)
    before = _results(folder)
    own, named = gradings(records)[:1], label_sets.named_file(data)
    broken = test_set_usage.broken(records)
    facts = {
        "split": folder.manifest["config"].get("split"),
        "reader": folder.manifest["config"].get("model"),
        "token_counter": None,
        "left_out": {},
        "subset": len({id for _, _, id, _ in keys}) < len(data.questions),
        **before,
        "status": _status(folder, before, records, keys, broken),
        "ledger": {"test_scored": None, **(before.get("ledger") or {}), "broken": broken},
        "judge": f"{own[0].judge} ({own[0].prompt})" if own else None,
        "cautions": [FORGOTTEN] if before.get("clean_and_flagged") and not (corrections or named) else [],
    }
    rounds = {
        (name, int(budget)): entry["rounds"]
        for name, system in before.get("systems", {}).items()
        for budget, entry in system["budgets"].items()
        if "rounds" in entry  # cannot be found out from records alone
    }
    return write_results(
        folder,
        data,
        keys,
        facts,
        certificates=new,
        no_judge="no answer is graded.",
        rounds=rounds,
        notes=[test_set_usage.verdict(broken)],
        corrections=corrections,
    )


def _status(
    folder: RunFolder, before: Mapping[str, Any], records: Sequence[Record], keys: Sequence[Key], broken: Sequence[str]
) -> str:
    """What further verdicts make of a run that has ended: invalid with too many ungraded, valid again with fewer. They
    end no run that has not, and mend none that was tampered with or merged."""
    status = str(before.get("status", "unfinished"))
    if status not in ("valid", "invalid"):
        return status
    limit = folder.manifest["config"].get("fail_on_error", FAIL_ON_ERROR)
    merged = any(merge["flagged"] for merge in folder.manifest.get("published", {}).get("merges", ()))
    unsound = merged or broken or aggregate.ungraded_share(records, keys) > limit
    return "invalid" if unsound else "valid"


def _results(folder: RunFolder) -> dict[str, Any]:
    try:
        return dict(json.loads((folder.path / "results.json").read_bytes()))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        raise RunFolderError(
            f"{folder.path / 'results.json'} is damaged ({error}); delete it, and make it anew with python "
            f"evaluate.py --resume {folder.path}"
        ) from error


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="memometer rescore",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs, imported ones too")
    calibrate.add_judge(p)
    p.add_argument("--panel", action="store_true", help="every prompt, and whether the ranking survives")
    p.add_argument("--label-set", default="original", choices=["original", "corrected"])
    p.add_argument(
        "--label-corrections",
        metavar="FILE",
        help="clean and flagged questions apart (default: the benchmark's variable)",
    )
    p.add_argument("--repeats", type=int, default=1, metavar="N", help="verdicts on each answer")
    p.add_argument("--limit", type=int, metavar="N", help="a seeded sample of N questions, the same of each run")
    p.add_argument("--no-calibration", action="store_true", help="do not measure the judge, and show no J of it")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        if problem := _mistake(args):
            raise ValueError(problem)
        data = load_data(args)
        golds = label_sets.load(args.label_set, args.label_corrections, data=data)
        with ExitStack() as open_folders:
            folders = [open_folders.enter_context(RunFolder.reopen(path)) for path in args.runs]
            for folder in folders:
                _verify(folder, data)
            if args.limit:
                golds = _some(golds, folders, data, args.limit)
            corrections = label_sets.read(args.label_corrections, data=data) if args.label_corrections else None
            return _Rescoring(args, data, golds, folders, corrections).carry_out()
    except (ValueError, WeightsUnavailable) as error:  # RunFolderError and DataError are ValueErrors
        print(f"memometer.harness.rescore: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"memometer.harness.rescore: cannot be written: {error}; the same command goes on.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # once answers are graded, Ctrl-C is for the calls in flight
        print("memometer.harness.rescore: stopped before anything was graded.", file=sys.stderr)
        return 4


def _mistake(args: argparse.Namespace) -> str:
    if args.panel and args.judge:
        return "--panel grades under every prompt; leave out --judge."
    if not 0 < args.repeats <= calibrate.MOST_REPEATS or (args.limit is not None and args.limit < 1):
        return f"--repeats is from 1 to {calibrate.MOST_REPEATS}, and --limit 1 or more."
    if len({path.resolve() for path in args.runs}) < len(args.runs):
        return "a run is named twice; name each once."
    return calibrate.mistake(args)


def _verify(folder: RunFolder, data: Dataset) -> None:
    asked_of(folder.manifest, folder.path)
    _results(folder)  # damage is told before anything is paid
    was = folder.manifest["identity"].get("data")
    if was and was != data.sha256:
        raise RunFolderError(f"{folder.path} asked about other data than {data.path}; name its file with --data.")
    if (records := folder.records()) and not any(record["answer"] is not None for record in records):
        raise RunFolderError(
            f"{folder.path} holds no answer to grade, only recalls; answer its questions with python evaluate.py "
            "without --recall-only."
        )
    known = {question.id for question in data.questions}
    if strange := [r["question_id"] for r in records if r["question_id"] not in known]:
        raise RunFolderError(f"{folder.path} asked {strange[0]}, which {data.path} does not hold; name its --data.")


def _some(golds: Mapping[str, str], folders: Sequence[RunFolder], data: Dataset, n: int) -> dict[str, str]:
    """The golds of `n` of the questions that all of the runs have asked."""
    asked = [{record["question_id"] for record in folder.records()} for folder in folders]
    shared = [q for q in data.questions if q.id in golds and all(q.id in ids for ids in asked)]
    return {question.id: golds[question.id] for question in sample(shared, n)}


class _Rescoring:
    def __init__(
        self,
        args: argparse.Namespace,
        data: Dataset,
        golds: Mapping[str, str],
        folders: Sequence[RunFolder],
        corrections: label_sets.LabelCorrections | None,
    ) -> None:
        self.args, self.data, self.golds, self.folders, self.corrections = args, data, golds, folders, corrections
        self.model, judge = calibrate.load_judge(args)
        self.benchmark = benchmarks.load(data.benchmark)
        prompts = self.benchmark.judge_prompts.values() if args.panel else [self.benchmark.judge_prompt(args.judge)]
        self.judges = [Judge(judge.lm, prompt) for prompt in prompts]

    def say(self, text: str = "") -> None:
        for line in text.split("\n"):
            print(f"{self.data.prefix}{line}", flush=True)

    def carry_out(self) -> int:
        args = self.args
        todo = {judge.prompt: self._todo(judge) for judge in self.judges}
        n = sum(map(len, todo.values()))
        self.say(f"{self.judges[0].lm.model} gives {n:,} verdicts ({', '.join(todo)}; key {args.label_set}).")
        fatal, certificates = "", []
        with stopping() as stop:
            for judge in self.judges:
                if not args.panel and not args.no_calibration:
                    found, fatal = self._certificate(judge, stop)
                    certificates += [found] if found else []
                fatal = fatal or self._grade(judge, todo[judge.prompt], stop)
                if fatal or stop.is_set():
                    break
            for folder in self.folders:
                _, table = rewrite(folder, self.data, certificates, self.corrections)
                if not args.panel:
                    self.say(f"\n{folder.path}\n{table}")
            if args.panel:
                self.say(self._panel())
        left = sum(len(self._todo(judge)) for judge in self.judges)
        if fatal:
            self.say(f"Stopped, because no call can succeed: {fatal}. The same command goes on.")
            return 1
        if stop.is_set() and left:
            self.say("Stopped. The same command goes on.")
            return 4
        if left > FAIL_ON_ERROR * max(1, sum(map(self._due, self.folders)) * len(self.judges)):
            self.say(f"INVALID: {left:,} verdicts are no label; the same command asks for them again.")
            return 3
        return 0

    def _todo(self, judge: Judge) -> list[Todo]:
        return [
            item
            for folder in self.folders
            for item in missing(folder, self.data, self.golds, judge, self.args.label_set, self.args.repeats)
        ]

    def _due(self, folder: RunFolder) -> int:
        mine = latest(folder.records()).values()
        return self.args.repeats * sum(r["answer"] is not None and r["question_id"] in self.golds for r in mine)

    def _certificate(self, judge: Judge, stop: threading.Event) -> tuple[Certificate | None, str]:
        certifier = calibrate.Certifier(
            self.data,
            self.model,
            judge,
            address=self.args.judge_api_base,
            wrong_answers=self.args.wrong_answers,
        )
        found = certifier.kept()
        try:
            if found is None:
                eprint(f"{self.data.prefix}The judge has no certificate; measuring it: {certifier.forecast()}.")
                found = certifier.measure(
                    num_threads=calibrate.threads(self.args), stop=stop, mark=self.data.prefix, folder=self.folders[0]
                )
        except FATAL as error:
            return None, describe(error)
        except judge_calibration.Unmeasured as error:
            return None, "" if stop.is_set() else str(error)
        found = judge_calibration.judged(found, max_false_accept=self.args.max_false_accept)
        self.say(judge_calibration.sentence(found))
        return found, ""

    def _grade(self, judge: Judge, todo: Sequence[Todo], stop: threading.Event) -> str:
        with progress.bar(total=len(todo), desc=f"{self.data.prefix}{judge.prompt}") as bar:
            return grade(
                todo,
                judge,
                key_name=self.args.label_set,
                num_threads=calibrate.threads(self.args),
                stop=stop,
                progress=bar.update,
            )

    def _panel(self) -> str:
        """What every prompt makes of every system, of the answers that have a label under all of them."""
        under = [Grading(judge.lm.model, judge.prompt, self.args.label_set) for judge in self.judges]
        entrants: dict[str, dict[str, dict[str, float]]] = {}
        for folder in self.folders:
            run = f"{folder.path.name}: " if len(self.folders) > 1 else ""
            for record in latest(folder.records()).values():
                budget = record["budget_tokens"]
                name = f"{run}{record['system']}" + (f" at {budget:,}" if budget < UNBOUNDED else "")
                for grading in under:
                    if (value := score(record, grading)) is not None:
                        found = entrants.setdefault(name, {}).setdefault(grading.prompt, {})
                        found[record["question_id"]] = value
        if not entrants:
            return "No answer has a label."
        found = judge_sensitivity.panel(entrants)
        for folder in self.folders:
            folder.write_json("judge_sensitivity.json", found)
        rules = "\n".join(f"{name}: {prompt.rule}" for name, prompt in self.benchmark.judge_prompts.items())
        return f"{judge_sensitivity.table(found)}\n\n{rules}"
