"""Language models by name: any DSPy model string, a local server, or an embedded model.

openai/gpt-4o-mini            a provider that DSPy knows, with its key in the environment
openai/NAME with an api base  any OpenAI-compatible server
embedded:tiny|small|base      runs in this process without a key; embedded:/path/model.gguf loads another GGUF file
"""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.utils.exceptions import LMConfigurationError

from memometer.models import embedded
from memometer.models.bounded_retries import BoundedRetryLM
from memometer.run.prices import Price, price_of, published
from memometer.token_counters import TokenCounter, counter_for

PROVIDER_DEFAULTS = {
    "TOGETHER_API_KEY": "together_ai/Qwen/Qwen2.5-7B-Instruct-Turbo",
    "OPENAI_API_KEY": "openai/gpt-4o-mini",
}
"""The first key found in the environment selects the default model of reader and judge."""

NO_KEY_DEFAULT = "embedded:tiny"


@dataclass(frozen=True)
class Model:
    """A language model, ready for its role.

    Attributes:
        name: the model string.
        lm: DSPy's client for it.
        count: counts tokens as the model does, or an upper bound.
        context_tokens: the context window; None if unknown.
        max_tokens: upper bound on the tokens of a reply.
        price: None if unknown.
        revision: distinguishes weights of the same name, if they are on this machine.
    """

    name: str
    lm: dspy.LM
    count: TokenCounter
    context_tokens: int | None
    max_tokens: int
    price: Price | None
    revision: str = ""


def default_model() -> str:
    """Return the model of the provider whose key is set, else the embedded model."""
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
    log: Callable[[str], None] = print,
) -> Model:
    """Load a model for calls at temperature 0, without DSPy's cache, so that the model really gives every answer.

    Args:
        name: as in this module's documentation.
        api_base: URL of an OpenAI-compatible server.
        tokenizer: as in `counter_for`; None derives it from `name`.
        context_tokens: the context window; None looks it up.
        max_tokens: upper bound on the tokens of a reply.
        timeout_seconds: read timeout per call.
        retries: retries per failed call, with bounded waits.
        price: dollars per million tokens of prompt and reply; None looks it up.
        log: receives progress messages.

    Raises:
        ValueError: the name, the URL or the tokenizer is not valid.
        WeightsUnavailable: the weights of an embedded model cannot be fetched.
    """
    _check_address(api_base)
    if name.startswith("embedded:"):
        if api_base:
            raise ValueError(f"{name} runs in this process and takes no API base; omit the model or the API base.")
        path = embedded.weights(name.removeprefix("embedded:"), log=log)
        if tokenizer:
            raise ValueError(f"{name} uses its own tokenizer; omit --tokenizer.")
        engine = embedded.Embedded(path, context_tokens=context_tokens or embedded.CONTEXT_TOKENS)
        engine("")  # reject a broken file now, not at the first question
        lm = BoundedRetryLM(
            name.replace(":", "/", 1), engine=engine, temperature=0.0, max_tokens=max_tokens, cache=False, retries=0
        )
        tier = embedded.TIERS.get(name.removeprefix("embedded:"))
        revision = tier.sha256 if tier else embedded.sha256(path)
        return Model(name, lm, engine, engine.context_tokens, max_tokens, price_of(name, named=price), revision[:12])
    _check_provider(name)
    client: dict[str, Any] = {"timeout": timeout_seconds}
    if api_base:
        client["api_base"] = api_base
        if name.startswith("openai/") and not os.environ.get("OPENAI_API_KEY"):
            client["api_key"] = "none"  # local servers need no key, but the client requires one
    try:
        lm = BoundedRetryLM(name, temperature=0.0, max_tokens=max_tokens, cache=False, retries=retries, **client)
    except LMConfigurationError:  # a reasoning model sets its own temperature; its reasoning is part of the reply
        max_tokens = 16_000
        lm = BoundedRetryLM(name, temperature=None, max_tokens=max_tokens, cache=False, retries=retries, **client)
    return Model(
        name=name,
        lm=lm,
        count=counter_for(name, tokenizer=tokenizer),
        context_tokens=context_tokens or published(name).get("max_input_tokens"),
        max_tokens=max_tokens,
        price=price_of(name, api_base=api_base, named=price),
    )


def _check_provider(name: str) -> None:
    """Raise ValueError for an unknown provider before a run begins."""
    import litellm
    from litellm import BadRequestError, get_llm_provider

    litellm.suppress_debug_info = True  # it would print an advertisement to standard output
    try:
        get_llm_provider(name)
    except BadRequestError as error:
        raise ValueError(
            f"unknown provider in model {name!r}; use embedded:tiny|small|base, or PROVIDER/NAME such as "
            "openai/gpt-4o-mini."
        ) from error


def _check_address(url: str | None) -> None:
    """Raise ValueError for a URL with a secret, because manifests and error messages contain it."""
    if url:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("the API base must be a URL such as http://127.0.0.1:8000/v1.")
        if parts.username or parts.password or parts.query:
            raise ValueError("the API base must not contain a user, password or query; set OPENAI_API_KEY instead.")
