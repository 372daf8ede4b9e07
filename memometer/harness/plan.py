"""What a configuration amounts to on this machine: which questions, asked of whom, at what cost at most.

Configuration is a dictionary with the names of evaluate.py's flags.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memometer import benchmarks
from memometer.benchmarks.protocol import DataError, Dataset
from memometer.benchmarks.sampling import sample
from memometer.errors import UserError
from memometer.harness import contamination
from memometer.harness.configure_memories import LoadForm, Unfit, check_taken, check_url, print_as, try_store
from memometer.harness.cost_estimate import forecast
from memometer.harness.loop import Task, conversation_tokens, plan, window_budget
from memometer.judging.calibrate import Certifier
from memometer.judging.judge import Judge, shared_family
from memometer.judging.judge_calibration import judged, sentence
from memometer.memory import DEFAULT_BUDGET_TOKENS, Memory
from memometer.models.downloads import WeightsUnavailable
from memometer.models.encoders import Encoder, EncoderUnavailable, TokenEncoder
from memometer.models.encoders import load as load_encoder
from memometer.reader.abstention import AbstentionRule
from memometer.reader.program_file import Program, ProgramError, load_for
from memometer.reader.reader import Reader, RefusingReader, predictors_of
from memometer.retrieval import late_interaction
from memometer.retrieval.ranker import SHIPPED
from memometer.run import cost
from memometer.run.environment import digest, recalling_code
from memometer.run.folder import Key
from memometer.run.progress import eprint
from memometer.systems import BASELINES
from memometer.token_counters import TokenCounter, Utf8Bytes

Config = dict[str, Any]
LoadMemory = Callable[[str], type[Memory[Any]]]


class Refused(UserError, ValueError):
    """The experiment cannot be run as asked; the message is one sentence with the next step."""


class Leaked(Refused):
    """What is held out stands in what the run would start with: no mistake of the command line, but an invalid run."""

    exit_code = 3


def categories_of(config: Config, data: Dataset) -> list[str]:
    """The keys of the categories that a configuration asks; runs of earlier versions hold them as numbers.

    Raises:
        DataError: A category is unknown.
    """
    chosen = [str(key) for key in config.get("categories") or data.categories]
    if unknown := [key for key in chosen if key not in data.categories]:
        known = ", ".join(f"{key} ({name})" for key, name in data.categories.items())
        raise DataError(f"--categories got {', '.join(unknown)}; the categories are {known}.")
    return chosen


class Choice:
    """What a configuration amounts to on this machine. Building it costs no model call.

    Raises Refused for a configuration that cannot be run.
    """

    def __init__(self, config: Config, load_memory: LoadMemory, load_form: LoadForm = lambda _: None) -> None:
        self.config = config
        self.notices: list[str] = []
        try:
            self.benchmark = benchmarks.load(config.get("benchmark"))
            self.data = self.benchmark.load(config["data"])
        except ValueError as error:
            raise Refused(str(error)) from error
        self.mark = self.data.prefix
        self.questions = self._questions()
        self.conversations = [c for c in self.data.conversations if any(q.conversation == c.id for q in self.questions)]
        self._choose_models()
        try:
            self._choose_memories(load_memory)
            self.form = print_as(config.get("context_format"), load_form, self.memories, self.readers)
            self.notices += [f"Remembered turns stand in the prompt as {self.form.name}."] if self.form else []
        except ProgramError as error:
            raise Refused(f"--program: {error}") from error
        except Unfit as error:
            raise Refused(str(error)) from error
        self._choose_folds()
        self._refuse_leaks()
        self.tasks = self._plan()
        self.limit_cost(config["cost_limit"])

    # ------------------------------------------------------------ choosing

    def _questions(self) -> tuple[Any, ...]:
        try:
            chosen = self.data.part(self.config["split"])
            categories = categories_of(self.config, self.data)
        except DataError as error:
            raise Refused(str(error)) from error
        questions = [
            question
            for conversation in chosen
            for question in conversation.questions
            if question.category in categories
        ]
        return sample(questions, self.config["num_test"] or len(questions), seed=self.config["seed"])

    def _choose_models(self) -> None:
        self.reader = self.judge_model = self.judge = None
        self.certifier: Certifier | None = None
        self.family = ""
        self.no_judge = "the run asked no model"
        api_base, judge_api_base = self.config["api_base"], self.config["judge_api_base"]
        if self.config["recall_only"]:
            return
        from memometer.models import resolve_models

        try:
            self.prompt = self.benchmark.judge_prompt(self.config["judge"])
        except DataError as error:
            raise Refused(str(error)) from error
        name = self.config["model"] or resolve_models.default_model()
        judge = self.config["judge_model"]
        # A judge is chosen unasked only where the reader was: nothing is spent on what nobody named.
        if judge is None and not self.config["model"] and name != resolve_models.NO_KEY_DEFAULT:
            judge = name
        calls = {"timeout_seconds": self.config["timeout_seconds"], "retries": self.config["retries"], "log": eprint}
        try:
            self.reader = resolve_models.load(
                name,
                api_base=api_base,
                tokenizer=self.config["tokenizer"],
                context_tokens=self.config["context_window"],
                max_tokens=self.config["max_answer_tokens"],
                price=self.config["price"],
                **calls,
            )
            if judge in (None, "none"):
                self.no_judge = "no judge was named; add --judge-model embedded:base, or any DSPy model string."
                return
            self.judge_model = resolve_models.load(
                judge, api_base=judge_api_base, max_tokens=16, price=self.config["judge_price"], **calls
            )
        except (ValueError, WeightsUnavailable) as error:
            raise Refused(str(error)) from error
        self.judge = Judge(self.judge_model.lm, self.prompt)
        self.family = shared_family(self.reader.name, self.judge_model.name)
        try:
            self.certifier = Certifier(
                self.data,
                self.judge_model,
                self.judge,
                address=judge_api_base,
                wrong_answers=self.config["wrong_answers"],
            )
        except DataError as error:
            raise Refused(str(error)) from error
        self.no_judge = "no answer was graded."

    def _note_counter(self) -> None:
        if isinstance(self.count, Utf8Bytes):
            self.notices.append(
                "The model's tokenizer is not known, so budgets are counted in UTF-8 bytes, which tokens never exceed; "
                "for exact budgets name it with --tokenizer (o200k_base, cl100k_base, or a tokenizer.json)."
            )

    def _choose_memories(self, load_memory: LoadMemory) -> None:
        default = "recent,adaptive" if self.reader is None else "recent,full_context,adaptive"
        names = [name.strip() for name in (self.config["systems"] or default).split(",") if name.strip()]
        self.count: TokenCounter
        if self.reader:
            self.count = self.reader.count
        else:
            from memometer.token_counters import counter_for

            try:
                self.count = counter_for(tokenizer=self.config["tokenizer"])
            except ValueError as error:
                raise Refused(str(error)) from error
        self._note_counter()
        self.program = self._program()
        reading: dict[str, Any] = {
            "rounds": self.config["rounds"] or (self.program.rounds if self.program else 0),
            "question_budget": self.config["question_budget"],
            "abstention": self._rule(),
        }
        self.encoder: Encoder | None = None
        self.memories: dict[str, Memory[Any]] = {}
        self.readers: dict[str, Reader] = {}
        self.left_out: dict[str, str] = {}
        check_url(memory_url := self.config.get("memory_url"))
        # Without answers a constant one is no system of its own.
        baselines = [name for name in BASELINES if self.reader or name != "refusal"]
        for name in [*names, *baselines]:
            try:
                kind = load_memory(name)
            except KeyError as error:
                raise Refused(f"--systems: {error.args[0]}.") from error
            if kind.needs_model and self.reader is None:
                raise Refused(
                    f"{name} writes its memory with a model, and --recall-only asks none; leave out one of the two."
                )
            parts: dict[str, Any] = {}
            if kind.needs_encoder or (kind.takes_token_encoder and self.config["encoder"]):
                parts["encoder"] = self._encoder(name)
            if kind.takes_token_encoder and "encoder" in parts:
                fitted = late_interaction.load(late_interaction.SHIPPED).encoder
                if not isinstance(parts["encoder"], TokenEncoder) or parts["encoder"].name != fitted:
                    raise Refused(
                        f"{name} has weights for {fitted} only, not for {parts['encoder'].name}; use --encoder minilm, "
                        "or leave it out."
                    )
            elif kind.takes_token_encoder:
                self.notices.append(f"{name} matches by words alone; --encoder minilm adds meaning (83 MB, no key).")
            if memory_url and kind.takes_memory_url:
                parts["memory_url"] = memory_url
            self.memories[name] = kind(count=self.count, **parts)
            if "memory_url" in parts:
                try_store(name, self.memories[name])
            options = reading if kind.reads_in_rounds else {}
            self.readers[name] = RefusingReader() if name == "refusal" else Reader(**options)
            if self.program and kind.reads_in_rounds:
                self.program.into(self.readers[name])
        check_taken(memory_url, self.memories.values())

    def _encoder(self, system: str) -> Encoder:
        """The encoder, loaded once for all systems that need one."""
        if self.encoder is None:
            try:
                self.encoder = load_encoder(self.config["encoder"], log=eprint)
            except EncoderUnavailable as error:
                raise Refused(f"{system} needs an encoder: {error}") from error
        return self.encoder

    def _choose_folds(self) -> None:
        """Which memories are asked with other weights in each conversation, so that none has seen its labels."""
        self.folds: dict[tuple[str, str], Memory[Any]] = {}
        self.folded: list[str] = []
        asked = [conversation.id for conversation in self.conversations]
        for name, memory in self.memories.items():
            seen = [] if self.data.kind else sorted(set(memory.fitted_on) & set(asked))
            if not memory.fitted_on or not (seen or self.config["folds"]):
                continue
            if self.data.kind:
                raise Refused(
                    f"--folds refits the ranking on {self.benchmark.title}'s other conversations; leave it out here."
                )
            self.folded.append(name)
            why = f"the shipped ranking has seen the labels of {', '.join(seen)}; " if seen else ""
            self.notices.append(f"{name}: {why}each conversation is asked with weights fitted on the others.")

    def fit_folds(self) -> None:
        """Minutes the first time, then kept on disk; building the choice does not wait for it."""
        from memometer.harness.fit_ranker import folds

        asked = [conversation.id for conversation in self.conversations]
        for name in self.folded:
            memory: Any = self.memories[name]
            for held_out, (ranker, projection) in folds(self.data, asked, memory.encoder).items():
                self.folds[name, held_out] = memory.with_weights(ranker, projection)

    def _refuse_leaks(self) -> None:
        """No prompt, example, rule or weight that a run starts with may hold what the test conversations hold."""
        if not self.data.held_out(self.config["split"]):
            return
        rule = [Path(self.config["abstention"])] if self.config["abstention"] else []
        files = [text for path in [*SHIPPED.parent.glob("*.json"), *rule] for text in contamination.texts_of(path)]
        prompts = [
            text
            for name, memory in self.memories.items()
            for predictor, prompt in predictors_of(memory, self.readers[name]).items()
            for text in contamination.texts_in(f"the prompt {predictor!r} of {name}", prompt.dump_state())
        ]
        if found := contamination.scan(prompts + files, contamination.HeldOut.of(self.data, self.config["split"])):
            raise Leaked(
                f"test data found in a prompt or file ({contamination.summary(found)[0]}); scores would be "
                "meaningless. Remove it, or choose other conversations with --split."
            )

    def memory_of(self, system: str, conversation: str) -> Memory[Any]:
        """The memory that a conversation is asked with: its fold's, where there are folds."""
        return self.folds.get((system, conversation), self.memories[system])

    def _program(self) -> Program | None:
        if not self.config.get("program"):  # a run that was begun before there were programs has none
            return None
        program, notice = load_for(
            Path(self.config["program"]),
            [conversation.id for conversation in self.conversations],
            judge=self.judge_model.name if self.judge_model else "",
            stand_in=bool(self.data.kind),
        )
        self.notices += [notice] if notice else []
        return program

    def _rule(self) -> AbstentionRule | None:
        if not self.config["abstention"]:
            return None
        try:
            rule = AbstentionRule.load(Path(self.config["abstention"]))
        except ValueError as error:
            raise Refused(f"--abstention: {error}") from error
        if rule.fitted_on and not {c.id for c in self.data.conversations} & set(rule.fitted_on):
            raise Refused(
                f"--abstention: the rule was fitted on {', '.join(rule.fitted_on)}, which are no conversations of "
                f"{self.data.path.name}; fit one on its validation "
                "conversations with memometer fit-abstention."
            )
        if seen := sorted({c.id for c in self.conversations} & set(rule.fitted_on)):
            raise Refused(
                f"--abstention: the rule was fitted on {', '.join(seen)}, asked here; ask other conversations."
            )
        return rule

    def _plan(self) -> list[Task]:
        budgets = self.config["budgets"] or [self.config["budget_tokens"] or DEFAULT_BUDGET_TOKENS]
        self.whole = {c.id: conversation_tokens(c, self.count, self.form) for c in self.conversations}
        room = window_budget(self.reader, self.questions, self.readers.values()) if self.reader else None
        if self.reader and room is None:
            self._leave_out_all_showing(f"the window of {self.reader.name} is not known; give it with --context-window")
        if room is not None:
            if room < 64:
                raise Refused(
                    f"the window of {self.reader.name if self.reader else ''} leaves {room} tokens for memory beside "
                    "the question; use a model with a larger one, or name it with --context-window."
                )
            self._fit_to_window(room)
            if too_large := [budget for budget in budgets if budget > room]:
                budgets = list(dict.fromkeys(min(budget, room) for budget in budgets))
                listed = ", ".join(f"{budget:,}" for budget in too_large)
                self.notices.append(f"Budget {listed} lowered to {room:,} tokens, all that the reader's window leaves.")
        mean = sum(self.whole.values()) / max(1, len(self.whole))
        self.cautions = [
            f"A budget of {budget:,} tokens holds {min(1, budget / mean):.0%} of the mean conversation ({mean:,.0f}): "
            "above half, little is left to choose."
            for budget in budgets
            if 0 < mean < 2 * budget
        ]
        self.notices += self.cautions
        return plan(
            self.memories,
            self.questions,
            budgets=budgets,
            window_budget=room,
            two_options=self.config["two_options"] and self.reader is not None,
        )

    def limit_cost(self, dollars: float | None) -> None:
        """Stop the run when it has cost so much. Refused where it cannot be known what it costs."""
        self.cost_limit = dollars
        unknown = cost.unknown_cost(self.reader, self.judge_model, self.memories)
        if dollars is not None and unknown:
            raise Refused(f"--cost-limit cannot be kept, because {unknown}, or leave --cost-limit out.")

    def _fit_to_window(self, room: int) -> None:
        assert self.reader
        needed = max(self.whole.values(), default=0)
        if needed > room:
            unit = "bytes, an upper bound of its tokens," if isinstance(self.count, Utf8Bytes) else "tokens"
            self._leave_out_all_showing(
                f"the longest conversation is {needed:,} {unit} and {self.reader.name} has room for {room:,}"
            )

    def _leave_out_all_showing(self, reason: str) -> None:
        for name in [name for name, memory in self.memories.items() if memory.shows_everything]:
            del self.memories[name]
            self.left_out[name] = reason
            self.notices.append(f"{name} is left out: {reason}.")

    # ------------------------------------------------------------ saying

    @property
    def judge_name(self) -> str | None:
        """The judge model and its prompt; None without a judge."""
        return f"{self.judge_model.name} ({self.prompt.name})" if self.judge_model else None

    def say(self, text: str = "") -> None:
        """Print; with the sample in place of LOCOMO, every line says so."""
        for line in text.split("\n"):
            print(f"{self.mark}{line}", flush=True)

    def announce(self, done: Collection[Key] = ()) -> None:
        """First line: who answers, who judges, what it will cost at most. Then the plan and its limits.

        `done` are the questions that an earlier part of the run has answered.
        """
        if self.reader is None:
            self.say(f"No model is asked; tokens are counted by {self.count.name}.")
        else:
            judge = self.judge_name or "nobody"
            self.say(f"{self.reader.name} answers, {judge} judges; forecast: at most {forecast(self, done)}.")
            self._announce_judge()
        systems = {task.system: 0 for task in self.tasks}
        counts = Counter(question.category for question in self.questions)
        self.say(
            f"{len(self.questions)} questions of {len(self.conversations)} conversations ({self.config['split']}; "
            + ", ".join(f"{counts[c]} {name}" for c, name in self.data.categories.items() if counts[c])
            + f") to {', '.join(systems)}."
        )
        for notice in self.notices:
            self.say(notice)
        if self.data.kind:
            self.say(self.data.notice)

    def _announce_judge(self) -> None:
        """What the judge's numbers will be worth, and what it costs to know."""
        if self.family:
            self.say(f"The judge is of the reader's own family ({self.family}) and may favour its answers.")
        if self.certifier is None or self.config["no_certificate"]:
            return
        found = self.certifier.kept()
        if found is None:
            self.say(f"The judge has no certificate; it is measured first: {self.certifier.forecast()}.")
        else:
            self.say(sentence(judged(found, max_false_accept=self.config["max_false_accept"])))

    def answer_prompts(self) -> dict[str, str]:
        """System -> a short hash of what its reader is told, without the memory."""
        read = {name: reader.read for name, reader in self.readers.items()}
        return {
            name: digest([predict.signature.instructions, [demo.toDict() for demo in predict.demos]])
            for name, predict in read.items()
        }

    def identity(self) -> dict[str, str]:
        """What must be the same for two answers to belong to one run."""
        identity = {
            "configuration": digest(self.config),
            "data": self.data.sha256,
            "questions": digest([question.id for question in self.questions]),
            "systems": recalling_code(),
            "tasks": digest([task.key for task in self.tasks]),
            "token counter": self.count.name,
        }
        if self.encoder:
            identity["encoder"] = self.encoder.name
        if self.reader:
            identity["reader"] = f"{self.reader.name} {self.reader.revision}".strip()
            identity["answer prompts"] = digest(self.answer_prompts())
        if self.program:
            identity["program"] = self.program.digest
        if rule := self._rule():
            identity["abstention"] = digest(asdict(rule))
        if self.judge_model and self.judge:
            identity["judge"] = f"{self.judge_model.name} {self.judge.prompt} {self.judge.prompt_hash}"
        return identity
