"""A model of this process as an engine for `dspy.LM(..., engine=…)`: greedy, one reply at a time."""

from __future__ import annotations

import threading
from contextlib import nullcontext

from dspy import lm15

from memometer.train.local_model import LocalModel


class LocalEngine:
    """The model with its adapter, or as its own base. Engines that share a model take turns."""

    _turn = threading.Lock()  # switching an adapter off is a state of the model that they share

    def __init__(self, local: LocalModel, *, with_adapter: bool) -> None:
        self.local, self.with_adapter = local, with_adapter

    def __deepcopy__(self, memo: dict[int, object]) -> LocalEngine:
        return self

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Raises lm15.ContextLengthError for a prompt that the window cannot hold."""
        messages = [{"role": "system", "content": str(request.system)}] if request.system else []
        messages += [{"role": str(message.role), "content": str(message.text)} for message in request.messages]
        most = request.config.max_tokens or 128
        prompt = self.local.prompt_ids(messages)
        window = self.local.context_tokens
        if window and len(prompt) + most > window:
            raise lm15.ContextLengthError(f"{len(prompt):,} tokens and a reply of {most:,} do not fit {window:,}")
        with self._turn, nullcontext() if self.with_adapter else self.local.without_adapter():
            (reply,) = self.local.generate([prompt], max_tokens=most)
        written = len(self.local.tokenizer(reply, add_special_tokens=False)["input_ids"])
        return lm15.Response(
            id=None,
            model=request.model,
            finish_reason="length" if written >= most else "stop",
            message=lm15.Message.assistant(reply),
            usage=lm15.Usage(input_tokens=len(prompt), output_tokens=written),
        )
