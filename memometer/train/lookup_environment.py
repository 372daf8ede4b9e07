"""Episodes of lookups in TRL's multi-step training (`environment_factory` of GRPOTrainer).

TRL renders a tool's result with the chat template and parses tool calls from the reply. The reader has a plain-text
form instead: a reply with `Status: more` asks for memory, and the new lines are the next message of the user. A copy of
the tokenizer translates between them, so that the trained token ids are those that an evaluation sends. TRL masks the
tokens of tool results from the loss.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from dspy.utils.exceptions import AdapterParseError

from memometer.errors import UserError
from memometer.models.plain_adapter import PlainAdapter
from memometer.reader.multi_round import Reading
from memometer.reader.signatures import NOT_LAST, MultiRound
from memometer.train.chat_format import ChatFormat
from memometer.train.episodes import Episodes, Message, longest_episode, messages_after

TOOL = "lookup"
_ROLES = """\
{%- set shown = namespace(messages=[]) -%}
{%- for m in messages -%}
{%- set role = 'user' if m['role'] == 'tool' else m['role'] -%}
{%- set content = m['content'] or (m['tool_calls'] | tojson if m.get('tool_calls') else '') -%}
{%- set shown.messages = shown.messages + [{'role': role, 'content': content}] -%}
{%- endfor -%}
{%- set messages = shown.messages -%}
{%- set tools = none %}"""
"""Start of the chat template: a tool's result is a message of the user, and no tools are described."""


class LookupEnvironment:
    """One rollout, as TRL drives it: `reset` opens an episode, `lookup` answers a request for more memory."""

    def __init__(self, episodes: Episodes) -> None:
        self._episodes = episodes
        self._reading: Reading | None = None

    def reset(self, *, question: str, **_: Any) -> None:
        """Open the episode of a question. Its first prompt is in the data set."""
        self._reading = self._episodes.open(question)

    def lookup(self, reply: str) -> str:
        """Show more memory.

        Args:
            reply: The complete reply that asks for it.

        Returns:
            The text of the next message: new lines, the question, and the offered statuses. It is empty if there are
            no new lines; the reward then grades the reply that asked.
        """
        reading = self._reading
        if reading is None:
            raise RuntimeError("reset first")
        before = self._episodes.messages(reading)
        if not self._episodes.take(reading, reply):
            return ""
        return messages_after(before, self._episodes.messages(reading))


def wants_more(prompt: str, reply: str) -> bool:
    """Return true if a reply asks for more memory in the reader's form and its prompt offered it.

    An evaluation repeats earlier replies in the form of the worked examples. A request in another form is not granted
    here, so that every trained sequence is one that an evaluation sends.

    Args:
        prompt: The text of all messages before the reply.
        reply: The reply.
    """
    if not prompt.rpartition("Offered:")[2].strip().startswith(NOT_LAST):
        return False
    try:
        parsed = PlainAdapter().parse(MultiRound, reply)
    except AdapterParseError:
        return False
    written = PlainAdapter().format_assistant_message_content(MultiRound, parsed)
    return bool(parsed["status"] == "more" and written == reply)


def tokenizer_for_lookups(chat: ChatFormat) -> Any:
    """Return a copy of a tokenizer whose chat template and reply parser have the reader's plain-text form."""
    tokenizer = copy.deepcopy(chat.tokenizer)
    original = type(tokenizer)

    def parse_response(self: Any, response: Sequence[int], *, prefix: Any = None, **_: Any) -> dict[str, Any]:
        text = self.decode(response, skip_special_tokens=True)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        # A reply without its end token was cut off; the text after it would not be a new message.
        ended = bool(len(response)) and response[-1] == self.eos_token_id
        if ended and wants_more(self.decode(prefix or []), text):
            call = {"name": TOOL, "arguments": {"reply": text}}
            message["tool_calls"] = [{"type": "function", "function": call}]
        return message

    # Of the same name, which transformers writes into checkpoints.
    tokenizer.__class__ = type(original.__name__, (original,), {"parse_response": parse_response})
    tokenizer.response_template = {"fields": {}}  # TRL parses replies only if there is one
    tokenizer.chat_template = _ROLES + str(chat.tokenizer.chat_template)
    return tokenizer


def check_template(chat: ChatFormat, name: str) -> None:
    """Refuse a chat template with which an episode would have other tokens than the calls of an evaluation.

    Raises:
        UserError: There is no template, or it renders an earlier reply differently from a generated one.
    """
    reason = ""
    if not chat.tokenizer.chat_template:
        reason = "it has no chat template"
    else:
        first: list[Message] = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q\n\nLines:"}]
        reply, more = "none\nStatus: more\nAnswer: none", {"role": "user", "content": "Memory: 7 A: x\n\nLines:"}
        whole = chat.prompt_ids([*first, {"role": "assistant", "content": reply}, more])
        begin = [*chat.prompt_ids(first), *chat.reply_ids(reply)]
        if whole[: len(begin)] != begin:
            reason = "its chat template changes earlier replies"
    if reason:
        raise UserError(f"--episodes does not fit {name}: {reason}; use another --model, or leave out --episodes.")


def completion_limit(episodes: Episodes, questions: Sequence[str], chat: ChatFormat, reply_tokens: int) -> int:
    """Return a limit of the tokens after the first prompt of an episode: all replies, pages and repeated questions.

    TRL ends an episode that exceeds it. The limit is measured on some questions, with a margin for pages whose text has
    more of the model's tokens.
    """
    pages = 0
    for question in questions[:MEASURED]:
        first = chat.prompt_ids(episodes.messages(episodes.open(question)))
        pages = max(pages, len(chat.prompt_ids(longest_episode(episodes, question))) - len(first))
    return episodes.rounds * reply_tokens + int(PAGE_MARGIN * pages)


MEASURED, PAGE_MARGIN = 32, 1.5


def settings(limit: int, reply_tokens: int, rounds: int, *, vllm: bool) -> Mapping[str, Any]:
    """Return the arguments of GRPOConfig for episodes."""
    return {
        "max_completion_length": limit,
        "max_tool_calling_iterations": rounds - 1,
        "generation_kwargs": {"max_tokens" if vllm else "max_new_tokens": reply_tokens},
    }
