"""What a tenant may do, and how much of it."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from typing import Any

from memometer.errors import UserError
from memometer.systems import SYSTEMS, load

DAY_SECONDS = 86_400


class NotAllowed(UserError, PermissionError):
    """The operator does not allow it, or a quota is exhausted."""


@dataclass(frozen=True)
class TenantLimits:
    """What a tenant may do.

    Args:
        turns: turns of all its memories, archived ones included; 0 for no limit.
        systems: memory systems that it may create; None for all.
        answers: whether `answer`, and systems that write with a model, may spend the operator's money.
        model_tokens: tokens of recalled text that `answer` may show to the model per day (UTC); 0 for no limit. With
            the price of a token it bounds the money.
    """

    turns: int = 0
    systems: frozenset[str] | None = None
    answers: bool = True
    model_tokens: int = 0

    def check_turns(self, held: int, added: int) -> None:
        """Raise NotAllowed if a tenant that holds some turns may not add others."""
        if self.turns and held + added > self.turns:
            raise NotAllowed(f"the quota of {self.turns:,} turns is exhausted; delete turns permanently.")

    def check_system(self, system: str) -> None:
        """Raise NotAllowed if a tenant may not create a memory of a system."""
        if self.systems is not None and system not in self.systems:
            allowed = ", ".join(sorted(self.systems))
            raise NotAllowed(f"memories of system {system!r} are not allowed here; allowed: {allowed}.")
        kind: Any = load(system) if system in SYSTEMS else None
        if kind and kind.needs_model and not self.answers:
            raise NotAllowed(f"system {system!r} writes with a language model, which this service does not allow.")

    def check_answers(self) -> None:
        """Raise NotAllowed if a tenant may not use the language model."""
        if not self.answers:
            raise NotAllowed("this service does not answer with a language model; use recall.")


class ModelTokens:
    """Counts the tokens that each tenant shows to the model per day. The counts are lost when the service ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._day = 0
        self._spent: Counter[str] = Counter()

    def spend(self, tenant: str, tokens: int, limit: int, *, at: float) -> None:
        """Count tokens of a tenant, or raise NotAllowed if it would exceed a limit; 0 is no limit."""
        with self._lock:
            if (day := int(at // DAY_SECONDS)) != self._day:
                self._day = day
                self._spent.clear()
            if limit and self._spent[tenant] + tokens > limit:
                raise NotAllowed(f"the quota of {limit:,} model tokens per day is exhausted; use recall, or wait.")
            self._spent[tenant] += tokens
