"""The plan of an evaluation: the questions, the models and systems, the tasks, and the maximum cost.

    plan = make_plan(EvaluateOptions(recall_only=True))
    plan.announce()

Making a plan calls no model.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from memometer import benchmarks
from memometer.benchmarks.protocol import Conversation, DataError, Dataset, Question
from memometer.benchmarks.sampling import sample
from memometer.harness import batches, contamination, power
from memometer.harness.batches import at_batch_price
from memometer.harness.configure_memories import Systems, configure_memories
from memometer.harness.cost_estimate import estimate, memory_bound
from memometer.harness.loop import Task, conversation_tokens, plan_tasks, window_budget
from memometer.harness.model_check import room_for_thoughts
from memometer.harness.models import Models, default_names, load_models
from memometer.harness.options import EvaluateOptions
from memometer.judging.calibrate import NOT_POSSIBLE
from memometer.judging.judge_calibration import Calibration, assess, sentence
from memometer.memory import DEFAULT_BUDGET_TOKENS, Memory
from memometer.reader import program_file
from memometer.reader.abstention import AbstentionRule
from memometer.reader.program_file import Program, ProgramError, load_for
from memometer.reader.reader import predictors_of
from memometer.reader.signatures import ABSTENTION
from memometer.report import presenter
from memometer.retrieval.ranker import FOLDER
from memometer.run import cost
from memometer.run.environment import digest, recalling_code, scoring_code
from memometer.run.folder import Key
from memometer.run.options import OptionError, option_errors
from memometer.systems import BASELINES
from memometer.systems.plugin_memory import PluginMemory
from memometer.token_counters import TokenCounter, Utf8Bytes, counter_for

DEFAULT_SYSTEMS = ("recent", "full_context", "adaptive")
SMALLEST_ROOM = 64
"""Tokens that a context window must leave for memory."""


class ContaminationError(OptionError):
    """Test data are in a prompt, file or weight that the run would start with: the run would be invalid."""

    exit_code = 3


@dataclass
class Plan:
    """The plan of an evaluation.

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
        )

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
        found = self.models.calibrator.cached() if self.models.calibrator else None
        if found is None:
            return None
        found = assess(found, max_false_accept=self.options.max_false_accept)
        return None if resumed and not found["passed"] and not self.options.allow_failed_calibration else found

    def _power(self) -> str:
        """Return the difference that the run can find, and what more conversations or questions would."""
        systems = sum(name not in BASELINES for name in self.systems.memories)
        pairs = systems * (systems - 1) // 2 + (systems if self.models.reader else 0)
        answerable = sum(question.answerable for question in self.questions)
        everything = chosen_questions(replace(self.options, split="all", num_test=None), self.data)
        whole = [question for question in everything if question.answerable]
        number = len({question.conversation for question in whole})
        flags = "--split all" + (" without --num-test" if self.options.num_test else "")
        others = {flags: (len(whole), number)}
        if self.options.num_test:
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


