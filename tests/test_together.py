"""`--backend together` through Together's own client, against a loopback server that checks its requests."""

from __future__ import annotations

import io
import json
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from memometer.train import together_training
from tests import commands
from tests.conftest import ROOT

pytest.importorskip("together", reason="Together's client is not here: pip install 'together>=3,<4'")
pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations in the client's libraries

FLAGS = ["--mode", "sft", "--backend", "together", "--model", "Qwen/Qwen2.5-7B-Instruct", "--memory", "oracle"]
FLAGS += ["--budgets", "128", "--num-train", "4", "--num-val", "2", "--num-train-steps", "4", "--batch-size", "2"]
FLAGS += ["--gradient-accumulation", "1", "--data", str(ROOT / "locomo" / "sample.json")]
LIMITS = {
    "default_gradient_accumulation_steps": 1, "max_learning_rate": 1.0, "max_num_checkpoints": 10, "max_num_epochs": 20,
    "max_num_evals": 10, "max_seq_length_dpo": 8192, "max_seq_length_sft": 8192, "merge_output_lora": True,
    "min_learning_rate": 0.0, "min_max_seq_length": 128, "model_name": "m", "supports_full_training": False,
    "supports_reasoning": False, "supports_tools": False, "supports_vision": False,
    "lora_training": {
        "default_rank": 8, "max_batch_size": 64, "max_batch_size_dpo": 8, "max_rank": 64, "min_batch_size": 1,
        "target_modules": ["q_proj"],
    },
}  # fmt: skip


@dataclass
class Service:
    """The parts of Together's interface that a training uses."""

    url: str = ""
    price: float = 1.5
    status: list[str] = field(default_factory=lambda: ["pending", "running", "completed"])
    calls: list[str] = field(default_factory=list)
    uploaded: bytes = b""
    job: dict[str, Any] = field(default_factory=dict)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        self.calls.append(f"{method} {path}")
        name = path.partition("?")[0]
        if (method, name) == ("POST", "/v1/files"):
            return 302, {"Location": f"{self.url}/store", "X-Together-File-Id": "file-1"}, b""
        if (method, name) == ("PUT", "/store"):
            self.uploaded = body
            return 200, {}, b""
        if name == "/v1/files/file-1/preprocess" or (method, name) == ("GET", "/v1/files/file-1"):
            return self._json({
                "id": "file-1", "bytes": len(self.uploaded), "created_at": 1, "filename": "together.jsonl",
                "FileType": "jsonl", "object": "file", "purpose": "fine-tune", "LineCount": 4, "Processed": True,
            })  # fmt: skip
        if (method, name) == ("DELETE", "/v1/files/file-1"):
            return self._json({"id": "file-1", "deleted": True})
        if "limits" in name:
            return self._json(LIMITS)
        if "estimate" in name:
            return self._json(
                {"estimation_available": True, "allowed_to_proceed": True, "estimated_total_price": self.price}
            )
        if (method, name) == ("POST", "/v1/fine-tunes"):
            self.job = json.loads(body)
            return self._json(self._response("pending"))
        if name.endswith("/events"):
            event = {"object": "fine-tune-event", "created_at": "1", "message": "epoch 1", "type": "epoch_complete"}
            return self._json({"data": [event]})
        if name == "/v1/fine-tunes/ft-1":
            return self._json(self._response(self.status.pop(0) if len(self.status) > 1 else self.status[0]))
        if name == "/v1/finetune/download":
            return 200, {"Content-Type": "application/octet-stream"}, _archive()
        return 404, {}, b"{}"

    def _response(self, status: str) -> dict[str, Any]:
        now = "2026-01-01T00:00:00Z"
        return {"id": "ft-1", "status": status, "created_at": now, "updated_at": now, "training_file": "file-1"}

    def _json(self, value: Any) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _archive() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in {"out/adapter_config.json": b'{"r": 16}', "out/adapter_model.safetensors": b"x"}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    found = Service()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.path != "/store":
                assert self.headers["Authorization"] == "Bearer key"
            status, headers, content = found.answer(self.command, self.path, body)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815 - names of http.server

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("TOGETHER_BASE_URL", found.url)
    monkeypatch.setenv("TOGETHER_API_KEY", "key")
    monkeypatch.setattr(together_training, "POLL_SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)
    yield found
    server.shutdown()
    server.server_close()


def test_a_training_at_together_from_its_upload_to_its_adapter(service: Service, tmp_path: Path, capsys: Any) -> None:
    assert commands.train(FLAGS) == 0, capsys.readouterr().err
    lines = [json.loads(line) for line in service.uploaded.decode().splitlines()]
    assert [message["role"] for message in lines[0]["messages"]] == ["system", "user", "assistant"]
    job = service.job
    assert (job["training_file"], job["model"], job["training_type"]["lora_r"]) == ("file-1", FLAGS[5], 16)
    assert job["training_method"]["train_on_inputs"] is False
    assert job["n_epochs"] == -(-4 * 2 // len(lines))
    assert not job.get("hf_output_repo_name")
    best = tmp_path / "sft_checkpoints" / "best"
    assert (best / "adapter_config.json").exists()
    assert json.loads((best / "training.json").read_text())["backend"] == "together"
    assert "DELETE /v1/files/file-1" in service.calls, "nothing stays there"
    said = capsys.readouterr()
    assert "$1.50" in said.err
    assert "epoch 1" in said.err
    assert (tmp_path / "sft_optimized_memory_qa.json").exists()


def test_an_estimate_above_the_limit_starts_nothing(service: Service, capsys: Any) -> None:
    assert commands.train([*FLAGS, "--cost-limit", "1"]) == 2
    assert "--cost-limit" in capsys.readouterr().err
    assert not service.job
    assert "DELETE /v1/files/file-1" in service.calls


def test_a_resumed_training_follows_the_same_job(service: Service, capsys: Any) -> None:
    service.status = ["error"]
    assert commands.train(FLAGS) == 1
    service.status = ["completed"]
    starts = service.calls.count("POST /v1/fine-tunes")
    assert commands.train(["--resume", "sft_checkpoints"]) == 0, capsys.readouterr().err
    assert service.calls.count("POST /v1/fine-tunes") == starts == 1


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (["--mode", "train"], "--mode sft"),
        (["--model", "embedded:tiny"], "embedded:tiny"),
        (["--num-test", "3"], "--num-test"),
    ],
)
def test_what_together_cannot_do_is_one_sentence(
    service: Service, flags: list[str], hint: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert commands.train([*FLAGS, *flags]) == 2
    assert hint in capsys.readouterr().err
    assert not service.calls
    monkeypatch.delenv("TOGETHER_API_KEY")
    assert commands.train(FLAGS) == 2
    assert "TOGETHER_API_KEY" in capsys.readouterr().err
