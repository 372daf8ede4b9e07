"""Evaluation of an adapter against its base model, on the same questions, memory and budget.

The arms are the adapter, the base model with the same prompt, the base model with the worked examples (as evaluate.py
reads it), the base model with a description of the gold answers' style, and each adapter from which the training
started, such as a supervised one before GRPO. The gain of a training is its difference from the base model with
examples, because without them a base model mostly misses the form of the answer. The result is a run folder like those
of evaluate.py, so `memometer compare` and `memometer view` read it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import dspy

from memometer.benchmarks.protocol import DataError, Question
from memometer.benchmarks.sampling import sample
from memometer.errors import UserError
from memometer.harness import loop, tasks
from memometer.harness.tasks import Task
from memometer.memory import Memory
from memometer.models import resolve_models
from memometer.models.downloads import sha256
from memometer.models.resolve_models import Model
from memometer.reader.reader import Reader
from memometer.report import aggregate
from memometer.report.write import write_results
from memometer.run import cost, test_set_usage
from memometer.run.environment import digest, provenance, recalling_code
from memometer.run.folder import Record, RunFolder, is_answered, new_path
from memometer.run.interrupts import stopping
from memometer.run.progress import eprint
from memometer.systems.adaptive import AdaptiveMemory
from memometer.systems.baselines import Oracle
from memometer.token_counters import counter_for
from memometer.train import distillation, local_model
from memometer.train.chat_format import served_decoding
from memometer.train.compare_arms import (
    ADAPTER,
    BASE,
    EXAMPLES,
    ONE_CALL,
    STYLED,
    compare_arms,
    one_call_budget,
    starting_adapters,
)
from memometer.train.local_model import LocalEngine
from memometer.train.options import TrainOptions
from memometer.train.plan import Outcome, load_data
from memometer.train.prompt_dataset import reading_prompts
from memometer.train.reward import gold_reply

EVALUATION = "evaluation.json"
"""The last evaluation of an adapter, in its folder; `memometer export-model` writes it into the model card."""
FAILED_SHARE = 0.05
"""Share of failed calls above which the result is invalid."""

STYLE = (
    "The answer has at most six words and is no sentence: no article, no explanation, nothing that the question says "
    "already. Several things are separated by commas. A date is written like 7 May 2023, and a day that is told "
    "relative to another like the week before 7 May 2023. What is only likely is answered with Likely yes or Likely no."
)
"""A description of LOCOMO's gold answers, for a model without training. Results depend on its exact wording."""

LIKELIHOOD_QUESTIONS = 16
"""Number of gold replies whose log-probability is measured."""


