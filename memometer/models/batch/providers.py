"""The batch endpoints of OpenAI and of Together, each through the provider's own client."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

ENDPOINT = "/v1/chat/completions"


@dataclass(frozen=True)
class Status:
    """The status of a batch.

    Attributes:
        state: `running`, `completed`, or how it ended otherwise: `failed`, `expired` or `cancelled`.
        files: The ids of the files with replies and with errors.
        reason: The server's words about a failure.
        done: Requests that have an answer; None if unknown.
    """

    state: str
    files: tuple[str, ...] = ()
    reason: str = ""
    done: int | None = None


class Provider(Protocol):
    """A provider of batches."""

    token_limit: str

    def upload(self, path: Path) -> str:
        """Upload a file of requests and return its id."""

    def find_file(self, name: str) -> str | None:
        """Return the id of an uploaded file with this name."""

    def create(self, file_id: str, name: str) -> str:
        """Create a batch and return its id. The call is made once, without retries."""

    def find_batch(self, file_id: str, name: str, known: Collection[str]) -> str | None:
        """Return the id of the batch of a file that is not in `known`."""

    def status(self, batch_id: str) -> Status:
        """Return the status of a batch."""

    def content(self, file_id: str) -> bytes:
        """Download a file."""


class OpenAIBatches:
    """OpenAI's batches, or those of a server that has the same endpoints.

    Args:
        api_base: URL of the server; None for OpenAI's.
        timeout_seconds: Read timeout per call.
    """

    def __init__(self, api_base: str | None, *, timeout_seconds: float) -> None:
        self.api_base, self.timeout_seconds = api_base, timeout_seconds
        self.token_limit = "max_tokens" if api_base else "max_completion_tokens"  # as calls without a batch

    @cached_property
    def _client(self) -> Any:
        from openai import OpenAI

        key = os.environ.get("OPENAI_API_KEY") or ("none" if self.api_base else None)
        return OpenAI(api_key=key, base_url=self.api_base, timeout=self.timeout_seconds)

    def upload(self, path: Path) -> str:
        return str(self._client.files.create(file=path, purpose="batch").id)

    def find_file(self, name: str) -> str | None:
        return next((str(file.id) for file in self._client.files.list(purpose="batch") if file.filename == name), None)

    def create(self, file_id: str, name: str) -> str:
        client = self._client.with_options(max_retries=0)
        batch = client.batches.create(
            input_file_id=file_id, endpoint=ENDPOINT, completion_window="24h", metadata={"memometer": name}
        )
        return str(batch.id)

    def find_batch(self, file_id: str, name: str, known: Collection[str]) -> str | None:
        for batch in self._client.batches.list():
            is_ours = (batch.metadata or {}).get("memometer") == name or batch.input_file_id == file_id
            if is_ours and batch.id not in known:
                return str(batch.id)
        return None

    def status(self, batch_id: str) -> Status:
        batch = self._client.batches.retrieve(batch_id)
        errors = "; ".join(str(error.message) for error in (batch.errors and batch.errors.data) or ())
        counts = batch.request_counts
        return Status(
            batch.status if batch.status in ENDED else "running",
            tuple(filter(None, (batch.output_file_id, batch.error_file_id))),
            errors,
            counts.completed + counts.failed if counts else None,
        )

    def content(self, file_id: str) -> bytes:
        return bytes(self._client.files.content(file_id).content)


class TogetherBatches:
    """Together's batches.

    Args:
        api_base: URL of the server, with `/v1`; None for Together's.
        timeout_seconds: Read timeout per call.
    """

    token_limit = "max_tokens"

    def __init__(self, api_base: str | None, *, timeout_seconds: float) -> None:
        self.api_base, self.timeout_seconds = api_base, timeout_seconds

    @cached_property
    def _client(self) -> Any:
        from together import Together, __version__

        base_url = self.api_base
        if base_url and int(__version__.partition(".")[0]) >= 3:  # these clients add the path themselves
            base_url = base_url.rstrip("/").removesuffix("/v1")
        return Together(base_url=base_url, timeout=self.timeout_seconds)

    def upload(self, path: Path) -> str:
        return str(self._client.files.upload(path, purpose="batch-api", check=False).id)

    def find_file(self, name: str) -> str | None:
        return next((str(file.id) for file in self._client.files.list().data if file.filename == name), None)

    def create(self, file_id: str, name: str) -> str:
        client = self._client.with_options(max_retries=0)
        return str(client.batches.create(input_file_id=file_id, endpoint=ENDPOINT).job.id)

    def find_batch(self, file_id: str, name: str, known: Collection[str]) -> str | None:
        for batch in self._client.batches.list():
            if batch.input_file_id == file_id and batch.id not in known:
                return str(batch.id)
        return None

    def status(self, batch_id: str) -> Status:
        batch = self._client.batches.retrieve(batch_id)
        state = str(batch.status).lower()
        files = tuple(filter(None, (batch.output_file_id, batch.error_file_id)))
        return Status(state if state in ENDED else "running", files, batch.error or "")

    def content(self, file_id: str) -> bytes:
        return bytes(self._client.files.content(file_id).read())


ENDED: tuple[Literal["completed", "failed", "expired", "cancelled"], ...] = (
    "completed",
    "failed",
    "expired",
    "cancelled",
)

PROVIDERS: dict[str, type[OpenAIBatches] | type[TogetherBatches]] = {
    "openai": OpenAIBatches,
    "together_ai": TogetherBatches,
}
"""Prefix of a model name -> its provider."""
PACKAGES = {"openai": "openai", "together_ai": "together"}
"""Prefix of a model name -> the package of the provider's client."""


def provider_of(model: str, *, api_base: str | None, timeout_seconds: float) -> Provider:
    """Return the batch endpoints for a model.

    Args:
        model: A DSPy model string.
        api_base: URL of the server; None for the provider's.
        timeout_seconds: Read timeout per call.

    Raises:
        ValueError: The provider has no batch endpoints here.
    """
    kind = PROVIDERS.get(model.partition("/")[0])
    if kind is None:
        raise ValueError(f"--batch needs a model of OpenAI or Together (openai/… or together_ai/…); got {model}.")
    return kind(api_base, timeout_seconds=timeout_seconds)
