"""The plan of a training: options, hyperparameters and prompts, fixed before a model is loaded.

A backend carries the plan out in a training folder:

    grpo_checkpoints/
        manifest.json                  options, hyperparameters and identity
        train.jsonl, validation.jsonl  the prompts
        steps.jsonl                    metrics of each step
        checkpoint-25/ …               checkpoints of the backend
        best/                          the adapter that the validation selected
        results.json, best/README.md   results and model card
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from memometer import benchmarks
from memometer.benchmarks import reward as objective
from memometer.benchmarks.protocol import Conversation, DataError, Dataset, Question
from memometer.benchmarks.reward import TOKEN_PRICE
from memometer.errors import UserError
from memometer.harness import contamination
from memometer.reader.multi_round import QuestionBudgetTooSmall
from memometer.reader.reader import Reader
from memometer.report.multi_round_analysis import contexts_of
from memometer.run import resume as resuming
from memometer.run.environment import digest, provenance, recalling_code
from memometer.run.folder import RunFolder
from memometer.run.progress import eprint
from memometer.token_counters import counter_for
from memometer.train import prompt_dataset
from memometer.train.anonymize_speakers import anonymize
from memometer.train.episodes import Episodes
from memometer.train.options import LORA_SHAPE, Hyperparameters, TrainOptions
from memometer.train.prompt_dataset import ReadingPrompt

Outcome = str
"""valid, failed, invalid or stopped; train.py has an exit code for each."""

BACKENDS = {
    "trl": "memometer.train.trl_backend",
    "arbor": "memometer.train.arbor_training",
    "together": "memometer.train.together_training",
}
"""Modules with `check(plan)`, which raises UserError before anything is written, and `train(plan, folder) -> Outcome`,
which continues from the newest checkpoint in the folder if there is one."""

SYNTHETIC_CONVERSATIONS = 10


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that a backend needs.

    Attributes:
        options: The options.
        hyperparameters: The resolved hyperparameters.
        data: The data set.
        train: The training prompts.
        validation: The prompts that select a checkpoint.
        notices: Sentences about the data for the announcement.
        sources: Notes of the adapter or merged model from which the training starts.
        episodes: The episodes of all prompts' questions; None for a training on single prompts.
    """

    options: TrainOptions
    hyperparameters: Hyperparameters
    data: Dataset
    train: tuple[ReadingPrompt, ...]
    validation: tuple[ReadingPrompt, ...]
    notices: tuple[str, ...] = ()
    sources: tuple[dict[str, Any], ...] = ()
    episodes: Episodes | None = None

    @property
    def dataset_kind(self) -> str:
        """The kind of the training data, those of the adapter included; empty if any are the benchmark's own."""
        return self.data.kind if all(notes["stand_in"] for notes in self.sources) else ""

    @property
    def licence(self) -> str:
        """The terms under which a model trained on the data may be used."""
        if self.dataset_kind:
            return "Made with conversations from memometer itself (MIT)."
        benchmark = benchmarks.load(self.data.benchmark)
        return f"Made with {benchmark.title}. {benchmark.licence}"

    @property
    def output(self) -> Path:
        """The training folder."""
        return Path(self.options.output_dir)

    @property
    def steps(self) -> int:
        """Number of training steps."""
        return self.options.num_train_steps

    def reader(self) -> Reader:
        """Return the reader whose prompt is trained."""
        reader = Reader(rounds=self.options.rounds)
        if not self.options.examples:
            reader.read.demos = []
        return reader

    def print(self, line: str) -> None:
        """Print a result to standard output."""
        print(f"{self.data.prefix}{line}", flush=True)

    def eprint(self, line: str) -> None:
        """Print a message to standard error."""
        eprint(f"{self.data.prefix}{line}")


def make_plan(options: TrainOptions) -> TrainingPlan:
    """Make a plan without loading the model.

    Raises:
        UserError: The options or the data do not allow a training.
    """
    values = options.hyperparameters()
    if options.adapter:
        values = replace(values, **_adapter_shape(Path(options.adapter)))
    data = load_data(options)
    parts = {
        part: _questions(options, data, part, n)
        for part, n in (("train", options.num_train), ("validation", options.num_val))
    }
    episodes = _episodes(options, values, data, parts) if options.episodes else None
    train, validation = (_prompts(options, data, episodes, part) for part in parts.values())
    if not data.kind and (found := prompt_dataset.find_leaks(train, contamination.HeldOut.of(data))):
        summary = contamination.summary(found)[0]
        raise UserError(f"the training prompts contain {len(found)} held-out texts: {summary}.")
    notices = tuple(notice for part in parts.values() for notice in part.notices)
    return TrainingPlan(options, values, data, train, validation, notices, _sources(options), episodes)


