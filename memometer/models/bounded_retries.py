"""A `dspy.LM` with an upper bound on the wait between retries."""

from __future__ import annotations

import math
import time
from typing import Any

import dspy
from dspy.utils.callback import with_callbacks
from dspy.utils.exceptions import is_retryable_lm_error

MAX_WAIT_SECONDS = 120.0
"""Upper bound on the retry delay. After a used-up daily quota the server asks for hours. The call then fails, so
that a run can
stop and be resumed."""


class BoundedRetryLM(dspy.LM):
    """Retries failed calls like `dspy.LM`, but waits at most `MAX_WAIT_SECONDS` before each retry.

    `dspy.LM` waits as long as the server's `Retry-After` asks. DSPy has no setting for a bound, so this class makes the
    retries itself; callbacks see one call, however often it is retried.

    Args:
        model: a DSPy model string.
        retries: retries per call after a transient failure.
        options: the other parameters of `dspy.LM`.
    """

    retries = 0

    def __init__(self, model: str, *, retries: int = 3, **options: Any) -> None:
        super().__init__(model, num_retries=0, **options)
        self.retries = retries

    @with_callbacks
    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Return the model's outputs, as `dspy.LM` does.

        Raises:
            dspy.LMError: the call failed, and its retries too.
        """
        with dspy.context(callbacks=[]):
            for attempt in range(self.retries):
                try:
                    return super().__call__(prompt, messages=messages, **kwargs)
                except Exception as error:  # raised again unless DSPy calls it retryable
                    if not is_retryable_lm_error(error):
                        raise
                    time.sleep(wait_seconds(error, attempt))
            return super().__call__(prompt, messages=messages, **kwargs)


def wait_seconds(error: Exception, attempt: int) -> float:
    """Return the delay before retry number `attempt` (from 0): the server's `Retry-After`, else 1, 2, 4, … seconds."""
    hint = getattr(error, "retry_after", None)
    if hint is None or not math.isfinite(hint) or hint < 0:
        hint = 2.0 ** min(attempt, 6)
    return min(hint, MAX_WAIT_SECONDS)
