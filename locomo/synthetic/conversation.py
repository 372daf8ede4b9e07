"""Generator of one synthetic conversation: facts, the turns that state them, and questions about them.

A fact is stated in one turn, in the caption of a photo, or in the turn after one with the words of the question. A
newer version may replace it, the other speaker may state a similar one, and several facts may share one question. The
generator asks a question only if exactly one fact answers it, and states no later fact that makes it ambiguous.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from datetime import datetime, timedelta

from locomo.dataset import Question
from locomo.synthetic.facts import Fact, Key, Plan, Slots, Thread
from locomo.synthetic.templates import Names, blanks, fill, relative_date, said_by, vocabulary
from memometer.benchmarks.protocol import Session
from memometer.memory import Turn
from memometer.synthetic.draw import Draw

RATES = {1: 282 / 5882, 2: 321 / 5882, 3: 96 / 5882, 4: 841 / 5882, 5: 446 / 5882}
"""Number of questions of each category per turn, as in LOCOMO."""
LONG_TURNS = 2_000
"""Conversations with more turns have a tenth of the questions per turn. Each question contains a name, because others
would soon have several answers. The speakers meet twice a day, so ten million tokens cover eighteen years."""
FACTS_PER_TURN = 0.25
PARAPHRASE = 0.5
"""Probability that a question uses another verb than the fact, and names the class of a thing (dog), not its kind."""
NAMED = {"venue", "friend", "name"}
NOT_ASKED_BY = {"who", "other", "do", "did", "theme", "when"}  # blanks that do not distinguish two facts of a topic
SETTLED_WITH = {"venue": ("venue", "spot"), "friend": ("friend", "relation")}


class ConversationGenerator:
    """Generates one conversation; iterate over `sessions()` once.

    Args:
        seed: Any text. The same seed gives the same conversation.
        sizes: Number of turns of each session.
        name: Id of the conversation.
    """

    def __init__(self, seed: str, sizes: list[int], *, name: str) -> None:
        self.draw = Draw(seed)
        self.words = vocabulary()
        self.name, self.sizes, self.total = name, sizes, sum(sizes)
        self.long = self.total > LONG_TURNS
        people = list(self.words["people"]["speakers"])
        first = self.draw.pick(people)
        self.speakers = (first, self.draw.pick([person for person in people if person != first]))
        self.names = {kind: Names(self.draw, kind, people) for kind in ("person", "place", "title")}
        self.topics = list(self.words["topics"])
        self.traits = [(speaker, trait) for trait in self.words["traits"] for speaker in (0, 1)]
        self.askable = {topic: self._askable(topic) for topic in self.topics}
        self.scheduled: dict[int, list[Plan]] = {}
        self.queues: tuple[deque[Plan], deque[Plan]] = (deque(), deque())
        self.stated: Counter[Key] = Counter()
        self.reserved: set[Key] = set()
        self.asked: Counter[int] = Counter()
        self.begun: Counter[int] = Counter()
        self.recent_fillers: deque[str] = deque(maxlen=24)
        self.turns = self.session = 0
        self.questions: list[Question] = []

    def sessions(self) -> Iterator[tuple[Session, tuple[Question, ...]]]:
        """Yield each session with the questions whose evidence it completes."""
        draw = self.draw
        said_at = datetime(2022, 1, draw.between(1, 28), draw.between(8, 21), draw.between(0, 59))
        for size in self.sizes:
            self.session += 1
            self.questions = []
            self._plan(size)
            turns = tuple(self._talk(size, said_at))
            yield Session(self.session, said_at, turns), tuple(self.questions)
            if self.long:
                said_at += timedelta(minutes=round(90 + draw.wait(630)))
            else:
                said_at += timedelta(days=1 + round(draw.wait(7.3)))
                said_at = said_at.replace(hour=draw.between(8, 21), minute=draw.between(0, 59))

    def _askable(self, topic: str) -> set[tuple[str, ...]]:
        """Return the sets of slots that questions of this topic name, each sorted."""
        facts = self.words["facts"]
        asks = [ask.split(" => ")[0] for ask in (*facts["ask"], *self.words["topics"][topic]["ask"])]
        sentences = [s for s in (*asks, *facts["date"], *facts["list"]) if blanks(s) & NAMED or not self.long]
        return {tuple(sorted(blanks(sentence) - NOT_ASKED_BY)) for sentence in sentences}

    # ------------------------------------------------------------ planning

    def _due(self, category: int, so_far: int, *, ahead: int = 0) -> bool:
        rate = RATES[category] * (0.1 if self.long else 1.0)
        return so_far < rate * min(self.turns + ahead, self.total)

    def _plan(self, size: int) -> None:
        """Choose the facts of this session and start threads of several sessions."""
        for _ in range(20):
            if self._due(1, self.begun[1], ahead=130):
                self._begin_list()
        while self.traits and self._due(3, self.begun[3], ahead=80):
            speaker, name = self.traits.pop(self.draw.between(0, len(self.traits) - 1))
            trait = self.words["traits"][name]
            hints = sorted(trait["tell"], key=lambda _: self.draw.random())[: self.draw.pick((1, 1, 2, 2, 3))]
            thread = Thread(self.draw.pick(trait["ask"]) + " => " + trait["gold"], len(hints), hints=hints)
            self.begun[3] += 1
            self._schedule([Plan(speaker, name, thread=thread)] * len(hints))
        coming = self.scheduled.pop(self.session, [])
        wanted = round(FACTS_PER_TURN * size) - len(coming) - sum(map(len, self.queues))
        coming += [Plan(self.draw.between(0, 1), self.draw.pick(self.topics)) for _ in range(wanted)]
        for plan in sorted(coming, key=lambda _: self.draw.random()):
            self.queues[plan.speaker].append(plan)

    def _schedule(self, plans: list[Plan], *, later: int = 0) -> None:
        """Spread plans, in order, over the sessions from `later` on; the last session gets the rest."""
        at = self.session + later
        for plan in plans if at <= len(self.sizes) else ():
            self.scheduled.setdefault(min(at, len(self.sizes)), []).append(plan)
            at += self.draw.between(1, 4)

    def _begin_list(self) -> None:
        """Start a list: several facts that share a slot and one question. It reserves the key before the first fact."""
        speaker, topic = self.draw.between(0, 1), self.draw.pick(self.topics)
        sentence = self.draw.pick([s for s in self.words["facts"]["list"] if blanks(s) & NAMED or not self.long])
        slots = self._slots(Plan(speaker, topic))
        key = self._key(speaker, topic, sentence, slots)
        if key in self.reserved or self.stated[key]:
            return
        self.reserved.add(key)
        self.begun[1] += 1
        shared = blanks(sentence) - NOT_ASKED_BY
        fixed = {name: slots[name] for blank in shared for name in SETTLED_WITH.get(blank, (blank,))}
        thread = Thread(sentence, self.draw.pick((2, 2, 2, 2, 2, 3, 3, 4, 4, 5, 6)), shared=key)
        self._schedule([Plan(speaker, topic, fixed, thread=thread)] * thread.left)

    def _slots(self, plan: Plan) -> Slots:
        topic, draw = self.words["topics"][plan.topic], self.draw
        kind_of = plan.fixed.get("class") or draw.pick(list(topic["kinds"]))
        taken = {plan.replaces, *(plan.thread.kinds if plan.thread else ())}
        kinds = [kind for kind in topic["kinds"][kind_of] if kind not in taken] or topic["kinds"][kind_of]
        spot = draw.pick(topic["spot"])
        verb = draw.between(0, len(topic["did"]) - 1)
        return {
            **{blank: topic[blank] for blank in ("some", "theme")},
            "did": topic["did"][verb],
            "do": topic["do"][verb],
            "who": self.speakers[plan.speaker],
            "other": self.speakers[1 - plan.speaker],
            "class": kind_of,
            "kind": draw.pick(kinds),
            "name": self.names[topic["name"]](),
            "spot": spot,
            "venue": f"the {self.names['place']()} {spot}",
            "friend": self.names["person"](),
            "relation": draw.pick(self.words["people"]["relations"]),
            "reason": draw.pick(self.words["people"]["reasons"]),
            "when": "",
            **plan.fixed,
        }

    def _key(self, speaker: int, topic: str, sentence: str, slots: Slots) -> Key:
        return speaker, topic, tuple((blank, slots[blank]) for blank in sorted(blanks(sentence) - NOT_ASKED_BY))

    def _keys(self, plan: Plan, slots: Slots) -> set[Key]:
        """Return the keys of all questions that this fact could answer."""
        who, topic = plan.speaker, plan.topic
        return {(who, topic, tuple((blank, slots[blank]) for blank in names)) for names in self.askable[topic]}

    def _fact(self, plan: Plan, said_at: datetime) -> Fact | None:
        """Create a fact that makes no question ambiguous; return None if the topic has too many questions already."""
        shared = {plan.thread.shared} if plan.thread else set()
        if plan.replaces:
            return Fact(plan, self._slots(plan))
        for _ in range(12):
            slots = self._slots(plan)
            keys = self._keys(plan, slots)
            if not (keys - shared) & self.reserved:
                break
        else:
            self._close(plan.thread, plan)
            return None
        self.stated.update(keys)
        if plan.thread:
            plan.thread.kinds.append(slots["kind"])
        if not self.draw.chance(0.4):
            return Fact(plan, slots)
        words, date = relative_date(self.draw, said_at)
        return Fact(plan, slots | {"when": f" {words}"}, date)

    # ------------------------------------------------------------ talking

    def _talk(self, size: int, said_at: datetime) -> Iterator[Turn]:
        talk, draw, first = self.words["talk"], self.draw, self.draw.between(0, 1)
        waiting: tuple[Fact, list[str]] | None = None  # an exchange that the next turns continue
        echo: Fact | None = None  # the fact that the last turn stated
        for number in range(1, size + 1):
            speaker = (first + number) % 2
            people = {"who": self.speakers[speaker], "other": self.speakers[1 - speaker]}
            id, caption = f"D{self.session}:{number}", None
            before = [draw.pick(talk["hello"])] if number <= 2 else []
            after = [draw.pick(talk["bye"])] if number > size - 2 else []
            before += [self._reaction(echo)] if echo and draw.chance(0.65) else []
            content, done, echo = "", None, None
            queue = self.queues[speaker]
            if waiting:
                fact, lines = waiting
                content = self._state(fact, lines[0], id)
                waiting, done = ((fact, lines[1:]), None) if lines[1:] else (None, fact)
            elif queue and draw.chance(2.6 * len(queue) / (size - number + 1)):
                plan = queue.popleft()
                if plan.thread and plan.thread.hints:
                    content = plan.thread.hints.pop()
                    plan.thread.evidence.append(id)
                    self._close(plan.thread, plan)
                elif stated := self._fact(plan, said_at):
                    form, lines = self._script(stated, room=size - number)
                    content = self._state(stated, lines[0], id)
                    if form == "exchange":
                        waiting = stated, lines[1:]
                    else:
                        done = stated
                    if form == "photo":
                        beside = draw.pick(self.words["scenes"]["beside"])
                        caption = "a" + self._state(stated, f" photo of {lines[1]} {beside}", id)
            if not (content.endswith("?") or after) and draw.chance(0.19):
                after = [draw.pick(talk["question"])]
            words = sum(len(sentence.split()) for sentence in (*before, content, *after))
            padding = self._padding(draw.lengthy(19, 0.5) - words, least=0 if content or before or after else 1)
            if content.endswith("?"):
                before, padding = before + padding, []
            around = self._slots(Plan(speaker, draw.pick(self.topics))) | people
            sentences = [fill(draw, line, around) for line in before]
            sentences += [content] * bool(content) + [fill(draw, line, around) for line in (*padding, *after)]
            if caption is None and draw.chance(0.19):
                caption = draw.pick(self.words["scenes"]["idle"])
            self.turns += 1
            yield Turn(id, people["who"], " ".join(sentences), self.session, said_at, caption)
            if done:
                echo = done
                self._ask(done)

    def _reaction(self, fact: Fact) -> str:
        """Return a reaction to a fact. It often repeats words of the fact, as a distractor after the evidence."""
        line = self.draw.pick(self.words["facts"]["echo"])
        if self.draw.chance(0.5) or not blanks(line) <= {*fact.stated_in, "some"} or "my" in fact.slots["some"]:
            return self.draw.pick(self.words["talk"]["react"])
        return fill(self.draw, line, fact.slots)

    def _padding(self, words: float, *, least: int) -> list[str]:
        """Return filler sentences with about this number of words, without recent ones."""
        lines: list[str] = []
        while words > 5 or len(lines) < least:
            line = self.draw.pick(self.words["talk"]["filler"])
            if line not in self.recent_fillers:
                self.recent_fillers.append(line)
                lines.append(line)
                words -= len(line.split())
        return lines

    def _script(self, fact: Fact, *, room: int) -> tuple[str, list[str]]:
        """Choose the form of a fact (tell, exchange, photo or update) and its lines.

        A fact of a list states all slots of the list's key.
        """
        facts, plan, draw = self.words["facts"], fact.plan, self.draw
        if plan.replaces:
            return "update", [draw.pick(facts["update"])]
        needed: set[str] = set()
        if plan.thread and plan.thread.shared:
            needed = {"kind"} | {blank for blank, _ in plan.thread.shared[2]} - {"class", "spot"}
        form = draw.pick(("exchange",) * 5 + ("photo",) * 2 + ("tell",) * 13)
        if form == "exchange" and room < 2:
            form = "tell"
        lines = facts[form]
        if form == "tell" and draw.chance(0.3):
            lines = self.words["topics"][plan.topic]["tell"]
        fitting = [line for line in lines if needed <= said_by(line)]
        if not fitting:
            form, fitting = "tell", [line for line in facts["tell"] if needed <= said_by(line)]
        return form, draw.pick(fitting).split(" // ")

    def _state(self, fact: Fact, line: str, id: str) -> str:
        for slot in said_by(line) - (NOT_ASKED_BY - {"when"}):
            if slot != "when" or fact.date:
                fact.stated_in.setdefault(slot, id)
        return fill(self.draw, line, fact.slots)

    # ------------------------------------------------------------ asking

    def _ask(self, fact: Fact) -> None:
        """Ask questions about a fact, as the rates require, and plan its distractors."""
        plan = fact.plan
        if plan.replaces:
            newest = [ask for ask in self.words["facts"]["ask"] if ask.endswith("{kind}") and "{venue}" in ask]
            if self._due(4, self.asked[4]):
                self._put(fact, self.draw.pick(newest), 4, opening="In the end, ")
            return
        goes_on = not plan.thread and {"kind", "venue"} <= fact.stated_in.keys() and self.session < len(self.sizes)
        changes = goes_on and self.draw.chance(0.15)
        used: set[Key] = set()
        dates = [f"{sentence} => {{date}}" for sentence in self.words["facts"]["date"]]
        if fact.date and "when" in fact.stated_in and self._due(2, self.asked[2]):
            used |= self._put_any(fact, dates, 2, "")
        asks = [*self.words["facts"]["ask"], *self.words["topics"][plan.topic]["ask"]]
        if self._due(4, self.asked[4]):
            used |= self._put_any(fact, asks, 4, "Originally, " if changes else "")
        twin = self._put_any(fact, asks, 5, "") if self._due(5, self.asked[5]) else set()
        self.reserved |= used | twin
        if plan.thread:
            plan.thread.evidence.append(fact.stated_in["kind"])
            self._close(plan.thread, plan)
        elif changes:
            self.reserved |= self._keys(plan, fact.slots)
            fixed = {slot: fact.slots[slot] for slot in ("class", "venue", "spot", "friend", "relation", "name")}
            self._schedule([Plan(plan.speaker, plan.topic, fixed, replaces=fact.slots["kind"])], later=1)
        elif not twin and self.draw.chance(0.3):
            alike = self.draw.pick((("venue", "spot"), ("friend", "relation"), ("class",)))
            fixed = {slot: fact.slots[slot] for slot in alike}
            self._schedule([Plan(1 - plan.speaker, plan.topic, fixed)], later=self.draw.between(1, 3))

    def _put_any(self, fact: Fact, asks: list[str], category: int, opening: str) -> set[Key]:
        """Ask one question that only this fact answers, or, in category 5, that no fact of the other speaker answers.

        Returns:
            The key to reserve; empty if there is no such question.
        """
        known = fact.stated_in.keys() | ({"class"} if "kind" in fact.stated_in else set())
        for ask in sorted(asks, key=lambda _: self.draw.random()):
            sentence, target = ask.split(" => ")
            asked_by = blanks(sentence) - NOT_ASKED_BY
            key = self._key(fact.plan.speaker, fact.plan.topic, sentence, fact.slots)
            twin = (1 - key[0], *key[1:])
            free = not self.stated[twin] and twin not in self.reserved if category == 5 else True
            if key in self.reserved or self.stated[key] != 1 or not free or not asked_by <= known:
                continue
            if (self.long and not asked_by & NAMED) or (
                target != "{date}" and not blanks(target) <= fact.stated_in.keys()
            ):
                continue
            if self._put(fact, ask, category, opening=opening if target == "{kind}" else ""):
                return {twin if category == 5 else key}
        return set()

    def _put(self, fact: Fact, ask: str, category: int, *, opening: str = "") -> bool:
        sentence, target = ask.split(" => ")
        slots = fact.slots | ({"who": fact.slots["other"]} if category == 5 else {})
        if self.draw.chance(PARAPHRASE):
            slots["do"] = self.words["topics"][fact.plan.topic]["do"]
        elif target != "{kind}":
            slots["class"] = slots["kind"]
        text = fill(self.draw, sentence, slots)
        if opening:
            text = opening + text[0].lower() + text[1:]
        gold = fact.date if target == "{date}" else fact.slots[target.strip("{}")]
        if gold.lower() in text.lower():
            return False
        self._add(text, category, gold, [fact.stated_in["when" if target == "{date}" else target.strip("{}")]])
        return True

    def _close(self, thread: Thread | None, plan: Plan) -> None:
        """Finish one part of a thread, and ask its question after the last part."""
        if not thread:
            return
        thread.left -= 1
        if thread.left:
            return
        sentence, _, gold = thread.sentence.partition(" => ")
        if gold:
            who = {"who": self.speakers[plan.speaker]}
            self._add(fill(self.draw, sentence, who), 3, fill(self.draw, gold, who), thread.evidence)
        elif len(thread.evidence) > 1:
            text = fill(self.draw, sentence, self._slots(plan))
            self._add(text, 1, ", ".join(dict.fromkeys(thread.kinds)), thread.evidence)

    def _add(self, text: str, category: int, gold: str, evidence: list[str]) -> None:
        answer, trap = (None, gold) if category == 5 else (gold, None)
        place = self.name, self.asked.total()
        self.questions.append(Question(*place, text, str(category), answer, tuple(evidence), adversarial_answer=trap))
        self.asked[category] += 1
