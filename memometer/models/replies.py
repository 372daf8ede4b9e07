"""Replies of language models: the text without thoughts, the finish reason, and the reason if there is no answer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from dspy.lm15 import Response, response_from_openai_chat
from dspy.utils.exceptions import AdapterParseError, DSPyError, LMError


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply of a model.

    Attributes:
        text: the answer, without thoughts; empty if there is none.
        finish_reason: `stop`, `length`, `tool_call` or `content_filter`.
        has_thoughts: True if the model reasoned before its answer.
        completion_tokens: as the server reports them, with the reasoning; None if it reports none.
        reasoning_tokens: the part of `completion_tokens` that is reasoning; 0 if it is not reported.
        failure: the reason why there is no answer; empty if there is one.
    """

    text: str
    finish_reason: str
    has_thoughts: bool = False
    completion_tokens: int | None = None
    reasoning_tokens: int = 0
    failure: str = ""


class LMNoAnswerError(LMError):
    """The server replied, but without an answer: the reply was cut, filtered or refused, or is a tool call."""

    default_code = "no_answer"


class EmptyReplyError(AdapterParseError):
    """The model finished its reply and gave no answer, which a prompt may have caused."""

    def __init__(self, message: str, *, model: str = "") -> None:
        DSPyError.__init__(self, message, model=model)


def read_reply(response: Any) -> Reply | None:
    """Read a reply that a `dspy.LM` received.

    Args:
        response: a `dspy.lm15.Response`, or the chat completion of another client.

    Returns:
        The reply; None for a response of another kind, such as several at once.
    """
    if not isinstance(response, Response):
        try:
            response = response_from_openai_chat(response.model_dump(), model="model", choice=0)
        except Exception:  # noqa: BLE001 - the reply was received and is billed; only its reading fails
            return None
    parts = {kind: [part for part in response.message.parts if part.type == kind] for kind in ("thinking", "refusal")}
    written = "".join(part.text for part in response.message.parts if part.type == "text")
    text = without_thoughts(written)
    usage = response.usage
    thoughts = bool(parts["thinking"] or usage.reasoning_tokens or text != written.strip())
    refused = " ".join(part.text for part in parts["refusal"])
    reply = Reply(text, response.finish_reason, thoughts, usage.output_tokens, usage.reasoning_tokens or 0)
    if text:
        return reply
    failure = _failure(reply, refused, [call.name for call in response.tool_calls])
    return Reply("", reply.finish_reason, thoughts, usage.output_tokens, reply.reasoning_tokens, failure)


def _failure(reply: Reply, refused: str, tools: list[str]) -> str:
    if refused:
        return f"the model refused to answer: {refused[:200]}"
    if tools:
        return f"the model called the tool {tools[0]!r} instead of answering"
    match reply.finish_reason:
        case "length":
            after = f" after {reply.completion_tokens:,} tokens" if reply.completion_tokens else ""
            return f"the reply was cut{after} before an answer" + (", in its thoughts" if reply.has_thoughts else "")
        case "content_filter":
            return "the provider's content filter withheld the reply"
        case "tool_call":
            return "the model called a tool instead of answering"
    return "the reply has only thoughts and contains no answer" if reply.has_thoughts else "the reply is empty"


# ---------------------------------------------------------------- thoughts in the text

_TAGS = "think|thinking|thought|thoughts|reasoning|reflection|scratchpad|seed:think"
_THOUGHTS = re.compile(
    rf"""
      <(?P<tag>{_TAGS})> .*? (\Z | </(?P=tag)>)
    | \[THINK\] .*? (\Z | \[/THINK\])
    | ◁think▷ .*? (\Z | ◁/think▷)
    | (<\|start\|>\s*assistant\s*)? <\|channel\|>\s*(analysis|commentary)\b .*? (\Z | <\|end\|> | (?=<\|start\|>))
    | analysis .*? assistantfinal
    | <\|start_thinking\|> .*? (\Z | <\|end_thinking\|>)
    """,
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)
"""Thoughts that a reply begins with; those that do not end are cut. The fifth form is the fourth without its marks."""
_UNOPENED = re.compile(
    rf"""
    (?P<thoughts>.*?)
    (?: (?<![ \t"'`(]) (?P<end></(?:{_TAGS})>|\[/THINK\]) | (?P<last></(?:{_TAGS})>|\[/THINK\])[ \t]*(?:\n|\Z) )
    """,
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)
"""Thoughts whose beginning the chat template wrote into the prompt. Words about a tag have a space or quote before it
and go on in the same line."""
_FINAL = re.compile(
    r"(?:<\|start\|>\s*assistant\s*)?<\|channel\|>\s*final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>(.*?)"
    r"(?:<\|(?:return|end)\|>)?\Z"
    r"|<\|start_response\|>(.*?)(?:<\|end_response\|>)?\Z",
    re.DOTALL | re.IGNORECASE,
)
_AROUND = re.compile(r"<(answer|final_answer|response|output)>(.*)</\1>\Z", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"(```+|~~~+)[\w+-]*[ \t]*\n((?:(?!\1).)*?)\n?[ \t]*\1\Z", re.DOTALL)
_LABEL = re.compile(r"(\*\*|__)?(?:final )?answer\1?\s*:(?(1)\1?)[ \t]*", re.IGNORECASE)


def without_thoughts(text: str) -> str:
    """Return a reply without the thoughts at its beginning; nothing is removed inside the answer.

    Known are `<think>` and its relatives, `[THINK]`, and the channels of the harmony format.

    Args:
        text: the text of a reply.

    Returns:
        The rest; empty if the reply ends within its thoughts.
    """
    text = text.strip()
    while found := _THOUGHTS.match(text):
        text = text[found.end() :].strip()
    found = _UNOPENED.match(text)
    if found and not _THOUGHTS.search(found["thoughts"] + (found["end"] or found["last"])):
        text = text[found.end() :].strip()
    if found := _FINAL.match(text):
        text = (found[1] or found[2] or "").strip()
    return text


def without_fence(text: str) -> str:
    """Return a text without a code fence around the whole of it."""
    found = _FENCE.match(text.strip())
    return found[2].strip() if found else text.strip()


def without_wrappers(text: str) -> str:
    """Return an answer without a code fence, a tag or a label "Answer:" around the whole of it."""
    before = None
    while text != before:
        before, text = text, without_fence(text)
        if found := _AROUND.match(text):
            text = found[2].strip()
        if found := _LABEL.match(text):
            text = text[found.end() :].strip()
    return text


# ---------------------------------------------------------------- observing

_OBSERVED: ContextVar[list[Reply] | None] = ContextVar("observed", default=None)


@contextmanager
def observed_replies() -> Iterator[list[Reply]]:
    """Collect the replies that this thread receives inside the block. A block around it gets them too."""
    replies: list[Reply] = []
    token = _OBSERVED.set(replies)
    try:
        yield replies
    finally:
        _OBSERVED.reset(token)
        for reply in replies:
            observe(reply)


def observe(reply: Reply) -> None:
    """Add a reply to the innermost block of `observed_replies`."""
    if (replies := _OBSERVED.get()) is not None:
        replies.append(reply)


def with_text(output: Any, text: str) -> Any:
    """Return an output of `dspy.LM` with another text."""
    return {**output, "text": text} if isinstance(output, Mapping) else text
