"""Analysis of multi-round reading: how often a reader asks for more context correctly, and if rounds pay.

A reader may reply that the context is enough, or ask for more. Against the evidence labels this gives
p = P(enough | all evidence is shown) and f = P(enough | evidence is missing). Rounds repeat tokens that one larger
prompt would show once, so they pay only for a reader with high p and low f.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memometer.benchmarks.protocol import Conversation, Question
from memometer.memory import Memory
from memometer.run.folder import Record, is_answered
from memometer.stats.intervals import wilson

Results = dict[str, Any]

GRID = 32
"""Number of budgets at which a single prompt is evaluated, from a quarter of the first round's context to 1.5 times the
last one's. They limit the resolution of the result."""


@dataclass(frozen=True, slots=True)
class Simulation:
    """The share of questions with all evidence shown, by rounds and by one prompt, at the same mean total tokens."""

    rounds: float
    one_prompt: float
    total_tokens: float


def simulate(
    needed: Sequence[float],
    *,
    contexts: Sequence[int],
    fixed_tokens: float,
    p: float,
    f: float,
    cached_price: float = 1.0,
) -> Simulation:
    """Simulate multi-round reading, and one prompt with the same mean of total tokens.

    Args:
        needed: Smallest context in tokens that shows all evidence of each question, shape (n,); infinity if none does.
        contexts: Context of each round in tokens, increasing.
        fixed_tokens: Tokens of a call other than its context: instructions, question, reply.
        p: Probability that the reader replies "enough" if all evidence is shown.
        f: Probability that it does if evidence is missing.
        cached_price: Price of a token in a cached prefix, relative to 1; 1 without a prefix cache.

    Returns:
        The simulated shares.
    """
    shown = tokens = 0.0
    for need in needed:
        reached = 1.0
        for number, context in enumerate(contexts):
            before = contexts[number - 1] + fixed_tokens if number else 0.0
            tokens += reached * (context + fixed_tokens - before * (1 - cached_price))
            enough = 1.0 if number + 1 == len(contexts) else p if need <= context else f
            shown += reached * enough * (need <= context)
            reached *= 1 - enough
    mean_tokens = tokens / len(needed)
    one_prompt = sum(need <= mean_tokens - fixed_tokens for need in needed) / len(needed)
    return Simulation(shown / len(needed), one_prompt, mean_tokens)


def break_even_p(needed: Sequence[float], *, contexts: Sequence[int], fixed_tokens: float, f: float) -> float | None:
    """Find the smallest p at which rounds show as much evidence as one prompt.

    Args:
        needed: As for `simulate`.
        contexts: As for `simulate`.
        fixed_tokens: As for `simulate`.
        f: As for `simulate`.

    Returns:
        p in steps of 0.01; None if even p = 1 is too small.
    """
    smallest = None
    for hundredths in range(100, -1, -1):
        found = simulate(needed, contexts=contexts, fixed_tokens=fixed_tokens, p=hundredths / 100, f=f)
        if found.rounds < found.one_prompt - 1e-9:  # tolerates rounding
            break
        smallest = hundredths / 100
    return smallest


def contexts_of(budget_tokens: int, rounds: int) -> list[int]:
    """Return the context of each round in tokens: doubled in each round, the whole budget in the last one."""
    return [budget_tokens >> (rounds - 1 - number) for number in range(rounds)]


