"""DSPy's optimizers with settings that fit the data: the number of calls, and the candidates that they return.

All optimizers learn from training questions. All but SIMBA, which does not accept them, also get selection
questions. None gets a question of a held-out conversation. `--auto` sets their sizes:

            light   medium   heavy
simba       3 x 2   4 x 4    6 x 8     candidates x steps; a batch has 32 questions, or all
miprov2     6       12       18        instructions and sets of examples (DSPy's own `auto`)
gepa        6       12       24        passes over all questions (DSPy's `max_full_evals`)
bootstrap   4       8        16        random sets of examples, in addition to none and the first ones
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from memometer.benchmarks.reward import RIGHT
from memometer.models.replay_cache import StoredLM
from memometer.optimize.candidates import CandidateLog
from memometer.optimize.program import ReadingProgram

SIMBA_SIZES = {"light": (3, 2), "medium": (4, 4), "heavy": (6, 8)}
MIPRO_CANDIDATES = {"light": 6, "medium": 12, "heavy": 18}  # as in DSPy, for the forecast
MIPRO_MINIBATCH, MIPRO_FULL_EVALUATION_UP_TO, MIPRO_FULL_EVERY = 35, 50, 5
GEPA_PASSES = {"light": 6, "medium": 12, "heavy": 24}
GEPA_MINIBATCH = 3
BOOTSTRAP_SETS = {"light": 4, "medium": 8, "heavy": 16}
BATCH = 32
INSTRUCTION_CHARACTERS = 1_500
"""Limit of GEPA's instructions, which would otherwise grow at the cost of the memory."""
MAX_UNREADABLE = 4
"""If this many proposals were unreadable and none was readable, no more are requested."""
NO_LIMIT = 10**9
"""DSPy's error limit. Failed calls are counted by the call store, which also stops the given."""


class ProposalAdapter(dspy.ChatAdapter):
    """Requests each proposal once: an unreadable proposal is skipped instead of requested again.

    If a signature has one text output, the whole reply is that text in any format, because small models often omit the
    format. `unreadable` counts other unreadable replies, which DSPy only writes to a log.
    """

    def __init__(self) -> None:
        super().__init__(use_json_adapter_fallback=False)
        self.unreadable = 0
        self.readable = 0

    def __call__(self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any) -> Any:
        if self.unreadable >= MAX_UNREADABLE and not self.readable:
            raise AdapterParseError(
                "ProposalAdapter", signature, "", message="no reply of the prompt model could be parsed"
            )
        return super().__call__(lm, lm_kwargs, signature, demos, inputs)

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        try:
            parsed: dict[str, Any] = super().parse(signature, completion)
        except AdapterParseError:
            outputs = {name: field.annotation for name, field in signature.output_fields.items()}
            if list(outputs.values()) != [str] or not completion.strip():
                self.unreadable += 1
                raise
            parsed = dict.fromkeys(outputs, completion.strip())
        self.readable += 1
        return parsed


@dataclass(frozen=True)
class OptimizerInput:
    """The input of an optimizer. `selection` are the questions by which it may select."""

    effort: str
    program: ReadingProgram
    train: Sequence[dspy.Example]
    selection: Sequence[dspy.Example]
    candidates: CandidateLog
    reader: StoredLM
    prompt_model: StoredLM
    max_demos: int
    num_threads: int
    seed: int
    proposal_adapter: ProposalAdapter


@dataclass(frozen=True, slots=True)
class Size:
    """Upper bounds: runs of the program, proposals of the prompt model, and candidates to select from."""

    runs: int
    proposals: int
    candidates: int


def simba(given: OptimizerInput) -> list[dspy.Module]:
    """Sample each question several times and turn the difference between good and bad runs into rules or examples."""
    candidates, steps = SIMBA_SIZES[given.effort]
    found = dspy.SIMBA(
        metric=given.candidates.metric_with_feedback,
        bsize=min(BATCH, len(given.train)),
        num_candidates=candidates,
        max_steps=steps,
        max_demos=given.max_demos,
        prompt_model=given.prompt_model,
        num_threads=given.num_threads,
    ).compile(given.program, trainset=list(given.train), seed=given.seed)
    return [entry["program"] for entry in found.candidate_programs]


