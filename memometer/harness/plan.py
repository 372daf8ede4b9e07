"""The plan of an evaluation: the questions, the models and systems, the tasks, and the maximum cost."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from memometer import benchmarks
from memometer.benchmarks.protocol import Conversation, Dataset, Question
from memometer.harness.batches import at_batch_price
from memometer.harness.configure_memories import Systems
from memometer.harness.cost_estimate import estimate, memory_bound
from memometer.harness.model_check import room_for_thoughts
from memometer.harness.models import Models
from memometer.harness.options import EvaluateOptions
from memometer.harness.questions import chosen_questions
from memometer.harness.tasks import Task, window_budget
from memometer.judging.hidden_probes import Probe, draw_probes
from memometer.judging.judge_assessment import assess, sentence
from memometer.judging.judge_calibration import Calibration
from memometer.memory import Memory
from memometer.reader.abstention import AbstentionRule
from memometer.reader.program_file import Program
from memometer.reader.signatures import ABSTENTION
from memometer.report import presenter
from memometer.run import cost
from memometer.run.environment import digest, recalling_code, scoring_code
from memometer.run.folder import Key
from memometer.run.options import OptionError
from memometer.stats import power
from memometer.systems import BASELINES, SIMPLE
from memometer.systems.plugin_memory import PluginMemory
from memometer.token_counters import TokenCounter, Utf8Bytes


@dataclass
class Plan:
    """The plan of an evaluation (`memometer.harness.make_plan`).

    Attributes:
        options: The options with every default resolved.
        data: The benchmark's data.
        questions: The questions, in the order of the data.
        conversations: Their conversations.
        models: The models that answer and judge.
        systems: The memory systems and their readers.
        count: Counts the tokens of a budget.
        tasks: Every question to every system at every budget.
        conversation_tokens: Conversation id -> tokens of the whole conversation.
        left_out: System -> the reason why it is not evaluated.
        cautions: Warnings about the budgets, for readers of the results.
        notices: Sentences for the announcement, the cautions among them.
        cross_validated: Systems that are evaluated with weights fitted on the other conversations.
    """

    options: EvaluateOptions
    data: Dataset
    questions: tuple[Question, ...]
    conversations: tuple[Conversation, ...]
    models: Models
    systems: Systems
    count: TokenCounter
    program: Program | None = None
    rule: AbstentionRule | None = None
    tasks: list[Task] = field(default_factory=list)
    conversation_tokens: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    cautions: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    cross_validated: list[str] = field(default_factory=list)
    _refitted: dict[tuple[str, str], Memory[Any]] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """The unit of budgets: `tokens`, or `bytes` if the model's tokenizer is unknown."""
        return "bytes" if isinstance(self.count, Utf8Bytes) else "tokens"

    @property
    def keys(self) -> list[Key]:
        """The key of every task."""
        return [task.key for task in self.tasks]

    @property
    def active_keys(self) -> list[Key]:
        """The key of every task of a system that is not skipped."""
        skipped = self.skipped()
        return [key for key in self.keys if key[0] not in skipped]

    def memory_of(self, system: str, conversation: str) -> Memory[Any]:
        """The memory that answers about a conversation; a cross-validated one has weights fitted on the others.

        Args:
            system: Name of the system.
            conversation: Id of the conversation.
        """
        return self._refitted.get((system, conversation), self.systems.memories[system])

    def refit(self) -> None:
        """Fit the weights of cross-validated systems. This takes minutes the first time and is cached on disk."""
        from memometer.harness.fit_ranker import folds

        for name in self.cross_validated:
            memory: Any = self.systems.memories[name]
            for held_out, weights in folds(self.data, [c.id for c in self.conversations], memory.encoder).items():
                self._refitted[name, held_out] = memory.with_weights(*weights)

    def check_cost_limit(self, dollars: float | None) -> None:
        """Raise OptionError if there is a cost limit but the cost of the run cannot be known."""
        unknown = cost.unknown_cost(self.models.reader, self.models.judge_model, self.systems.memories)
        if dollars is not None and unknown:
            raise OptionError(f"--cost-limit cannot be enforced, because {unknown}, or leave --cost-limit out.")

    # ------------------------------------------------------------ plug-ins

    def plug_ins(self) -> dict[str, Any]:
        """Return the description of each plug-in, for the manifest and the report."""
        return {
            name: {
                **asdict(memory.description),
                "notices": memory.notices(),
                "metered": memory.connection.metered,
                "peak_memory_bytes": memory.connection.peak_memory(),
            }
            for name, memory in self.systems.memories.items()
            if isinstance(memory, PluginMemory)
        }

    def skipped(self) -> dict[str, str]:
        """Return the systems that take no further part in the run, with the reasons."""
        refusals = self.systems.endpoint.refusals
        return {
            name: memory.skipped + (f"; a model call was refused: {refusals[name]}" if name in refusals else "")
            for name, memory in self.systems.memories.items()
            if memory.skipped
        }

    def all_skipped(self) -> str:
        """Return the reasons if every system but the baselines is skipped; otherwise an empty text."""
        named = [memory for name, memory in self.systems.memories.items() if name not in BASELINES]
        return "; ".join(memory.skipped for memory in named) if all(memory.skipped for memory in named) else ""

    def stop(self) -> None:
        """End the processes of plug-ins."""
        for memory in self.systems.memories.values():
            memory.stop()
        self.systems.endpoint.stop()

    # ------------------------------------------------------------ output

    def log(self, text: str = "") -> None:
        """Print to standard output; every line starts with the kind of the data if it is not the benchmark's own."""
        for line in text.split("\n"):
            print(f"{self.data.prefix}{line}", flush=True)

    def log_wrapped(self, sentence: str) -> None:
        """Print a sentence in lines that fit a screen."""
        self.log(presenter.screen([sentence], prefix=self.data.prefix))

    def announce(self, done: Collection[Key] | None = None) -> None:
        """Print the models and the maximum cost, then the questions, systems and notices.

        Args:
            done: The tasks that an earlier part of a resumed run has answered; None for a new run.
        """
        if self.models.reader is None:
            self.log_wrapped(f"Budgets count {self.unit} ({self.count.name}). No model is called.")
        else:
            self.log_wrapped(
                f"Budgets count {self.unit} ({self.count.name}). {self.models.reader.name} answers, "
                f"{self.models.judge_name or 'nobody'} judges; forecast: at most {self.forecast(done or ())}"
                f"{', at batch prices' if self.options.batch else ''}."
            )
            self._announce_judge(resumed=done is not None)
        conversations = "1 conversation" if len(self.conversations) == 1 else f"{len(self.conversations)} conversations"
        kinds = self.data.counted(question.category for question in self.questions)
        systems = ", ".join(dict.fromkeys(task.system for task in self.tasks))
        self.log_wrapped(
            f"{len(self.questions)} questions of {conversations} ({self.options.split}; {kinds}) to {systems}."
        )
        if line := self._power():
            self.log_wrapped(line)
        for notice in [*self.notices, *filter(None, [self.data.notice])]:
            self.log_wrapped(notice)

    def forecast(self, done: Collection[Key] = ()) -> str:
        """Estimate the cost of the tasks that are not done, in words. A model must answer."""
        model, judge_model = self.models.reader, self.models.judge_model
        assert model
        if self.options.batch:
            model, judge_model = at_batch_price(model), judge_model and at_batch_price(judge_model)
        return estimate(
            [task for task in self.tasks if task.key not in done],
            model=model,
            judge_model=judge_model,
            judge=self.models.judge,
            readers=self.systems.readers,
            memory_tokens=self.memory_tokens,
            probes=[probe.answer.question for probe in self.probes()],
        )

    def probes(self) -> list[Probe]:
        """Return the hidden probes of the run; none if no answer is graded or judge accuracy is not shown."""
        if self.models.judge is None or self.options.no_calibration or self.options.batch:
            return []
        return draw_probes(self.questions, self.conversations, seed=self.options.seed)

    def memory_tokens(self, task: Task) -> int:
        """Bound the tokens of memory in a task's prompt."""
        return memory_bound(
            task,
            conversations={conversation.id: conversation for conversation in self.conversations},
            conversation_tokens=self.conversation_tokens,
            count=self.count,
            turn_format=self.systems.turn_format,
        )

    def room_for_thoughts(self) -> int:
        """Return the tokens that a reply may have if the reader writes thoughts; 0 if the user set the limit."""
        reader = self.models.reader
        if reader is None or self.options.max_answer_tokens:
            return 0
        left = window_budget(reader, self.questions, self.systems.readers.values())
        if left is None:
            return room_for_thoughts(None)
        longest = max(map(self.memory_tokens, self.tasks), default=0)
        room = room_for_thoughts(left + reader.max_tokens, needed=longest)
        budget, rounds = self.options.question_budget, self.options.rounds or 1
        return min(room, budget // (2 * rounds)) if budget else room

    def calibration(self, *, resumed: bool) -> Calibration | None:
        """Return the judge's cached calibration. A resumed run measures a judge again that failed.

        Args:
            resumed: True if the run was started before.
        """
        limit = self.options.max_false_accept
        found = self.models.calibrator.cached(max_false_accept=limit) if self.models.calibrator else None
        if found is None:
            return None
        found = assess(found, max_false_accept=limit)
        return None if resumed and not found["passed"] and not self.options.allow_failed_calibration else found

    def _power(self) -> str:
        """Return the difference that the run can find, and what more conversations or questions would."""
        systems = sum(name not in BASELINES for name in self.systems.memories)
        has_reference = self.options.reference or any(name in SIMPLE for name in self.systems.memories)
        floor = bool(self.models.reader)
        pairs = systems - 1 + floor if has_reference else systems * (systems - 1) // 2 + floor * systems
        answerable = sum(question.answerable for question in self.questions)
        everything = chosen_questions(replace(self.options, split="all", num_test=None), self.data)
        whole = [question for question in everything if question.answerable]
        number = len({question.conversation for question in whole})
        flags = "--split all" + (" without --num-test" if self.options.num_test else "")
        others = {flags: (len(whole), number)}
        if (self.program and self.program.trained_on) or (self.rule and self.rule.fitted_on):
            others = {}  # a program or rule may not be evaluated on the conversations that it was fitted on
        elif self.options.num_test:
            others = {"--split all": (answerable, number), **others}
        return power.sentence((answerable, len(self.conversations)), others, pairs)

    def _announce_judge(self, *, resumed: bool) -> None:
        if family := self.models.family:
            self.log_wrapped(
                f"Judge and reader are both of the family {family}, so the judge may favour the reader's answers."
            )
        calibrator = self.models.calibrator
        if calibrator is None or self.options.no_calibration:
            return
        if found := self.calibration(resumed=resumed):
            self.log_wrapped(sentence(found))
        else:
            self.log_wrapped(f"The judge is not calibrated; it is measured first: {calibrator.estimate()}.")

    # ------------------------------------------------------------ identity

    def answer_prompts(self) -> dict[str, str]:
        """Return for each system a digest of its reader's instructions and examples; empty if no model is called."""
        if self.models.reader is None:
            return {}
        read = {name: reader.read for name, reader in self.systems.readers.items()}
        return {
            name: digest([predict.signature.instructions, [demo.toDict() for demo in predict.demos]])
            for name, predict in read.items()
        }

    def example_answers(self) -> list[str]:
        """Return the answers of the worked examples in the prompts, without abstentions."""
        if self.models.reader is None:
            return []
        demos = [demo for reader in self.systems.readers.values() for demo in reader.read.demos]
        return list(dict.fromkeys(str(demo.answer) for demo in demos if demo.get("answer") not in (None, ABSTENTION)))

    def identity(self) -> dict[str, str]:
        """Return digests by name of all settings that must be the same for every answer of a run."""
        identity = {
            "configuration": digest(self.options.as_json()),
            "data": self.data.sha256,
            "questions": digest([question.id for question in self.questions]),
            "systems": recalling_code(),
            "scoring": scoring_code(benchmarks.load(self.data.benchmark).load),
            "tasks": digest(self.keys),
            "token counter": self.count.name,
        }
        models = self.models
        if self.systems.encoder:
            identity["encoder"] = self.systems.encoder.name
        if models.reader:
            identity["reader"] = f"{models.reader.name} {models.reader.revision}".strip()
            identity["answer prompts"] = digest(self.answer_prompts())
        if self.program:
            identity["program"] = self.program.digest
        if self.rule:
            identity["abstention"] = digest(asdict(self.rule))
        for name, memory in self.systems.memories.items():
            if isinstance(memory, PluginMemory) and not memory.skipped:
                identity[f"system {name}"] = digest(asdict(memory.description))
        if models.judge_model and models.judge:
            identity["judge"] = f"{models.judge_model.name} {models.judge.prompt} {models.judge.prompt_hash}"
        return identity
