"""Synthetic conversations of several styles with labelled evidence, made of this project's own words.

The rates of everything are drawn for each conversation, so that weights fitted on many of them depend on none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memometer.synthetic.conversation import SyntheticConversation

STYLES = ("letters", "chat", "assistant")
"""Two people in long turns, two people in bursts of short messages, and a user with an assistant."""


def generate(seed: str, style: str) -> SyntheticConversation:
    """Make a conversation.

    Args:
        seed: any text; the same seed gives the same conversation.
        style: one of STYLES.
    """
    from memometer.synthetic import assistant, chat

    return assistant.conversation(seed) if style == "assistant" else chat.conversation(seed, style)