def miprov2(given: OptimizerInput) -> list[dspy.Module]:
    """Propose instructions from the data and the program, and search them with sets of examples (Optuna's TPE)."""
    found = dspy.MIPROv2(
        metric=given.candidates.metric,
        prompt_model=given.prompt_model,
        task_model=given.reader,
        max_bootstrapped_demos=given.max_demos,
        max_labeled_demos=0,  # the examples contain no answers
        auto=given.effort,
        num_threads=given.num_threads,
        max_errors=NO_LIMIT,
        seed=given.seed,  # here, because compile() ignores seed=0
        metric_threshold=RIGHT,  # without it, any score above zero makes an example
    ).compile(
        given.program,
        trainset=list(given.train),
        valset=list(given.selection),
        minibatch_size=min(MIPRO_MINIBATCH, len(given.selection)),
    )
    return [entry["program"] for entry in found.candidate_programs]


def gepa(given: OptimizerInput) -> list[dspy.Module]:
    """Rewrite the instruction from three runs with feedback, and keep each version that is best on some question."""
    from dspy.teleprompt.gepa.instruction_proposal import InstructionProposer

    found = dspy.GEPA(
        metric=given.candidates.metric_with_feedback,
        max_full_evals=GEPA_PASSES[given.effort],
        reflection_lm=sampled(given.prompt_model),
        reflection_minibatch_size=min(GEPA_MINIBATCH, len(given.train)),
        instruction_proposer=InstructionProposer(max_chars=INSTRUCTION_CHARACTERS, adapter=given.proposal_adapter),
        use_merge=False,  # with one predictor there is nothing to merge
        num_threads=given.num_threads,
        track_stats=True,
        warn_on_score_mismatch=False,
        seed=given.seed,
    ).compile(given.program, trainset=list(given.train), valset=list(given.selection))
    return list(found.detailed_results.candidates)


def bootstrap(given: OptimizerInput) -> list[dspy.Module]:
    """Take examples from correct runs, and select among several sets of them."""
    found = dspy.BootstrapFewShotWithRandomSearch(
        metric=given.candidates.metric,
        max_bootstrapped_demos=given.max_demos,
        max_labeled_demos=0,
        num_candidate_programs=BOOTSTRAP_SETS[given.effort],
        num_threads=given.num_threads,
        max_errors=NO_LIMIT,
        metric_threshold=RIGHT,
    ).compile(given.program, trainset=list(given.train), valset=list(given.selection))
    return [entry["program"] for entry in found.candidate_programs]


Optimizer = Callable[[OptimizerInput], list[dspy.Module]]

OPTIMIZERS: dict[str, Optimizer] = {"simba": simba, "miprov2": miprov2, "gepa": gepa, "bootstrap": bootstrap}


def size(name: str, effort: str, *, train: int, validation: int, max_demos: int) -> Size:
    """Return upper bounds for an optimizer.

    Args:
        name: Key of OPTIMIZERS.
        effort: light, medium or heavy.
        train: Number of training questions.
        validation: Number of selection questions.
        max_demos: Largest number of examples in a prompt.
    """
    match name:
        case "simba":
            candidates, steps = SIMBA_SIZES[effort]
            batch, candidates_kept = min(BATCH, train), min(candidates, steps) + 1
            return Size(steps * batch * (2 * candidates + 1) + candidates_kept * train, steps * batch, candidates_kept)
        case "miprov2":
            n = MIPRO_CANDIDATES[effort]
            trials = int(max((4 if max_demos else 2) * math.log2(n), 1.5 * n))
            runs = (trials + 1) * validation
            if validation > MIPRO_FULL_EVALUATION_UP_TO:
                runs = trials * MIPRO_MINIBATCH + (trials // MIPRO_FULL_EVERY + 3) * validation
            proposals = 3 * (n // 2 if max_demos else n) + 2 + min(9, train // 10)
            return Size(runs + train, proposals, trials + 1)
        case "gepa":
            runs = GEPA_PASSES[effort] * (train + validation)
            iterations = runs // GEPA_MINIBATCH  # also those without a readable proposal
            return Size(runs + 2 * GEPA_MINIBATCH + validation, 2 * iterations, 1 + runs // validation)
        case "bootstrap":
            sets = BOOTSTRAP_SETS[effort] + 2  # in addition: no examples, and the first ones
            return Size(sets * validation + train, 0, sets + 1)
    raise ValueError(name)


def sampled(lm: StoredLM) -> StoredLM:
    """Return the model at temperature 1, for varied proposals. Reasoning models set their own temperature."""
    return lm if lm.kwargs.get("temperature") is None else lm.copy(temperature=1.0)
