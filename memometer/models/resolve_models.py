"""Which model answers and which one judges: any DSPy model string, a local server, or an embedded model.

openai/gpt-4o-mini            a provider that DSPy knows, with its key in the environment
openai/NAME with an api base  any OpenAI-compatible server
embedded:tiny|small|base      in this process, no key; embedded:/path/model.gguf for any other GGUF
"""

from __future__ import annotations

import logging
import os
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.clients import execution
from dspy.utils.exceptions import LMConfigurationError

from memometer.models import embedded
from memometer.run.prices import Price, price_of, published
from memometer.token_counters import TokenCounter, counter_for

PROVIDER_DEFAULTS = {
    "TOGETHER_API_KEY": "together_ai/Qwen/Qwen2.5-7B-Instruct-Turbo",
    "OPENAI_API_KEY": "openai/gpt-4o-mini",
}
"""The first key found in the environment picks the provider, for reader and judge alike."""

NO_KEY_DEFAULT = "embedded:tiny"


LONGEST_WAIT_SECONDS = 120.0
"""Before a failed call is made again, whatever `Retry-After` says: that of a spent daily quota is hours, in which a run
would say nothing. It is better stopped, and resumed."""


def _bounded(error: Exception, attempt: int, *, asked: Callable[..., float] = execution._delay) -> float:
    return min(asked(error, attempt), LONGEST_WAIT_SECONDS)


execution._delay = _bounded  # DSPy has no setting for it


@dataclass(frozen=True)
class Model:
    """A language model ready for its role.

    `context_tokens` is the window, None where unknown; `max_tokens` bounds a reply; `price` is None where
    unknown; `revision` tells weights of the same name apart, where we see them.
    """

    name: str
    lm: dspy.LM
    count: TokenCounter
    context_tokens: int | None
    max_tokens: int
    price: Price | None
    revision: str = ""


def default_model() -> str:
    """The provider whose key is set, else the embedded model that any package index can serve."""
    return next((model for key, model in PROVIDER_DEFAULTS.items() if os.environ.get(key)), NO_KEY_DEFAULT)


def load(
    name: str,
    *,
    api_base: str | None = None,
    tokenizer: str | None = None,
    context_tokens: int | None = None,
    max_tokens: int = 64,
    timeout_seconds: float = 120.0,
    retries: int = 4,
    price: tuple[float, float] | None = None,
    say: Callable[[str], None] = print,
) -> Model:
    """The model `name`, at temperature 0 and uncached, so that every recorded answer was really given.

    Retries are DSPy's: exponential back-off that waits as long as a server's `Retry-After` asks, up to
    LONGEST_WAIT_SECONDS. `price` is in dollars
    per million tokens of prompt and reply, where the table does not know the model, or another.
    Raises ValueError or embedded.WeightsUnavailable with one sentence for the user.
    """
    _check_address(api_base)
    logging.getLogger("dspy.clients.lm").setLevel(logging.ERROR)  # replies are cut at max_tokens on purpose
    if name.startswith("embedded:"):
        if api_base:
            raise ValueError(f"{name} runs in this process and takes no API base; leave one of the two out.")
        path = embedded.weights(name.removeprefix("embedded:"), say=say)
        if tokenizer:
            raise ValueError(f"{name} counts with its own vocabulary; leave --tokenizer out.")
        engine = embedded.Embedded(path, context_tokens=context_tokens or embedded.CONTEXT_TOKENS)
        engine("")  # a file that cannot be loaded is refused now, not at the first question
        lm = dspy.LM(
            name.replace(":", "/", 1), engine=engine, temperature=0.0, max_tokens=max_tokens, cache=False, num_retries=0
        )
        tier = embedded.TIERS.get(name.removeprefix("embedded:"))
        revision = tier.sha256 if tier else embedded.sha256(path)
        return Model(name, lm, engine, engine.context_tokens, max_tokens, price_of(name, named=price), revision[:12])
    _check_provider(name)
    client: dict[str, Any] = {"timeout": timeout_seconds}
    if api_base:
        client["api_base"] = api_base
        if name.startswith("openai/") and not os.environ.get("OPENAI_API_KEY"):
            client["api_key"] = "none"  # local servers ask for none, and the client refuses to start without
    try:
        lm = dspy.LM(name, temperature=0.0, max_tokens=max_tokens, cache=False, num_retries=retries, **client)
    except LMConfigurationError:  # a reasoning model: it sets its own temperature and thinks within its reply
        max_tokens = 16_000
        lm = dspy.LM(name, temperature=None, max_tokens=max_tokens, cache=False, num_retries=retries, **client)
    return Model(
        name=name,
        lm=lm,
        count=counter_for(name, tokenizer=tokenizer),
        context_tokens=context_tokens or published(name).get("max_input_tokens"),
        max_tokens=max_tokens,
        price=price_of(name, api_base=api_base, named=price),
    )


def _check_provider(name: str) -> None:
    """A misspelt name is told before a run begins, not by each of its questions."""
    from litellm import BadRequestError, get_llm_provider

    try:
        get_llm_provider(name)
    except BadRequestError as error:
        raise ValueError(
            f"the model {name!r} names no known provider; write embedded:tiny|small|base, or PROVIDER/NAME such as "
            "openai/gpt-4o-mini."
        ) from error


def _check_address(url: str | None) -> None:
    """Addresses stand in manifests and error messages, so none may hold a secret."""
    if url:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("an API base must be an address such as http://127.0.0.1:8000/v1.")
        if parts.username or parts.password or parts.query:
            raise ValueError("an API base may hold no user, password or query; put the key into OPENAI_API_KEY.")
