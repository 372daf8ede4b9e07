"""The reader: DSPy's language model answers a question from recalled turns, in one call or several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dspy

from memometer.memory import DEFAULT_BUDGET_TOKENS, Memory, Recall, State
from memometer.reader.abstention import AbstentionRule, AbstentionSignals
from memometer.reader.multi_round import answer_in_rounds
from memometer.reader.signatures import ABSTENTION, EXAMPLES, Answer, CitedAnswer, MultiRound
from memometer.retrieval.speakers import named_speaker
from memometer.retrieval.tokenize import mentions


class Reader(dspy.Module):
    """Answers questions from a memory. The same prompt serves every memory system.

    Args:
        rounds: 0 makes one call and asks for the bare answer. 1 also asks for cited lines and a status
            (`memometer.reader.signatures.CitedAnswer`). With more, the model may ask for more memory before the last
            round.
            Only a memory with `reads_in_rounds` can be read in rounds.
        question_budget: a hard bound on all tokens of all calls for a question; None sets no bound.
        abstention: the rule that decides when to abstain; None leaves the decision to the model.
    """

    def __init__(
        self, *, rounds: int = 0, question_budget: int | None = None, abstention: AbstentionRule | None = None
    ) -> None:
        super().__init__()
        self.rounds = rounds
        self.question_budget = question_budget
        self.abstention = abstention
        signature = Answer if not rounds else CitedAnswer if rounds == 1 else MultiRound
        self.read = dspy.Predict(signature)
        self.read.demos = list(EXAMPLES[signature])

    def instruct(self, instructions: str) -> None:
        """Replace the instructions of the prompt; the worked examples stay."""
        self.read.signature = self.read.signature.with_instructions(instructions)

    def forward(
        self,
        memory: Memory[Any],
        state: State,
        question: str,
        budget_tokens: int = DEFAULT_BUDGET_TOKENS,
        choices: str = "",
        recall: Recall | None = None,
    ) -> dspy.Prediction:
        """Recall from `state`, then ask DSPy's language model.

        Args:
            memory: recalls.
            state: what the memory observed.
            question: any text.
            budget_tokens: a hard bound on the memory in one prompt.
            choices: answer options for the model; they do not influence the recall.
            recall: the recall, if it was made before; a reader in rounds makes its own.

        Returns:
            A prediction with `answer` and `recall`. For a memory with `reads_in_rounds` also `raw_answer` (the model's
            own answer), `signals` and `abstention_score` (None without a rule); `answer` is then "No information
            available" if the reader abstains. With rounds also `status` (answered or absent), `citations` (turn ids)
            and `rounds` (one `Round` per call).

        Raises:
            BudgetExceeded: the memory broke its budget.
            QuestionBudgetTooSmall: `question_budget` does not hold one prompt.
        """
        attributed = None
        prompt_question = f"{question} {choices}" if choices else question
        if self.rounds:
            prediction = self._read_in_rounds(memory, state, question, budget_tokens, prompt_question)
            absent = prediction.status == "absent"
            attributed = _attributed(state, question, prediction.citations)
        else:
            recall = recall or memory.checked_recall(state, question, budget_tokens)
            answer = self.read(memory=recall.text, question=prompt_question).answer
            prediction = dspy.Prediction(answer=answer, recall=recall)
            if not memory.reads_in_rounds:
                return prediction
            absent = ABSTENTION.lower() in prediction.answer.lower()
        prediction.raw_answer = prediction.answer
        prediction.signals = AbstentionSignals(absent, attributed, prediction.recall.speaker_gap)
        rule = self.abstention
        prediction.abstention_score = rule.score(prediction.signals) if rule else None
        if rule.abstains(prediction.signals) if rule else self.rounds and absent:
            prediction.answer = ABSTENTION
        return prediction

    def _read_in_rounds(
        self, memory: Any, state: State, question: str, budget_tokens: int, prompt_question: str
    ) -> dspy.Prediction:
        pages = memory.pages(state, question)
        reading = answer_in_rounds(
            self.read,
            prompt_question,
            more=pages,
            count=memory.count,
            rounds=self.rounds,
            budget_tokens=budget_tokens,
            question_budget=self.question_budget,
        )
        tokens = memory.count(reading.text)
        last = reading.rounds[-1]
        shown = Recall(reading.text, tokens, last.turn_ids, partial_ids=last.partial_ids, speaker_gap=pages.speaker_gap)
        return dspy.Prediction(
            answer=reading.answer,
            recall=shown,
            status=reading.status,
            citations=reading.citations,
            rounds=reading.rounds,
        )


class RefusingReader(Reader):
    """Answers "No information available" to every question and calls no model."""

    def forward(
        self,
        memory: Memory[Any],
        state: State,
        question: str,
        budget_tokens: int = DEFAULT_BUDGET_TOKENS,
        choices: str = "",
        recall: Recall | None = None,
    ) -> dspy.Prediction:
        return dspy.Prediction(answer=ABSTENTION, recall=Recall())


def predictors_of(memory: Memory[Any], reader: Reader | None = None) -> dict[str, dspy.Predict]:
    """Return every DSPy predictor of a memory and its reader, by attribute name."""
    parts = {**(vars(reader) if reader else {}), **vars(memory)}
    return {name: value for name, value in parts.items() if isinstance(value, dspy.Predict)}


def _attributed(state: State, question: str, citations: Sequence[str]) -> bool | None:
    """Return True if a cited turn is by the speaker that the question names, or names that speaker."""
    named = named_speaker(question, {turn.speaker for turn in state.turns})
    turns = [turn for turn in state.turns if turn.id in citations]
    return any(mentions(turn.line, named) for turn in turns) if named and turns else None
