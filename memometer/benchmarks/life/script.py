"""A conversation that is being written: turns of several people, small talk, and the questions on the way."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import groupby

from memometer.benchmarks.life.question import Mark, Question
from memometer.benchmarks.life.topics import ASIDE, ASK_NOW, Facts, Topic
from memometer.benchmarks.protocol import Action, Conversation, Moment, Session
from memometer.memory import Turn
from memometer.synthetic import vocabulary
from memometer.synthetic.chat import PEOPLE
from memometer.synthetic.draw import Draw

SESSION_TURNS = 20
"""Turns of a session."""


class Script:
    """A conversation that is being written.

    Args:
        id: Its id.
        seed: Any text; the same seed gives the same conversation.
    """

    def __init__(self, id: str, seed: str) -> None:
        self.id = id
        self.draw = Draw(seed)
        self.people = tuple(self.draw.some(PEOPLE, self.draw.between(3, 8)))
        self.facts = Facts(self.draw)
        self.turns: list[Turn] = []
        self.questions: list[Question] = []
        self.actions: list[Action] = []
        self._said_at = datetime(self.draw.between(2021, 2025), self.draw.between(1, 12), self.draw.between(1, 28), 9)
        self._session = 0

    def say(
        self, speaker: str, text: str, *, role: str = "user", audience: Sequence[str] | None = None, mark: str = ""
    ) -> Mark:
        """Append a turn, and return its mark."""
        if len(self.turns) % SESSION_TURNS == 0:
            self._session += 1
            self._said_at += timedelta(days=self.draw.between(1, 3), minutes=self.draw.between(0, 400))
        id = f"D{self._session}:{len(self.turns) % SESSION_TURNS + 1}"
        hidden = None if audience is None else tuple(audience)
        self.turns.append(Turn(id, speaker, text, self._session, self._said_at, role=role, audience=hidden))
        return Mark(id, mark)

    def state(self, speaker: str, topic: Topic, value: str, forms: Sequence[str], *, more: str = "") -> Mark:
        """Let a person state the value of a topic; returns the mark of the turn."""
        text = self.draw.pick(forms).format(topic=topic.name, value=value, who=speaker)
        return self.say(speaker, f"{text} {more}".strip(), mark=value)

    def chat(self, turns: int) -> None:
        """Append small talk without facts about the people."""
        draw, talk = self.draw, vocabulary.talk()
        for _ in range(turns):
            speaker = draw.pick(self.people)
            kind = draw.pick(("chatter", "chatter", "filler", "question", "topic"))
            line = draw.pick(ASIDE if kind == "topic" else talk[kind])
            self.say(speaker, self._filled(line))

    def _filled(self, line: str) -> str:
        draw, nouns, adjectives = self.draw, vocabulary.word_list("nouns"), vocabulary.word_list("adjectives")
        for blank, words in (
            ("topic", self.facts.names),
            ("name", PEOPLE),
            ("noun2", nouns),
            ("noun", nouns),
            ("adj", adjectives),
        ):
            if f"{{{blank}}}" in line:
                line = line.replace(f"{{{blank}}}", draw.pick(words))
        return line

    def ask(
        self,
        measure: str,
        text: str,
        *,
        category: str,
        gold: str | None = None,
        group: str = "",
        fact: str = "",
        wanted: Sequence[Mark] = (),
        unwanted: Sequence[Mark] = (),
        label: str = "",
        later: int = 0,
        settled: bool = True,
        asker: str = "",
    ) -> None:
        """Add a question, asked now or when `later` more turns were written."""
        self.questions.append(
            Question(
                self.id,
                len(self.questions),
                text,
                category,
                gold,
                tuple(mark.turn_id for mark in wanted),
                moment=Moment(len(self.turns) + later, settled),
                asker=asker or self.people[0],
                measure=measure,
                group=group,
                fact=fact,
                wanted=tuple(wanted),
                unwanted=tuple(unwanted),
                label=label,
            )
        )

    def ask_about(self, who: str, topic: Topic, forms: Sequence[str] = ASK_NOW) -> str:
        """Word a question about a person's topic."""
        return self.draw.pick(forms).format(who=who, topic=topic.name)

    def act(self, kind: str, turn_ids: Sequence[str] = ()) -> None:
        """Change the memory here."""
        self.actions.append(Action(len(self.turns), kind, tuple(turn_ids)))

    def conversation(self) -> Conversation:
        """Return the finished conversation, without the questions after its end."""
        sessions = [(n, list(of)) for n, of in groupby(self.turns, key=lambda turn: turn.session)]
        asked = tuple(q for q in self.questions if q.moment is None or q.moment.after <= len(self.turns))
        speakers = tuple(dict.fromkeys(turn.speaker for turn in self.turns))
        found = (Session(n, of[0].said_at, tuple(of)) for n, of in sessions)
        return Conversation(self.id, speakers, tuple(found), asked, tuple(self.actions))
