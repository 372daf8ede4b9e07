"""Whether asking for more pays: how often readers ask rightly, against the evidence labels, and how often they must.

A reader that may ask for more says "enough" rightly with p = P(enough | all evidence is shown), and wrongly with
f = P(enough | evidence is missing). Rounds spend tokens again on what one larger prompt would have shown at once, so
only a reader good enough at telling should be given them.
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
"""Budgets, from a quarter of the first round's memory to one and a half times the last one's, at which one shot is
looked at; the answer is as fine as they are."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The share of questions with all their evidence shown, by rounds and by one shot of as many tokens."""

    rounds: float
    one_shot: float
    total_tokens: float


def compare(
    needed: Sequence[float],
    *,
    contexts: Sequence[int],
    fixed_tokens: float,
    p: float,
    f: float,
    cached_price: float = 1.0,
) -> Comparison:
    """Simulate rounds, and one shot at the same mean of total tokens.

    Args:
        needed: a question each, the smallest memory, in tokens, that shows all its evidence; infinity for none.
        contexts: the memory shown in each round, in tokens, rising.
        fixed_tokens: what a call takes beside its memory: instructions, question, reply.
        p: how often the reader says enough where all evidence is shown, 0 to 1.
        f: how often it does where evidence is missing.
        cached_price: of a token whose prefix the last round has paid for; 1 without a prefix cache.
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
    one_shot = sum(need <= mean_tokens - fixed_tokens for need in needed) / len(needed)
    return Comparison(shown / len(needed), one_shot, mean_tokens)


def least_p(needed: Sequence[float], *, contexts: Sequence[int], fixed_tokens: float, f: float) -> float | None:
    """The p, to a hundredth, from which on rounds show as much as one shot; None where even p = 1 does not."""
    least = None
    for hundredths in range(100, -1, -1):
        found = compare(needed, contexts=contexts, fixed_tokens=fixed_tokens, p=hundredths / 100, f=f)
        if found.rounds < found.one_shot - 1e-9:  # equal but for rounding is even
            break
        least = hundredths / 100
    return least


def contexts_of(budget_tokens: int, rounds: int) -> list[int]:
    """The memory of each round: doubled from one to the next, the last one's the whole budget."""
    return [budget_tokens >> (rounds - 1 - number) for number in range(rounds)]


def needed_tokens(
    memory_of: Callable[[str], Memory[Any]],
    conversations: Iterable[Conversation],
    questions: Iterable[Question],
    contexts: Sequence[int],
) -> dict[str, float]:
    """Question id -> the smallest memory of a grid around `contexts` that shows all its evidence, infinity for none.
    Answerable questions with evidence only; asks no model. `memory_of` gives the memory that a conversation is asked
    with."""
    low, high = max(1.0, contexts[0] / 4), contexts[-1] * 1.5
    grid = sorted({*contexts, *(round(low * (high / low) ** (i / (GRID - 1))) for i in range(GRID))})
    asked = [question for question in questions if question.answerable and question.evidence]
    needed: dict[str, float] = {}
    for conversation in conversations:
        memory = memory_of(conversation.id)
        state = memory.new()
        memory.observe(state, conversation.turns)
        for question in (q for q in asked if q.conversation == conversation.id):
            enough = (b for b in grid if set(question.evidence) <= set(memory.recall(state, question.text, b).turn_ids))
            needed[question.id] = next(enough, float("inf"))
    return needed


def figures(pairs: Iterable[tuple[Question, Record]], needed: Mapping[str, float], contexts: Sequence[int]) -> Results:
    """p and f with n and Wilson's intervals, over the rounds that offered more (answerable questions with evidence);
    then what rounds of these figures show beside one shot, and the p that would make them even at this f. Rates are
    null where nothing was decided."""
    decisions: list[tuple[bool, bool]] = []
    fixed: list[int] = []
    for question, record in pairs:
        if not is_answered(record) or not question.answerable or not question.evidence:
            continue
        for told in record.get("rounds", ()):
            fixed.append(told["total_tokens"] - told["context_tokens"])
            if told["offers_more"]:
                decisions.append((set(question.evidence) <= set(told["turn_ids"]), told["status"] != "more"))
    found: Results = {}
    for name, sufficient in (("p", True), ("f", False)):
        enough = [says for shown, says in decisions if shown == sufficient]
        rate = sum(enough) / len(enough) if enough else None
        found |= {
            name: rate,
            f"{name}_n": len(enough),
            f"{name}_interval": None if rate is None else list(wilson(rate, len(enough))),
        }
    if found["p"] is None or found["f"] is None or not needed:
        return found
    needs, beside = list(needed.values()), sum(fixed) / len(fixed)
    compared = compare(needs, contexts=contexts, fixed_tokens=beside, p=found["p"], f=found["f"])
    return found | {
        "all_evidence_rounds": compared.rounds,
        "all_evidence_one_shot": compared.one_shot,
        "total_tokens": compared.total_tokens,
        "break_even_p": least_p(needs, contexts=contexts, fixed_tokens=beside, f=found["f"]),
    }


def sentence(found: Results, rounds: int) -> str:
    """The figures for people, two lines."""

    def rate(name: str) -> str:
        if found[name] is None:
            return f"{name} unknown (n=0)"
        low, high = found[f"{name}_interval"]
        return f"{name} = {found[name]:.2f} [{low:.2f}, {high:.2f}] n={found[f'{name}_n']}"

    told = f"says enough where all evidence is shown: {rate('p')}; where some is missing: {rate('f')}"
    if "total_tokens" not in found:
        return told
    least = found["break_even_p"]
    return (
        f"{told}\n{rounds} rounds of such a reader show all evidence to {100 * found['all_evidence_rounds']:.1f} % at "
        f"{found['total_tokens']:,.0f} tokens, one shot of as many to {100 * found['all_evidence_one_shot']:.1f} %; "
        + (f"break-even at this f: p = {least:.2f}" if least is not None else "at this f no p breaks even")
    )
