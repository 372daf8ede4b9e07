"""A `dspy.LM` that bounds the wait between retries, reads every reply, and leaves out refused parameters."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import dspy
from dspy.utils.callback import with_callbacks
from dspy.utils.exceptions import (
    ContextWindowExceededError,
    LMInvalidRequestError,
    LMUnsupportedFeatureError,
    is_retryable_lm_error,
)

from memometer.models.chat_servers import ChatServers
from memometer.models.replies import EmptyReplyError, LMNoAnswerError, Reply, observe, read_reply, with_text
from memometer.models.usage import count_call

MAX_WAIT_SECONDS = 120.0
"""Upper bound on the retry delay. After a used-up daily quota the server asks for hours. The call then fails, so
that a run can
stop and be resumed."""

LIMITS = ("max_tokens", "max_completion_tokens")
OPTIONAL = (*LIMITS, "temperature", "top_p", "stop", "seed", "response_format", "logprobs")
"""Parameters that a call can do without."""

_ENTRY: ContextVar[dict[str, Any] | None] = ContextVar("entry", default=None)
"""The history entry of the latest call of this thread."""


class BoundedRetryLM(dspy.LM):
    """Retries failed calls like `dspy.LM`, but waits at most `MAX_WAIT_SECONDS` before each retry.

    `dspy.LM` waits as long as the server's `Retry-After` asks. DSPy has no setting for a bound, so this class makes the
    retries itself; callbacks see one call, however often it is retried.

    A call is repeated without a parameter that the server refuses by name, and all later calls leave it out.

    Args:
        model: a DSPy model string.
        retries: retries per call after a transient failure.
        token_flag: the option that raises the limit of a reply, for error messages.
        log: receives the message about a refused parameter.
        options: the other parameters of `dspy.LM`.
    """

    retries = 0
    token_flag = ""
    counts_calls = True
    """`memometer.models.usage.metered` needs no callback for this model."""

    def __init__(
        self,
        model: str,
        *,
        retries: int = 3,
        token_flag: str = "",
        log: Callable[[str], None] = lambda _: None,
        **options: Any,
    ) -> None:
        super().__init__(model, num_retries=0, **options)
        self.retries = retries
        self.token_flag = token_flag
        self.log = log
        self.refused: dict[str, str] = {}  # parameter -> the server's words; copies of this model share it

    @with_callbacks
    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Return the model's outputs, as `dspy.LM` does, without thoughts before the answer.

        Raises:
            dspy.LMError: the call failed, and its retries too.
            LMNoAnswerError: the reply was cut before an answer, or the model or provider gave none.
            EmptyReplyError: the model finished its reply without an answer.
        """
        count_call()
        _ENTRY.set(None)
        # The history entry is the one place where DSPy shows the reply of every client.
        with dspy.context(callbacks=[], disable_history=False):
            outputs = self._attempts(prompt, messages, kwargs)
        entry = _ENTRY.get()
        reply = read_reply(entry["response"]) if entry and isinstance(outputs, list) and len(outputs) == 1 else None
        if reply is None:
            return outputs
        observe(reply)
        if reply.failure:
            raise self._no_answer(reply)
        return [with_text(outputs[0], reply.text)] if reply.has_thoughts else outputs

    def update_history(self, entry: dict[str, Any]) -> None:
        """Keep the entry for the call that made it; no history grows."""
        _ENTRY.set(entry)

    @property
    def max_tokens(self) -> int:
        """Upper bound on the tokens of a reply; 0 for none."""
        return next((self.kwargs[name] for name in LIMITS if self.kwargs.get(name)), 0)

    def give_room(self, tokens: int) -> None:
        """Raise the limit of a reply, for a model that writes thoughts first."""
        name = next((name for name in LIMITS if self.kwargs.get(name)), LIMITS[0])
        self.kwargs[name] = max(tokens, self.max_tokens)

    def _attempts(self, prompt: Any, messages: Any, kwargs: dict[str, Any]) -> Any:
        attempt, changes = 0, 0
        while True:
            sent = {**kwargs, **dict.fromkeys(self.refused)}
            try:
                return super().__call__(prompt, messages=messages, **sent)
            except (LMInvalidRequestError, LMUnsupportedFeatureError) as error:
                changes += 1
                if changes > len(OPTIONAL) or not self._learns_from(error, {**self.kwargs, **sent}):
                    raise
            except Exception as error:  # raised again unless DSPy calls it retryable
                if attempt >= self.retries or not is_retryable_lm_error(error):
                    raise
                time.sleep(wait_seconds(error, attempt))
                attempt += 1

    def _learns_from(self, error: Exception, sent: dict[str, Any]) -> bool:
        """Remember the parameter that a server refuses by name. Returns False if it names none that was sent."""
        if isinstance(error, ContextWindowExceededError):
            return False
        message = getattr(error, "message", "") or str(error)
        limited = any(sent.get(name) is not None for name in LIMITS)  # the server may know it by the other name
        name = refused_parameter(
            message, [name for name in OPTIONAL if (limited if name in LIMITS else sent.get(name) is not None)]
        )
        if not name:
            return False
        if name in LIMITS and isinstance(self.engine, ChatServers) and self.engine.change_limit_name(message):
            return True
        others = LIMITS if name in LIMITS else (name,)
        if name not in self.refused:
            for other in others:
                self.refused[other] = message
            self.log(f"{self.model} refuses {name}; all calls leave it out (the server: {message[:200]}).")
        return True

    def _no_answer(self, reply: Reply) -> Exception:
        message = reply.failure
        if reply.finish_reason == "stop":
            return EmptyReplyError(message, model=self.model)
        if reply.finish_reason == "length" and self.token_flag:
            message += f"; raise {self.token_flag} (now {self.max_tokens:,})"
        return LMNoAnswerError(message, model=self.model)


def wait_seconds(error: Exception, attempt: int) -> float:
    """Return the delay before retry number `attempt` (from 0): the server's `Retry-After`, else 1, 2, 4, … seconds."""
    hint = getattr(error, "retry_after", None)
    if hint is None or not math.isfinite(hint) or hint < 0:
        hint = 2.0 ** min(attempt, 6)
    return min(hint, MAX_WAIT_SECONDS)


_REFUSAL = re.compile(
    r"unsupported|not support|n't support|unrecognized|unknown|unexpected|not permitted|not allowed|not available|"
    r"invalid|extra|only|deprecated|cannot|must",
    re.IGNORECASE,
)


def refused_parameter(message: str, sent: list[str]) -> str:
    """Return the first of the sent parameters that an error message refuses by name; empty if there is none."""
    if not _REFUSAL.search(message):
        return ""
    found = [(match.start(), name) for name in sent if (match := re.search(rf"(?<![\w-]){name}(?![\w-])", message))]
    return min(found)[1] if found else ""