class Evaluation:
    """The plan of an evaluation: questions, models and readers.

    Raises:
        UserError: The options, the adapter or the data do not allow it.
    """

    def __init__(self, options: TrainOptions) -> None:
        self.options = options
        self.adapter = Path(options.adapter or Path(options.output_dir) / "best")
        self.notes = _read_notes(self.adapter)
        self.data = load_data(options)
        self.budget: int = options.budget_tokens or max(self.notes["budgets"])
        self.questions = self._choose_questions()
        ids = {question.conversation for question in self.questions}
        self.conversations = [c for c in self.data.conversations if c.id in ids]
        self.count = counter_for()
        self.is_served = bool(options.api_base)
        self.max_tokens: int = self.notes["values"]["max_completion_tokens"]
        self.decoding: dict[str, Any] = self.notes.get("decoding") or {}
        self.starts = {} if self.is_served else starting_adapters(self.adapter)
        self.models = self._served_models() if self.is_served else self._local_models()
        system = Oracle if self.notes["memory"] == "oracle" else AdaptiveMemory
        self.memory: Memory[Any] = system(count=self.count)
        self.readers = {name: self._reader(name) for name in self.arms}
        self.one_call: tuple[str, ...] = ()
        self.tasks = tasks.plan_tasks(dict.fromkeys(self.readers, self.memory), self.questions, budgets=[self.budget])

    @property
    def arms(self) -> tuple[str, ...]:
        """The names of the arms."""
        examples = () if self.notes["examples"] else (EXAMPLES,)
        return (ADAPTER, BASE, *examples, STYLED, *self.starts)

    def _choose_questions(self) -> tuple[Question, ...]:
        try:
            conversations = self.data.part(self.options.split)
        except DataError as error:
            raise UserError(str(error)) from error
        seen = sorted({c.id for c in conversations} & set(self.notes["trained_on"]))
        if seen and not self.data.kind:
            raise UserError(f"the adapter was trained on {', '.join(seen)}; choose other conversations with --split.")
        pool = [question for c in conversations for question in c.questions]
        if self.notes["memory"] == "oracle":
            pool = [question for question in pool if question.evidence]
        return sample(pool, self.options.num_test, seed=self.options.seed)

    def _local_models(self) -> dict[str, Model]:
        notes, values = self.notes, self.notes["values"]
        base = local_model.load(
            notes["model"],
            precision=values["precision"],
            quantize=notes["quantize"],
            attn=self.options.attn,
            unsloth=self.options.unsloth,
            window=values["max_prompt_tokens"] + self.max_tokens,
            template_kwargs=self.decoding.get("chat_template_kwargs"),
        )
        self.decoding = base.format.decoding()
        self.local = base.with_adapter(self.adapter)
        weights = digest([sha256(path) for path in sorted(self.adapter.glob("*.safetensors"))])
        models = {}
        is_embedded = notes["model"].startswith("embedded:") or notes["model"].endswith(".gguf")
        for name, path in self.starts.items():
            self.local.add_adapter(path, name.replace(" ", "_"))
        for name in (ADAPTER, BASE, *self.starts):
            revision = "" if name == BASE else weights
            adapter = {ADAPTER: "default", BASE: None}.get(name, name.replace(" ", "_"))
            lm = dspy.LM(
                f"local/{name}",
                engine=LocalEngine(self.local, adapter=adapter, continues_text=is_embedded and name == BASE),
                temperature=0.0,
                max_tokens=self.max_tokens,
                cache=False,
                num_retries=0,
            )
            models[name] = Model(notes["model"], lm, self.count, base.context_tokens, self.max_tokens, None, revision)
        return models

    def _served_models(self) -> dict[str, Model]:
        if not self.options.adapter_name:
            raise UserError("--api-base needs --adapter-name, the adapter's name on that server.")
        names = {ADAPTER: self.options.adapter_name, BASE: self.notes["model"]}
        try:
            models = {
                name: resolve_models.load(
                    f"openai/{model}",
                    api_base=self.options.api_base,
                    tokenizer="o200k_base",
                    max_tokens=self.max_tokens,
                )
                for name, model in names.items()
            }
        except ValueError as error:
            raise UserError(str(error)) from error
        for model in models.values():
            model.lm.kwargs.update(served_decoding(self.decoding))
        return models

    def _reader(self, arm: str) -> Reader:
        rounds = 0 if self.notes["memory"] == "oracle" else self.notes["rounds"]
        reader = Reader(rounds=rounds, question_budget=self.notes.get("question_budget"))
        if not self.notes["examples"] and arm != EXAMPLES:
            reader.read.demos = []
        if arm == STYLED:
            instructions = f"{reader.read.signature.instructions} {STYLE}"
            reader.read.signature = reader.read.signature.with_instructions(instructions)
        reader.read.lm = self.models.get(arm, self.models[BASE]).lm
        return reader

    def add_one_call(self, records: Sequence[Record]) -> list[Task]:
        """Add the arm with one call at equal total tokens, if the adapter was trained on episodes.

        Args:
            records: The records of the adapter's own arm, whose tokens are counted.

        Returns:
            The tasks of the new arm.
        """
        if not self.notes.get("episodes") or self.is_served:
            return []
        model, reader = self.models[ADAPTER], self._reader(ADAPTER)
        reader.rounds = 1  # the first call is the last, so nothing more is offered
        question = max((question.text for question in self.questions), key=len)
        budget = one_call_budget(records, tasks.prompt_overhead(model, question, reader) + model.max_tokens)
        self.readers[ONE_CALL], self.one_call = reader, (ONE_CALL,)
        found = tasks.plan_tasks({ONE_CALL: self.memory}, self.questions, budgets=[budget])
        self.tasks = [*self.tasks, *found]
        return found

    def cautions(self) -> list[str]:
        """Return warnings about an overestimated gain."""
        selected = sorted({c.id for c in self.conversations} & set(self.notes["selected_on"]))
        if not selected:
            return []
        return [f"The checkpoint was selected on {', '.join(selected)}, so the gain measured here is too high."]

    def manifest(self) -> dict[str, Any]:
        """Return a manifest like those of evaluate.py."""
        options = self.options
        prompts = {
            name: digest([reader.read.signature.instructions, [dict(demo) for demo in reader.read.demos]])
            for name, reader in self.readers.items()
        }
        shared = ("mode", "split", "num_test", "seed", "api_base", "attn", "no_mlflow")
        config = {
            **{name: getattr(options, name) for name in shared},
            "model": self.notes["model"],
            "adapter": str(self.adapter),
            "budgets": [self.budget],
            "categories": list(self.data.categories),
            "two_options": False,
            "folds": False,
            "trace": False,
            "fail_on_error": FAILED_SHARE,
            "max_answer_tokens": self.max_tokens,
            "benchmark": self.data.benchmark,
            "data": None if options.data == "simulated" else options.data,
        }
        return {
            "config": config,
            "identity": {
                "configuration": digest(config),
                "data": self.data.sha256,
                "questions": digest([question.id for question in self.questions]),
                "systems": recalling_code(),
                "answer prompts": digest(prompts),
                "reader": f"{self.notes['model']} {self.models[ADAPTER].revision}",
                "token counter": self.count.name,
            },
            "questions": [question.id for question in self.questions],
            "answer_prompts": prompts,
            "left_out": {},
            "stand_in": self.data.kind,
            "reader": self.notes["model"],
            "prices": cost.prices(None, None),
            "unmetered": [],
            "trained": self.notes,
            "decoding": self.decoding,
            "cautions": self.cautions(),
            **provenance(),
        }

    def announcement(self) -> list[str]:
        """Return lines that describe the evaluation."""
        notes, ids = self.notes, [conversation.id for conversation in self.conversations]
        line = (
            f"{notes['model']} with {self.adapter} (trained on {', '.join(notes['trained_on'])}), and the arms "
            f"{', '.join(self.arms[1:])}: {len(self.questions)} questions of {', '.join(ids[:12])}, "
            f"{self.budget:,} tokens of memory ({notes['memory']}), {max(1, notes['rounds'])} round(s)."
        )
        return [line, *self.cautions(), *filter(None, [self.data.notice])]


