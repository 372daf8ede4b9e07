"""Prices of tokens in US dollars: from LiteLLM's table in DSPy, from the user, or zero for local models.

An unknown price is None, not zero.
"""

from __future__ import annotations

import ipaddress
import urllib.parse
from dataclasses import dataclass, replace
from typing import Any

LOCAL = "local"
BATCH_SHARE = 0.5
"""OpenAI and Together ask half the price for a batch."""


@dataclass(frozen=True, slots=True)
class Price:
    """Prices of one model in US dollars per token, without surcharges for long prompts, cache writes or service tiers.

    Attributes:
        prompt: Price of a prompt token.
        cached: Price of a prompt token that the provider reads from its cache.
        completion: Price of a reply token.
        source: `local`, `named` (by the user), or the name and version of the table.
    """

    prompt: float
    cached: float
    completion: float
    source: str

    def usd(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> float:
        """Return the price of a number of tokens in dollars. `cached_tokens` are part of `prompt_tokens`."""
        uncached = prompt_tokens - cached_tokens
        return uncached * self.prompt + cached_tokens * self.cached + completion_tokens * self.completion

    @property
    def of_batch(self) -> Price:
        """The price of the same tokens in a batch: half. A local model stays free."""
        prompt, cached, completion = (price * BATCH_SHARE for price in (self.prompt, self.cached, self.completion))
        return replace(self, prompt=prompt, cached=cached, completion=completion)


def price_of(name: str, *, api_base: str | None = None, named: tuple[float, float] | None = None) -> Price | None:
    """Return the price of a model.

    Args:
        name: Name of the model.
        api_base: URL of the server; None for the provider's own. Models on this machine cost nothing. The price of any
            other server is unknown.
        named: Dollars per million prompt tokens and per million reply tokens, as the user gave them. They override
            every other price.

    Returns:
        The price, or None if it is unknown.
    """
    if named is not None:
        prompt, completion = (dollars / 1e6 for dollars in named)
        return Price(prompt, prompt, completion, "named")
    if name.startswith(("embedded:", "embedded/")) or (api_base and is_loopback(api_base)):
        return Price(0.0, 0.0, 0.0, LOCAL)
    if api_base:
        return None
    info = published(name)
    prompt_price, reply_price = info.get("input_cost_per_token"), info.get("output_cost_per_token")
    if prompt_price is None or reply_price is None:
        return None
    return Price(prompt_price, info.get("cache_read_input_token_cost", prompt_price), reply_price, table())


def published(name: str) -> dict[str, Any]:
    """Return the context window and the prices of a model from DSPy's table; empty if the model is not in it."""
    from dspy.clients.model_metadata import model_info

    provider, _, model = name.rpartition("/") if name.count("/") < 2 else name.partition("/")
    return model_info(provider or "openai", model)


def table() -> str:
    """Return the name and the version of DSPy's table. The version is its date."""
    from importlib.metadata import version

    from dspy.clients.model_metadata import source_info

    found = source_info()
    kind = "" if found["source"] == "local" else ", fetched"
    return f"LiteLLM's table {found['snapshot_version']} in dspy {version('dspy')}{kind}"


def is_loopback(url: str) -> bool:
    """Return True if a URL, or each of several separated by commas, names this machine."""
    if "," in url:
        return all(map(is_loopback, url.split(",")))
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
