"""A built-in memory system as a plug-in: it returns a ranking, and the harness packs it like everyone else's."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from memometer.budget import UNBOUNDED
from memometer.memory import Memory, State, Turn


class ThroughSearch:
    """A memory behind the plug-in protocol.

    Args:
        memory: A memory that ranks turns.
        name: Its name.
    """

    def __init__(self, memory: Memory[Any], name: str) -> None:
        self.memory = memory
        self.name = name
        self.states: dict[str, State] = {}

    def open(self, scope: str) -> None:
        """Start an empty memory."""
        self.states[scope] = self.memory.new()

    def add(self, scope: str, turns: Sequence[dict[str, Any]]) -> None:
        """Remember turns. Turns of one time are a session."""
        state = self.states[scope]
        for message in turns:
            said_at = datetime.fromisoformat(message["said_at"])
            session = state.turns[-1].session if state.turns else 0
            if not state.turns or state.turns[-1].said_at != said_at:
                session += 1
            turn = Turn(message["id"], message["speaker"], message["text"], session, said_at)
            self.memory.observe(state, [turn])

    def ready(self, scope: str) -> None:
        """Return at once: turns are found as soon as they are added."""

    def search(self, scope: str, question: str, limit: int, at: str) -> list[dict[str, Any]]:
        """Return the turns by rank."""
        state = self.states[scope]
        ranked = self.memory.recall(state, question, UNBOUNDED).ranked
        lines = {turn.id: turn.line for turn in state.turns}
        return [{"text": lines[id], "turn_ids": [id], "score": None} for id in ranked[:limit]]

    def close(self, scope: str) -> None:
        """Delete the memory."""
        self.states.pop(scope, None)

    def describe(self) -> dict[str, Any]:
        """Return the name, and the encoder if there is one."""
        encoder = getattr(self.memory, "encoder", None)
        return {"name": self.name, "versions": {}, "parameters": {"encoder": encoder.name} if encoder else {}}
