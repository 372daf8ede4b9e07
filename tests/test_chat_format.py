"""End tokens and greedy decoding of models that are trained here. Needs PyTorch and transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.tiny_models import END, STOP, write_tiny_model

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations of the training libraries

SAMPLE = str(ROOT / "locomo" / "sample.json")
MESSAGES = [{"role": "system", "content": "Answer."}, {"role": "user", "content": "When?"}]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model: its configuration declares another end than its chat template writes."""
    return write_tiny_model(tmp_path_factory.mktemp("base"), declared_end=STOP)


def _load(folder: Path, **options: Any) -> Any:
    from memometer.train import local_model

    return local_model.load(str(folder), precision="fp32", **options)


def test_the_end_comes_from_the_chat_template(base: Path, tmp_path: Path) -> None:
    chat = _load(base).format
    ids = chat.tokenizer.convert_tokens_to_ids([END, STOP])
    assert (chat.end_token, chat.end_is_new, list(chat.stop_ids)) == (END, True, ids)
    assert chat.reply_ids("2022")[-1] == ids[0]
    instructed = _load(write_tiny_model(tmp_path / "instructed")).format
    assert (instructed.end_token, instructed.end_is_new) == (END, False)


def test_thinking_is_off_unless_it_is_chosen(base: Path) -> None:
    tokenizer = _load(base).tokenizer
    tokenizer.chat_template += "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    from memometer.train.chat_format import ChatFormat

    quiet, chosen = ChatFormat.of(tokenizer), ChatFormat.of(tokenizer, (), {"enable_thinking": True})
    assert tokenizer.decode(quiet.prompt_ids(MESSAGES)).endswith("<think></think>")
    assert not tokenizer.decode(chosen.prompt_ids(MESSAGES)).endswith("<think></think>")
    assert quiet.decoding()["chat_template_kwargs"] == {"enable_thinking": False}


def test_greedy_ignores_the_models_own_sampling_values(base: Path, tmp_path: Path) -> None:
    import torch

    folder = write_tiny_model(tmp_path / "sampled")
    sampling = {"do_sample": True, "temperature": 0.7, "top_k": 5, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2}
    (folder / "generation_config.json").write_text(json.dumps(sampling))
    local = _load(folder)
    prompt = local.prompt_ids(MESSAGES)
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(24):
            ids.append(int(local.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in local.format.stop_ids:
                break
    expected = local.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
    assert local.generate([prompt], max_tokens=24) == [expected]


def test_a_trained_base_model_ends_its_replies(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reply is the answer alone, and the adapter contains the trained row of the end token."""
    pytest.importorskip("trl", reason="TRL is not installed")
    from safetensors import safe_open

    from tests import commands

    monkeypatch.chdir(tmp_path)
    flags = ["--mode", "sft", "--backend", "trl", "--data", SAMPLE, "--memory", "oracle", "--budgets", "128"]
    flags += ["--num-train", "1", "--num-val", "1", "--batch-size", "1", "--gradient-accumulation", "1"]
    flags += ["--num-train-steps", "80", "--eval-steps", "80", "--learning-rate", "0.03", "--warmup-steps", "0"]
    flags += ["--lora-rank", "16", "--max-completion-tokens", "64", "--num-test", "0", "--no-mlflow"]
    assert commands.train([*flags, "--model", str(base), "--precision", "fp32"]) == 0
    best = tmp_path / "sft_checkpoints" / "best"
    with safe_open(best / "adapter_model.safetensors", "np") as file:
        assert any("trainable_tokens" in name for name in file.keys())  # noqa: SIM118 - not a dict
    notes = json.loads((best / "training.json").read_text())
    assert notes["decoding"]["end_token"] == END
    local = _load(base).with_adapter(best)
    line = json.loads((tmp_path / "sft_checkpoints" / "train.jsonl").read_text().splitlines()[0])
    (reply,) = local.generate([local.prompt_ids(line["messages"])], max_tokens=64)
    assert reply == line["case"]["keys"][0]
