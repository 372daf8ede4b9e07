"""What a configuration amounts to on this machine: which questions teach, which choose, which confirm; who reads, who
writes prompts; and what it will cost at most.

Configuration is a dictionary with the names of optimize.py's flags. Building a study costs no model call.
"""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from memometer import benchmarks
from memometer.benchmarks import reward
from memometer.benchmarks.protocol import Conversation, Question
from memometer.benchmarks.reward import Objective
from memometer.benchmarks.sampling import sample
from memometer.harness.loop import prompt_overhead
from memometer.harness.plan import Refused
from memometer.judging.calibrate import Certifier
from memometer.judging.judge import Judge
from memometer.judging.judge_calibration import judged, sentence
from memometer.models.downloads import WeightsUnavailable
from memometer.models.encoders import EncoderUnavailable, TokenEncoder
from memometer.models.encoders import load as load_encoder
from memometer.models.resolve_models import Model
from memometer.optimize.optimizers import Size, size
from memometer.reader.reader import Reader
from memometer.report.multi_round_analysis import contexts_of
from memometer.retrieval import late_interaction
from memometer.run import cost as accounting
from memometer.run.environment import digest, recalling_code
from memometer.run.progress import eprint
from memometer.systems.adaptive import AdaptiveMemory

Config = dict[str, Any]

PROPOSAL_TOKENS, EMBEDDED_PROPOSAL_TOKENS = 1_500, 256
"""Of a reply of the prompt model at most; small embedded models would fill any length."""
BESIDE_PROPOSALS = 2_500
"""Tokens of a proposal's prompt beside the runs that it shows: instructions, the program's source."""
SHOWN_RUNS = 3
PRICES = {"reader": "--price", "prompt model": "--prompt-price", "judge": "--judge-price"}
BESIDE_JUDGED = 500
"""Tokens of a judge's prompt beside the answer."""
BOOTSTRAP_DEMOS = 2


@dataclass(frozen=True, slots=True)
class Forecast:
    """An upper bound, but for retries; `usd` is None where a price is not known."""

    calls: int
    tokens: int
    usd: float | None


