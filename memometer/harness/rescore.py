"""Re-scoring of runs: new verdicts on stored answers, and new results."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from memometer import benchmarks
from memometer.benchmarks.protocol import FREE, Dataset
from memometer.benchmarks.sampling import sample
from memometer.budget import UNBOUNDED
from memometer.harness.model_check import check_judge
from memometer.harness.options import EvaluateOptions
from memometer.harness.questions import chosen_questions
from memometer.judging import judge_calibration, judge_sensitivity, label_sets
from memometer.judging.calibrate import Calibrator
from memometer.judging.graders import Grader, PendingVerdict, grade_pending, graders_of, pending_verdicts, score
from memometer.judging.hidden_probes import Prober, draw_probes
from memometer.judging.judge import Judge
from memometer.judging.judge_assessment import assess, sentence
from memometer.judging.judge_calibration import Calibration
from memometer.judging.label_sets import LabelCorrections
from memometer.models.errors import FATAL, describe
from memometer.models.resolve_models import Model
from memometer.report import aggregate, presenter, prompt_counts
from memometer.report.judge_tables import sensitivity_table
from memometer.report.results import Results, read_results
from memometer.report.write import write_results
from memometer.run import progress, test_set_usage
from memometer.run.folder import Key, Record, RunFolder, RunFolderError, evaluation_options, latest
from memometer.run.interrupts import stopping
from memometer.run.progress import eprint

FAIL_ON_ERROR = 0.02
CORRECTIONS_OMITTED = (
    "The earlier results reported clean and flagged questions separately; pass the label corrections again with "
    "--label-corrections."
)
AGAIN = "Repeat the same command to continue."


def planned(folder: RunFolder, data: Dataset, records: Sequence[Record]) -> list[Key]:
    """List the questions that a run asks or planned to ask, for the systems and budgets in its records.

    Args:
        folder: The run folder.
        data: The data of the run.
        records: Its records.

    Returns:
        The keys, ordered by system and budget, then question.
    """
    options = EvaluateOptions.of_saved(evaluation_options(folder.manifest, folder.path))
    asked = {record["question_id"] for record in records}
    if folder.manifest["config"].get("split"):
        questions = chosen_questions(options, data)
    else:
        questions = tuple(question for question in data.questions if question.id in asked)
    two_options = options.two_options and any(record["model"] for record in records)
    return [
        (system, budget, question.id, order)
        for system, budget in dict.fromkeys((record["system"], record["budget_tokens"]) for record in records)
        for question in questions
        for order in ((two_options and question.option_orders) or (FREE,))
    ]


def rewrite_results(
    folder: RunFolder,
    data: Dataset,
    calibrations: Sequence[Calibration] = (),
    corrections: LabelCorrections | None = None,
    *,
    verbose: bool = False,
) -> tuple[Results, str]:
    """Rewrite results.json and the reports of a run from its records.

    Args:
        folder: The run folder.
        data: The data of the run.
        calibrations: Judge calibrations to add to those in results.json.
        corrections: Label corrections; None for the file that the benchmark's environment variable names.
        verbose: True to return all tables, False for those that fit a screen.

    Returns:
        The results, and the text to print.

    Raises:
        RunFolderError: results.json is damaged.
    """
    records = folder.records()
    keys = planned(folder, data, records)
    before = _earlier_results(folder)
    own, corrections_file = graders_of(records)[:1], label_sets.named_file(data)
    duplicates = test_set_usage.duplicate_attempts(records)
    omitted = before.get("clean_and_flagged") and not (corrections or corrections_file)
    facts = {
        "split": folder.manifest["config"].get("split"),
        "reader": folder.manifest["config"].get("model"),
        "token_counter": None,
        "left_out": {},
        "subset": len({id for _, _, id, _ in keys}) < len(data.questions),
        **before,
        "status": _status(folder, before, records, keys, duplicates),
        "test_set_usage": {
            "test_scored": None,
            **(before.get("test_set_usage") or {}),
            "duplicate_attempts": duplicates,
        },
        "judge": f"{own[0].judge} ({own[0].prompt})" if own else None,
        "warnings": [CORRECTIONS_OMITTED] if omitted else [],
    }
    rounds = {
        (name, int(budget)): entry["rounds"]
        for name, system in before.get("systems", {}).items()
        for budget, entry in system["budgets"].items()
        if "rounds" in entry  # records alone are not enough to compute it again
    }
    return write_results(
        folder,
        data,
        keys,
        facts,
        calibrations=calibrations,
        no_judge="no answer has a label.",
        rounds=rounds,
        corrections=corrections,
        verbose=verbose,
    )


def _status(
    folder: RunFolder,
    before: Mapping[str, Any],
    records: Sequence[Record],
    keys: Sequence[Key],
    duplicates: Sequence[str],
) -> str:
    """Return the status of a run after new verdicts. An unfinished run keeps its status."""
    status = str(before.get("status", "unfinished"))
    if status not in ("valid", "invalid"):
        return status
    limit = folder.manifest["config"].get("fail_on_error", FAIL_ON_ERROR)
    rerun = any(merge["flagged"] for merge in folder.manifest.get("published", {}).get("merges", ()))
    cut = prompt_counts.cut_prompts(aggregate.current(records, keys))
    shares = (aggregate.missing_share(records, keys), cut["share"] if cut else 0.0)
    return "invalid" if rerun or duplicates or max(shares) > limit else "valid"


def _earlier_results(folder: RunFolder) -> dict[str, Any]:
    return read_results(folder.path) if (folder.path / "results.json").exists() else {}


class Rescoring:
    """Adds verdicts to the answers of runs.

    Args:
        paths: Run folders.
        data: The data of the runs.
        model: The judge's model.
        judge: The judge.
        all_prompts: True to grade with every judge prompt of the benchmark and compare the rankings.
        label_set: Name of the label set.
        label_corrections: The file of label corrections; None for the file that the benchmark's environment variable
            names.
        repeats: Verdicts per answer.
        limit: Number of questions to sample; None for all.
        calibrate: True to calibrate the judge; False to withhold judge accuracy instead.
        max_false_accept: Limit for the upper end of the false-accept rate.
        wrong_answers: The file of specific wrong answers for the calibration.
        address: The API base of the judge.
        num_threads: Concurrent calls.
        room: Tokens for a verdict if the judge writes thoughts first; 0 leaves the limit.
        verbose: True to print all tables.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        data: Dataset,
        model: Model,
        judge: Judge,
        *,
        all_prompts: bool,
        label_set: str,
        label_corrections: str | None,
        repeats: int,
        limit: int | None,
        calibrate: bool,
        max_false_accept: float,
        wrong_answers: str | None,
        address: str | None,
        num_threads: int,
        room: int = 0,
        verbose: bool = False,
    ) -> None:
        self.paths, self.data, self.model = paths, data, model
        self.benchmark = benchmarks.load(data.benchmark)
        prompts = self.benchmark.judge_prompts.values() if all_prompts else ()
        self.judges = [Judge(judge.lm, prompt) for prompt in prompts] or [judge]
        self.all_prompts, self.label_set, self.repeats, self.limit = all_prompts, label_set, repeats, limit
        self.calibrate = calibrate and not all_prompts
        self.max_false_accept, self.wrong_answers, self.address = max_false_accept, wrong_answers, address
        self.num_threads, self.room, self.verbose = num_threads, room, verbose
        self.golds: Mapping[str, str] = label_sets.load(label_set, label_corrections, data=data)
        self.corrections = label_sets.read(label_corrections, data=data) if label_corrections else None
        self.folders: list[RunFolder] = []

    def run(self) -> int:
        """Grade the answers, rewrite the results and print them.

        Returns:
            The exit code: 0 if all is done, 1 if no call can succeed or a run cannot be written, 3 if too many labels
            are missing, 4 if the user stopped it.

        Raises:
            RunFolderError: A run cannot be read, or has no answers to grade.
        """
        with ExitStack() as stack:
            self.folders = [stack.enter_context(RunFolder.reopen(path)) for path in self.paths]
            for folder in self.folders:
                self._check(folder)
            if self.limit:
                self.golds = self._sampled(self.limit)
            try:
                return self._run()
            except OSError as error:
                eprint(f"The run cannot be written ({error}). {AGAIN}")
                return 1

    def _run(self) -> int:
        pending = {judge.prompt: self._pending(judge) for judge in self.judges}
        n = sum(map(len, pending.values()))
        self._print(f"{self.judges[0].lm.model}: {n:,} verdicts ({', '.join(pending)}; label set {self.label_set}).")
        fatal, calibrations = self._first_call() if n else "", []
        with stopping() as stop:
            for judge in self.judges:
                if fatal:
                    break
                if self.calibrate:
                    found, fatal = self._calibration(judge, stop)
                    calibrations += [found] if found else []
                fatal = fatal or self._grade(judge, pending[judge.prompt], stop)
                if fatal or stop.is_set():
                    break
            for folder in self.folders:
                _, text = rewrite_results(folder, self.data, calibrations, self.corrections, verbose=self.verbose)
                if not self.all_prompts:
                    self._print(f"\n{folder.path}\n{text}")
            if self.all_prompts:
                self._print(self._sensitivity())
        left = sum(len(self._pending(judge)) for judge in self.judges)
        if fatal:
            self._print(f"Stopped, because no call can succeed: {fatal}. {AGAIN}")
            return 1
        if stop.is_set() and left:
            self._print(f"Stopped. {AGAIN}")
            return 4
        if left > FAIL_ON_ERROR * max(1, sum(map(self._expected, self.folders)) * len(self.judges)):
            self._print(f"INVALID: {left:,} labels are missing. Repeat the same command to retry them.")
            return 3
        return 0

    def _first_call(self) -> str:
        """Let a remote judge grade one answer. Returns its failure, or an empty text."""
        if not self.model.is_remote:
            return ""
        found = check_judge(self.model, self.judges[0], room=self.room)
        for line in [] if found.failure else found.findings():
            self._print(line)
        return found.failure

    def _print(self, text: str) -> None:
        for line in text.split("\n"):
            print(f"{self.data.prefix}{line}", flush=True)

    def _check(self, folder: RunFolder) -> None:
        evaluation_options(folder.manifest, folder.path)
        _earlier_results(folder)  # fails on a damaged file before any call costs money
        digest = folder.manifest["identity"].get("data")
        if digest and digest != self.data.sha256:
            raise RunFolderError(
                f"{folder.path} used other data than {self.data.path}; name the data of the run with --data."
            )
        if (records := folder.records()) and not any(record["answer"] is not None for record in records):
            raise RunFolderError(
                f"{folder.path} has no answers to grade, only recalls; run python evaluate.py without --recall-only."
            )
        known = {question.id for question in self.data.questions}
        if unknown := [r["question_id"] for r in records if r["question_id"] not in known]:
            raise RunFolderError(
                f"{folder.path} contains {unknown[0]}, which is not in {self.data.path}; name the data of the run with "
                "--data."
            )

    def _sampled(self, n: int) -> dict[str, str]:
        """Sample n questions that are in all runs, and return their gold answers."""
        asked = [{record["question_id"] for record in folder.records()} for folder in self.folders]
        shared = [q for q in self.data.questions if q.id in self.golds and all(q.id in ids for ids in asked)]
        return {question.id: self.golds[question.id] for question in sample(shared, n)}

    def _pending(self, judge: Judge) -> list[PendingVerdict]:
        return [
            item
            for folder in self.folders
            for item in pending_verdicts(folder, self.data, self.golds, judge, self.label_set, self.repeats)
        ]

    def _expected(self, folder: RunFolder) -> int:
        counting = latest(folder.records()).values()
        return self.repeats * sum(r["answer"] is not None and r["question_id"] in self.golds for r in counting)

    def _calibration(self, judge: Judge, stop: threading.Event) -> tuple[Calibration | None, str]:
        """Return the calibration of the judge, and the reason if no call can succeed."""
        calibrator = Calibrator(self.data, self.model, judge, address=self.address, wrong_answers=self.wrong_answers)
        limit = self.max_false_accept
        found = calibrator.cached(max_false_accept=limit)
        try:
            if found is None:
                eprint(f"{self.data.prefix}The judge is not calibrated yet. Calibrating it: {calibrator.estimate()}.")
                found = calibrator.measure(
                    num_threads=self.num_threads, stop=stop, folder=self.folders[0], end_at=limit
                )
        except FATAL as error:
            return None, describe(error)
        except judge_calibration.CalibrationError as error:
            return None, "" if stop.is_set() else str(error)
        found = assess(found, max_false_accept=limit)
        for folder in self.folders:
            folder.append_calibration(found)
        self._print(sentence(found))
        return found, ""

    def _grade(self, judge: Judge, pending: Sequence[PendingVerdict], stop: threading.Event) -> str:
        probers = self._probers(judge, pending)

        def after_verdict(item: PendingVerdict) -> None:
            if prober := probers.get(item.folder.path):
                prober.after_verdict()

        with progress.bar(total=len(pending), desc=f"{self.data.prefix}{judge.prompt}") as bar:
            fatal = grade_pending(
                pending,
                judge,
                label_set=self.label_set,
                num_threads=self.num_threads,
                stop=stop,
                progress=bar.update,
                after_verdict=after_verdict,
            )
        for prober in [] if fatal else probers.values():
            prober.finish(num_threads=self.num_threads, stop=stop)
        return fatal

    def _probers(self, judge: Judge, pending: Sequence[PendingVerdict]) -> dict[Path, Prober]:
        """The hidden probes of each run that gets verdicts, by folder; none without a calibration."""
        if not self.calibrate:
            return {}
        found = {}
        for folder in {item.folder.path: item.folder for item in pending}.values():
            asked = {record["question_id"] for record in folder.records()}
            questions = [question for question in self.data.questions if question.id in asked]
            named = {question.conversation for question in questions}
            conversations = [c for c in self.data.conversations if c.id in named]
            seed = int(folder.manifest["config"].get("seed") or 0)
            verdicts = sum(item.folder.path == folder.path for item in pending)
            probes = draw_probes(questions, conversations, seed=seed)
            found[folder.path] = Prober(judge, folder, probes, verdicts=verdicts, seed=seed)
        return found

    def _sensitivity(self) -> str:
        """Compare scores and rankings between prompts, over the answers that have a label under every prompt."""
        graders = [Grader(judge.lm.model, judge.prompt, self.label_set) for judge in self.judges]
        scores: dict[str, dict[str, dict[str, float]]] = {}
        for folder in self.folders:
            run = f"{folder.path.name}: " if len(self.folders) > 1 else ""
            for record in latest(folder.records()).values():
                budget = record["budget_tokens"]
                name = f"{run}{record['system']}" + (f" at {budget:,}" if budget < UNBOUNDED else "")
                for grader in graders:
                    if (value := score(record, grader)) is not None:
                        by_prompt = scores.setdefault(name, {}).setdefault(grader.prompt, {})
                        by_prompt[record["question_id"]] = value
        if not scores:
            return "No answer has a label."
        found = judge_sensitivity.sensitivity(scores)
        for folder in self.folders:
            folder.write_json("judge_sensitivity.json", found)
        rules = "\n".join(f"{name}: {prompt.rule}" for name, prompt in self.benchmark.judge_prompts.items())
        return presenter.text([sensitivity_table(found), judge_sensitivity.conclusion(found), rules])
