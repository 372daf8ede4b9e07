"""Synthetic conversations of a user with an assistant, who answers at length with lists, tables and code."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from memometer.memory import format_date
from memometer.synthetic import vocabulary
from memometer.synthetic.conversation import LabelledQuestion, SyntheticConversation, Transcript
from memometer.synthetic.draw import Draw
from memometer.synthetic.vocabulary import Aspect

USER, ASSISTANT = 0, 1
NAMES = (("User", "Assistant"), ("User", "Assistant"), ("user", "assistant"), ("Human", "AI"), ("Customer", "Bot"))
PEOPLE = "Carla Dev Emeka Frida Goran Helga Imani Jules Kira Luis Mona Nils Oona Pablo Rhea Sven Tara Ugo".split()
REQUESTS = (
    "Can you help me with that?",
    "What would you suggest?",
    "How should I go about it?",
    "Could you give me a plan?",
    "Is that a good idea?",
    "",
)
WORDS = "amount count status label score price weight total index owner".split()


@dataclass
class Thread:
    """What was said about one aspect of the project.

    Attributes:
        aspect: the aspect.
        told: kind of fact -> (value, turn id), in order.
        user_turns: ids of the user's turns about it.
        answers: ids of the assistant's answers about it.
    """

    aspect: Aspect
    told: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    user_turns: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)


class _Project:
    """Makes one conversation."""

    def __init__(self, seed: str) -> None:
        draw = self.draw = Draw(seed)
        self.id = seed
        self.script = Transcript(draw.pick(NAMES))
        self.project = draw.pick(list(vocabulary.projects()))
        self.threads = [Thread(aspect) for aspect in vocabulary.projects()[self.project]]
        self.length = draw.lengthy(220, 0.5)  # words of an answer
        self.code_rate = draw.pick((0.0, 0.15, 0.4))
        self.detail_rate = draw.within(0.4, 0.9)
        self.follow_rate = draw.within(0.2, 0.6)
        self.rules: list[tuple[str, str, str]] = []
        self.said_at = datetime(draw.between(2021, 2025), draw.between(1, 12), draw.between(1, 28), 9)
        self.chatter = draw.chance(0.5)

    def make(self) -> SyntheticConversation:
        draw = self.draw
        for _ in range(draw.between(2, 6)):
            self.script.begin(self.said_at)
            for _ in range(draw.between(8, 26)):
                self._exchange(draw.pick(self.threads))
            self.said_at += timedelta(days=draw.between(3, 30))
        return SyntheticConversation(self.id, "assistant", tuple(self.script.turns), tuple(self._questions()))

    # ------------------------------------------------------------ talking

    def _exchange(self, thread: Thread) -> None:
        draw = self.draw
        if draw.chance(0.05):
            self._rule(thread)
            return
        told: list[tuple[str, str]] = []
        sentences = [self._opening(thread)]
        for kind in draw.some(("metric", "deadline", "tool", "person", "preference", "done", "never"), 7):
            if len(told) < draw.pick((1, 1, 2, 3)) and draw.chance(self.detail_rate * 0.4):
                value, text = self._detail(kind, thread)
                told.append((kind, value))
                sentences.insert(draw.between(0, len(sentences)), text)
        if self.chatter and draw.chance(0.3):
            sentences.append(draw.pick(vocabulary.talk()["filler"]))
        sentences.append(draw.pick(REQUESTS))
        text = " ".join(sentences)
        if draw.chance(self.code_rate):
            text += "\nHere is what I have so far:\n" + self._code()
        id = self.script.add(USER, text.strip())
        thread.user_turns.append(id)
        for kind, value in told:
            thread.told[kind].append((value, id))
        thread.answers.append(self.script.add(ASSISTANT, self._answer(thread)))
        if draw.chance(self.follow_rate):
            line = draw.pick(vocabulary.assistant_talk()["follow_up"])
            self.script.add(USER, line.replace("{related}", draw.pick(thread.aspect.related)))
            self.script.add(ASSISTANT, self._answer(thread, share=0.6))

    def _opening(self, thread: Thread) -> str:
        draw, name = self.draw, self._name(thread)
        return draw.pick(
            (
                f"I'm trying to improve the {name} of my {self.project}.",
                f"I'm working on the {name} and I'm not sure where to start.",
                f"Today I want to focus on the {name}.",
                f"I'm having some trouble with the {name}, especially {draw.pick(thread.aspect.related)}.",
                f"Let's talk about the {name} again.",
                f"How do I handle {draw.pick(thread.aspect.related)} for the {name}?",
            )
        )

    def _name(self, thread: Thread) -> str:
        return thread.aspect.names[0]

    def _detail(self, kind: str, thread: Thread) -> tuple[str, str]:
        """Return the value of a detail, and a sentence of the user that states it."""
        draw, aspect, name = self.draw, thread.aspect, self._name(thread)
        if kind == "metric":
            label, value = draw.pick(aspect.metrics)
            if thread.told["metric"] and draw.chance(0.6):  # a newer value of the same measure
                label = thread.told["metric"][0][0].partition("=")[0]
                value = _other_value(draw, value)
            elif draw.chance(0.7):
                value = _other_value(draw, value)
            text = draw.pick(
                (
                    f"My current {label} is {value}.",
                    f"I've reached a {label} of {value} now.",
                    f"The {label} went to {value} recently.",
                    f"I measured {value} for the {label}.",
                )
            )
            return f"{label}={value}", text
        if kind == "deadline":
            day = self.said_at + timedelta(days=draw.between(5, 60))
            value = draw.pick((format_date(day), f"{day:%B} {day.day}"))
            return value, draw.pick((f"I want to finish the {name} by {value}.", f"My deadline for it is {value}.",
                                     f"I scheduled the review of the {name} for {value}."))  # fmt: skip
        if kind == "tool":
            value = draw.pick(aspect.tools)
            return value, draw.pick((f"I'm using {value} for it.", f"I decided to go with {value}.",
                                     f"So far I rely on {value}."))  # fmt: skip
        if kind == "person":
            value = draw.pick(PEOPLE)
            return value, draw.pick((f"My friend {value} recommended that I look at {draw.pick(aspect.related)}.",
                                     f"{value} is helping me with the {name}.",
                                     f"I have a meeting with {value} about {draw.pick(aspect.related)}."))  # fmt: skip
        if kind == "preference":
            value = draw.pick(aspect.tools)
            return value, draw.pick((f"I prefer {value} because I like to keep things simple.",
                                     f"I'd rather use {value} than anything complicated."))  # fmt: skip
        value = draw.pick(aspect.tools)
        if kind == "done":
            return value, f"I've already completed the first version with {value}."
        return value, f"I've never actually worked with {value} before."

    def _rule(self, thread: Thread) -> None:
        line, _, asks = self.draw.pick(vocabulary.assistant_talk()["instructions"]).partition(" => ")
        topic = self.draw.pick(thread.aspect.names)
        id = self.script.add(USER, line.replace("{topic}", topic))
        question = self.draw.pick(asks.split(" | ")).replace("{topic}", self.draw.pick(thread.aspect.names))
        self.rules.append((question, line, id))
        self.script.add(ASSISTANT, f"Got it! I'll keep that in mind whenever you ask about {topic}.")

    def _answer(self, thread: Thread, *, share: float = 1.0) -> str:
        draw, talk, aspect = self.draw, vocabulary.assistant_talk(), thread.aspect

        def filled(line: str) -> str:
            values = {"aspect": draw.pick(aspect.names), "tool": draw.pick(aspect.tools),
                      "related": draw.pick(aspect.related), "metric_name": draw.pick(aspect.metrics)[0]}  # fmt: skip
            for name, value in values.items():
                line = line.replace(f"{{{name}}}", value)
            return line

        parts = [filled(draw.pick(talk["intro"]))]
        words, number = draw.lengthy(self.length * share, 0.5), 0
        style = draw.pick(("numbers", "bullets", "headings", "prose"))
        while words > 10:
            number += 1
            lines = [filled(draw.pick(talk["advice"])) for _ in range(draw.between(1, 3))]
            words -= sum(len(line.split()) for line in lines)
            title = draw.pick((*aspect.related, *aspect.tools)).capitalize()
            body = " ".join(lines)
            marks = {"numbers": f"{number}. **{title}**: {body}", "bullets": f"- {body}",
                     "headings": f"### {title}\n{body}", "prose": body}  # fmt: skip
            parts.append(marks[style])
            if draw.chance(self.code_rate * 0.4):
                parts.append(self._code())
                words -= 30
        parts.append(draw.pick(talk["outro"]))
        return "\n\n".join(parts)

    def _code(self) -> str:
        draw = self.draw
        line = draw.pick(vocabulary.assistant_talk()["code"])
        id = f"{draw.pick(WORDS)}_{draw.pick(WORDS)}"
        return line.replace("{id}", id).replace("{word}", draw.pick(WORDS))

    # ------------------------------------------------------------ asking

    def _questions(self) -> list[LabelledQuestion]:
        draw, found = self.draw, [LabelledQuestion(q, a, (id,), "instruction") for q, a, id in self.rules]
        for thread in self.threads:
            name = draw.pick(thread.aspect.names).removeprefix("the ")
            for kind, told in list(thread.told.items()):
                if draw.chance(0.6):
                    found.append(self._ask(kind, told, name, thread))
            if thread.answers and draw.chance(0.35):
                found.append(self._ask_advice(thread))
            if len(thread.user_turns) > 2 and draw.chance(0.5):
                turns = thread.user_turns[:6]
                if draw.chance(0.4):
                    turns = turns[:3] + thread.answers[:3]
                text = draw.pick((f"Can you summarize how my work on the {name} has developed?",
                                  f"In which order did I bring up the different sides of the {name}?",
                                  f"How did the {name} progress over our conversations?"))  # fmt: skip
                found.append(LabelledQuestion(text, "", tuple(turns), "summary"))
        firsts = [thread.user_turns[0] for thread in self.threads if thread.user_turns][:6]
        text = draw.pick((f"Can you list the order in which I brought up the parts of my {self.project}?",
                          f"Give me a summary of my {self.project} so far."))  # fmt: skip
        return [*found, LabelledQuestion(text, "", tuple(firsts), "order")]

    def _ask(self, kind: str, told: list[tuple[str, str]], name: str, thread: Thread) -> LabelledQuestion:
        draw = self.draw
        value, id = draw.pick(told)
        if kind == "metric":
            label = value.partition("=")[0]
            same = [(v, i) for v, i in told if v.partition("=")[0] == label]
            value, ids = same[-1][0].partition("=")[2], tuple(dict.fromkeys(i for _, i in same))
            text = draw.pick((f"What is the {label} for my {name}?", f"What {label} do I have now?",
                              f"What was the {label} I reported for the {name}?"))  # fmt: skip
            return LabelledQuestion(text, value, ids, "update" if len(ids) > 1 else "metric")
        texts = {
            "deadline": (f"When do I want to finish the {name}?", f"When is my deadline for the {name}?",
                         f"How many days do I have for the {name}?"),
            "tool": (f"What am I using for the {name}?", f"Which tools did I pick for the {name}?"),
            "person": (f"Who is involved in my {name}?", f"Who gave me a hint about the {name}?"),
            "preference": (f"What would you recommend for the {name}?", f"Can you suggest something for my {name}?"),
            "done": (f"What have I completed for the {name}?", f"Have I ever used {value} for the {name}?"),
            "never": (f"Have I worked with {value} before?", f"What have I never tried for the {name}?"),
        }[kind]  # fmt: skip
        ids = tuple(dict.fromkeys(i for _, i in told)) if len(told) < 5 else (id,)
        if kind in ("done", "never") and value:
            other = "never" if kind == "done" else "done"
            ids = (id, *(i for v, i in thread.told.get(other, ()) if v == value and i != id))
        return LabelledQuestion(draw.pick(texts), value, ids, kind)

    def _ask_advice(self, thread: Thread) -> LabelledQuestion:
        draw = self.draw
        id = draw.pick(thread.answers)
        name = draw.pick(thread.aspect.names)
        text = draw.pick((f"What did you recommend for the {name}?", f"Which steps did you suggest for the {name}?",
                          f"How did you advise me to deal with the {name}?"))  # fmt: skip
        return LabelledQuestion(text, "", tuple(thread.answers[:3]) if len(thread.answers) < 4 else (id,), "advice")


def _other_value(draw: Draw, value: str) -> str:
    """Return a value with another number and the same unit."""
    number, _, unit = value.partition(" ")
    try:
        new = float(number.replace(",", "")) * draw.within(0.6, 1.6)
    except ValueError:
        return value
    return f"{new:.1f} {unit}".strip() if new < 10 and "." in number else f"{round(new):,} {unit}".strip()


def conversation(seed: str) -> SyntheticConversation:
    """Make a conversation of a user with an assistant; the same seed gives the same conversation."""
    return _Project(seed).make()
