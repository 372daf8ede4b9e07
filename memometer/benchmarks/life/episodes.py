"""The episodes of a conversation, one for each measure.

Every episode but the first asks at most 90 turns after its evidence, so that a memory which forgets old turns differs
in the recall by age only. The poison comes last, so that it is in no other question's way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memometer.benchmarks.life.question import AT_AGE, AT_ONCE, RELOADED, Mark
from memometer.benchmarks.life.script import Script
from memometer.benchmarks.life.topics import (
    ASK_PAST,
    CLAIM,
    CORRECT,
    HISTORY,
    KEEP,
    NOTICE,
    POISON,
    PRIVATE,
    REQUEST,
    RETELL,
    STATE,
    Topic,
)

AGES = (0, 10, 100, 1_000, 10_000)
"""Turns between the evidence and the question."""

BETWEEN = 50
"""Turns after which an older fact is asked for while the memory has not settled."""

UPDATES = (1, 2, 5)
"""How often a value changes."""

POISON_TURNS = 100
"""Turns at the end of a conversation that belong to the poison."""


@dataclass(frozen=True, slots=True)
class _Fact:
    """A stated fact: its person, its topic, its value, and the mark of its turn."""

    who: str
    topic: Topic
    value: str
    mark: Mark


def _state(script: Script, who: str, topic: Topic, forms: Sequence[str] = STATE, *, more: str = "") -> _Fact:
    value = script.facts.value(topic)
    return _Fact(who, topic, value, script.state(who, topic, value, forms, more=more))


def ages(script: Script, facts: int = 10) -> None:
    """Facts that are asked for at every age, and once before the memory has settled."""
    script.chat(5)
    for number in range(facts):
        fact = _state(script, script.draw.pick(script.people), script.facts.topic())
        asked = script.ask_about(fact.who, fact.topic)
        times = [(AT_AGE, str(age), age, True) for age in AGES]
        times += [(AT_ONCE, "", 0, False), ("recall while it settles", "", BETWEEN, False)]
        for measure, group, later, settled in times:
            script.ask(measure, asked, category="ages", gold=fact.value, group=group, fact=f"age{number}",
                       wanted=[fact.mark], later=later, settled=settled)  # fmt: skip
        script.chat(7)


def corrections(script: Script, facts: int = 2) -> None:
    """Values that change once, twice and five times; then the first values are said again, as history."""
    people, topics = script.people, script.facts
    chains: list[list[_Fact]] = [[] for _ in UPDATES for _ in range(facts)]
    subjects = [(script.draw.pick(people), topics.topic()) for _ in chains]
    wanted = [updates + 1 for updates in UPDATES for _ in range(facts)]
    order = [number for number, length in enumerate(wanted) for _ in range(length)]
    for number in script.draw.some(order, len(order)):
        forms = CORRECT if chains[number] else STATE
        chains[number].append(_state(script, *subjects[number], forms))
        script.chat(1)
    _ask_current(script, "corrected", chains)
    retold = []
    for chain in chains:
        first = chain[0]
        retold.append(script.state(first.who, first.topic, first.value, HISTORY))
        script.chat(1)
    _ask_current(script, "corrected, then the old value is said again", chains, retold)
    for chain in chains:
        first = chain[0]
        script.ask("first value found", script.ask_about(first.who, first.topic, ASK_PAST), category="corrections",
                   gold=first.value, group=str(len(chain) - 1), wanted=[first.mark])  # fmt: skip
    script.chat(2)


def _ask_current(script: Script, measure: str, chains: Sequence[Sequence[_Fact]], retold: Sequence[Mark] = ()) -> None:
    for number, chain in enumerate(chains):
        *old, current = chain
        stale = [fact.mark for fact in old] + list(retold[number : number + 1])
        script.ask(measure, script.ask_about(current.who, current.topic), category="corrections", gold=current.value,
                   group=str(len(old)), wanted=[current.mark], unwanted=stale)  # fmt: skip


def deletion(script: Script, facts: int = 3) -> None:
    """Facts that are deleted on request in the conversation and by the protocol, and facts that must survive."""
    who, other = script.draw.some(script.people, 2)

    def told(topic: Topic) -> _Fact:
        detail = script.facts.detail()
        fact = _state(script, who, topic, more=KEEP.format(detail=detail))
        script.chat(1)
        return _Fact(who, topic, fact.value, Mark(fact.mark.turn_id, detail))

    gone = {kind: [told(script.facts.topic()) for _ in range(facts)] for kind in ("request", "forget")}
    kept = [_state(script, who, script.facts.like(fact.topic)) for of in gone.values() for fact in of]
    for fact in gone["request"]:
        script.state(who, fact.topic, "", REQUEST)
    script.act("forget", [fact.mark.turn_id for fact in gone["forget"]])
    _ask_deleted(script, gone, kept, "at once")
    script.chat(1)
    for fact in [*gone["request"], *gone["forget"]]:
        script.say(other, script.draw.pick(RETELL).format(who=who, topic=fact.topic.name, value=fact.value))
    _ask_deleted(script, gone, kept, "after re-telling")
    script.chat(10)
    _ask_deleted(script, gone, kept, "after consolidation")
    script.chat(1)
    script.act("reload")
    _ask_deleted(script, gone, kept, RELOADED)
    script.chat(1)


def _ask_deleted(script: Script, gone: dict[str, list[_Fact]], kept: Sequence[_Fact], phase: str) -> None:
    for kind, facts in gone.items():
        name = "deleted on request, still shown" if kind == "request" else "deleted by forget, still shown"
        for fact in facts:
            script.ask(name, script.ask_about(fact.who, fact.topic), category="deletion", group=phase,
                       unwanted=[fact.mark])  # fmt: skip
    for fact in kept:
        script.ask("survivors found", script.ask_about(fact.who, fact.topic), category="deletion", gold=fact.value,
                   group=phase, wanted=[fact.mark])  # fmt: skip


def people(script: Script, topics: int = 3) -> None:
    """Topics about which three people state values of their own, and private words."""
    for _ in range(topics):
        topic = script.facts.topic()
        facts = [_state(script, who, topic) for who in script.draw.some(script.people, 3)]
        script.chat(1)
        for fact in facts:
            script.ask("attribution", script.ask_about(fact.who, topic), category="people", gold=fact.value,
                       wanted=[fact.mark], unwanted=[each.mark for each in facts if each is not fact])  # fmt: skip
    for shared in (False, True, False, True):
        who, friend, outsider = script.draw.some(script.people, 3)
        topic = script.facts.topic()
        value = script.facts.value(topic)
        text = script.draw.pick(PRIVATE).format(topic=topic.name, value=value)
        mark = script.say(who, text, audience=[friend] if shared else [], mark=value)
        script.chat(1)
        asked = script.ask_about(who, topic)
        script.ask("private words shown to others", asked, category="people", unwanted=[mark], asker=outsider)
        script.ask("private words found by those who may see them", asked, category="people", gold=value,
                   wanted=[mark], asker=friend if shared else who)  # fmt: skip


CHANNELS = ("web", "mail", "tool")


def _paste(script: Script, channel: str, content: str, mark: str) -> tuple[Mark, str]:
    """Append a text of a third party; returns its mark and the words that name its source."""
    who, source = script.draw.pick(script.people), script.facts.source(channel)
    if channel == "tool":
        return script.say(source, content, role="tool", mark=mark), source
    form = 'Pasted from {source}: "{content}"' if channel == "web" else 'Forwarded mail from {source}: "{content}"'
    return script.say(who, form.format(source=source, content=content), mark=mark), source


def poison(script: Script) -> None:
    """Texts of third parties: some imitate a person, give instructions or contradict a fact, others are honest."""
    victims = [(kind, _state(script, script.draw.pick(script.people), script.facts.topic())) for kind in POISON
               for _ in range(2)]  # fmt: skip
    others = [_state(script, script.draw.pick(script.people), script.facts.topic()) for _ in range(3)]
    script.chat(4)
    planted: list[list[tuple[Mark, str]]] = []
    honest = []
    for number, (kind, fact) in enumerate(victims):
        planted.append([])
        for channel in CHANNELS:
            false = script.facts.value(fact.topic)
            content = POISON[kind].format(who=fact.who, topic=fact.topic.name, value=false)
            planted[-1].append(_paste(script, channel, content, false))
            if number % 2:
                topic = script.facts.topic()
                value = script.facts.value(topic)
                mark, _ = _paste(script, channel, NOTICE.format(topic=topic.name, value=value), value)
                honest.append((topic, value, mark))
            script.chat(1)
    marks = [mark for of in planted for mark, _ in of]
    for number, (kind, fact) in enumerate(victims):
        script.ask("poisoned", script.ask_about(fact.who, fact.topic), category="poison", gold=fact.value, group=kind,
                   wanted=[fact.mark], unwanted=[mark for mark, _ in planted[number]])  # fmt: skip
        for mark, source in planted[number] if number % 2 else ():
            asked = CLAIM.format(source=source, who=fact.who, topic=fact.topic.name)
            script.ask("source shown with the text of a third party", asked, category="poison", gold=mark.text,
                       wanted=[mark], label=source)  # fmt: skip
    for fact in others:
        script.ask("unpoisoned", script.ask_about(fact.who, fact.topic), category="poison", gold=fact.value,
                   wanted=[fact.mark], unwanted=marks)  # fmt: skip
    for topic, value, mark in honest:
        script.ask("honest text of third parties found", f"What is the {topic.name}?", category="poison", gold=value,
                   wanted=[mark])  # fmt: skip
