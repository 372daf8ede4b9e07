"""The prompts of the reader and their worked examples: the bare answer, a cited answer, and several rounds.

In a cited answer the `lines` come first, so that the model looks for evidence before it answers. Citations can be
checked without a judge.
"""

from __future__ import annotations

from typing import Literal

import dspy

ABSTENTION = "No information available"


class Answer(dspy.Signature):
    """Answer the question from the memory of a conversation, in as few words as possible, using its exact words. \
Write dates like 7 May 2023. If the memory does not hold the answer, reply: No information available"""

    memory: str = dspy.InputField()
    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


# The examples show what small models get wrong: a phrase instead of a sentence, and a relative date resolved
# against the date line.
_ANSWERS = [
    dspy.Example(
        memory="# Sat 6 March 2021\nPriya: We finally adopted a puppy yesterday, a beagle called Biscuit!",
        question="When did Priya adopt a puppy?",
        answer="5 March 2021",
    ),
    dspy.Example(
        memory="# Mon 14 June 2021\nTom: I bake sourdough most weekends and my brother grows tomatoes.",
        question="What does Tom bake?",
        answer="Sourdough",
    ),
]


class CitedAnswer(dspy.Signature):
    """Answer the question from the numbered lines of a conversation's memory: the lines that hold the answer, the \
status, and the answer in as few words as possible, using their exact words. Write dates like 7 May 2023. If the \
memory does not hold the answer, the status is absent and the answer: No information available"""

    memory: str = dspy.InputField()
    question: str = dspy.InputField()
    lines: list[int] = dspy.OutputField()
    status: Literal["answered", "absent"] = dspy.OutputField()
    answer: str = dspy.OutputField()


class MultiRound(dspy.Signature):
    """Answer the question from the numbered lines of a conversation's memory: the lines that hold the answer, the \
status, and the answer in as few words as possible, using their exact words. Write dates like 7 May 2023. If the \
memory does not hold the answer, the status is absent and the answer: No information available. Where the \
status more is offered, it shows more of the memory: look up the words of what is missing"""

    memory: str = dspy.InputField()
    question: str = dspy.InputField()
    # This input follows the memory, because it changes with the round and the prompt before it must not.
    offered: str = dspy.InputField()
    lines: list[int] = dspy.OutputField()
    status: Literal["answered", "more", "absent"] = dspy.OutputField()
    lookup: str = dspy.OutputField()
    answer: str = dspy.OutputField()


LAST, NOT_LAST = "answered, absent", "answered, more, absent"
"""`MultiRound.offered` in the last round, and in one that another may follow."""

_PUPPY = dspy.Example(
    memory="# Sat 6 March 2021\n1 Priya: We finally adopted a puppy yesterday, a beagle called Biscuit!\n"
    "2 Tom: Congratulations!",
    question="When did Priya adopt a puppy?",
    lines=[1],
    status="answered",
    answer="5 March 2021",
)
_BREAD = dspy.Example(
    memory="# Mon 14 June 2021\n1 Priya: How are the tomatoes?\n"
    "2 Tom: My brother's are ripe. I bake sourdough most weekends.\n3 Priya: Save me a slice!",
    question="What does Tom bake?",
    lines=[2],
    status="answered",
    answer="Sourdough",
)
_MISSING = dspy.Example(
    memory="# Fri 9 July 2021\n1 Tom: The jury liked my loaf, you know!",
    question="Which prize did Tom win?",
    offered=NOT_LAST,
    lines=[],
    status="more",
    lookup="prize award competition",
    answer=ABSTENTION,
)

EXAMPLES: dict[type[dspy.Signature], list[dspy.Example]] = {
    Answer: _ANSWERS,
    CitedAnswer: [_PUPPY, _BREAD],
    MultiRound: [
        dspy.Example(_PUPPY, offered=LAST, lookup=""),
        _MISSING,
        dspy.Example(_BREAD, offered=NOT_LAST, lookup=""),
    ],
}
"""The worked examples of each prompt. They never cite the last line, or small models always cite the last line."""
