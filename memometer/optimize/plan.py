"""The plan of a prompt search: questions, models, memory and the highest cost, fixed before the first model call."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from memometer import benchmarks
from memometer.benchmarks import reward
from memometer.benchmarks.protocol import Conversation, DataError, Dataset, Question
from memometer.benchmarks.reward import Objective
from memometer.errors import UserError
from memometer.harness.model_check import room_for_thoughts
from memometer.harness.models import JUDGE_FLAGS, JUDGE_TOKENS
from memometer.harness.tasks import prompt_overhead
from memometer.judging.calibrate import Calibrator
from memometer.judging.judge import Judge
from memometer.judging.judge_assessment import MAX_FALSE_ACCEPT, assess, sentence
from memometer.models import resolve_models
from memometer.models.encoders import TokenEncoder
from memometer.models.encoders import load as load_encoder
from memometer.models.replay_cache import CallStore
from memometer.models.resolve_models import Model
from memometer.models.server_errors import Flags
from memometer.optimize.folds import Fold, make_folds
from memometer.optimize.optimizers import Size, size
from memometer.optimize.options import OptimizeOptions
from memometer.reader.reader import Reader
from memometer.report.multi_round_analysis import contexts_of
from memometer.run import cost
from memometer.run.environment import digest, recalling_code
from memometer.run.progress import eprint
from memometer.stats.intervals import READABLE_CLUSTERS
from memometer.stats.power import gain_power
from memometer.systems.adaptive import AdaptiveMemory

PROPOSAL_TOKENS, EMBEDDED_PROPOSAL_TOKENS = 1_500, 256
"""Limit of a prompt model's reply. Small embedded models would fill any limit."""
PROPOSAL_PROMPT_TOKENS = 2_500
"""Tokens of a proposal prompt without the shown runs: instructions and the program's source."""
SHOWN_RUNS = 3
JUDGE_PROMPT_TOKENS = 500
"""Tokens of a judge prompt without the answer."""
PRICE_FLAGS = {"reader": "--price", "prompt model": "--prompt-price", "judge": "--judge-price"}


@dataclass(frozen=True, slots=True)
class Forecast:
    """Upper bounds without retries. `usd` is None if a price is unknown."""

    calls: int
    tokens: int
    usd: float | None


