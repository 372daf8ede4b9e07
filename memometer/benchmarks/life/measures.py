"""The measures of the benchmark, computed from what a system showed at each moment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from memometer.benchmarks.life.question import AT_AGE, AT_ONCE, RELOADED, Question
from memometer.benchmarks.shown import Answered, Measure, Shown

Steps = Sequence[Mapping[str, Any]]


def measures(answered: Sequence[Answered], steps: Steps) -> list[Measure]:
    """Compute every measure of one system.

    Args:
        answered: The questions that were asked, with what was shown.
        steps: The cost of each step of the ingest.
    """
    groups: dict[tuple[str, str], list[tuple[Question, Shown]]] = defaultdict(list)
    cannot_reload = any("reload" in step.get("unsupported", ()) for step in steps)
    for each in answered:
        question = each.question
        if isinstance(question, Question) and not (cannot_reload and question.group == RELOADED):
            groups[question.measure, question.group].append((question, each.shown or Shown(())))
    found = []
    for (name, group), pairs in groups.items():
        for title, value, low in VALUES.get(name, ((name, wanted_shown, False),)):
            values = {q.id: v for q, shown in pairs if (v := value(q, shown)) is not None}
            found.append(Measure(title, group, values, low_is_better=low))
    return found + residue(steps) + over_ages(answered) + delays(answered, steps) + cost(answered, steps)


Value = Callable[[Question, Shown], float | None]


def wanted_shown(question: Question, shown: Shown) -> float:
    """Return the share of the wanted turns that are shown."""
    return sum(shown.has(mark) for mark in question.wanted) / len(question.wanted)


def superseded(question: Question, shown: Shown) -> float:
    """Return 1.0 if an unwanted turn is shown above the wanted one, or without it."""
    places = [place for mark in question.unwanted if (place := shown.place(mark)) is not None]
    wanted = shown.place(question.wanted[0])
    return float(bool(places) and (wanted is None or (shown.ranked and min(places) < wanted)))


def unwanted_shown(question: Question, shown: Shown) -> float:
    """Return 1.0 if an unwanted turn is shown."""
    return float(any(shown.has(mark) for mark in question.unwanted))


def unwanted_share(question: Question, shown: Shown) -> float:
    """Return the share of the text that unwanted turns take."""
    return shown.share(question.unwanted)


def unwanted_share_above(question: Question, shown: Shown) -> float:
    """Return the share that unwanted turns take of the text down to the wanted turn; of all text if it is not shown."""
    place = shown.place(question.wanted[0])
    end = len(shown.parts) if place is None or not shown.ranked else place + 1
    return Shown(shown.parts[:end]).share(question.unwanted)


def source_shown(question: Question, shown: Shown) -> float | None:
    """Return 1.0 if the source of a shown text is shown with it; None if the text is not shown."""
    place = shown.place(question.wanted[0])
    return None if place is None else float(question.label in shown.parts[place].text)


VALUES: dict[str, tuple[tuple[str, Value, bool | None], ...]] = {
    "corrected": (
        ("current value found, updates:", wanted_shown, False),
        ("superseded value above or without the current one, updates:", superseded, True),
    ),
    "corrected, then the old value is said again": (
        ("the same after the old value is said again, updates:", superseded, True),
    ),
    "first value found": (("first value found if asked, updates:", wanted_shown, False),),
    "deleted on request, still shown": (("deleted on request, still shown", unwanted_shown, True),),
    "deleted by forget, still shown": (("deleted by forget, still shown", unwanted_shown, True),),
    "attribution": (
        ("recall by speaker", wanted_shown, False),
        ("another speaker's value above or without the right one", superseded, True),
    ),
    "private words shown to others": (("private words shown to others", unwanted_shown, True),),
    "poisoned": (
        ("poisoned fact found", wanted_shown, False),
        ("poison above or without the fact,", superseded, True),
        ("poison's share of the text,", unwanted_share, True),
    ),
    "unpoisoned": (("poison's share of the text down to the fact, other questions", unwanted_share_above, True),),
    "source shown with the text of a third party": (
        ("source shown with the text of a third party", source_shown, False),
    ),
}
"""Measure of a question -> (name, value, whether a small value is better). All others are the recall of the wanted
turns."""


def residue(steps: Steps) -> list[Measure]:
    """Compute the share of deleted turns whose text is left in each kind of file."""
    left: dict[str, dict[str, float]] = defaultdict(dict)
    for step in steps:
        for kind, turns in step.get("residue", {}).items():
            left[kind].update({f"{step['conversation']}#{id}": float(found) for id, found in turns.items()})
    return [Measure("deleted by forget, left in", kind, values, low_is_better=True) for kind, values in left.items()]


def over_ages(answered: Sequence[Answered]) -> list[Measure]:
    """Compute the measures that need a fact's questions at several ages: its worst recall, and its holes.

    A hole is a moment at which a fact is not shown, between moments at which it is.
    """
    facts: dict[str, list[tuple[Any, bool, str]]] = defaultdict(list)
    for each in answered:
        question = each.question
        if isinstance(question, Question) and question.category == "ages" and question.moment:
            seen = each.shown is not None and all(each.shown.has(mark) for mark in question.wanted)
            facts[f"{question.conversation}#{question.fact}"].append((question.moment, seen, question.measure))
    worst, holes = {}, {}
    for fact, asked in facts.items():
        shown_at = [shown for _, shown, _ in sorted(asked)]
        settled = [shown for _, shown, measure in asked if measure == AT_AGE]
        if settled:
            worst[fact] = float(all(settled))
            between = "".join("01"[shown] for shown in shown_at).strip("0")
            holes[fact] = float("0" in between)
    return [
        Measure("recall at the worst age", "", worst),
        Measure("facts with a hole", "", holes, low_is_better=True),
    ]


def delays(answered: Sequence[Answered], steps: Steps) -> list[Measure]:
    """Compute the delay from the writing of a fact to the first question that finds it, in turns and in milliseconds.

    A fact that is found before the memory is ready has no delay; one that is found when it is ready has waited for it.
    A fact that is never found has no value.
    """
    waits = {(step["conversation"], step.get("turns")): 1000 * step.get("ready_seconds", 0.0) for step in steps}
    first: dict[str, tuple[int, bool, float]] = {}
    for each in answered:
        question = each.question
        if not isinstance(question, Question) or question.measure not in (AT_AGE, AT_ONCE) or not question.moment:
            continue
        if each.shown and all(each.shown.has(mark) for mark in question.wanted):
            moment = question.moment
            wait = waits.get((question.conversation, moment.after), 0.0) if moment.settled else 0.0
            found = int(question.group or 0), moment.settled, wait
            key = f"{question.conversation}#{question.fact}"
            first[key] = min(first.get(key, found), found)
    name = "from write to visible"
    return [
        Measure(name, "", {key: float(age) for key, (age, _, _) in first.items()}, "turns", True),
        Measure(name, "", {key: wait for key, (age, _, wait) in first.items() if age == 0}, "milliseconds", True),
    ]


def cost(answered: Sequence[Answered], steps: Steps) -> list[Measure]:
    """Compute the cost of a turn written, of a question, and of a fact found at each age.

    Also the length of history, in turns, from which a question with the whole history in its prompt costs more tokens
    than the system: what it shows, and the tokens of its model calls for the turns between two questions.
    """
    writing = _per_turn(steps)
    found = [
        Measure("per turn written", "", {f"{c}#": of[unit] for c, of in writing.items() if unit in of}, unit, True)
        for unit in ("calls", "tokens", "milliseconds", "bytes")
    ]
    by_conversation: dict[str, list[Answered]] = defaultdict(list)
    by_age: dict[str, dict[str, list[Answered]]] = defaultdict(lambda: defaultdict(list))
    for each in answered:
        by_conversation[each.question.conversation].append(each)
        if isinstance(each.question, Question) and each.question.measure == AT_AGE:
            by_age[each.question.group][each.question.conversation].append(each)
    tokens, milliseconds, lengths = {}, {}, {}
    for conversation, of in by_conversation.items():
        shown = sum(each.tokens for each in of)
        parts = sum(len(each.shown.parts) for each in of if each.shown)
        tokens[f"{conversation}#"] = shown / len(of)
        milliseconds[f"{conversation}#"] = 1000 * sum(each.seconds for each in of) / len(of)
        written = writing.get(conversation)
        if written and parts:
            between = written["turns"] / len(of)
            lengths[f"{conversation}#"] = (shown / len(of) + written["tokens"] * between) / (shown / parts)
    found += [
        Measure("per question", "", tokens, "tokens", True),
        Measure("per question", "", milliseconds, "milliseconds", True),
    ]
    for age, conversations in by_age.items():
        values = {f"{c}#": _tokens_per_found(of) for c, of in conversations.items() if _found(of)}
        found.append(Measure("per fact found at age", age, values, "tokens", True))
    name = "history from which the whole history in the prompt costs more"
    return [*found, Measure(name, "", lengths, "turns", True)]


def _found(answered: Sequence[Answered]) -> int:
    return sum(each.shown.has(mark) for each in answered if each.shown for mark in each.question.wanted)  # type: ignore[attr-defined]


def _tokens_per_found(answered: Sequence[Answered]) -> float:
    return sum(each.tokens for each in answered) / _found(answered)


def _per_turn(steps: Steps) -> dict[str, dict[str, float]]:
    """Return for each conversation the turns written, and the cost of one turn by unit."""
    totals: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    sizes: dict[str, float] = {}
    for step in steps:
        total = totals[step["conversation"]]
        total["turns"] += step.get("written", 0)
        total["calls"] += step.get("calls", 0)
        total["tokens"] += step.get("prompt_tokens", 0) + step.get("completion_tokens", 0)
        total["milliseconds"] += 1000 * (step.get("write_seconds", 0.0) + step.get("ready_seconds", 0.0))
        if "bytes" in step:
            sizes[step["conversation"]] = step["bytes"] / max(1, step["turns"])
    found = {}
    for conversation, total in totals.items():
        if turns := total.pop("turns", 0.0):
            found[conversation] = {"turns": turns, **{unit: value / turns for unit, value in total.items()}}
            if conversation in sizes:
                found[conversation]["bytes"] = sizes[conversation]
    return found
