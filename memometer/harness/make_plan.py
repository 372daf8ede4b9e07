"""Make the plan of an evaluation from its options. No model is called.

plan = make_plan(EvaluateOptions(recall_only=True))
plan.announce()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from memometer import benchmarks
from memometer.benchmarks.protocol import Conversation, Dataset
from memometer.harness import batches, contamination
from memometer.harness.configure_memories import configure_memories
from memometer.harness.models import Models, default_names, load_models
from memometer.harness.options import EvaluateOptions
from memometer.harness.plan import Plan
from memometer.harness.questions import categories_of, chosen_questions, refuse_too_few
from memometer.harness.tasks import conversation_tokens, plan_tasks, window_budget
from memometer.judging.calibrate import NOT_POSSIBLE
from memometer.memory import DEFAULT_BUDGET_TOKENS
from memometer.reader import program_file
from memometer.reader.abstention import AbstentionRule
from memometer.reader.program_file import Program, ProgramError, load_for
from memometer.reader.reader import predictors_of
from memometer.retrieval.ranker import FOLDER
from memometer.run.options import OptionError, option_errors
from memometer.systems import BASELINES
from memometer.token_counters import counter_for

DEFAULT_SYSTEMS = ("recent", "full_context", "adaptive")
SMALLEST_ROOM = 64
"""Tokens that a context window must leave for memory."""


class ContaminationError(OptionError):
    """Test data are in a prompt, file or weight that the run would start with: the run would be invalid."""

    exit_code = 3


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
    data = benchmarks.read(options.benchmark, options.data, ages=options.ages)
    benchmark = benchmarks.load(data.benchmark)
    model, judge_model = default_names(options)
    options = replace(
        options,
        benchmark=data.benchmark,
        categories=categories_of(options.categories, data),
        systems=options.systems or tuple(s for s in DEFAULT_SYSTEMS if s != "full_context" or not options.recall_only),
        budgets=options.budgets
        or (() if options.budget_tokens else benchmark.budgets)
        or (options.budget_tokens or DEFAULT_BUDGET_TOKENS,),
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
    refuse_too_few(options, data, questions)
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
    if options.reference and options.reference not in (known := [n for n in systems.memories if n not in BASELINES]):
        raise OptionError(f"--reference {options.reference} is not in this run; allowed are {', '.join(known)}.")
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
    if large := [budget for budget in budgets if 0 < mean < 2 * budget]:
        listed = ", ".join(f"{budget:,}" for budget in large)
        shares = ", ".join(f"{min(1, budget / mean):.0%}" for budget in large)
        plan.cautions = [
            f"{'A budget' if len(large) == 1 else 'Budgets'} of {listed} {plan.unit} "
            f"{'holds' if len(large) == 1 else 'hold'} {shares} of the mean conversation ({mean:,.0f}); above 50 %, "
            "the choice of turns has little effect."
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