def evaluate(options: TrainOptions) -> Outcome:
    """Evaluate the adapter, its base model, and the base model with style rules; print the comparison.

    A run folder that has this evaluation already is continued.

    Returns:
        valid, invalid (too many calls failed), failed or stopped.

    Raises:
        UserError: The evaluation cannot start.
    """
    evaluation = Evaluation(options)
    prefix, manifest = evaluation.data.prefix, evaluation.manifest()
    keys = [task.key for task in evaluation.tasks]
    path = Path(options.run_dir) if options.run_dir else new_path()
    exists = (path / "manifest.json").exists()
    try:
        folder = RunFolder.reopen(path) if exists else RunFolder.create(path, manifest)
    except OSError as error:
        raise UserError(str(error)) from error
    with folder:
        if folder.manifest["identity"] != manifest["identity"]:
            raise UserError(f"{path} has another evaluation; use another --run-dir.")
        for line in evaluation.announcement():
            eprint(f"{prefix}{line}")
        if evaluation.is_served and len(aggregate.current(folder.records(), keys)) < len(keys):
            for model in evaluation.models.values():
                distillation.check_first_call(model, lambda line: eprint(f"{prefix}{line}"))
        with stopping() as stop:
            fatal = _run(evaluation, evaluation.tasks, folder, stop)
            if not fatal and not stop.is_set() and (more := evaluation.add_one_call(list(folder.records()))):
                fatal = _run(evaluation, more, folder, stop)
        return _finish(evaluation, folder, fatal, stopped=stop.is_set())