@dataclass(frozen=True)
class SearchPlan:
    """Everything that a search needs.

    Attributes:
        options: The options.
        data: The data set.
        folds: The searches with their conversations and questions.
        held_out: All conversations outside the searches; nothing of them may appear in a prompt.
        models: Role (reader, prompt model, judge) -> model.
        addresses: Role -> server URL.
        memory: The memory that is read.
        reader: The reader whose prompt is optimized.
        objective: The value of a reply.
        sizes: Upper bounds of the optimizer's runs and proposals in each search.
        notices: Sentences for the announcement.
    """

    options: OptimizeOptions
    data: Dataset
    folds: tuple[Fold, ...]
    held_out: tuple[Conversation, ...]
    models: dict[str, Model]
    addresses: dict[str, str | None]
    memory: AdaptiveMemory
    reader: Reader
    objective: Objective
    sizes: tuple[Size, ...]
    notices: tuple[str, ...]

    @property
    def conversations(self) -> tuple[Conversation, ...]:
        """The conversations of the searches, each once."""
        found = {c.id: c for fold in self.folds for c in (*fold.conversations, *fold.confirming)}
        return tuple(found.values())

    @property
    def confirmation(self) -> tuple[Question, ...]:
        """The questions that confirm the searches; no two searches share one."""
        return tuple(question for fold in self.folds for question in fold.confirmation)

    @property
    def questions(self) -> tuple[Question, ...]:
        """The questions of all kinds, each once."""
        kinds = [(*fold.confirmation, *fold.selection, *fold.train) for fold in self.folds]
        return tuple({question.id: question for questions in kinds for question in questions}.values())

    @property
    def num_threads(self) -> int:
        """Concurrent calls: one for an embedded model, which uses all cores; few otherwise, as a kill loses them."""
        embedded = self.models["reader"].name.startswith("embedded:")
        return self.options.num_threads or (1 if embedded else max(1, min(4, len(self.folds[0].train) // 4)))

    def announcement(self, done: int = 0) -> list[str]:
        """Return lines that describe the search and its highest cost. `done` calls are stored already."""
        options, expected = self.options, self.forecast()
        reader, writer = self.models["reader"].name, self.models["prompt model"].name
        money = cost.money(expected.usd, *self.models.values())
        judge = f", {self.models['judge'].name} judges" if "judge" in self.models else ""
        stored = f"; {done:,} of them are stored already" if done else ""
        train = [question for fold in self.folds for question in fold.train]
        kinds = self.data.counted(question.category for question in train)
        held_out = f"; held out: {_ids(self.held_out)}" if self.held_out else ""
        lines = [
            f"{options.optimizer} ({options.auto}): {reader} reads, {'the same model' if writer == reader else writer} "
            f"writes prompts{judge}; forecast: at most {expected.calls:,} calls, {expected.tokens:,} tokens, {money} "
            f"without retries{stored}.",
            *(
                f"Search {fold.number}: {len(fold.train)} training and {len(fold.selection)} selection questions from "
                f"{_ids(fold.conversations)}; {len(fold.confirmation)} confirmation questions from "
                f"{_ids(fold.confirming)}."
                for fold in self.folds
            ),
            f"Training questions by category: {kinds}{held_out}.",
            self.power(),
            f"Objective: 0.8 answer + 0.2 citations - {self.objective.token_price:g} per 1,000 tokens. A prompt has "
            f"{options.budget_tokens:,} tokens of memory; a question has {self.reader.question_budget:,} tokens in "
            f"total, with instructions and at most {options.demo_limit} found examples.",
        ]
        return [*lines, *self.notices, *filter(None, [self.data.notice])]

    def power(self) -> str:
        """Describe the gains that the confirmation can find."""
        questions, conversations = len(self.confirmation), len({q.conversation for q in self.confirmation})
        size = f"{questions} confirmation questions of {conversations} conversation{'s' * (conversations != 1)}"
        if conversations < READABLE_CLUSTERS:
            return f"{size} cannot confirm a gain; use data with {READABLE_CLUSTERS} conversations or more."
        chances = ", ".join(
            f"+{100 * gain:.0f} points in {100 * gain_power(gain, questions, conversations):.0f} %"
            for gain in (0.10, 0.15, 0.20, 0.30)
        )
        return f"{size} find a true gain of {chances} of searches (for prompts that differ on a quarter of them)."

    def forecast(self) -> Forecast:
        """Return upper bounds for the unoptimized prompt, the optimizer, and the selection among its candidates."""
        rounds, question = self.options.rounds, self.reader.question_budget or 0
        reader, writer, judge = (self.models.get(role) for role in ("reader", "prompt model", "judge"))
        assert reader
        assert writer
        runs = len(self.questions) + len(self.confirmation)
        runs += sum(
            size.runs + size.candidates * len(fold.selection) for size, fold in zip(self.sizes, self.folds, strict=True)
        )
        replies = rounds * reader.max_tokens  # the question budget includes them
        proposals = sum(size.proposals for size in self.sizes)
        proposal_prompt = PROPOSAL_PROMPT_TOKENS + SHOWN_RUNS * question
        # (model, calls, prompt tokens, reply tokens)
        parts = [
            (reader, runs * rounds, runs * (question - replies), runs * replies),
            (writer, proposals, proposals * proposal_prompt, proposals * writer.max_tokens),
        ]
        if judge:
            judge_prompt = JUDGE_PROMPT_TOKENS + reader.max_tokens
            parts.append((judge, runs, runs * judge_prompt, runs * judge.max_tokens))
        costs = [cost.forecast(model, prompt, reply) for model, _, prompt, reply in parts]
        return Forecast(
            calls=sum(calls for _, calls, *_ in parts),
            tokens=sum(prompt + reply for *_, prompt, reply in parts),
            usd=None if None in costs else sum(part for part in costs if part is not None),
        )

    def spent(self, store: CallStore) -> float | None:
        """Return the dollars spent by this process and earlier ones; None if a price is unknown."""
        total = 0.0
        for role, usage in list(store.spent.items()):
            price = self.models[role].price
            if price is None:
                return None
            total += price.usd(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
        return total

    def room_for_thoughts(self, role: str) -> int:
        """Return the tokens that a reply may have if the model of a role writes thoughts; 0 if the user set them."""
        chosen = {"reader": self.options.max_answer_tokens, "judge": self.options.judge_max_tokens}
        if chosen.get(role):
            return 0
        prompt = (self.reader.question_budget or 0) if role == "reader" else PROPOSAL_PROMPT_TOKENS
        room = room_for_thoughts(self.models[role].context_tokens, needed=prompt)
        chosen_budget = self.options.question_budget if role == "reader" else None
        return min(room, chosen_budget // (2 * self.options.rounds)) if chosen_budget else room

    def identity(self) -> dict[str, str]:
        """Return digests of everything that must not change between a search and its continuation."""
        scoring = [Path(reward.__file__), *benchmarks.load(self.data.benchmark).scoring_files]
        code = [path.read_text(encoding="utf-8") for path in [*sorted(Path(__file__).parent.glob("*.py")), *scoring]]
        return {
            "configuration": digest(self.options.as_json()),
            "data": self.data.sha256,
            "searches": digest([[[q.id for q in kind] for kind in _questions_of(fold)] for fold in self.folds]),
            "code": digest([recalling_code(), code]),
            "packages": digest({name: _version(name) for name in ("dspy", "gepa", "optuna")}),
            "token counter": self.models["reader"].count.name,
            **{role: self.model_identity(role) for role in self.models},
        }

    def model_identity(self, role: str) -> str:
        """Return the name, weights and server of a model, which tell models of the same name apart."""
        model = self.models[role]
        return f"{model.name} {model.revision} {self.addresses[role] or ''}".strip()


# ---------------------------------------------------------------- making a plan


def make_plan(options: OptimizeOptions) -> SearchPlan:
    """Make a plan without calling a model.

    Raises:
        UserError: The options, the data or the models do not allow a search.
    """
    _check_output(options.output)
    if options.optimizer == "miprov2" and importlib.util.find_spec("optuna") is None:
        raise UserError("MIPROv2 needs Optuna; pip install -c constraints.txt '.[optimize]'")
    try:
        data = benchmarks.read(options.benchmark, options.data)
    except DataError as error:
        raise UserError(str(error)) from error
    folds, notices = make_folds(options, data)
    models, addresses = _load_models(options, data)
    memory = _make_memory(options, models["reader"])
    longest = max((q.text for fold in folds for questions in _questions_of(fold) for q in questions), key=len)
    known = {c.id for c in (*data.part("train"), *data.part("validation"))}
    held_out = tuple(c for c in data.conversations if c.id not in known)
    if not held_out:
        notices.append("The data have one part only, so that no conversation is left to evaluate the prompt on.")
    return SearchPlan(
        options=options,
        data=data,
        folds=folds,
        held_out=held_out,
        models=models,
        addresses=addresses,
        memory=memory,
        reader=_make_reader(options, models["reader"], longest),
        objective=Objective() if options.token_price is None else Objective(options.token_price),
        sizes=tuple(
            size(
                options.optimizer,
                options.auto,
                train=len(fold.train),
                validation=len(fold.selection),
                max_demos=options.demo_limit,
            )
            for fold in folds
        ),
        notices=tuple(notices),
    )


def _check_output(out: Path) -> None:
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; use a file name, such as {out / 'program.json'}.")
    if not out.parent.is_dir():
        raise UserError(f"the folder of --out {out} does not exist; mkdir -p {out.parent} first.")
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"the folder of --out {out} is not writable; use another one.")


def _load_models(options: OptimizeOptions, data: Dataset) -> tuple[dict[str, Model], dict[str, str | None]]:
    """Models and server URLs by role."""
    name = options.model or resolve_models.default_model()
    writer = options.prompt_model or name
    proposal_tokens = EMBEDDED_PROPOSAL_TOKENS if writer.startswith("embedded:") else PROPOSAL_TOKENS
    same = not options.prompt_model
    addresses = {
        "reader": options.api_base,
        "prompt model": options.prompt_api_base or (options.api_base if same else None),
        "judge": options.judge_api_base or (options.api_base if options.judge_model == name else None),
    }
    shared: dict[str, Any] = {
        "timeout_seconds": options.timeout_seconds,
        "retries": options.retries,
        "log": eprint,
    }
    try:
        models = {
            "reader": resolve_models.load(
                name,
                api_base=addresses["reader"],
                tokenizer=options.tokenizer,
                context_tokens=options.context_window,
                max_tokens=options.max_answer_tokens or resolve_models.MAX_ANSWER_TOKENS,
                price=options.price,
                **shared,
            ),
            "prompt model": resolve_models.load(
                writer,
                api_base=addresses["prompt model"],
                max_tokens=proposal_tokens,
                price=options.prompt_price or (options.price if same else None),
                flags=Flags("--prompt-model", "--prompt-api-base", tokens=""),
                **shared,
            ),
        }
        if options.judge_model not in (None, "none"):
            judge = resolve_models.load(
                str(options.judge_model),
                api_base=addresses["judge"],
                max_tokens=options.judge_max_tokens or JUDGE_TOKENS,
                price=options.judge_price,
                flags=JUDGE_FLAGS,
                **shared,
            )
            _require_calibration(data, judge, addresses["judge"])
            models["judge"] = judge
    except ValueError as error:
        raise UserError(str(error)) from error
    for role, model in models.items():
        if options.cost_limit and model.price is None:
            raise UserError(
                f"cannot enforce --cost-limit: the price of {model.name} is unknown; set it with {PRICE_FLAGS[role]} "
                "PROMPT,REPLY in dollars per million tokens, or leave out --cost-limit."
            )
    return models, addresses


def _require_calibration(data: Dataset, model: Model, address: str | None) -> None:
    """A judge may guide the search only if its calibration passed. It is never used for reports."""
    prompt = benchmarks.load(data.benchmark).judge_prompt()
    calibration = Calibrator(data, model, Judge(model.lm, prompt), address=address).cached(
        max_false_accept=MAX_FALSE_ACCEPT
    )
    if calibration is None:
        raise UserError(
            f"{model.name} has no judge calibration, and the search would learn its errors; run memometer calibrate "
            f"--judge-model {model.name}, or leave out --judge-model."
        )
    if not (found := assess(calibration))["passed"]:
        raise UserError(f"--judge-model: {sentence(found)}")


def _make_memory(options: OptimizeOptions, reader: Model) -> AdaptiveMemory:
    encoder: Any = None
    if options.encoder:
        encoder = load_encoder(options.encoder, log=eprint)
        if not isinstance(encoder, TokenEncoder):
            raise UserError(f"{encoder.name} has no token vectors; use --encoder minilm, or leave it out.")
    return AdaptiveMemory(count=reader.count, encoder=encoder)


def _make_reader(options: OptimizeOptions, model: Model, longest_question: str) -> Reader:
    """The reader, with a question budget that holds the unoptimized prompt.

    Longer instructions or examples reduce the memory, because the budget stays the same.
    """
    reader = Reader(rounds=options.rounds, question_budget=options.question_budget)
    overhead = prompt_overhead(model, longest_question, reader) + model.max_tokens
    budget, window = options.budget_tokens, model.context_tokens
    if window is not None and budget + overhead > window:
        raise UserError(
            f"a prompt needs up to {budget + overhead:,} tokens, and the context window of {model.name} has "
            f"{window:,}; use a smaller --budget-tokens."
        )
    if reader.question_budget is None:
        reader.question_budget = sum(contexts_of(budget, options.rounds)) + options.rounds * overhead
    elif reader.question_budget < overhead:
        raise UserError(
            f"--question-budget {reader.question_budget:,} is too small: a prompt without memory needs {overhead:,} "
            "tokens."
        )
    return reader


def _questions_of(fold: Fold) -> tuple[tuple[Question, ...], ...]:
    return fold.train, fold.selection, fold.confirmation


def _ids(conversations: tuple[Conversation, ...]) -> str:
    return ", ".join(conversation.id for conversation in conversations)


def _version(package: str) -> str:
    return version(package) if importlib.util.find_spec(package) else ""
