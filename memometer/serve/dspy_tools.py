"""A named memory as DSPy tools, for dspy.ReAct and its kin, and as a retriever that returns passages.

memories = NamedMemories("sqlite:///memory.db")
agent = dspy.ReAct("question -> answer", tools=tools(memories, "ada", "diary"))
Retriever(memories, "ada", "diary", k=5)("Who sold a kayak?").passages
"""

from __future__ import annotations

import dspy

from memometer.serve.tenants import NamedMemories, Said


def tools(memories: NamedMemories, tenant: str, name: str, *, budget_tokens: int = 1000) -> list[dspy.Tool]:
    """remember(text, speaker) and recall(question), on a memory that is made where there is none."""
    memories.ensure(tenant, name)

    def remember(text: str, speaker: str = "user") -> str:
        """Remember something, in a sentence or as it was said. Returns its id."""
        return memories.observe(tenant, name, [Said(text, speaker)])[0]

    def recall(question: str) -> str:
        """What was said that fits a question, under the days on which it was said."""
        return memories.recall(tenant, name, question, budget_tokens=budget_tokens).text or "Nothing."

    return [dspy.Tool(remember), dspy.Tool(recall)]


class Retriever(dspy.Module):
    """The k turns that fit a query best, as `passages`, with their `ids`."""

    def __init__(self, memories: NamedMemories, tenant: str, name: str, *, k: int = 5) -> None:
        super().__init__()
        self._ask = memories.retrieve
        self._whose = (tenant, name)
        self.k = k

    def forward(self, query: str) -> dspy.Prediction:
        found = self._ask(*self._whose, query, k=self.k)
        return dspy.Prediction(passages=[hit.episode.text for hit in found], ids=[hit.episode.id for hit in found])
