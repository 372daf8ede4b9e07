"""DSPy's optimisers, each fitted to the data that there is: how much it will ask, and the programs that it leaves.

All of them are given training questions to learn from and, but for SIMBA, which has no place for them, validation
questions to choose by. None is given a question of another conversation. Their sizes go by `--auto`:

            light   medium   heavy
simba       3 x 2   4 x 4    6 x 8     candidates x steps; a batch is 32 questions, or all there are
miprov2     6       12       18        instructions and sets of examples (DSPy's own `auto`)
gepa        6       12       24        times all questions once (DSPy's `max_full_evals`)
bootstrap   4       8        16        sets of examples beside none and the first
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
from memometer.optimize.candidates import Candidates
from memometer.optimize.program import Asked

EFFORTS = ("light", "medium", "heavy")
SIMBA_SIZES = {"light": (3, 2), "medium": (4, 4), "heavy": (6, 8)}
MIPRO_CANDIDATES = {"light": 6, "medium": 12, "heavy": 18}  # as in DSPy, for the forecast
MIPRO_MINIBATCH, MIPRO_WHOLE_UP_TO, MIPRO_FULL_EVERY = 35, 50, 5
GEPA_ROUNDS = {"light": 6, "medium": 12, "heavy": 24}
GEPA_MINIBATCH = 3
BOOTSTRAP_SETS = {"light": 4, "medium": 8, "heavy": 16}
BATCH = 32
INSTRUCTION_CHARACTERS = 1_500
"""Of an instruction by GEPA at most, which would else grow at the memory's cost."""
HOPELESS = 4
NO_LIMIT = 10**9
"""Of errors, which DSPy would otherwise count: failed calls are the store's to count, and to stop at."""