def _run(evaluation: Evaluation, planned: Sequence[Task], folder: RunFolder, stop: threading.Event) -> str:
    """Answer the questions of some tasks; returns the reason of a failure that ended it."""
    return loop.run(
        planned,
        lambda _system, _conversation: evaluation.memory,
        evaluation.conversations,
        folder,
        reader=evaluation.models[BASE],
        readers=evaluation.readers,
        num_threads=4 if evaluation.is_served else 1,
        stop=stop,
        progress=_progress(len(planned), evaluation.data.prefix),
    )


def _finish(evaluation: Evaluation, folder: RunFolder, fatal: str, *, stopped: bool) -> Outcome:
    data, options = evaluation.data, evaluation.options
    keys = [task.key for task in evaluation.tasks]
    records = aggregate.current(folder.records(), keys)
    missing = len(keys) - sum(is_answered(record) for record in records)
    if fatal or (stopped and missing):
        again = f"python train.py --mode evaluate --adapter {evaluation.adapter} --run-dir {folder.path}"
        reason = f": {fatal}" if fatal else ""
        eprint(f"{data.prefix}Stopped{reason}. Continue, with the same options, with: {again}")
        return "failed" if fatal else "stopped"
    outcome = "invalid" if missing > FAILED_SHARE * len(keys) else "valid"
    usage = None
    if data.held_out(options.split):
        usage = test_set_usage.record_use(folder, questions=len(evaluation.questions), status=outcome)
    facts = {
        "status": outcome,
        "split": options.split,
        "subset": len(evaluation.questions) < len(data.questions),
        "reader": evaluation.notes["model"],
        "judge": None,
        "token_counter": evaluation.count.name,
        "left_out": {},
        "test_set_usage": {"test_scored": asdict(usage) if usage else None, "duplicate_attempts": []},
    }
    _, table = write_results(folder, data, keys, facts, no_judge="no judge is used", notes=[str(usage or "")])
    compared = compare_arms([*evaluation.arms, *evaluation.one_call], evaluation.questions, records)
    if (evaluation.adapter / "training.json").exists() and outcome == "valid":
        measured = {"split": options.split, "questions": len(evaluation.questions), "run": str(folder.path)}
        text = json.dumps({**measured, "arms": compared}, indent=1) + "\n"
        (evaluation.adapter / EVALUATION).write_text(text, encoding="utf-8")
    lines = [*table.splitlines(), "", *compared]
    if not evaluation.is_served:
        lines.append(_likelihood(evaluation))
    lines.append(f"Written to {folder.path}; view it with: memometer view {folder.path}")
    folder.write_text("report.txt", "".join(f"{data.prefix}{line}\n" for line in lines))
    for line in lines:
        print(f"{data.prefix}{line}", flush=True)
    return outcome


def _likelihood(evaluation: Evaluation) -> str:
    """The log-probability of gold replies with and without the adapter. Equal values show that it has no effect."""
    notes = evaluation.notes
    prompts = reading_prompts(
        evaluation.conversations,
        [question for question in evaluation.questions if question.gold][:LIKELIHOOD_QUESTIONS],
        budgets=notes["budgets"],
        rounds=notes["rounds"],
        count=evaluation.count,
        memory=notes["memory"],
        examples=notes["examples"],
        benchmark=evaluation.data.benchmark,
    )
    local = evaluation.local
    found = [local.divergence(local.prompt_ids(prompt.messages), gold_reply(prompt.case)) for prompt in prompts]
    if not found:
        return "There are no gold answers whose log-probability could be measured."
    kl, adapter, base = (fmean(column) for column in zip(*found, strict=True))
    warning = "" if adapter != base else " The adapter has no effect; it may have been saved before its first step."
    return (
        f"Log-probability per token of {len(found)} gold replies: {base:.3f} (base) -> {adapter:.3f} (adapter), "
        f"KL {kl:.4f}.{warning}"
    )


def _progress(total: int, prefix: str) -> Callable[[Record], None]:
    done = 0

    def progress(_: Record) -> None:
        nonlocal done
        done += 1
        if done % 25 == 0 or done == total:
            eprint(f"{prefix}{done} of {total} answers")

    return progress


def _read_notes(adapter: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((adapter / "training.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{adapter} is not an adapter of train.py (no readable training.json); train one, or choose one with "
            "--adapter."
        ) from error
    return found