def load_data(options: TrainOptions) -> Dataset:
    """Load the benchmark's data, a file, or synthetic conversations.

    Raises:
        UserError: The data cannot be used.
    """
    benchmark = benchmarks.load(options.benchmark)
    try:
        if options.data != "simulated":
            return benchmarks.read(options.benchmark, options.data)
    except DataError as error:
        raise UserError(str(error)) from error
    if benchmark.synthesize is None:
        raise UserError(f"--data simulated: {benchmark.title} has no synthetic conversations; use a file.")
    return benchmark.synthesize(options.seed, SYNTHETIC_CONVERSATIONS)


@dataclass(frozen=True)
class _Part:
    """The conversations and questions of one part of the data, and notices about missing questions."""

    conversations: Sequence[Conversation]
    questions: tuple[Question, ...]
    notices: tuple[str, ...]


def _questions(options: TrainOptions, data: Dataset, part: str, n: int) -> _Part:
    conversations: Sequence[Conversation] = data.part(part)
    if part == "train" and options.rename:
        benchmark = benchmarks.load(data.benchmark)
        conversations = [anonymize(c, benchmark, seed=options.seed) for c in conversations]
    questions, unlabelled = prompt_dataset.choose_questions(
        conversations, n, absent_share=options.absent_share, seed=options.seed
    )
    if not questions:
        raise UserError(f"the data have no {part} question with evidence; use data with more conversations.")
    notices = []
    if len(questions) < n:
        notices.append(f"There are {len(questions)} {part} questions instead of {n}.")
    if unlabelled:
        notices.append(f"{unlabelled} {part} questions without a usable evidence label are left out.")
    return _Part(conversations, questions, tuple(notices))


def _episodes(options: TrainOptions, values: Hyperparameters, data: Dataset, parts: Mapping[str, _Part]) -> Episodes:
    contexts = contexts_of(options.budgets[-1], options.rounds)
    if list(options.budgets) != contexts:
        wanted = ",".join(map(str, contexts))
        raise UserError(f"each round doubles the memory: with {options.rounds} rounds use --budgets {wanted}.")
    return Episodes(
        [conversation for part in parts.values() for conversation in part.conversations],
        [question for part in parts.values() for question in part.questions],
        rounds=options.rounds,
        budget_tokens=options.budgets[-1],
        reply_tokens=values.max_completion_tokens,
        question_budget=options.question_budget,
        token_price=TOKEN_PRICE if options.token_price is None else options.token_price,
        examples=options.examples,
        benchmark=data.benchmark,
    )


def _prompts(options: TrainOptions, data: Dataset, episodes: Episodes | None, part: _Part) -> tuple[ReadingPrompt, ...]:
    """The prompts of one part of the data: with episodes, the first one of each."""
    try:
        if episodes:
            return tuple(prompt_dataset.first_prompts(episodes, part.questions))
        return tuple(
            prompt_dataset.reading_prompts(
                part.conversations,
                part.questions,
                budgets=options.budgets,
                rounds=options.rounds,
                count=counter_for(),
                memory=options.memory,
                examples=options.examples,
                benchmark=data.benchmark,
            )
        )
    except QuestionBudgetTooSmall as error:
        raise UserError(f"{error}; use a larger --question-budget.") from error
    except ValueError as error:
        raise UserError(f"{error}.") from error


def _adapter_shape(adapter: Path) -> dict[str, Any]:
    """The LoRA hyperparameters that an adapter fixes."""
    try:
        found = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        targets = found["target_modules"]
        targets = targets if isinstance(targets, str) else ",".join(sorted(targets))
        shape = (found["r"], found["lora_alpha"], found["lora_dropout"], targets)
        return dict(zip(LORA_SHAPE, shape, strict=True))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--adapter {adapter} is not a LoRA adapter folder (no usable adapter_config.json).") from error


def _sources(options: TrainOptions) -> tuple[dict[str, Any], ...]:
    folders = [Path(folder) for folder in (options.adapter, options.model) if folder]
    files = [file for folder in folders if (file := folder / "training.json").is_file()]
    return tuple(json.loads(file.read_text(encoding="utf-8")) for file in files)