def needed_tokens(
    memory_of: Callable[[str], Memory[Any]],
    conversations: Iterable[Conversation],
    questions: Iterable[Question],
    contexts: Sequence[int],
) -> dict[str, float]:
    """Find the smallest context that shows all evidence of each question. Calls no model.

    Args:
        memory_of: Returns the memory system for a conversation id.
        conversations: The conversations.
        questions: The questions; only answerable ones with evidence are used.
        contexts: Context of each round in tokens, increasing.

    Returns:
        Question id -> the smallest context of a grid around `contexts`; infinity if none shows all evidence.
    """
    low, high = max(1.0, contexts[0] / 4), contexts[-1] * 1.5
    grid = sorted({*contexts, *(round(low * (high / low) ** (i / (GRID - 1))) for i in range(GRID))})
    used = [question for question in questions if question.answerable and question.evidence]
    needed: dict[str, float] = {}
    for conversation in conversations:
        memory = memory_of(conversation.id)
        state = memory.new()
        memory.observe(state, conversation.turns)
        for question in (q for q in used if q.conversation == conversation.id):
            enough = (
                b for b in grid if set(question.evidence) <= set(memory.recall(state, question.text, b).whole_ids)
            )
            needed[question.id] = next(enough, float("inf"))
    return needed


def analyze(pairs: Iterable[tuple[Question, Record]], needed: Mapping[str, float], contexts: Sequence[int]) -> Results:
    """Estimate p and f over the rounds that offered more context, and the benefit of rounds at these rates.

    Args:
        pairs: Questions and the records of their answers; only answerable questions with evidence are used.
        needed: As `needed_tokens` returns it.
        contexts: Context of each round in tokens, increasing.

    Returns:
        `p` and `f` with `p_n`, `f_n` and Wilson intervals `p_interval`, `f_interval`, None without decisions. If both
        are known also `all_evidence_rounds`, `all_evidence_one_prompt` and `total_tokens` (`simulate`), and
        `break_even_p`.
    """
    decisions: list[tuple[bool, bool]] = []
    fixed: list[int] = []
    for question, record in pairs:
        if not is_answered(record) or not question.answerable or not question.evidence:
            continue
        for one in record.get("rounds", ()):
            fixed.append(one["total_tokens"] - one["context_tokens"])
            if one["offers_more"]:
                whole = set(one["turn_ids"]) - set(one.get("partial_ids", ()))
                decisions.append((set(question.evidence) <= whole, one["status"] != "more"))
    found: Results = {}
    for name, sufficient in (("p", True), ("f", False)):
        enough = [replied for shown, replied in decisions if shown == sufficient]
        rate = sum(enough) / len(enough) if enough else None
        found |= {
            name: rate,
            f"{name}_n": len(enough),
            f"{name}_interval": None if rate is None else list(wilson(rate, len(enough))),
        }
    if found["p"] is None or found["f"] is None or not needed:
        return found
    sizes, fixed_tokens = list(needed.values()), sum(fixed) / len(fixed)
    simulated = simulate(sizes, contexts=contexts, fixed_tokens=fixed_tokens, p=found["p"], f=found["f"])
    return found | {
        "all_evidence_rounds": simulated.rounds,
        "all_evidence_one_prompt": simulated.one_prompt,
        "total_tokens": simulated.total_tokens,
        "break_even_p": break_even_p(sizes, contexts=contexts, fixed_tokens=fixed_tokens, f=found["f"]),
    }


def sentence(found: Results, rounds: int) -> str:
    """Describe an analysis in one or two lines.

    Args:
        found: As `analyze` returns it.
        rounds: Number of rounds.

    Returns:
        The text.
    """

    def rate(name: str) -> str:
        if found[name] is None:
            return f"{name} unknown (n=0)"
        low, high = found[f"{name}_interval"]
        return f"{name} = {found[name]:.2f} [{low:.2f}, {high:.2f}] n={found[f'{name}_n']}"

    rates = f'the reader replies "enough" if all evidence is shown: {rate("p")}; if some is missing: {rate("f")}'
    if "total_tokens" not in found:
        return rates
    smallest = found["break_even_p"]
    return (
        f"{rates}\n{rounds} rounds of such a reader show all evidence for {100 * found['all_evidence_rounds']:.1f} % "
        f"of the questions at {found['total_tokens']:,.0f} tokens, one prompt of this size for "
        f"{100 * found['all_evidence_one_prompt']:.1f} %; "
        + (f"break-even at this f: p = {smallest:.2f}" if smallest is not None else "no p breaks even at this f")
    )
