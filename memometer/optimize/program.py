"""The DSPy program that is optimized: the adaptive memory's reading prompt, over conversations observed in advance."""

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
from memometer.models.replay_cache import CallStore, SearchStopped, caused_by_program
from memometer.reader.multi_round import QuestionBudgetTooSmall
from memometer.reader.reader import Reader
from memometer.run.environment import digest
from memometer.systems.adaptive import AdaptiveMemory

NEIGHBOURS = 1
"""Lines before and after a cited line that an example includes."""


class ProgramRun:
    """The result of one run of the program, for the metric.

    It is a plain object: SIMBA writes predictions into the prompts of its rule writer, and the default representation
    of this class reveals nothing.

    Attributes:
        reply: The reply.
        instructions: Instructions of the prompt.
        demos: Examples of the prompt.
        prompt: Digest of instructions and examples.
        sampled: True if the model was sampled instead of decoded greedily.
        failed: Reason why the call failed; empty otherwise.
    """

    def __init__(self, reply: Reply, read: dspy.Predict, *, sampled: bool, failed: str = "") -> None:
        self.reply = reply
        self.instructions: str = read.signature.instructions
        self.demos = [dict(demo) for demo in read.demos]
        self.prompt = prompt_digest(read)
        self.sampled = sampled
        self.failed = failed


def prompt_digest(read: dspy.Predict) -> str:
    """Return a digest of a predictor's instructions and examples."""
    return digest([read.signature.instructions, [dict(demo) for demo in read.demos]])


class ConversationStates:
    """The memory state of each conversation, observed once and shared by all copies of the program."""

    def __init__(self, conversations: Iterable[Conversation]) -> None:
        self._conversations = {conversation.id: conversation for conversation in conversations}
        self._states: dict[str, Any] = {}
        self._lock = threading.Lock()

    def get(self, memory: AdaptiveMemory, conversation: str) -> Any:
        """Return the state of a conversation."""
        with self._lock:
            if conversation not in self._states:
                state = memory.new()
                for session in self._conversations[conversation].sessions:
                    memory.observe(state, session.turns)
                self._states[conversation] = state
            return self._states[conversation]


class SharedContext:
    """What all copies of the program share: memory, reader, states, stored calls, and the budget."""

    def __init__(
        self,
        memory: AdaptiveMemory,
        reader: Reader,
        states: ConversationStates,
        store: CallStore,
        *,
        budget_tokens: int,
    ) -> None:
        self.memory, self.reader, self.states, self.store = memory, reader, states, store
        self.budget_tokens = budget_tokens

    def __deepcopy__(self, memo: dict[int, object]) -> SharedContext:
        return self

    def answer(self, read: dspy.Predict, conversation: str, question: str) -> tuple[dspy.Prediction, ProgramRun]:
        """Answer one question with the predictor `read`.

        A failed call is marked in the result. It must not raise, because optimizers score exceptions as zero.

        Raises:
            SearchStopped: The memory itself failed, or no further call is allowed.
        """
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
                    state=self.states.get(self.memory, conversation),
                    question=question,
                    budget_tokens=self.budget_tokens,
                )
            except QuestionBudgetTooSmall:
                pass  # instructions and examples leave no room for memory: the empty answer gets its score
            except Exception as error:  # sorted below: the program's own, the provider's, or a fault of this project
                if not caused_by_program(error):
                    if not isinstance(error, LMError):  # the search must not learn from a fault of this project
                        raise SearchStopped(f"the memory failed: {describe(error)}", outcome="failed") from error
                    failed = describe(error)
        reply = Reply(
            answer=prediction.answer,
            shown=prediction.rounds[-1].turn_ids if "rounds" in prediction else (),
            total_tokens=bill.total_tokens,
            absent=bool(prediction.answer) and prediction.status == "absent",
            cited=prediction.citations if "citations" in prediction else (),
        )
        return prediction, ProgramRun(reply, read, sampled="rollout_id" in lm.kwargs, failed=failed)


class ReadingProgram(dspy.Module):
    """Answers a question about a conversation. The memory shows numbered lines that fit the question under a token
    budget. `read` cites the lines that contain the answer, gives the status, and answers in few words. Instructions and
    examples share the token budget with the lines."""

    def __init__(self, context: SharedContext) -> None:
        super().__init__()
        self.read = context.reader.read.deepcopy()
        self.context = context

    def forward(self, conversation: str, question_id: str, question: str) -> dspy.Prediction:
        prediction, run = self.context.answer(self.read, conversation, question)
        return dspy.Prediction(answer=prediction.answer, status=prediction.status, run=run)


def example_of(question: Question) -> dspy.Example:
    """Return a question as a DSPy example in which all fields are inputs.

    The metric finds the gold answer and the evidence by the question's id. SIMBA shows all other fields of an example
    to the model that writes its rules.
    """
    return dspy.Example(
        conversation=question.conversation, question_id=question.id, question=question.text
    ).with_inputs("conversation", "question_id", "question")


_NUMBERED = re.compile(r"(\d+) (.*)", re.DOTALL)


def excerpt(demo: Any) -> Any:
    """Return a found example with a shortened memory.

    The memory keeps the cited lines, their neighbours and their date lines, renumbered; a whole memory would use up the
    budget. Written examples and excerpts are returned unchanged.
    """
    if not demo.get("augmented") or "memory" not in demo:
        return demo
    memory, lines = cut_memory(str(demo["memory"]), demo.get("lines") or ())
    values = {name: value for name, value in dict(demo).items() if name != "augmented"}
    return dspy.Example(**{**values, "memory": memory, "lines": lines})


def cut_memory(memory: str, cited: Sequence[int]) -> tuple[str, list[int]]:
    """Cut a numbered memory to the cited lines and their neighbours.

    Args:
        memory: Numbered lines under date lines.
        cited: Numbers of the cited lines; with none, the first lines are used.

    Returns:
        The renumbered lines and the new numbers of the cited lines.
    """
    rows: list[tuple[str, str]] = []  # (date line, line without its number); the first row is line 1
    header = ""
    for line in memory.splitlines():
        if line.startswith("# "):
            header = line
        elif match := _NUMBERED.fullmatch(line):
            rows.append((header, match[2]))
    valid = [number - 1 for number in cited if 0 < number <= len(rows)]
    centres = valid or [min(NEIGHBOURS, len(rows) - 1)]
    near = {n for centre in centres for n in range(centre - NEIGHBOURS, centre + NEIGHBOURS + 1)}
    positions = sorted(n for n in near if 0 <= n < len(rows))
    text: list[str] = []
    shown = ""
    for number, position in enumerate(positions, start=1):
        header, line = rows[position]
        if header != shown:
            text.append(header)
            shown = header
        text.append(f"{number} {line}")
    return "\n".join(text), [positions.index(position) + 1 for position in valid]