def announcement(plan: TrainingPlan) -> list[str]:
    """Return lines that describe the training."""
    options, values = plan.options, plan.hyperparameters
    kinds = plan.data.counted(prompt.case.category for prompt in plan.train)
    complete = sum(prompt.case.complete for prompt in plan.train) / len(plan.train)
    budgets = ", ".join(f"{budget:,}" for budget in options.budgets)
    lines = [
        f"{options.mode} with {options.backend}, recipe {options.recipe}: {options.model}, LoRA rank "
        f"{values.lora_rank}, {plan.steps:,} steps, learning rate {values.learning_rate:g}.",
        f"{len(plan.train):,} training prompts ({kinds}) with {budgets} tokens of memory ({options.memory}); "
        f"{complete:.0%} show all evidence. {len(plan.validation):,} prompts of other conversations select the "
        "checkpoint.",
    ]
    if plan.episodes:
        limit = f"{options.question_budget:,} tokens" if options.question_budget else "no limit"
        lines.append(
            f"Episodes: up to {options.rounds} calls per question, {limit} for all of them; the reward falls by "
            f"{plan.episodes.token_price:g} per 1,000 tokens. The evidence counts above are those of the first call."
        )
    if options.mode == "train":
        shown = ", ".join(f"{name} {value}" for name, value in asdict(values).items())
        lines.append(
            f"Prompts per step: {values.prompts_per_step}, each with {values.num_generations} completions; {shown}."
        )
    return [*lines, *plan.notices, *filter(None, [plan.data.notice])]


# ---------------------------------------------------------------- carrying it out

WITHOUT_EFFECT = ("no_mlflow", "arbor_url", "push_to_hub", "output_dir", "cost_limit")
"""Options that do not affect the trained weights."""
UNRELATED = (
    "doctor", "env_check", "gpu_memory", "smoke_test", "exporters", "export_templates", "episode_files",
    "adapter_evaluation", "compare_arms", "runpod",
)  # fmt: skip
"""Modules of this package that do not affect the trained weights."""


def start(options: TrainOptions) -> Outcome:
    """Train in a new folder.

    Raises:
        UserError: The training cannot start.
    """
    plan = make_plan(options)
    backend = _backend(options)
    backend.check(plan)
    for line in announcement(plan):
        plan.eprint(line)
    manifest = {
        "config": options.as_json(),
        "values": asdict(plan.hyperparameters),
        "identity": identity(plan),
        "stand_in": plan.data.kind,
        "licence": plan.licence,
        **provenance(),
    }
    try:
        folder = RunFolder.create(plan.output, manifest)
    except (UserError, OSError) as error:
        raise UserError(str(error).replace("--run-dir", "--output-dir")) from error
    with folder:
        prompt_dataset.write_prompts(plan.train, folder.path / "train.jsonl")
        prompt_dataset.write_prompts(plan.validation, folder.path / "validation.jsonl")
        outcome: Outcome = backend.train(plan, folder)
        return outcome


def resume(path: Path, *, arbor_url: str | None = None, cost_limit: float | None = None) -> Outcome:
    """Continue a training from its newest checkpoint.

    Args:
        path: The training folder.
        arbor_url: Another Arbor server.
        cost_limit: Another cost limit.

    Raises:
        UserError: The folder has no training, or something that matters has changed since.
    """
    options, saved = resuming.read(path, TrainOptions, required="num_train_steps")
    changes: dict[str, Any] = {"arbor_url": arbor_url, "cost_limit": cost_limit}
    options = replace(options, **{name: value for name, value in changes.items() if value is not None})
    plan = make_plan(options)
    resuming.check(path, saved, identity(plan))
    backend = _backend(options)
    backend.check(plan)
    try:
        folder = RunFolder.reopen(path)
    except OSError as error:
        raise UserError(str(error)) from error
    with folder:
        outcome: Outcome = backend.train(plan, folder)
        return outcome


def identity(plan: TrainingPlan) -> dict[str, str]:
    """Return digests of everything that must not change between a training and its continuation."""
    files = [path for path in sorted(Path(__file__).parent.glob("*.py")) if path.stem not in UNRELATED]
    files += [Path(objective.__file__), *benchmarks.load(plan.data.benchmark).scoring_files]
    options = {name: value for name, value in plan.options.as_json().items() if name not in WITHOUT_EFFECT}
    return {
        "configuration": digest([options, asdict(plan.hyperparameters)]),
        "data": plan.data.sha256,
        "prompts": digest([prompt.as_json() for prompt in (*plan.train, *plan.validation)]),
        "code": digest([recalling_code(), *(path.read_text() for path in files)]),
    }


def _backend(options: TrainOptions) -> Any:
    return import_module(BACKENDS[options.backend])
