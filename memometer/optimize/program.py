"""The program that is optimised: the adaptive memory's reading prompt, over conversations that were read in once."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Sequence
from copy import copy
from typing import Any

import dspy
from dspy.utils.exceptions import LMError

from memometer.benchmarks.protocol import Conversation, Question
from memometer.benchmarks.reward import Reply
from memometer.models.errors import describe
from memometer.models.plain_adapter import PlainAdapter
from memometer.models.replay_cache import CallStore, SearchStopped, at_fault_itself
from memometer.reader.multi_round import QuestionBudgetTooSmall
from memometer.reader.reader import Reader
from memometer.run.environment import digest
from memometer.systems.adaptive import AdaptiveMemory

NEIGHBOURS = 1
"""Lines before and after a cited one that an example keeps."""


class Told:
    """What one run of the program came to, for the metric: the reply, the prompt that asked for it, whether the model
    was sampled, and why the call failed, if it did. A plain object, so that what DSPy writes of a prediction into the
    prompts of its rule writers is its name and nothing else."""

    def __init__(self, reply: Reply, read: dspy.Predict, *, sampled: bool, failed: str = "") -> None:
        self.reply = reply
        self.instructions: str = read.signature.instructions
        self.demos = [dict(demo) for demo in read.demos]
        self.sampled = sampled
        self.failed = failed
        self.prompt = prompt_digest(read)


def prompt_digest(read: dspy.Predict) -> str:
    """Tells prompts apart: instructions and examples."""
    return digest([read.signature.instructions, [dict(demo) for demo in read.demos]])


class States:
    """The state of each conversation, read in once for all that shapes it and shared by every copy of the program."""

    def __init__(self, conversations: Iterable[Conversation]) -> None:
        self._conversations = {conversation.id: conversation for conversation in conversations}
        self._states: dict[tuple[str, str], Any] = {}
        self._lock = threading.Lock()

    def __call__(self, memory: AdaptiveMemory, conversation: str) -> Any:
        encoder = memory.encoder.name if memory.encoder else ""
        key = digest([type(memory).__qualname__, memory.count.name, encoder]), conversation
        with self._lock:
            if key not in self._states:
                state = memory.new()
                for session in self._conversations[conversation].sessions:
                    memory.observe(state, session.turns)
                self._states[key] = state
            return self._states[key]


class Desk:
    """What all copies of the program share: memory, reader, states, the store of calls, and the budget."""

    def __init__(
        self, memory: AdaptiveMemory, reader: Reader, states: States, store: CallStore, *, budget_tokens: int
    ) -> None:
        self.memory, self.reader, self.states, self.store, self.budget_tokens = (
            memory,
            reader,
            states,
            store,
            budget_tokens,
        )

    def __deepcopy__(self, memo: dict[int, object]) -> Desk:
        return self

    def ask(self, read: dspy.Predict, conversation: str, question: str) -> tuple[dspy.Prediction, Told]:
        """One question, read with the predictor `read`. A failed call is a prediction that says so, never an exception,
        which an optimiser would score as zero. Raises SearchStopped."""
        read.demos = [excerpt(demo) for demo in read.demos]
        reader = copy(self.reader)
        reader.read = read
        lm = read.lm or dspy.settings.lm
        prediction = dspy.Prediction(answer="", status="absent")
        failed = ""
        with self.store.billed() as bill, dspy.context(adapter=PlainAdapter()):
            try:
                prediction = reader(
                    memory=self.memory,
                    state=self.states(self.memory, conversation),
                    question=question,
                    budget_tokens=self.budget_tokens,
                )
            except QuestionBudgetTooSmall:
                pass  # instructions and examples leave no room: an empty answer, and worth what that is worth
            except Exception as error:  # sorted below: the program's own, the provider's, or a fault of this project
                if not at_fault_itself(error):
                    if not isinstance(error, LMError):  # a fault of this project; a search must not learn from it
                        raise SearchStopped(f"the memory failed: {describe(error)}", outcome="failed") from error
                    failed = describe(error)
        reply = Reply(
            answer=prediction.answer,
            shown=prediction.rounds[-1].turn_ids if "rounds" in prediction else (),
            total_tokens=bill.total_tokens,
            absent=bool(prediction.answer) and prediction.status == "absent",
            cited=prediction.citations if "citations" in prediction else (),
        )
        return prediction, Told(reply, read, sampled="rollout_id" in lm.kwargs, failed=failed)


class Asked(dspy.Module):
    """Answers a question about a conversation: the adaptive memory shows numbered lines that fit the question under a
    token budget, and `read` cites the lines that hold the answer, says the status, and answers in few words.
    Instructions and examples are paid from the same budget as the lines."""

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self.read = desk.reader.read.deepcopy()
        self.desk = desk

    def forward(self, conversation: str, question_id: str, question: str) -> dspy.Prediction:
        prediction, told = self.desk.ask(self.read, conversation, question)
        return dspy.Prediction(answer=prediction.answer, status=prediction.status, told=told)


def example_of(question: Question) -> dspy.Example:
    """A question as DSPy is given it: all its fields are inputs. Gold, evidence and category are looked up by its id,
    because SIMBA shows every other field of an example to the model that writes its rules."""
    return dspy.Example(
        conversation=question.conversation, question_id=question.id, question=question.text
    ).with_inputs("conversation", "question_id", "question")


_NUMBERED = re.compile(r"(\d+) (.*)", re.DOTALL)


def excerpt(demo: Any) -> Any:
    """An example as it goes into a prompt: of its memory the cited lines, their neighbours and their date lines,
    numbered anew. A whole memory would cost a prompt's budget again. Examples that were written by hand stay as they
    are, and so does an excerpt."""
    if not demo.get("augmented") or "memory" not in demo:
        return demo
    memory, lines = cut(str(demo["memory"]), demo.get("lines") or ())
    values = {name: value for name, value in dict(demo).items() if name != "augmented"}
    return dspy.Example(**{**values, "memory": memory, "lines": lines})


def cut(memory: str, cited: Sequence[int]) -> tuple[str, list[int]]:
    """(the cited lines of a numbered memory with what stands around them, their new numbers). Without a citation the
    first lines stand for the rest."""
    rows: list[tuple[str, str]] = []  # (date line, line without its number), the first at number 1
    header = ""
    for line in memory.splitlines():
        if line.startswith("# "):
            header = line
        elif match := _NUMBERED.fullmatch(line):
            rows.append((header, match[2]))
    valid = [number - 1 for number in cited if 0 < number <= len(rows)]
    around = valid or [min(NEIGHBOURS, len(rows) - 1)]
    kept = sorted({n for at in around for n in range(at - NEIGHBOURS, at + NEIGHBOURS + 1) if 0 <= n < len(rows)})
    text: list[str] = []
    shown = ""
    for number, position in enumerate(kept, start=1):
        header, line = rows[position]
        if header != shown:
            text.append(header)
            shown = header
        text.append(f"{number} {line}")
    return "\n".join(text), [kept.index(position) + 1 for position in valid]
