"""Arbor's interface over HTTP: a client, and what its failures mean to a user.

Arbor's own client for DSPy is not used: importing it brings vLLM, DeepSpeed and PyTorch; it takes rollouts that cannot
be parsed for rollouts that never were; and it cannot be resumed.
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
"""The server loads the model twice, and downloads it first where it has to. It waits for its own parts without end."""
STALL_SECONDS = 1200.0
"""Without a batch being asked for. The server goes on answering when its trainer is dead."""


class ArborError(RuntimeError):
    """What went wrong, in one sentence with the next step."""


class ServerGone(ArborError):
    """The server does not answer any more; a run can be resumed."""


@dataclass(frozen=True)
class Reply:
    """One completion of a prompt. `cut` where it ran into the limit."""

    text: str
    cut: bool


class ArborServer:
    """A server at a URL, such as http://127.0.0.1:7453."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._session = requests.Session()

    def close(self) -> None:
        self._session.close()

    def check(self) -> None:
        """Raises ServerGone where nothing answers, ArborError where something else than Arbor does."""
        try:
            reply = self._session.get(f"{self.url}/openapi.json", timeout=20)
            title = reply.json()["info"]["title"] if reply.ok else f"status {reply.status_code}"
        except requests.RequestException as error:
            raise ServerGone(
                f"No Arbor server found at {self.url}; start it with: {START} (or rent one: python arbor/deploy.py), "
                "or train on this machine with --backend trl"
            ) from error
        except (ValueError, KeyError, TypeError):
            title = "something else"
        if "Arbor" not in title:
            raise ArborError(f"What answers at {self.url} is not Arbor ({title}); name its URL with --arbor-url")

    def initialize(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Start a job; returns its status once both its parts run."""
        return self._post("fine_tuning/grpo/initialize", request, INITIALIZE_SECONDS)

    def status(self, job: str) -> dict[str, Any]:
        return self._post("fine_tuning/grpo/status", {"job_id": job}, 60)

    def step(self, job: str, model: str, batch: int, group: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Hand in one group: `messages`, `completion`, `reward` of each. The server numbers groups itself, from 0."""
        body = {"job_id": job, "model": model, "batch_id": batch, "batch": list(group)}
        return self._post("fine_tuning/grpo/step", body, STALL_SECONDS)

    def checkpoint(self, job: str, name: str) -> dict[str, Any]:
        """Its record: `checkpoint_dir` on the server's machine and `global_step`."""
        status = self._post("fine_tuning/grpo/checkpoint", {"job_id": job, "checkpoint_name": name}, STALL_SECONDS)
        found: dict[str, Any] = status["checkpoints"][name]
        return found

    def end(self, job: str) -> None:
        """Terminate a job, then cancel it: only the latter gives its GPUs back."""
        self._post("fine_tuning/grpo/terminate", {"job_id": job}, STALL_SECONDS)
        self._post("fine_tuning/grpo/cancel", {"job_id": job}, 120)

    def wait_for(self, job: str, batch: int, *, every_seconds: float = 1.0) -> None:
        """Until the trainer asks for a batch. Raises ArborError where it does not within STALL_SECONDS, or asks for a
        later one."""
        end = time.monotonic() + STALL_SECONDS
        while time.monotonic() < end:
            pending = self.status(job)["pending_batch_ids"]
            if batch in pending:
                return
            if pending and min(pending) > batch:
                raise ArborError(f"The trainer waits for batch {min(pending)} and not {batch}")
            time.sleep(every_seconds)
        raise ArborError(f"The trainer has asked for no batch in {STALL_SECONDS / 60:.0f} minutes")

    def pending(self, job: str, *, seconds: float = 30.0, every_seconds: float = 0.5) -> list[int]:
        """The batches that a job waits for, none where it is not there, or waits for none within `seconds`. The server
        may be half a second behind, and reads twice."""
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
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        *,
        n: int,
        temperature: float,
        max_tokens: int,
    ) -> list[Reply]:
        """`n` replies of a job's present weights. `model` is the job's `current_model`: at any other name the server
        would start a second model on GPUs of its own."""
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
            replies = [
                Reply(choice["message"]["content"] or "", choice["finish_reason"] == "length")
                for choice in content["choices"]
            ]
        except (TypeError, KeyError) as error:
            said = content.get("message") if isinstance(content, dict) else None
            raise ArborError(f"The model did not answer{f': {redact(str(said))[:200]}' if said else ''}") from error
        if len(replies) != n:
            raise ArborError(f"The model gave {len(replies)} replies where {n} were asked for")
        return replies

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
            raise ArborError(f"{route} was answered with status {reply.status_code} and no JSON") from error
        if not reply.ok:
            raise ArborError(meaning(route, reply.status_code, content))
        if content is None:  # how the server answers when its model failed
            raise ArborError("The model did not answer; its log stands beside the job's")
        found: dict[str, Any] = content
        return found


def meaning(route: str, status: int, content: object) -> str:
    """What a refusal of the server's means, in one sentence."""
    said = (
        str(content.get("message") or content.get("detail") or content) if isinstance(content, dict) else str(content)
    )
    said = redact(" ".join(said.split()))[:300]
    lower = said.lower()
    if "not enough free gpus" in lower:
        return (
            f"The server has too few free GPUs ({said}): rent more, or restart it where an earlier job keeps them, or "
            "use --backend trl on one GPU"
        )
    if "no gpus" in lower or "all gpus are" in lower:
        return f"The server has no GPU to give ({said}); free one and restart it"
    if "valid model identifier" in lower or "repository not found" in lower or "404 client error" in lower:
        return f"The server cannot find the model ({said}); give a name of the Hugging Face hub or a folder over there"
    if "429" in lower or "too many requests" in lower or "rate limit" in lower:
        return f"The hub limits the server's downloads ({said}); wait some minutes, or log in over there: hf auth login"
    if "gated" in lower or "401 client error" in lower:
        return f"The hub does not give the server the model ({said}); log in over there: hf auth login"
    if "bf16" in lower:
        return f"The server's GPU has no bfloat16 ({said}), which Arbor needs: rent an Ampere or a newer one"
    if "out of memory" in lower:
        return f"The server's GPU is out of memory ({said}); see python train.py --mode doctor"
    if "timed out waiting for" in lower:
        return (
            f"The server's trainer did not start ({said}); the cause is in its grpo_training.log, often a missing "
            "configs/deepspeed_config.yaml: python train.py --mode doctor over there finds it"
        )
    return f"{route} was refused with status {status}: {said}"
