"""The installed Arbor's own HTTP application with its jobs and control protocol, as a process without a GPU.

    python tests/arbor_app.py PORT STORAGE REPLIES.json [GPUS]

The processes that need a GPU are replaced: the model's server answers with the texts in REPLIES.json, in turn, and the
trainer takes batches like the real one but learns nothing. The tokenizer is replaced too, because its files would be
downloaded. PyTorch, transformers, TRL and peft are replaced by stubs if they are not installed.
"""

# ruff: noqa: E402 - the stubs come first

from __future__ import annotations

import dataclasses
import importlib.machinery
import importlib.util
import itertools
import json
import queue
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

PORT, STORAGE, REPLIES = int(sys.argv[1]), sys.argv[2], json.loads(Path(sys.argv[3]).read_text())
GPUS = int(sys.argv[4]) if len(sys.argv) > 4 else 3


ABSENT = {
    name
    for name in ("torch", "transformers", "peft", "trl", "wandb", "vllm", "deepspeed", "pynvml")
    if name in ("vllm", "deepspeed", "pynvml") or importlib.util.find_spec(name) is None
}
"""Packages with stubs; always the last three, which need a GPU."""


def add_stub(name: str, **content: Any) -> None:
    """Add an empty module of this name if its package is absent."""
    parent, _, child = name.rpartition(".")
    if name.partition(".")[0] in ABSENT:
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__dict__.update(content)
        sys.modules[name] = module
        if parent:
            setattr(sys.modules[parent], child, module)


class Tokenizer:
    """One token a word."""

    @classmethod
    def from_pretrained(cls, model: str) -> Tokenizer:
        if "absent" in model:
            raise OSError(f"{model} is not a local folder and is not a valid model identifier")
        return cls()

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        ids = [[1] * len(text.split()) for text in texts]
        return {"input_ids": ids, "attention_mask": ids}


