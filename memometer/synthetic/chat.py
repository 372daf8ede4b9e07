"""Synthetic conversations of two people: letters (long turns in alternation) and chats (bursts of short messages).

The rates of everything are drawn for each conversation, so that weights fitted on many of them depend on none.
"""

from __future__ import annotations

import re
from collections import defaultdict
from datetime import datetime, timedelta

from memometer.synthetic import vocabulary
from memometer.synthetic.conversation import (
    Fact,
    LabelledQuestion,
    Sentence,
    SyntheticConversation,
    Transcript,
    date_words,
    past_day,
)
from memometer.synthetic.draw import Draw
from memometer.synthetic.vocabulary import Family, blanks, stated

PEOPLE = """Abigail Adrian Amina Anders Beatrice Bilal Camille Caspar Daria Dominic Elif Ellen Esteban Fiona Gabriel
Hannah Hiro Imogen Isaac Jana Jerome Kamila Kofi Leila Lorenzo Maeve Malik Naomi Nikolai Odette Omar Petra Quentin Rosa
Samir Selma Tamsin Theo Uma Valentin Wanda Xavier Yara Zachary""".split()

EMOJI = ("😂", "😊", "❤️", "🙈", "🎉", "😍", "👍", "☺️", "😅", "🔥")


class _Chat:
    """Makes one conversation."""

    def __init__(self, seed: str, style: str) -> None:
        draw = self.draw = Draw(seed)
        self.id, self.style, self.chatty = seed, style, style == "chat"
        self.people = tuple(draw.some(PEOPLE, 2))
        names = list(self.people)
        if draw.chance(0.15):  # the file names the speakers otherwise than they and the questions do
            names = draw.some([p for p in PEOPLE if p not in self.people], 2)
        elif draw.chance(0.2):
            names = [name.lower() for name in names]
        self.script = Transcript(tuple(names))
        self.facts: list[Fact] = []
        self.hints: dict[int, list[str]] = defaultdict(list)
        self.words = draw.lengthy(9 if self.chatty else 22, 0.3)
        self.fact_rate = draw.within(0.25, 0.7)
        self.question_rate = draw.within(0.15, 0.45)
        self.caption_rate = draw.pick((0.0, 0.1, 0.25))
        self.split_rate = draw.within(0.35, 0.8) if self.chatty else draw.pick((0.0, 0.0, 0.1))
        self.typo_rate = draw.pick((0.0, 0.0, 0.01, 0.03)) if self.chatty else 0.0
        self.emoji_rate = draw.pick((0.0, 0.1, 0.3)) if self.chatty else draw.pick((0.0, 0.05))
        self.echo_rate = draw.within(0.1, 0.5)
        self.alternation = 0.0 if self.chatty else draw.pick((0.7, 1.0, 1.0))
        self.topical_rate = draw.within(0.1, 0.7)
        self.paraphrase = draw.within(0.0, 0.4)
        self.chatter_rate = draw.within(0.1, 0.8)
        self.topic: Family | None = None
        known = [family for family in vocabulary.families() if family.language == "en" or draw.chance(0.15)]
        self.families = draw.some(known, draw.between(12, 32))
        self.traits = [(draw.between(0, 1), line) for line in draw.some(vocabulary.talk()["trait"], 6)]

    # ------------------------------------------------------------ talking

    def make(self) -> SyntheticConversation:
        draw = self.draw
        said_at = datetime(draw.between(2019, 2025), draw.between(1, 12), draw.between(1, 28), draw.between(8, 22))
        sessions = draw.between(8, 18) if self.chatty else draw.between(14, 30)
        pending = [(speaker, hint, n) for n, (speaker, line) in enumerate(self.traits)
                   for hint in line.partition(" => ")[0].split(" | ")]  # fmt: skip
        pending = draw.some(pending, len(pending))
        for _ in range(sessions):
            self.script.begin(said_at)
            self._session(round(draw.lengthy(30 if self.chatty else 18, 0.4)), pending)
            said_at += timedelta(days=1 + round(draw.wait(draw.pick((1, 4, 12)))), hours=draw.between(-2, 2))
        return SyntheticConversation(self.id, self.style, tuple(self.script.turns), tuple(self._questions()))

    def _session(self, exchanges: int, pending: list[tuple[int, str, int]]) -> None:
        draw, talk = self.draw, vocabulary.talk()
        speaker = draw.between(0, 1)
        if draw.chance(0.8):
            self._say(speaker, [Sentence(draw.pick(talk["hello"]))])
            self._say(1 - speaker, [Sentence(draw.pick(talk["hello"])), Sentence(draw.pick(talk["filler"]))])
        done = 0
        while done < exchanges:
            speaker = 1 - speaker if draw.chance(0.7) else speaker
            if pending and draw.chance(0.06):
                who, hint, n = pending.pop()
                self.hints[n].append(self._say(who, [Sentence(hint)], pad=True))
                done += 1
            elif draw.chance(self.fact_rate):
                done += self._thread(speaker)
            else:
                if draw.chance(0.4):
                    self.topic = None
                self._say(speaker, self._padding(), pad=True)
                self._say(1 - speaker, [Sentence(draw.pick(talk["react"]))], pad=True)
                done += 2
        if draw.chance(0.7):
            self._say(speaker, [Sentence(draw.pick(talk["bye"]))])
            self._say(1 - speaker, [Sentence(draw.pick(talk["bye"]))])

    def _thread(self, speaker: int) -> int:
        """Tell a new fact in one to three statements, between which the listener reacts and asks back."""
        draw, talk = self.draw, vocabulary.talk()
        family = draw.pick(self.families)
        fact = Fact(family, speaker, {slot: draw.pick(values) for slot, values in family.slots.items()})
        if len(self.facts) > 3 and draw.chance(0.08):  # a correction: the same fact with another value
            old = draw.pick(self.facts)
            if old.speaker == speaker:
                family, fact = old.family, Fact(old.family, speaker, dict(old.slots))
                slot = draw.pick(list(fact.slots))
                fact.slots[slot] = draw.pick(family.slots[slot])
        self.facts.append(fact)
        self.topic = family if family.language == "en" else None
        tells = draw.some(family.tell, draw.pick((1, 1, 2, 2, 3)))
        turns = 0
        for n, line in enumerate(tells):
            if draw.chance(self.caption_rate * 0.5):
                shown = next(iter(sorted(stated(line) & set(fact.slots))), None)
                if shown:
                    caption = f"a photo of {fact.slots[shown][0]}, {draw.pick(talk['caption'])}"
                    told = [Sentence(draw.pick(talk["photo"]), fact, frozenset([shown]))]
                    self._say(speaker, told, caption=caption)
                    turns += 1
            reply = draw.pick(family.reply) if family.reply and draw.chance(0.4) else None
            self._say(speaker, [self._stated(fact, line)], pad=True)
            turns += 2
            reaction = self._reaction(fact)
            if reply:
                self._say(1 - speaker, [*reaction, Sentence(self._fill(fact, reply[0]))])
                slot = reply[1]
                if slot in fact.slots and slot not in fact.told:
                    bare = fact.slots[slot][0]
                    text = draw.pick(
                        (f"{bare[0].upper()}{bare[1:]}.", f"{bare[0].upper()}{bare[1:]}!", f"Well, {bare}.")
                    )
                    self._say(speaker, [Sentence(text, fact, frozenset([slot]))], pad=draw.chance(0.5))
                    turns += 1
            elif n + 1 < len(tells) or draw.chance(0.8):
                self._say(1 - speaker, reaction, pad=True)
        return turns

    def _reaction(self, fact: Fact) -> list[Sentence]:
        draw, talk = self.draw, vocabulary.talk()
        lines = [draw.pick(talk["react"])] if draw.chance(0.7) else []
        if fact.family.exclaim and (draw.chance(self.echo_rate) or not lines):
            lines.append(self._fill(fact, draw.pick(fact.family.exclaim)))
        if draw.chance(0.15) and fact.family.language == "en":
            lines.append(draw.pick(talk["follow"]).replace("{theme}", fact.family.name))
        return [Sentence(line) for line in lines or ["Wow."]]

    def _topical(self, family: Family) -> str:
        """Return a sentence with words of a topic that states no fact of the speaker."""
        values = [value for terms in family.slots.values() for terms_of in terms for value in terms_of]
        line = self.draw.pick(vocabulary.talk()["topical"]).replace("{theme}", family.name)
        line = line.replace("{value}", self.draw.pick(values)).replace("{value2}", self.draw.pick(values))
        return line[:1].upper() + line[1:]

    def _padding(self) -> list[Sentence]:
        return [Sentence(self._chatter()) for _ in range(self.draw.between(1, 2))]

    def _chatter(self) -> str:
        """Return a sentence about nothing that anybody asks about."""
        draw, talk = self.draw, vocabulary.talk()
        if not draw.chance(self.chatter_rate):
            return draw.pick(talk["filler"])
        nouns, adjectives = vocabulary.word_list("nouns"), vocabulary.word_list("adjectives")
        line = draw.pick(talk["chatter"])
        for blank, words in (("noun", nouns), ("noun2", nouns), ("adj", adjectives), ("name", PEOPLE)):
            line = line.replace(f"{{{blank}}}", draw.pick(words))
        return line

    def _stated(self, fact: Fact, line: str) -> Sentence:
        if re.search(r"\{when\}", line):
            words, day = past_day(self.draw, self.script.said_at)
            fact.day = fact.day or day
            line = line.replace("{when}", words)
            return Sentence(self._fill(fact, line), fact, frozenset(stated(line) | {"when"}))
        return Sentence(self._fill(fact, line), fact, frozenset(stated(line)))

    def _fill(self, fact: Fact, line: str, *, paraphrase: float = 0.0) -> str:
        def value(match: re.Match[str]) -> str:
            slot, _, level = match[1].partition(".")
            if slot not in fact.slots:
                return match[0]
            terms = fact.slots[slot]
            wanted = int(level) if level else 0
            if not level and len(terms) > 1 and self.draw.chance(paraphrase):
                wanted = self.draw.between(1, len(terms) - 1)
            return terms[min(wanted, len(terms) - 1)]

        text = re.sub(r"\{(\w+(?:\.\d)?)\}", value, line)
        text = re.sub(r"\b([Aa]) (?=(?:an?|the|my|some) )", "", text)
        text = re.sub(r"\b([Aa]) (?=[aeiouAEIOU])", r"\1n ", text)
        return text[:1].upper() + text[1:] if text[:1].islower() else text

    def _say(self, speaker: int, told: list[Sentence], *, pad: bool = False, caption: str | None = None) -> str:
        """Say sentences as one turn, or as several in a chat, and return the id of the first turn."""
        draw, talk = self.draw, vocabulary.talk()
        if self._spoke_last(speaker) and draw.chance(self.alternation):
            self._say(1 - speaker, [Sentence(draw.pick(talk["react"]))], pad=True)
        sentences = list(told)
        if pad:
            words = draw.lengthy(self.words, 0.5) - sum(len(s.text.split()) for s in sentences)
            while words > 4:
                line = self._chatter() if draw.chance(0.8) else draw.pick(talk["react"])
                if self.topic and draw.chance(self.topical_rate):
                    line = self._topical(self.topic)
                words -= len(line.split())
                sentences.insert(draw.between(0, len(sentences)), Sentence(line))
            if draw.chance(self.question_rate):
                sentences.append(Sentence(draw.pick(talk["question"])))
        if caption is None and draw.chance(self.caption_rate * 0.3):
            caption = draw.pick(talk["caption"])
        groups: list[list[Sentence]] = []
        for sentence in sentences:
            if groups and not draw.chance(self.split_rate):
                groups[-1].append(sentence)
            else:
                groups.append([sentence])
        ids = []
        for n, group in enumerate(groups):
            text = " ".join(self._style(s.text) for s in group).replace("{other}", self.people[1 - speaker])
            if draw.chance(self.emoji_rate):
                text += f" {draw.pick(EMOJI)}"
            ids.append(self.script.add(speaker, text, group, caption if n == len(groups) - 1 else None))
        return next((id for id, group in zip(ids, groups, strict=True) if told[0] in group), ids[0])

    def _spoke_last(self, speaker: int) -> bool:
        """Return True if a speaker said the last turn of the session."""
        turns = self.script.turns
        last = turns[-1] if turns and turns[-1].session == self.script.session else None
        return last is not None and last.speaker == self.script.speakers[speaker]

    def _style(self, text: str) -> str:
        if not self.typo_rate:
            return text
        words = text.split(" ")
        for n, word in enumerate(words):
            if len(word) > 4 and word.isalpha() and self.draw.chance(self.typo_rate):
                at = self.draw.between(1, len(word) - 2)
                words[n] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        return " ".join(words)

    # ------------------------------------------------------------ asking

    def _questions(self) -> list[LabelledQuestion]:
        asked: list[LabelledQuestion] = []
        groups: dict[tuple[int, str], list[Fact]] = defaultdict(list)
        for fact in self.facts:
            groups[fact.speaker, fact.family.name].append(fact)
        for facts in groups.values():
            asked += self._about(facts)
        for family in self.families:
            sides = [groups.get((n, family.name), []) for n in (0, 1)]
            if all(sides) and family.ask_list and self.draw.chance(0.25):
                slot = family.ask_list[0][1]
                ids = [fact.told[slot] for side in sides for fact in side[:2] if slot in fact.told]
                if len(ids) > 1:
                    a, b = self.draw.some(self.people, 2)
                    text = self.draw.pick(
                        (f"What {family.name} do both {a} and {b} talk about?",
                         f"What do {a} and {b} have in common when it comes to {family.name}?")
                    )  # fmt: skip
                    asked.append(LabelledQuestion(text, "", tuple(dict.fromkeys(ids)), "common"))
        for n, ids in self.hints.items():
            speaker, line = self.traits[n]
            question = self.draw.pick(line.partition(" => ")[2].split(" | ")).replace("{who}", self.people[speaker])
            asked.append(LabelledQuestion(question, "", tuple(ids), "inference"))
        return [question for question in asked if question.evidence]

    def _about(self, facts: list[Fact]) -> list[LabelledQuestion]:
        draw = self.draw
        family: Family = facts[0].family
        found = []
        for fact in facts:
            for question, slot in draw.some(family.ask, draw.pick((1, 1, 2))):
                if slot not in fact.told or not self._is_unique(question, slot, fact, facts):
                    continue
                text = self._ask(fact, question)
                answer = fact.slots[slot][0] if slot in fact.slots else str(fact.day)
                found.append(LabelledQuestion(text, answer, (fact.told[slot],), "when" if slot == "when" else "single"))
            day = fact.day or fact.said_on
            if family.ask_dated and day and draw.chance(0.35):
                question, slot = draw.pick(family.ask_dated)
                alone = all(
                    other is fact or abs((other.day or other.said_on or day) - day).days > 45 for other in facts
                )
                if slot in fact.told and alone:
                    text = self._ask(fact, question).replace("{in_date}", date_words(draw, day))
                    found.append(LabelledQuestion(text, fact.slots[slot][0], (fact.told[slot],), "dated"))
        if len(facts) > 1 and family.ask_list:
            for question, slot in draw.some(family.ask_list, 2):
                ids = tuple(dict.fromkeys(fact.told[slot] for fact in facts if slot in fact.told))
                if len(ids) > 1:
                    answer = ", ".join(fact.slots[slot][0] for fact in facts if slot in fact.told)
                    found.append(LabelledQuestion(self._ask(facts[0], question), answer, ids, "list"))
        return found

    def _is_unique(self, question: str, slot: str, fact: Fact, facts: list[Fact]) -> bool:
        """Return True if no other fact of the speaker answers a question."""
        given = blanks(question) & set(fact.slots)
        rivals = [other for other in facts if other is not fact and all(other.slots[s] == fact.slots[s] for s in given)]
        return not rivals and (slot != "when" or fact.day is not None)

    def _ask(self, fact: Fact, question: str) -> str:
        return self._fill(fact, question, paraphrase=self.paraphrase).replace("{who}", self.people[fact.speaker])


def conversation(seed: str, style: str) -> SyntheticConversation:
    """Make a conversation of two people.

    Args:
        seed: any text; the same seed gives the same conversation.
        style: `letters` for long turns in alternation, `chat` for bursts of short messages.
    """
    return _Chat(seed, style).make()