class Study:
    """Everything that is chosen before the first call. Raises Refused for a configuration that cannot be run."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.cost_limit: float | None = config["cost_limit"]
        self.notices: list[str] = []
        self.out = Path(config["out"] or "optimized_memory_qa.json")
        if self.out.is_dir():
            raise Refused(f"--out {self.out} is a folder; name a file, such as {self.out / 'program.json'}.")
        if not self.out.parent.is_dir():
            raise Refused(f"--out {self.out}: there is no folder {self.out.parent}; mkdir -p {self.out.parent} first.")
        if not os.access(self.out.parent, os.W_OK):
            raise Refused(f"--out {self.out} is in a folder that cannot be written; name a file elsewhere.")
        if config["optimizer"] == "miprov2" and importlib.util.find_spec("optuna") is None:
            raise Refused("MIPROv2 searches with Optuna; pip install -c constraints.txt '.[optimize]'")
        try:
            self.benchmark = benchmarks.load(config.get("benchmark"))
            self.data = self.benchmark.load(config["data"])
        except ValueError as error:
            raise Refused(str(error)) from error
        self._choose_questions()
        self._choose_models()
        self._choose_memory()
        demos = config["max_demos"]
        self.max_demos: int = (BOOTSTRAP_DEMOS if config["optimizer"] == "bootstrap" else 0) if demos is None else demos
        self.objective = Objective() if config["token_price"] is None else Objective(config["token_price"])
        self.size: Size = size(
            config["optimizer"],
            config["auto"],
            train=len(self.train),
            validation=len(self.choosing),
            max_demos=self.max_demos,
        )

    # ------------------------------------------------------------ choosing

    def _choose_questions(self) -> None:
        """`train` teaches, `choosing` picks among candidates, `confirming` says what the pick is worth: the last two
        are of the same conversations and share no question, so that a lucky pick does not confirm itself."""
        self.train_conversations = self.data.part("train")
        self.validation_conversations = self.data.part("validation")
        known = {c.id for c in (*self.train_conversations, *self.validation_conversations)}
        self.sealed: tuple[Conversation, ...] = tuple(c for c in self.data.conversations if c.id not in known)
        seed, n = self.config["seed"], self.config["num_examples"]
        teaching = [q for c in self.train_conversations for q in c.questions]
        held = [q for c in self.validation_conversations for q in c.questions]
        self.train: tuple[Question, ...] = sample(teaching, n, seed=seed)
        wanted = self.config["num_validation"] or n
        if len(self.train) < n:
            self.notices.append(f"There are {len(self.train)} training questions, not {n}.")
        if (most := len(held) // 2) < wanted:
            self.notices.append(f"There are {most} validation questions each to choose and to confirm, not {wanted}.")
            wanted = most
        if not self.train or not wanted:
            raise Refused("it takes a training question and two validation questions; give data with more of them.")
        self.choosing: tuple[Question, ...] = sample(held, wanted, seed=seed)
        chosen = {question.id for question in self.choosing}
        rest = [question for question in held if question.id not in chosen]
        self.confirming: tuple[Question, ...] = sample(rest, wanted, seed=seed)
        if not self.sealed:
            self.notices.append("All is one part here: what is learned is tried on the same conversation.")

    def _choose_models(self) -> None:
        from memometer.models import resolve_models

        config = self.config
        name = config["model"] or resolve_models.default_model()
        calls = {"timeout_seconds": config["timeout_seconds"], "retries": config["retries"], "log": eprint}
        try:
            self.reader: Model = resolve_models.load(
                name,
                api_base=config["api_base"],
                tokenizer=config["tokenizer"],
                context_tokens=config["context_window"],
                max_tokens=config["max_answer_tokens"],
                price=config["price"],
                **calls,
            )
            writer = config["prompt_model"] or name
            most = EMBEDDED_PROPOSAL_TOKENS if writer.startswith("embedded:") else PROPOSAL_TOKENS
            base = config["prompt_api_base"] or (None if config["prompt_model"] else config["api_base"])
            named = config["prompt_price"] or (None if config["prompt_model"] else config["price"])
            self.prompt_model: Model = resolve_models.load(writer, api_base=base, max_tokens=most, price=named, **calls)
        except (ValueError, WeightsUnavailable) as error:
            raise Refused(str(error)) from error
        self.models = {"reader": self.reader, "prompt model": self.prompt_model}
        self.addresses = {"reader": config["api_base"], "prompt model": base}
        self._choose_judge(calls)
        for role, model in self.models.items():
            if config["cost_limit"] and model.price is None:
                raise Refused(
                    f"--cost-limit cannot be kept, because the price of {model.name} is not known; name it with "
                    f"{PRICES[role]} PROMPT,REPLY in dollars per million tokens, or leave --cost-limit out."
                )

    def _choose_judge(self, calls: dict[str, Any]) -> None:
        """A judge helps to search, never to report, and only with a certificate."""
        from memometer.models import resolve_models

        config = self.config
        if config["judge_model"] in (None, "none"):
            return
        base = config["judge_api_base"]
        try:
            model = resolve_models.load(
                config["judge_model"], api_base=base, max_tokens=16, price=config["judge_price"], **calls
            )
            kept = Certifier(self.data, model, Judge(model.lm, self.benchmark.judge_prompt()), address=base).kept()
        except (ValueError, WeightsUnavailable) as error:
            raise Refused(str(error)) from error
        if kept is None:
            raise Refused(
                f"{model.name} has no certificate, and a search would learn its errors; measure it with "
                f"memometer calibrate --judge-model {model.name}, or leave --judge-model out."
            )
        if not (found := judged(kept))["passed"]:
            raise Refused(f"--judge-model: {sentence(found)}")
        self.models["judge"], self.addresses["judge"] = model, base

    def _choose_memory(self) -> None:
        config = self.config
        encoder: Any = None
        if config["encoder"]:
            try:
                encoder = load_encoder(config["encoder"], log=eprint)
            except EncoderUnavailable as error:
                raise Refused(str(error)) from error
            if (
                not isinstance(encoder, TokenEncoder)
                or encoder.name != late_interaction.load(late_interaction.SHIPPED).encoder
            ):
                raise Refused(f"there are no weights for {encoder.name}; use --encoder minilm, or leave it out.")
        self.memory = AdaptiveMemory(count=self.reader.count, encoder=encoder)
        self.reading = Reader(rounds=config["rounds"], question_budget=config["question_budget"])
        longest = max((q.text for q in (*self.train, *self.choosing, *self.confirming)), key=len)
        beside = prompt_overhead(self.reader, longest, self.reading) + self.reader.max_tokens
        budget, rounds = config["budget_tokens"], config["rounds"]
        window = self.reader.context_tokens
        if window is not None and budget + beside > window:
            raise Refused(
                f"a prompt takes {budget + beside:,} tokens at most and the window of {self.reader.name} holds "
                f"{window:,}; use a smaller --budget-tokens."
            )
        # By default what the unoptimised prompt takes at most: what an instruction or an example adds, memory loses.
        if self.reading.question_budget is None:
            self.reading.question_budget = sum(contexts_of(budget, rounds)) + rounds * beside
        elif self.reading.question_budget < beside:
            raise Refused(
                f"--question-budget {self.reading.question_budget:,} does not hold one prompt without memory, which "
                f"takes {beside:,} tokens; give more."
            )

    # ------------------------------------------------------------ saying

    def announcement(self, done: int = 0) -> list[str]:
        """Who does what on what, and the forecast; `done` calls are there already."""
        config, expected = self.config, self.forecast()
        money = accounting.money(expected.usd, *self.models.values())
        writer = self.prompt_model.name if self.prompt_model.name != self.reader.name else "the same model"
        judge = f", {self.models['judge'].name} helps to judge" if "judge" in self.models else ""
        there = f"; {done:,} of them are there already" if done else ""
        counts = Counter(question.category for question in self.train)
        kinds = ", ".join(f"{counts[c]} {name}" for c, name in self.data.categories.items() if counts[c])
        lines = [
            f"{config['optimizer']} ({config['auto']}): {self.reader.name} reads, {writer} writes prompts{judge}; "
            f"forecast: at most {expected.calls:,} calls, {expected.tokens:,} tokens, {money} without retries{there}.",
            f"{len(self.train)} questions of {_names(self.train_conversations)} teach ({kinds}); "
            f"{len(self.choosing)} of {_names(self.validation_conversations)} choose, {len(self.confirming)} others of "
            f"them confirm" + (f"; sealed: {_names(self.sealed)}." if self.sealed else "."),
            f"Objective: 0.8 answer + 0.2 citations, a price of {self.objective.token_price:g} for each 1,000 tokens; "
            f"{config['budget_tokens']:,} tokens of memory, {self.reading.question_budget:,} a question in all, "
            f"instructions and at most {self.max_demos} found examples included.",
            *self.notices,
        ]
        return lines + ([self.data.notice] if self.data.kind else [])

    def forecast(self) -> Forecast:
        """Of all: the unoptimised prompt on every question, the optimiser, the choice among what it left."""
        rounds, question = self.config["rounds"], self.reading.question_budget or 0
        before = len(self.train) + len(self.choosing) + len(self.confirming)
        runs = before + self.size.runs + self.size.left * len(self.choosing) + len(self.confirming)
        replies = rounds * self.reader.max_tokens  # which the budget of a question includes
        taken = {"reader": (runs * rounds, runs * (question - replies), runs * replies)}
        proposals, shown = self.size.proposals, BESIDE_PROPOSALS + SHOWN_RUNS * question
        taken["prompt model"] = (proposals, proposals * shown, proposals * self.prompt_model.max_tokens)
        if judge := self.models.get("judge"):
            taken["judge"] = (runs, runs * (BESIDE_JUDGED + self.reader.max_tokens), runs * judge.max_tokens)
        costs = [accounting.forecast(self.models[role], prompt, reply) for role, (_, prompt, reply) in taken.items()]
        return Forecast(
            calls=sum(calls for calls, *_ in taken.values()),
            tokens=sum(prompt + reply for _, prompt, reply in taken.values()),
            usd=None if None in costs else sum(cost for cost in costs if cost is not None),
        )

    def identity(self) -> dict[str, str]:
        """What must be the same for a search to go on where it was."""
        scoring = [Path(reward.__file__), *self.benchmark.scoring_files]
        code = [path.read_text(encoding="utf-8") for path in [*sorted(Path(__file__).parent.glob("*.py")), *scoring]]
        packages = {name: _version(name) for name in ("dspy", "gepa", "optuna")}
        return {
            "configuration": digest(self.config),
            "data": self.data.sha256,
            "questions": digest([q.id for q in (*self.train, *self.choosing, *self.confirming)]),
            "code": digest([recalling_code(), code]),
            "packages": digest(packages),
            "token counter": self.reader.count.name,
            **{role: self.answering(role) for role in self.models},
        }

    def answering(self, role: str) -> str:
        """Tells models of one name apart: by their weights, where they are seen, and by where they are served."""
        model = self.models[role]
        return f"{model.name} {model.revision} {self.addresses[role] or ''}".strip()


def _names(conversations: tuple[Conversation, ...]) -> str:
    return ", ".join(conversation.id for conversation in conversations)


def _version(package: str) -> str:
    return version(package) if importlib.util.find_spec(package) else ""