@dataclasses.dataclass
class TrainingArguments:
    """The fields of transformers' class that Arbor uses."""

    _VALID_DICT_FIELDS = []  # noqa: RUF012
    output_dir: str = ""
    run_name: str = ""
    per_device_train_batch_size: int = 8
    per_device_eval_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    learning_rate: float = 5e-5
    lr_scheduler_type: str = "linear"
    warmup_steps: int = 0
    max_steps: int = -1
    max_grad_norm: float = 1.0
    bf16: bool = False
    gradient_checkpointing: bool = False
    gradient_checkpointing_kwargs: dict[str, Any] | None = None
    report_to: str = "all"
    logging_steps: int = 500
    weight_decay: float = 0.0
    eval_strategy: str = "no"

    def __post_init__(self) -> None:
        pass

    def to_dict(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def chat(sample: dict[str, Any], tokenizer: Any) -> dict[str, str]:
    return {name: "\n".join(message["content"] for message in sample[name]) for name in ("prompt", "completion")}


add_stub("torch", Tensor=object)
add_stub("transformers", AutoTokenizer=Tokenizer, TrainingArguments=TrainingArguments, __version__="4.57.6")
add_stub("peft", LoraConfig=dict)
add_stub("trl")
add_stub("trl.data_utils", apply_chat_template=chat)
add_stub("trl.import_utils", is_requests_available=lambda: True, is_vllm_available=lambda: True)
add_stub("wandb", run=None)
add_stub("vllm")
add_stub("vllm.distributed")
add_stub("vllm.distributed.utils", StatelessProcessGroup=object)
add_stub("vllm.distributed.device_communicators")
add_stub("vllm.distributed.device_communicators.pynccl", PyNcclCommunicator=object)
add_stub("deepspeed")
add_stub(
    "pynvml",
    NVMLError=RuntimeError,
    nvmlInit=lambda: None,
    nvmlShutdown=lambda: None,
    nvmlDeviceGetCount=lambda: GPUS,
    nvmlDeviceGetHandleByIndex=lambda index: index,
    nvmlDeviceGetComputeRunningProcesses=lambda handle: [],
)

sys.path.append(str(Path(__file__).resolve().parent.parent))  # last: Arbor is the installed one
# The trainer itself runs in the process that is replaced; Arbor imports it all the same.
sys.modules["arbor.training.grpo.trainer"] = types.ModuleType("arbor.training.grpo.trainer")
sys.modules["arbor.training.grpo.trainer"].ArborGRPOTrainer = object  # type: ignore[attr-defined]

import uvicorn
from arbor.cli import create_app
from arbor.server.services.comms.async_batch_requester import AsyncBatchRequester, BatchRequest
from arbor.server.services.comms.control_client import TrainerControlClient
from arbor.server.services.jobs import grpo_job
from arbor.server.services.jobs.inference_job import InferenceJob
from arbor.utils.process_runner import AccelerateProcessRunner

from tests.arbor_loopback import write_adapter

numbers = itertools.count()


class Served:
    """The model's server."""

    async def chat(self, json_body: dict[str, Any]) -> dict[str, Any]:
        texts = [REPLIES[next(numbers) % len(REPLIES)] for _ in range(json_body.get("n", 1))]
        choices = [
            {"index": n, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
            for n, text in enumerate(texts)
        ]
        return {"id": "1", "object": "chat.completion", "model": json_body["model"], "choices": choices}


class Process:
    """A process that Arbor started."""

    pid = 1
    returncode = None

    def poll(self) -> None:
        return None


def launch(self: Any, model: str, launch_config: Any, trainer_controller: Any = None) -> None:
    self.launched_model_name, self.launch_config, self.port = model, launch_config, 1
    if launch_config.grpo_job_id:
        self.id = f"{launch_config.grpo_job_id}-inference"
    self.process, self.vllm_client = Process(), Served()


class Trainer(threading.Thread):
    """Requests batches, takes them in turn, writes checkpoints, and stops answering after its last step."""

    def __init__(self, arguments: list[str]) -> None:
        super().__init__(daemon=True)
        self.config = json.loads(arguments[arguments.index("--trainer_config_json") + 1])
        self.model = arguments[arguments.index("--model") + 1]
        self.state = types.SimpleNamespace(global_step=0)
        self.control = types.SimpleNamespace(should_training_stop=False)
        self.async_requester = AsyncBatchRequester(self.model)
        self.async_requester.start()
        self.records: list[dict[str, Any]] = []
        self.asked: queue.Queue[tuple[str, queue.Queue[dict[str, Any]]]] = queue.Queue()
        self.client = TrainerControlClient(self, self.config["control_endpoint"])  # type: ignore[arg-type]
        self.client.start()

    def run(self) -> None:
        requested = 0
        for step in range(self.config["max_steps"]):
            while requested <= min(step + 1, self.config["max_steps"] - 1):
                self.async_requester.request_batch(BatchRequest(batch_id=requested))
                requested += 1
            while not self.control.should_training_stop:
                self._write_what_was_asked_for()
                try:
                    batch = self.async_requester.get_batch(step, timeout=0.05)
                except TimeoutError:
                    continue
                assert len(batch.processed_results.rewards) == self.config["num_generations"]
                break
            if self.control.should_training_stop:
                break
            time.sleep(0.02)
            self.state.global_step = step + 1
        self.client.stop()

    def handle_checkpoint_request(self, name: str, metadata: dict[str, Any] | None) -> dict[str, Any]:
        """Called from the thread that answers; the trainer writes between two steps, like the real one."""
        written: queue.Queue[dict[str, Any]] = queue.Queue()
        self.asked.put((name, written))
        return written.get()

    def _write_what_was_asked_for(self) -> None:
        while not self.asked.empty():
            name, written = self.asked.get()
            written.put(self._write(name))

    def _write(self, name: str) -> dict[str, Any]:
        folder = Path(self.config["output_dir"]) / name
        write_adapter(folder, self.config["lora_config"], self.model, self.state.global_step)
        record = {
            "checkpoint_name": name,
            "checkpoint_dir": str(folder),
            "global_step": self.state.global_step,
            "metadata": None,
            "timestamp": time.time(),
        }
        self.records.append(record)
        return record

    def get_checkpoint_records(self) -> list[dict[str, Any]]:
        return list(self.records)

    def get_last_checkpoint_record(self) -> dict[str, Any] | None:
        return self.records[-1] if self.records else None


def start_training(self: Any, *, script_args: list[str], **_: Any) -> Process:
    Trainer(script_args).start()
    return Process()


if __name__ == "__main__":
    InferenceJob.launch = launch
    AccelerateProcessRunner.start_training = start_training
    if "transformers" not in ABSENT:
        sys.modules["transformers.training_args"].is_torch_bf16_gpu_available = lambda: True  # type: ignore[attr-defined]
    grpo_job.AutoTokenizer, grpo_job.apply_chat_template = Tokenizer, chat
    config = Path(STORAGE) / "arbor.yaml"
    Path(STORAGE).mkdir(parents=True, exist_ok=True)
    config.write_text(f"storage_path: {STORAGE}\n")
    uvicorn.run(create_app(str(config)), host="127.0.0.1", port=PORT, log_level="warning")
