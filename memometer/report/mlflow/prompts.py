"""Prompts of the reader in MLflow's prompt registry, each with its versions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import dspy

from memometer.models.plain_adapter import PlainAdapter

DIGEST = "digest"
"""The tag that identifies the content of a version."""


def prompt_name(benchmark: str, rounds: int) -> str:
    """Name the prompt of a benchmark's reader. Readers with other rounds have other fields, so another prompt."""
    return f"{benchmark}-reader" + (f"-{rounds}-rounds" if rounds > 1 else "-cited" if rounds else "")


@dataclass(frozen=True)
class PromptVersion:
    """A prompt to register.

    Attributes:
        read: The predictor with instructions and examples.
        digest: Identifies instructions and examples, as `memometer.reader.program_file.Program.digest` does.
        message: A sentence on its origin.
        tags: Further facts, such as the gain.
    """

    read: dspy.Predict
    digest: str
    message: str
    tags: Mapping[str, object] = field(default_factory=dict)


def register(client: Any, run_id: str, name: str, version: PromptVersion) -> int:
    """Register a prompt as a version of `name`, unless it is one already, and link it to a run.

    Args:
        client: The MLflow client.
        run_id: The run.
        name: Name of the prompt.
        version: The prompt.

    Returns:
        The number of the version.
    """
    read = version.read
    found = next((known for known in _versions(client, name) if known.tags.get(DIGEST) == version.digest), None)
    if found is None:
        variables = {field: f"{{{{{field}}}}}" for field in read.signature.input_fields}
        messages = PlainAdapter().format(read.signature, [dict(demo) for demo in read.demos], variables)
        found = client.register_prompt(
            name,
            [{"role": each["role"], "content": str(each["content"])} for each in messages],
            commit_message=version.message,
            tags={DIGEST: version.digest, **{key: str(value) for key, value in version.tags.items()}},
        )
    client.link_prompt_version_to_run(run_id, found)
    return int(found.version)


def link(client: Any, run_ids: Iterable[str], benchmark: str, digest: str) -> None:
    """Link runs to the version of the benchmark's prompts with this content, if it is registered."""
    names = [prompt.name for prompt in client.search_prompts(f"name LIKE '{benchmark}-reader%'")]
    for known in (version for name in names for version in _versions(client, name)):
        if known.tags.get(DIGEST) == digest:
            for run_id in run_ids:
                client.link_prompt_version_to_run(run_id, known)


def _versions(client: Any, name: str) -> list[Any]:
    """Return the versions of a prompt, the latest first; none if it is not registered."""
    return list(client.search_prompt_versions(name)) if client.get_prompt(name) else []