def make_plan(options: EvaluateOptions) -> Plan:
    """Make the plan of an evaluation.

    Args:
        options: The options, as the user gave them or as a run saved them.

    Returns:
        The plan, with resolved options.

    Raises:
        OptionError: The evaluation cannot be run as asked.
        DataError: The data cannot be used.
        ContaminationError: Test data are in a prompt, file or weight.
    """
    data = benchmarks.read(options.benchmark, options.data)
    benchmark = benchmarks.load(data.benchmark)
    model, judge_model = default_names(options)
    options = replace(
        options,
        benchmark=data.benchmark,
        categories=categories_of(options.categories, data),
        systems=options.systems or tuple(s for s in DEFAULT_SYSTEMS if s != "full_context" or not options.recall_only),
        budgets=options.budgets or (options.budget_tokens or DEFAULT_BUDGET_TOKENS,),
        budget_tokens=None,
        judge=benchmark.judge_prompt(options.judge).name,
        model=model,
        judge_model=judge_model,
        # The same model is behind the same address.
        judge_api_base=options.judge_api_base or (options.api_base if judge_model == model else None),
        # A judge that the user did not name must not end the run.
        allow_failed_calibration=options.allow_failed_calibration or options.judge_model is None,
    )
    questions = chosen_questions(options, data)
    _refuse_too_few(options, data, questions)
    asked = {question.conversation for question in questions}
    conversations = tuple(c for c in data.conversations if c.id in asked)
    models = load_models(options, benchmark, data)
    uncalibrated = models.calibrator is not None and not options.no_calibration and not models.calibrator.possible
    options = replace(options, no_calibration=options.no_calibration or uncalibrated)
    if models.reader and models.reader.addresses:
        # A server's list and the environment may change before the run is resumed.
        options = replace(
            options, context_window=models.reader.context_tokens, api_base=",".join(models.reader.addresses)
        )
    with option_errors(""):
        count = models.reader.count if models.reader else counter_for(tokenizer=options.tokenizer)
    program, notice = _load_program(options, conversations, models, data)
    rule = _load_rule(options, conversations, data)
    systems = configure_memories(options, model=models.reader, count=count, program=program, rule=rule)
    made = Plan(options, data, questions, conversations, models, systems, count, program, rule)
    if uncalibrated:
        made.notices.append(f"Judge accuracy is withheld: {NOT_POSSIBLE}.")
    if made.unit == "bytes":
        made.notices.append(
            "The model's tokenizer is unknown, so budgets count UTF-8 bytes: never fewer than its tokens. For exact "
            "budgets name it with --tokenizer (o200k_base, cl100k_base, or a tokenizer.json)."
        )
    made.notices += [*filter(None, [notice]), *systems.notices]
    _choose_cross_validated(made)
    _refuse_contamination(made)
    _plan_tasks(made)
    made.check_cost_limit(options.cost_limit)
    if options.batch:
        batches.check((models.reader, models.judge_model), systems.memories)
    return made


def _refuse_too_few(options: EvaluateOptions, data: Dataset, questions: Sequence[Question]) -> None:
    if not data.questions:
        raise DataError(
            f"{data.path} has no questions; add questions, or remember it for daily use with memometer add --from FILE."
        )
    if not questions:
        n = len(data.conversations)
        raise DataError(
            f"--split {options.split} has no question of the chosen categories; {data.path.name} has {n} "
            f"conversation{'' if n == 1 else 's'}. Use --split all."
        )
    if options.recall_only and not any(question.evidence for question in questions):
        raise DataError(
            "--recall-only measures evidence recall, and no chosen question has evidence; add the ids of turns as "
            "evidence, or name a --model that answers."
        )


def categories_of(keys: Sequence[str], data: Dataset) -> tuple[str, ...]:
    """Return the keys of the categories to evaluate; without the option, all of them.

    Raises:
        DataError: A category is unknown.
    """
    if unknown := [key for key in keys if key not in data.categories]:
        known = ", ".join(key if name == key else f"{key} ({name})" for key, name in data.categories.items())
        raise DataError(f"--categories got {', '.join(unknown)}; the categories are {known}.")
    return tuple(keys) or tuple(data.categories)


def chosen_questions(options: EvaluateOptions, data: Dataset) -> tuple[Question, ...]:
    """The questions that options choose: of a part of the data, in some categories, or a sample of these.

    Raises:
        DataError: The split or a category is unknown.
    """
    categories = categories_of(options.categories, data)
    part = [q for c in data.part(options.split) for q in c.questions if q.category in categories]
    return sample(part, options.num_test or len(part), seed=options.seed)


def _load_program(
    options: EvaluateOptions, conversations: Sequence[Conversation], models: Models, data: Dataset
) -> tuple[Program | None, str]:
    trained = models.reader.program if models.reader else None
    if not options.program and not trained:
        return None, ""
    with option_errors("--program: ", ProgramError):
        source = options.program or program_file.parse(str(trained), f"the prompt in {options.model}")
        return load_for(
            source,
            [conversation.id for conversation in conversations],
            judge=models.judge_model.name if models.judge_model else "",
            unofficial_data=bool(data.kind),
        )


def _load_rule(options: EvaluateOptions, conversations: Sequence[Conversation], data: Dataset) -> AbstentionRule | None:
    if not options.abstention:
        return None
    with option_errors("--abstention: "):
        rule = AbstentionRule.load(options.abstention)
    if rule.fitted_on and not {c.id for c in data.conversations} & set(rule.fitted_on):
        raise OptionError(
            f"--abstention: the rule was fitted on {', '.join(rule.fitted_on)}, which {data.path.name} does not "
            "contain; fit one on its validation conversations with memometer fit-abstention."
        )
    if seen := sorted({c.id for c in conversations} & set(rule.fitted_on)):
        raise OptionError(
            f"--abstention: the rule was fitted on {', '.join(seen)}, which this run asks about; choose other "
            "conversations with --split."
        )
    return rule


