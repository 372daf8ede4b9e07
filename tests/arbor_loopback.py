"""A loopback server with Arbor 0.2.17's routes, their fields, and the progress of jobs.

Written from Arbor's server/api/schemas.py, jobs and trainer. tests/arbor_app.py runs the installed server.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

TAKES = {
    "fine_tuning/grpo/initialize": {"run_name", "model", "trainer_config", "inference_config", "gpu_config"},
    "fine_tuning/grpo/status": {"job_id"},
    "fine_tuning/grpo/step": {"job_id", "model", "batch_id", "batch", "metrics"},
    "fine_tuning/grpo/checkpoint": {"job_id", "checkpoint_name", "metadata"},
    "fine_tuning/grpo/terminate": {"job_id"},
    "fine_tuning/grpo/cancel": {"job_id"},
}
TRAINER = {
    "temperature": float, "beta": float, "num_generations": int, "per_device_train_batch_size": int,
    "learning_rate": float, "gradient_accumulation_steps": int, "gradient_checkpointing": bool,
    "lr_scheduler_type": str, "max_prompt_length": int, "max_completion_length": int,
    "soft_completion_penalty_length": int, "gradient_checkpointing_kwargs": dict, "bf16": bool, "scale_rewards": bool,
    "max_grad_norm": float, "report_to": str, "log_completions": bool, "logging_steps": int,
    "generation_batch_size": int, "mask_truncated_completions": bool, "async_generation_timeout": float,
    "max_seq_len": int, "lora_config": dict, "max_steps": int, "warmup_steps": int, "loss_type": str,
    "num_training_gpus": int, "weight_decay": float,
}  # fmt: skip

Refusal = tuple[int, dict[str, str]]


@dataclass
class Job:
    """A job. `done` counts submitted groups; the trainer waits for the next two."""

    request: dict[str, Any]
    folder: Path
    status: str = "running"
    done: int = 0
    checkpoints: dict[str, Any] = field(default_factory=dict)
    last: str | None = None


@dataclass
class Arbor:
    """A server with GPUs. `reply` maps (prompt, number of the completion) to a text. Set attributes to make it fail."""

    storage: Path
    reply: Callable[[str, int], str] = lambda prompt, number: "?"
    gpus: int = 3
    jobs: dict[str, Job] = field(default_factory=dict)
    groups: list[list[dict[str, Any]]] = field(default_factory=list)
    """All submitted groups, of all jobs."""
    dead: bool = False
    die_at: int | None = None
    """Number of the group after which the server dies."""
    fail: dict[str, Refusal | None] = field(default_factory=dict)
    """Responses by route; None is the response of a failed model."""
    asked: int = 0

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, Any]:
        if self.dead:
            return 0, None
        if handler.path == "/openapi.json":
            return 200, {"info": {"title": "Arbor API"}}
        route, content = handler.path.removeprefix("/v1/"), json.loads(body)
        if route in self.fail:
            status, said = self.fail[route] or (200, None)
            return status, said
        if route == "chat/completions":
            return self._complete(content)
        if extra := set(content) - TAKES[route]:
            return 422, {"detail": f"Extra inputs are not permitted: {sorted(extra)}"}
        if route.endswith("/initialize"):
            return self._initialize(content)
        if content["job_id"] not in self.jobs:
            return 400, {"type": "KeyError", "message": repr(content["job_id"])}
        job = self.jobs[content["job_id"]]
        verb = getattr(self, f"_{route.rpartition('/')[2]}")
        refusal = verb(job, content)
        if self.dead:
            return 0, None
        return refusal or (200, self._status_of(content["job_id"], job))

    def _initialize(self, content: dict[str, Any]) -> tuple[int, Any]:
        trainer = content["trainer_config"]
        for name, value in trainer.items():
            allowed = TRAINER[name]
            assert value is None or isinstance(value, (allowed, int) if allowed is float else allowed), name
        assert set(trainer["lora_config"]) == {"r", "lora_alpha", "target_modules", "lora_dropout"}
        gpus = content["gpu_config"]["multi"]
        wanted = gpus["num_inference_gpus"] + gpus["num_training_gpus"]
        free = self.gpus - sum(
            sum(job.request["gpu_config"]["multi"].values()) for job in self.jobs.values() if job.status == "running"
        )
        if "absent" in content["model"]:
            said = f"{content['model']} is not a local folder and is not a valid model identifier"
            return 500, {"type": "OSError", "message": said}
        if wanted > free:
            said = f"Not enough free GPUs. Requested: {wanted}, Free: {free}"
            return 500, {"type": "GPUAllocationError", "message": said}
        batch = trainer["per_device_train_batch_size"] * gpus["num_training_gpus"]
        if batch * trainer["gradient_accumulation_steps"] % trainer["num_generations"]:
            return 400, {"type": "ValueError", "message": "must be evenly divisible by the number of generations"}
        # The default of 2,048 would cut the prompt to the length of a completion.
        assert "max_seq_len" in trainer
        assert trainer["max_seq_len"] is None
        name = f"grpo:{content['model'].split('/')[-1].lower()}:{content['run_name']}:20260101"
        assert name not in self.jobs
        self.jobs[name] = Job(content, self.storage / name / "checkpoints")
        return 200, self._status_of(name, self.jobs[name])

    def _status_of(self, name: str, job: Job) -> dict[str, Any]:
        most = job.request["trainer_config"]["max_steps"]
        return {
            "job_id": name,
            "status": job.status,
            "current_model": name,
            "checkpoints": job.checkpoints,
            "last_checkpoint": job.last,
            "pending_batch_ids": [n for n in (job.done, job.done + 1) if n < most],
        }

    def _status(self, job: Job, content: dict[str, Any]) -> Refusal | None:
        return None

    def _step(self, job: Job, content: dict[str, Any]) -> Refusal | None:
        group = content["batch"]
        if self.die_at == len(self.groups):
            self.dead = True
        if len(group) != job.request["trainer_config"]["num_generations"]:
            return 400, {"type": "ValueError", "message": f"received {len(group)}"}
        assert all(set(sample) == {"messages", "completion", "reward"} for sample in group)
        assert all(sample["completion"]["role"] == "assistant" for sample in group)
        self.groups.append(group)
        job.done += 1
        return None

    def _checkpoint(self, job: Job, content: dict[str, Any]) -> Refusal | None:
        config = job.request["trainer_config"]
        if job.done >= config["max_steps"]:
            raise AssertionError("the trainer has ended and answers nothing any more: Arbor would hang here")
        name = content["checkpoint_name"]
        write_adapter(job.folder / name, config["lora_config"], job.request["model"], job.done)
        record = {"checkpoint_name": name, "checkpoint_dir": str(job.folder / name), "global_step": job.done}
        job.checkpoints[name], job.last = record, name
        return None

    def _terminate(self, job: Job, content: dict[str, Any]) -> Refusal | None:
        return self._checkpoint(job, {"checkpoint_name": "checkpoint_final"})

    def _cancel(self, job: Job, content: dict[str, Any]) -> Refusal | None:
        job.status = "cancelled"
        return None

    def _complete(self, content: dict[str, Any]) -> tuple[int, Any]:
        assert content["model"] in self.jobs, "Arbor would start another model on GPUs of its own"
        assert (content["top_p"], content["top_k"], content["repetition_penalty"]) == (1.0, -1, 1.0)
        choices = []
        for _ in range(content["n"]):
            text = self.reply(content["messages"][-1]["content"], self.asked)
            self.asked += 1
            choices.append({"index": len(choices), "finish_reason": "stop", "message": {"content": text}})
        return 200, {"id": "1", "model": content["model"], "choices": choices}


def write_adapter(folder: Path, lora: dict[str, Any], model: str, step: int) -> None:
    """Write an adapter of one layer with 2 inputs and 3 outputs; all of its numbers are the step."""
    folder.mkdir(parents=True)
    rank = lora["r"]
    settings = {"r": rank, "lora_alpha": lora["lora_alpha"], "base_model_name_or_path": model}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    header, offset = {}, 0
    for side, shape in (("A", [rank, 2]), ("B", [3, rank])):
        end = offset + 4 * shape[0] * shape[1]
        name = f"base_model.model.layer.lora_{side}.weight"
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    numbers = struct.pack("<f", step) * (offset // 4)
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + numbers)
    (folder / "optimizer.pt").write_bytes(b"many times as large")
