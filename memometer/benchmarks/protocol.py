"""The protocol of a benchmark: conversations, questions that can score an answer, splits, judge prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from memometer.benchmarks.metrics import abstains, token_f1
from memometer.errors import UserError
from memometer.memory import Turn

T = TypeVar("T")

FREE = "free"
"""The option order of a question that is asked freely, without answer options."""

PARTS = ("train", "validation", "test")

Split = Mapping[str, tuple[str, ...]]
"""Part (train, validation, test) -> conversation ids."""


class DataError(UserError, ValueError):
    """The data cannot be used. The message is one sentence for the user."""


class UnknownBenchmark(UserError, ValueError):
    """The benchmark is unknown or cannot be imported."""


@dataclass(frozen=True, slots=True)
class Session:
    """A part of a conversation that took place at one time."""

    number: int
    said_at: datetime
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True, order=True)
class Moment:
    """The time at which a question is asked.

    Attributes:
        after: The number of turns that the memory has observed.
        settled: False asks at once after the last turn was written, before the memory reports that it is ready.
    """

    after: int
    settled: bool = True


@dataclass(frozen=True, slots=True)
class Action:
    """A change of the memory that the harness makes while the conversation goes on.

    Attributes:
        after: The number of turns that the memory has observed.
        kind: `forget` deletes turns; `reload` writes the memory to a file and continues with what the file holds.
        turn_ids: The turns to delete.
    """

    after: int
    kind: str
    turn_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """A question about one conversation. A benchmark with its own scoring rules overrides the methods.

    Attributes:
        conversation: Id of the conversation.
        index: Position among the questions of the conversation, from 0.
        text: The question. It does not identify the question: a benchmark may ask the same text twice.
        category: Key of the category in `Dataset.categories`.
        gold: The gold answer; None if the conversation does not contain an answer.
        evidence: Ids of the turns that contain the answer, each once. All exist in the conversation.
        unresolved: Evidence strings of the file that match no turn.
        adversarial_answer: A wrong answer that an unanswerable question suggests.
        moment: When it is asked; None for the end of the conversation.
        asker: The person who asks; empty if the benchmark does not know.
    """

    conversation: str
    index: int
    text: str
    category: str
    gold: str | None
    evidence: tuple[str, ...]
    unresolved: tuple[str, ...] = ()
    adversarial_answer: str | None = None
    moment: Moment | None = None
    asker: str = ""

    @property
    def id(self) -> str:
        """The identity of the question: `conversation#index`."""
        return f"{self.conversation}#{self.index}"

    @property
    def answerable(self) -> bool:
        """True if the conversation contains an answer. The right reply to any other question is an abstention."""
        return self.gold is not None

    @property
    def reference(self) -> str:
        """The part of the gold answer that `score` compares with; empty for an unanswerable question."""
        return self.gold or ""

    @property
    def gold_is_list(self) -> bool:
        """True if the gold answer may be a list whose items can be in any order."""
        return False

    @property
    def has_twins(self) -> bool:
        """True if an unanswerable question about the same evidence is a variation of this one."""
        return self.answerable

    @property
    def option_orders(self) -> tuple[str, ...]:
        """Orders in which the question can be asked with answer options; empty if it can only be asked freely."""
        return ()

    def session_of(self, turn_id: str) -> str | None:
        """The session that the id of a turn names; None if the benchmark's turn ids name no session."""
        return None

    def options(self, order: str) -> str:
        """The text that follows the question in a prompt: the answer options in one order; empty for `FREE`."""
        return ""

    def ranking_metrics(self, ranked: Sequence[str]) -> Mapping[str, float]:
        """Metrics of a ranking that the benchmark publishes, by name.

        Args:
            ranked: Ids of the turns that were shown, the best first.
        """
        return {}

    def score(self, answer: str, order: str = FREE) -> float:
        """The benchmark's deterministic score of an answer.

        Args:
            answer: The reply of the reader.
            order: The option order in which the question was asked.

        Returns:
            A score from 0 to 1: token F1 against the gold answer, or 1.0 for a correct abstention.
        """
        return float(abstains(answer)) if self.gold is None else token_f1(answer, self.gold)