def _choose_cross_validated(plan: Plan) -> None:
    """Choose the systems whose weights must be refitted, because they were fitted on an evaluated conversation."""
    asked = {conversation.id for conversation in plan.conversations}
    for name, memory in plan.systems.memories.items():
        seen = [] if plan.data.kind else sorted(set(memory.fitted_on) & asked)
        if not memory.fitted_on or not (seen or plan.options.folds):
            continue
        if plan.data.kind:
            raise OptionError("--folds fits the ranking on the benchmark's other conversations; leave it out here.")
        plan.cross_validated.append(name)
        reason = f"the shipped ranking was fitted on {', '.join(seen)}; " if seen else ""
        plan.notices.append(f"{name}: {reason}each conversation is evaluated with weights fitted on the others.")


def _refuse_contamination(plan: Plan) -> None:
    """Search prompts, examples, rules and weights for questions and answers of the test conversations."""
    if not plan.data.held_out(plan.options.split):
        return
    rule = [plan.options.abstention] if plan.options.abstention else []
    files = [text for path in [*FOLDER.glob("*.json"), *rule] for text in contamination.texts_of(path)]
    prompts = [
        text
        for name, memory in plan.systems.memories.items()
        for predictor, prompt in predictors_of(memory, plan.systems.readers[name]).items()
        for text in contamination.texts_in(f"the prompt {predictor!r} of {name}", prompt.dump_state())
    ]
    if found := contamination.scan(prompts + files, contamination.HeldOut.of(plan.data, plan.options.split)):
        raise ContaminationError(
            f"test data found in a prompt or file ({contamination.summary(found)[0]}); scores would be meaningless. "
            "Remove it, or choose other conversations with --split."
        )


def _plan_tasks(plan: Plan) -> None:
    """Plan the tasks; lower budgets to the context window, and leave out what does not fit."""
    plan.conversation_tokens = {
        c.id: conversation_tokens(c, plan.count, plan.systems.turn_format) for c in plan.conversations
    }
    model = plan.models.reader
    room = window_budget(model, plan.questions, plan.systems.readers.values()) if model else None
    budgets = plan.options.budgets
    if model and room is None:
        _leave_out_all_showing(plan, f"the window of {model.name} is unknown; name it with --context-window")
    if model and room is not None:
        if room < SMALLEST_ROOM:
            raise OptionError(
                f"the window of {model.name} leaves {room} {plan.unit} for memory; use a model with a larger one, or "
                "name it with --context-window."
            )
        longest = max(plan.conversation_tokens.values(), default=0)
        if longest > room:
            unit = "tokens" if plan.unit == "tokens" else "bytes, an upper bound of its tokens,"
            _leave_out_all_showing(
                plan, f"the longest conversation has {longest:,} {unit} and {model.name} has room for {room:,}"
            )
        if too_large := [budget for budget in budgets if budget > room]:
            budgets = tuple(dict.fromkeys(min(budget, room) for budget in budgets))
            listed = ", ".join(f"{budget:,}" for budget in too_large)
            plan.notices.append(f"Budget {listed} lowered to {room:,} {plan.unit}, the limit of the context window.")
    mean = sum(plan.conversation_tokens.values()) / max(1, len(plan.conversation_tokens))
    plan.cautions = [
        f"A budget of {budget:,} {plan.unit} holds {min(1, budget / mean):.0%} of the mean conversation ({mean:,.0f}); "
        "above 50 %, the choice of turns has little effect."
        for budget in budgets
        if 0 < mean < 2 * budget
    ]
    plan.notices += plan.cautions
    plan.tasks = plan_tasks(
        plan.systems.memories,
        plan.questions,
        budgets=budgets,
        window_budget=room,
        two_options=plan.options.two_options and model is not None,
    )


def _leave_out_all_showing(plan: Plan, reason: str) -> None:
    for name in [name for name, memory in plan.systems.memories.items() if memory.shows_everything]:
        del plan.systems.memories[name]
        plan.left_out[name] = reason
        plan.notices.append(f"{name} is left out: {reason}.")
