"""A DSPy engine that answers from the replies of a batch, and collects the requests that have no reply yet.

The whole program runs again after each batch, so a reader in several rounds needs one batch for each round.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from dspy import lm15


class WaitingError(Exception):
    """The request has no reply yet."""


class BatchLineError(Exception):
    """The batch answered the request with an error."""


@dataclass(frozen=True)
class Reply:
    """The answer to one request: the body of a chat completion, or the server's error."""

    body: dict[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass
class BatchedTask:
    """One task of the evaluation.

    Attributes:
        label: Identifies the task; a value that JSON can write.
        waits: True if one of its requests has no reply yet.
        replied: True if one of its requests was answered from a batch.
    """

    label: object = None
    waits: bool = False
    replied: bool = False

    def mark(self, record: dict[str, Any]) -> None:
        """Note in a record or a verdict that its calls had the price of a batch, and that no time was measured."""
        for part in (record, record.get("answering")):
            if self.replied and part is not None:
                part |= {"batch": True, "seconds": None}


_task: ContextVar[BatchedTask | None] = ContextVar("task", default=None)
"""The task of the calling context. DSPy may call an engine in another thread, with a copy of the context."""


@contextmanager
def labelled(label: object) -> Iterator[BatchedTask]:
    """Name the work inside the block, so that equal requests of two tasks are two requests.

    Args:
        label: Identifies the task; a value that JSON can write.

    Yields:
        The task.
    """
    task = BatchedTask(label)
    token = _task.set(task)
    try:
        yield task
    finally:
        _task.reset(token)


class BatchEngine:
    """Replies from a batch.

    Args:
        model: Name of the model at the provider.
        token_limit: Name of the parameter that limits the tokens of a reply.

    Attributes:
        replies: Request id -> reply.
        wanted: Request id -> body, of the requests without a reply.
    """

    def __init__(self, model: str, *, token_limit: str) -> None:
        self.model, self.token_limit = model, token_limit
        self.replies: dict[str, Reply] = {}
        self.wanted: dict[str, dict[str, Any]] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> BatchEngine:
        return self

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Return the reply to a request.

        Raises:
            WaitingError: There is none yet; the request is now in `wanted`.
            BatchLineError: The server answered with an error.
        """
        body = self.body_of(request)
        task = _task.get() or BatchedTask()
        content = json.dumps([task.label, body], sort_keys=True)
        id = hashlib.sha256(content.encode()).hexdigest()[:32]
        reply = self.replies.get(id)
        if reply is None:
            self.wanted[id] = body
            task.waits = True
            raise WaitingError("The request waits for a batch.")
        task.replied = True
        if reply.error:
            raise BatchLineError(reply.error)
        return response_of(reply.body, request.model)

    def body_of(self, request: lm15.Request) -> dict[str, Any]:
        """Return the chat completion request, with the messages that a call without a batch sends."""
        messages = [{"role": "system", "content": request.system}] if request.system else []
        messages += [{"role": message.role, "content": message.text} for message in request.messages]
        config = request.config
        settings = {
            "temperature": config.temperature,
            self.token_limit: config.max_tokens,
            "stop": list(config.stop) or None,
        }
        return {
            "model": self.model,
            "messages": messages,
            **{name: value for name, value in settings.items() if value is not None},
        }


def response_of(body: dict[str, Any], model: str) -> lm15.Response:
    """Convert the body of a chat completion.

    Raises:
        BatchLineError: It is not one.
    """
    try:
        choice = body["choices"][0]
        usage = body.get("usage") or {}
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        reasons = {"length": "length", "content_filter": "content_filter"}
        return lm15.Response(
            id=None,
            model=model,
            message=lm15.Message.assistant(choice["message"].get("content") or ""),
            finish_reason=reasons.get(choice.get("finish_reason"), "stop"),
            usage=lm15.Usage(
                input_tokens=usage.get("prompt_tokens"),
                output_tokens=usage.get("completion_tokens"),
                cache_read_tokens=cached,
            ),
        )
    except (LookupError, TypeError, AttributeError) as error:
        raise BatchLineError(f"the reply is not a chat completion: {json.dumps(body)[:200]}") from error