@dataclass(frozen=True, slots=True)
class Conversation:
    """The sessions of one conversation, in time order, the questions about it, and the changes of the memory."""

    id: str
    speakers: tuple[str, ...]
    sessions: tuple[Session, ...]
    questions: tuple[Question, ...]
    actions: tuple[Action, ...] = ()

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The turns of all sessions."""
        return tuple(turn for session in self.sessions for turn in session.turns)


@dataclass(frozen=True, slots=True)
class Dataset:
    """The conversations of one file and what reports need to know about them.

    Attributes:
        path: The file.
        sha256: Digest of the file.
        benchmark: Name of the benchmark in `memometer.benchmarks`.
        categories: Key -> name of each category, in the order of reports.
        splits: Name -> split. `default` must be present.
        kind: Empty for the benchmark's own data; otherwise a word such as SAMPLE or SIMULATED, which starts every
            printed line because no metric of such data is a benchmark score.
        notice: The sentence that explains `kind`.
        licence: The licence of the data; empty if there is nothing to state.
        source: The URL of the data.
        name: The name of own data; empty for a benchmark's.
    """

    conversations: tuple[Conversation, ...]
    path: Path
    sha256: str
    benchmark: str
    categories: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[str, Split] = field(default_factory=dict)
    kind: str = ""
    notice: str = ""
    licence: str = ""
    source: str = ""
    name: str = ""

    @property
    def label(self) -> str:
        """The data in reports: their kind, their own name, or the benchmark."""
        return self.kind or self.name or self.benchmark

    @property
    def prefix(self) -> str:
        """The start of every printed line."""
        return f"{self.kind}  " if self.kind else ""

    @property
    def questions(self) -> tuple[Question, ...]:
        """The questions of all conversations."""
        return tuple(question for conversation in self.conversations for question in conversation.questions)

    def counted(self, keys: Iterable[str]) -> str:
        """Count keys of categories, in words: `3 temporal, 4 of category 2`."""
        counts = Counter(keys)
        names = [(counts[key], key, name) for key, name in self.categories.items() if counts[key]]
        return ", ".join(
            f"{n} of category {key}" if name == key and key.isdecimal() else f"{n} {name}" for n, key, name in names
        )

    def question_at(self, conversation: int, index: int) -> Question | None:
        """Find a question by its position, which is part of the ids in other projects' files.

        The caller must compare the text with the file's, because some files number the questions differently.

        Args:
            conversation: Position of the conversation, from 0.
            index: Position of the question in the conversation, from 0.

        Returns:
            The question, or None if there is none at this position.
        """
        if conversation >= len(self.conversations) or index >= len(self.conversations[conversation].questions):
            return None
        return self.conversations[conversation].questions[index]

    def part(self, name: str) -> tuple[Conversation, ...]:
        """The conversations of one part of a split.

        Args:
            name: `train`, `validation`, `test` or `all`, optionally after the name of a split: `memory-r1:test`.

        Returns:
            The conversations, in the order of the data.

        Raises:
            DataError: The split or the part does not exist.
        """
        split, part = self._split_and_part(name)
        if part == "all":
            return self.conversations
        ids = self.splits[split][part]
        return tuple(conversation for conversation in self.conversations if conversation.id in ids)

    def held_out(self, name: str) -> tuple[Conversation, ...]:
        """The test conversations that an evaluation of `name` uses: none for training and validation parts.

        Args:
            name: As for `part`.

        Raises:
            DataError: The split or the part does not exist.
        """
        split, part = self._split_and_part(name)
        return self.part(f"{split}:test") if part in ("test", "all") else ()

    def _split_and_part(self, name: str) -> tuple[str, str]:
        split, _, part = name.rpartition(":")
        split = split or "default"
        if split not in self.splits or part not in (*PARTS, "all"):
            raise DataError(
                f"--split is {name!r}; allowed are {', '.join(PARTS)} and all, optionally after the name of a split "
                f"({', '.join(self.splits)}), as in default:test."
            )
        return split, part


def category_label(key: str, names: Mapping[str, str]) -> str:
    """A category as headings print it: its key and its name, or the key alone if both are the same."""
    name = names.get(key, key)
    return key if name == key else f"{key} {name}"


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """Instructions for a judge model and a description of the rule that they express.

    Attributes:
        name: The name for `--judge`.
        instructions: The instructions; all of them, if they depend on the question.
        rule: When an answer is correct, in a few words.
        text: (question, gold, answer) -> the whole prompt, for published prompts that depend on the question. None
            sends the instructions and the three texts as fields.
        rubric: The items that an answer is graded for, one call each, in place of the gold answer. The score is their
            mean.
        half_met: The score of an item to which the judge replies `partly`; None does not allow this reply.
        order: True for a question whose items are events in order. Its score is the agreement of the answer's lines
            with that order (Kendall's tau-b, scaled to 0 to 1).
    """

    name: str
    instructions: str
    rule: str
    text: Callable[[Question, str, str], str] | None = None
    rubric: Callable[[Question], Sequence[str]] | None = None
    half_met: float | None = None
    order: Callable[[Question], bool] | None = None


@dataclass(frozen=True, slots=True)
class LabelCorrection:
    """One known error in the gold labels.

    Attributes:
        question_id: Id of the question.
        kind: Kind of the error, as the audit names it.
        answer: The answer that the audit considers right.
        in_answer: False if only the cited evidence is wrong and the gold answer is right.
    """

    question_id: str
    kind: str
    answer: str
    in_answer: bool = True


@dataclass(frozen=True, slots=True)
class UserFile(Generic[T]):
    """A file about the benchmark that users download themselves, because its licence forbids to include it.

    Attributes:
        variable: The environment variable that names the file.
        source: Where to download it.
        read: Reads and verifies the file against the data. Raises DataError.
    """

    variable: str
    source: str
    read: Callable[[Path, Dataset], T]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: how its data are loaded and how answers to its questions are judged.

    Attributes:
        name: The name for `--benchmark`.
        title: The name in reports.
        licence: The licence of the data.
        categories: Key -> name of each category, in the order of reports.
        load: Loads the data from a file, or from the benchmark's own location if the argument is None. Raises
            DataError.
        question_type: The class of its questions.
        judge_prompts: Judge prompts by name; the first is the default.
        scoring_files: Source files whose change changes a score.
        label_corrections: The file of known label errors.
        wrong_answers: The file of wrong answers for the calibration of a judge, by question id.
        local_file: Finds the file to use without a download: the data if they are on this machine, otherwise a sample.
        result_formats: Returns the formats of published result files by name (`memometer.harness.import_formats`).
        verify: Checks a copy of the data: data -> (lines to print, whether all checks hold).
        synthesize: Generates synthetic conversations: (seed, number of conversations) -> data.
        write_synthetic: Writes them to a file: (path, seed, number) -> statistics, as lines to print.
        person_names: Invents names of persons: (seed, names to avoid) -> a function that returns a name at each call.
        measure: Computes the benchmark's own measures of one system from what it showed and what its ingest cost
            (`memometer.benchmarks.shown`). None without measures of its own.
        budgets: The default budgets in tokens; empty for the general default.
        recognizes: True for a file of this benchmark, its sample or its synthetic conversations. Without it, the
            benchmark takes any file.
    """

    name: str
    title: str
    licence: str
    categories: Mapping[str, str]
    load: Callable[[str | Path | None], Dataset]
    judge_prompts: Mapping[str, JudgePrompt]
    question_type: type[Question] = Question
    scoring_files: tuple[Path, ...] = ()
    label_corrections: UserFile[tuple[LabelCorrection, ...]] | None = None
    wrong_answers: UserFile[dict[str, str]] | None = None
    local_file: Callable[[], Path] | None = None
    result_formats: Callable[[], Mapping[str, Any]] = dict
    verify: Callable[[Dataset], tuple[list[str], bool]] = lambda data: ([f"{len(data.questions):,} questions"], True)
    synthesize: Callable[[int, int], Dataset] | None = None
    write_synthetic: Callable[[Path, int, int], list[str]] | None = None
    person_names: Callable[[str, Collection[str]], Callable[[], str]] | None = None
    recognizes: Callable[[Path], bool] | None = None
    measure: Callable[..., Any] | None = None
    budgets: tuple[int, ...] = ()

    def judge_prompt(self, name: str | None = None) -> JudgePrompt:
        """A judge prompt by name; the default prompt for None.

        Raises:
            DataError: The benchmark has no prompt of this name.
        """
        if name is None:
            return next(iter(self.judge_prompts.values()))
        if name not in self.judge_prompts:
            raise DataError(
                f"--judge is {name!r}; the judge prompts of {self.title} are {', '.join(self.judge_prompts)}."
            )
        return self.judge_prompts[name]
