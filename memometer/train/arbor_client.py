"""HTTP client for an Arbor server, with explanations of the server's errors.

Arbor's own DSPy client is not used. It imports vLLM, DeepSpeed and PyTorch, treats unparseable rollouts as missing, and
cannot resume a job.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import requests

from memometer.models.errors import redact
from memometer.train.arbor_endpoint import START

INITIALIZE_SECONDS = 3600.0
"""Timeout for starting a job. The server loads the model twice and may have to download it first."""
STALL_SECONDS = 1200.0
"""Longest wait for the trainer to request a batch. The server keeps answering after its trainer has died."""


class ArborError(RuntimeError):
    """A request failed. The message is one sentence with the next step."""


class ServerGone(ArborError):
    """The server does not answer any more. The training can be resumed."""


@dataclass(frozen=True)
class Completion:
    """One completion of a prompt. `truncated` is true if it reached the token limit."""

    text: str
    truncated: bool


class ArborServer:
    """Client for the server at a URL such as http://127.0.0.1:7453; a context manager that closes its connections."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._session = requests.Session()

    def __enter__(self) -> ArborServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def check(self) -> None:
        """Check that an Arbor server answers.

        Raises:
            ServerGone: No server answers.
            ArborError: Another kind of server answers.
        """
        try:
            reply = self._session.get(f"{self.url}/openapi.json", timeout=20)
            title = reply.json()["info"]["title"] if reply.ok else f"status {reply.status_code}"
        except requests.RequestException as error:
            raise ServerGone(
                f"No Arbor server found at {self.url}; start it with: {START} (or rent one: python arbor/deploy.py), "
                "or train on this machine with --backend trl"
            ) from error
        except (ValueError, KeyError, TypeError):
            title = "unknown service"
        if "Arbor" not in title:
            raise ArborError(f"The server at {self.url} is not Arbor ({title}); set its URL with --arbor-url")

    def initialize(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Start a job and return its status once its trainer and its model server run."""
        return self._post("fine_tuning/grpo/initialize", request, INITIALIZE_SECONDS)

    def status(self, job: str) -> dict[str, Any]:
        """Return the status of a job."""
        return self._post("fine_tuning/grpo/status", {"job_id": job}, 60)

    def step(self, job: str, model: str, batch: int, group: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Submit one group of `messages`, `completion` and `reward`. The server numbers groups itself, from 0."""
        body = {"job_id": job, "model": model, "batch_id": batch, "batch": list(group)}
        return self._post("fine_tuning/grpo/step", body, STALL_SECONDS)

    def checkpoint(self, job: str, name: str) -> dict[str, Any]:
        """Write a checkpoint; return its `checkpoint_dir` on the server's machine and its `global_step`."""
        status = self._post("fine_tuning/grpo/checkpoint", {"job_id": job, "checkpoint_name": name}, STALL_SECONDS)
        found: dict[str, Any] = status["checkpoints"][name]
        return found

    def end(self, job: str) -> None:
        """Terminate a job, then cancel it; only cancelling frees its GPUs."""
        self._post("fine_tuning/grpo/terminate", {"job_id": job}, STALL_SECONDS)
        self._post("fine_tuning/grpo/cancel", {"job_id": job}, 120)

    def wait_for_batch(self, job: str, batch: int, *, every_seconds: float = 1.0) -> None:
        """Wait until the trainer requests a batch.

        Raises:
            ArborError: The trainer requests no batch within STALL_SECONDS, or requests a later one.
        """
        end = time.monotonic() + STALL_SECONDS
        while time.monotonic() < end:
            pending = self.status(job)["pending_batch_ids"]
            if batch in pending:
                return
            if pending and min(pending) > batch:
                raise ArborError(f"The trainer requested batch {min(pending)} instead of {batch}")
            time.sleep(every_seconds)
        raise ArborError(f"The trainer has requested no batch for {STALL_SECONDS / 60:.0f} minutes")

    def pending_batches(self, job: str, *, seconds: float = 30.0, every_seconds: float = 0.5) -> list[int]:
        """Return the batches that a job waits for; empty if the job is unknown or waits for none.

        The server's answer may be half a second old, so it counts only if two answers in a row agree.
        """
        end = time.monotonic() + seconds
        before: list[int] = []
        while time.monotonic() < end:
            try:
                now = sorted(self.status(job)["pending_batch_ids"])
            except ServerGone:
                raise
            except ArborError:
                return []
            if now and now == before:
                return now
            before = now
            time.sleep(every_seconds)
        return []

    def complete(
        self, model: str, messages: Sequence[Mapping[str, str]], *, n: int, temperature: float, max_tokens: int
    ) -> list[Completion]:
        """Sample `n` completions from a job's current weights.

        Args:
            model: The job's `current_model`. For any other name the server would start a second model.
            messages: The prompt.
            n: Number of completions.
            temperature: Sampling temperature; 0 is greedy.
            max_tokens: Limit of each completion.

        Raises:
            ArborError: The model does not answer, or returns another number of completions.
        """
        body = {
            "model": model,
            "messages": list(messages),
            "n": n,
            "temperature": temperature,
            "top_p": 1.0,
            "top_k": -1,
            "repetition_penalty": 1.0,
            "max_tokens": max_tokens,
        }
        content = self._post("chat/completions", body, 330)
        try:
            completions = [
                Completion(choice["message"]["content"] or "", choice["finish_reason"] == "length")
                for choice in content["choices"]
            ]
        except (TypeError, KeyError) as error:
            message = content.get("message") if isinstance(content, dict) else None
            detail = f": {redact(str(message))[:200]}" if message else ""
            raise ArborError(f"The model did not answer{detail}") from error
        if len(completions) != n:
            raise ArborError(f"The model returned {len(completions)} completions instead of {n}")
        return completions

    def _post(self, route: str, body: Mapping[str, Any], timeout_seconds: float) -> dict[str, Any]:
        try:
            reply = self._session.post(f"{self.url}/v1/{route}", json=body, timeout=(20, timeout_seconds))
        except requests.Timeout as error:
            raise ArborError(f"{route} took more than {timeout_seconds / 60:.0f} minutes") from error
        except requests.RequestException as error:
            raise ServerGone(
                f"The Arbor server at {self.url} does not answer any more ({type(error).__name__})"
            ) from error
        try:
            content = reply.json()
        except ValueError as error:
            raise ArborError(f"{route} returned status {reply.status_code} without JSON") from error
        if not reply.ok:
            raise ArborError(explain_error(route, reply.status_code, content))
        if content is None:  # the server's answer after its model failed
            raise ArborError("The model did not answer; see its log next to the job's log on the server")
        found: dict[str, Any] = content
        return found


EXPLANATIONS: list[tuple[tuple[str, ...], str]] = [
    (
        ("not enough free gpus",),
        "The server has too few free GPUs ({message}): rent more, restart the server if an earlier job still holds "
        "them, or use --backend trl on one GPU",
    ),
    (("no gpus", "all gpus are"), "The server has no free GPU ({message}); free one and restart the server"),
    (
        ("valid model identifier", "repository not found", "404 client error"),
        "The server cannot find the model ({message}); use a name on the Hugging Face hub, or a folder on the server",
    ),
    (
        ("429", "too many requests", "rate limit"),
        "The hub limits the server's downloads ({message}); wait some minutes, or log in on the server: hf auth login",
    ),
    (
        ("gated", "401 client error"),
        "The server has no access to the model on the hub ({message}); log in on the server: hf auth login",
    ),
    (("bf16",), "Arbor needs bfloat16, which the server's GPU lacks ({message}): rent an Ampere GPU or a newer one"),
    (("out of memory",), "The server's GPU is out of memory ({message}); see python train.py --mode doctor"),
    (
        ("timed out waiting for",),
        "The server's trainer did not start ({message}); see its grpo_training.log. A frequent cause is a missing "
        "configs/deepspeed_config.yaml, which python train.py --mode doctor finds on the server",
    ),
]
"""(texts in the server's message, explanation); the first match counts."""


def explain_error(route: str, status: int, content: object) -> str:
    """Return one sentence that explains an error response and gives the next step."""
    text = str(content)
    if isinstance(content, dict):
        text = str(content.get("message") or content.get("detail") or content)
    message = redact(" ".join(text.split()))[:300]
    for patterns, explanation in EXPLANATIONS:
        if any(pattern in message.lower() for pattern in patterns):
            return explanation.format(message=message)
    return f"{route} was refused with status {status}: {message}"