class Proposing(dspy.ChatAdapter):
    """How the prompt model is asked: once, for a reply that cannot be read is a proposal less, not a call more.

    A reply to a signature with one text is that text, in whatever form it comes: small models leave out the form.
    `unreadable` counts the others, which DSPy only writes into a log. After HOPELESS of them and none that could be
    read, nothing more is asked for: that model will not write any."""

    def __init__(self) -> None:
        super().__init__(use_json_adapter_fallback=False)
        self.unreadable = 0
        self.readable = 0

    def __call__(self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any) -> Any:
        if self.unreadable >= HOPELESS and not self.readable:
            raise AdapterParseError(
                "Proposing", signature, "", message="the prompt model writes nothing that can be read"
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
class Search:
    """What an optimiser is run with."""

    effort: str
    program: Asked
    train: Sequence[dspy.Example]
    validation: Sequence[dspy.Example]
    candidates: Candidates
    reader: StoredLM
    prompt_model: StoredLM
    max_demos: int
    num_threads: int
    seed: int
    proposing: Proposing


@dataclass(frozen=True, slots=True)
class Size:
    """At most so many runs of the program and proposals of the prompt model, and candidates left to choose from."""

    runs: int
    proposals: int
    left: int


def simba(search: Search) -> list[dspy.Module]:
    """Samples each question several times, and turns what told good from bad runs into a rule or an example."""
    candidates, steps = SIMBA_SIZES[search.effort]
    found = dspy.SIMBA(
        metric=search.candidates.explained,
        bsize=min(BATCH, len(search.train)),
        num_candidates=candidates,
        max_steps=steps,
        max_demos=search.max_demos,
        prompt_model=search.prompt_model,
        num_threads=search.num_threads,
    ).compile(search.program, trainset=list(search.train), seed=search.seed)
    return [entry["program"] for entry in found.candidate_programs]


def miprov2(search: Search) -> list[dspy.Module]:
    """Proposes instructions from the data and the program, and searches them, with sets of examples, by a model of
    what scores (Optuna's TPE)."""
    found = dspy.MIPROv2(
        metric=search.candidates.plain,
        prompt_model=search.prompt_model,
        task_model=search.reader,
        max_bootstrapped_demos=search.max_demos,
        max_labeled_demos=0,  # the examples hold no answers that could be shown
        auto=search.effort,
        num_threads=search.num_threads,
        max_errors=NO_LIMIT,
        seed=search.seed,  # here, because compile(seed=0) would be taken for none
        metric_threshold=RIGHT,  # without it any score but zero makes an example
    ).compile(
        search.program,
        trainset=list(search.train),
        valset=list(search.validation),
        minibatch_size=min(MIPRO_MINIBATCH, len(search.validation)),
    )
    return [entry["program"] for entry in found.candidate_programs]


def gepa(search: Search) -> list[dspy.Module]:
    """Rewrites the instruction after looking at three runs and what was wrong with them, and keeps every rewriting that
    is best on some question."""
    from dspy.teleprompt.gepa.instruction_proposal import InstructionProposer

    found = dspy.GEPA(
        metric=search.candidates.explained,
        max_full_evals=GEPA_ROUNDS[search.effort],
        reflection_lm=sampled(search.prompt_model),
        reflection_minibatch_size=min(GEPA_MINIBATCH, len(search.train)),
        instruction_proposer=InstructionProposer(max_chars=INSTRUCTION_CHARACTERS, adapter=search.proposing),
        use_merge=False,  # there is one prompt, and nothing to merge
        num_threads=search.num_threads,
        track_stats=True,
        warn_on_score_mismatch=False,
        seed=search.seed,
    ).compile(search.program, trainset=list(search.train), valset=list(search.validation))
    return list(found.detailed_results.candidates)


def bootstrap(search: Search) -> list[dspy.Module]:
    """Takes examples from runs that were right, and the best of several sets of them."""
    found = dspy.BootstrapFewShotWithRandomSearch(
        metric=search.candidates.plain,
        max_bootstrapped_demos=search.max_demos,
        max_labeled_demos=0,
        num_candidate_programs=BOOTSTRAP_SETS[search.effort],
        num_threads=search.num_threads,
        max_errors=NO_LIMIT,
        metric_threshold=RIGHT,
    ).compile(search.program, trainset=list(search.train), valset=list(search.validation))
    return [entry["program"] for entry in found.candidate_programs]


Optimizer = Callable[[Search], list[dspy.Module]]

OPTIMIZERS: dict[str, Optimizer] = {"simba": simba, "miprov2": miprov2, "gepa": gepa, "bootstrap": bootstrap}


def size(name: str, effort: str, *, train: int, validation: int, max_demos: int) -> Size:
    """How much an optimiser asks at most, of so many training and validation questions."""
    match name:
        case "simba":
            candidates, steps = SIMBA_SIZES[effort]
            batch, left = min(BATCH, train), min(candidates, steps) + 1
            return Size(steps * batch * (2 * candidates + 1) + left * train, steps * batch, left)
        case "miprov2":
            n = MIPRO_CANDIDATES[effort]
            trials = int(max((4 if max_demos else 2) * math.log2(n), 1.5 * n))
            runs = (trials + 1) * validation
            if validation > MIPRO_WHOLE_UP_TO:
                runs = trials * MIPRO_MINIBATCH + (trials // MIPRO_FULL_EVERY + 3) * validation
            proposals = 3 * (n // 2 if max_demos else n) + 2 + min(9, train // 10)
            return Size(runs + train, proposals, trials + 1)
        case "gepa":
            runs = GEPA_ROUNDS[effort] * (train + validation)
            iterations = runs // GEPA_MINIBATCH  # one whose proposal cannot be read looks at no more than these
            return Size(runs + 2 * GEPA_MINIBATCH + validation, 2 * iterations, 1 + runs // validation)
        case "bootstrap":
            sets = BOOTSTRAP_SETS[effort] + 2  # without any, by hand or found, and the first ones found
            return Size(sets * validation + train, 0, sets + 1)
    raise ValueError(name)


def sampled(lm: StoredLM) -> StoredLM:
    """The model at temperature 1, as optimisers want their writers; a reasoning model sets its own."""
    return lm if lm.kwargs.get("temperature") is None else lm.copy(temperature=1.0)
