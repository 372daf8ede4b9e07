"""Export of a trained adapter: GGUF, merged weights or an Ollama folder, each with its prompt and model card."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memometer.errors import UserError
from memometer.models import embedded
from memometer.train import merge_lora
from memometer.train.adapter_evaluation import EVALUATION
from memometer.train.checkpoints import PROGRAM
from memometer.train.gguf_export import write_gguf
from memometer.train.local_model import require


@dataclass(frozen=True)
class Exported:
    """The written file or folder, and lines for the user."""

    path: Path
    lines: tuple[str, ...]


def export(
    adapter: Path,
    *,
    gguf: Path | None = None,
    ollama: Path | None = None,
    merged: Path | None = None,
    quantize: str | None = None,
) -> Exported:
    """Write an adapter in one of three forms.

    Args:
        adapter: Folder of the adapter, with training.json and program.json.
        gguf: The GGUF file to write.
        ollama: The folder for a GGUF file and a Modelfile.
        merged: The folder for complete weights.
        quantize: Number format of the changed matrices; None for q8_0.

    Raises:
        UserError: The adapter is not one of train.py, the target exists, or this form is not possible.
    """
    notes, program = _read(adapter)
    target = gguf or ollama or merged
    if target is None:
        raise UserError("choose a form: --gguf FILE, --ollama DIR or --merged DIR.")
    if target.exists():
        raise UserError(f"{target} exists; delete it, or choose another name.")
    if not target.parent.is_dir():
        raise UserError(f"the folder {target.parent} does not exist; create it first.")
    if merged:
        if quantize:
            raise UserError("--quantize has no effect with --merged; leave it out.")
        return _merged(adapter, merged, notes, program)
    if gguf:
        _gguf(adapter, gguf, notes, program, quantize or "q8_0")
        gguf.with_suffix(".md").write_text(model_card(adapter, notes), encoding="utf-8")
        return Exported(gguf, (f"{gguf} written.", *_next_steps(gguf)))
    assert ollama is not None
    part = ollama.with_name(f".{ollama.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    _gguf(adapter, part / "model.gguf", notes, program, quantize or "q8_0")
    (part / "Modelfile").write_text(modelfile(notes, program), encoding="utf-8")
    (part / PROGRAM).write_text(program, encoding="utf-8")
    (part / "README.md").write_text(model_card(adapter, notes), encoding="utf-8")
    part.replace(ollama)
    return Exported(ollama, (f"{ollama} written. Load it with: ollama create reader -f {ollama / 'Modelfile'}",))


def _read(adapter: Path) -> tuple[dict[str, Any], str]:
    try:
        notes = json.loads((adapter / "training.json").read_text(encoding="utf-8"))
        json.loads((adapter / merge_lora.SETTINGS).read_text(encoding="utf-8"))
        notes["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{adapter} is not an adapter of train.py (no usable training.json); train one.") from error
    try:
        return notes, (adapter / PROGRAM).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{adapter} has no {PROGRAM}, the prompt that it was trained with; copy the file of --out there."
        ) from error


def _gguf(adapter: Path, target: Path, notes: dict[str, Any], program: str, quantize: str) -> None:
    require("gguf", "safetensors")
    model = str(notes["model"])
    if not (model.startswith("embedded:") or model.endswith(".gguf")):
        raise UserError(
            f"{model} is not a GGUF file, and an adapter is added to the GGUF of its base; use --merged DIR, then "
            "convert_hf_to_gguf.py of llama.cpp."
        )
    if quantize == "q4_k_m" and not shutil.which("llama-quantize"):
        raise UserError("--quantize q4_k_m needs llama-quantize of llama.cpp on the PATH; use q8_0 or q4_1.")
    base = embedded.weights(model.removeprefix("embedded:"))
    form = "f16" if quantize == "q4_k_m" else quantize
    write_gguf(adapter, base, target, quantize=form, notes=notes, program=program)
    if quantize == "q4_k_m":
        whole = target.with_name(f".{target.name}.f16")
        target.replace(whole)
        done = subprocess.run(
            ["llama-quantize", str(whole), str(target), "Q4_K_M"], capture_output=True, text=True, check=False
        )
        whole.unlink()
        if done.returncode:
            raise UserError(f"llama-quantize failed: {done.stderr.strip().splitlines()[-1:]}; use --quantize q8_0.")


def _merged(adapter: Path, target: Path, notes: dict[str, Any], program: str) -> Exported:
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    merge_lora.merge(adapter, part)
    (part / PROGRAM).write_text(program, encoding="utf-8")
    (part / "README.md").write_text(model_card(adapter, notes), encoding="utf-8")
    part.replace(target)
    return Exported(
        target,
        (
            f"{target} written. Serve it with: vllm serve {target}",
            f"Evaluate it with: python evaluate.py --model openai/{target} --api-base http://127.0.0.1:8000/v1 "
            f"--program {target / PROGRAM}",
        ),
    )


def _next_steps(path: Path) -> tuple[str, ...]:
    return (
        f"Evaluate it with: python evaluate.py --model embedded:{path}",
        f"Use it with: memometer ask QUESTION --model embedded:{path}",
    )


def modelfile(notes: dict[str, Any], program: str) -> str:
    """Return a Modelfile for Ollama: greedy decoding, the end token, and the trained instructions."""
    instructions = json.loads(program)["read"]["signature"]["instructions"]
    end = notes.get("decoding", {}).get("end_token") or ""
    stop = f"PARAMETER stop {json.dumps(end)}\n" if end else ""
    return (
        "FROM ./model.gguf\n"
        "PARAMETER temperature 0\n"
        "PARAMETER repeat_penalty 1.0\n"
        f"PARAMETER num_predict {notes['values']['max_completion_tokens']}\n{stop}"
        f'SYSTEM """{instructions}"""\n'
    )


def model_card(adapter: Path, notes: dict[str, Any]) -> str:
    """Return the adapter's model card for the exported model, with its last evaluation."""
    text = (adapter / "README.md").read_text(encoding="utf-8") if (adapter / "README.md").exists() else ""
    text = text.replace("library_name: peft\n", "").replace("LoRA adapter for", "A model trained from")
    try:
        found = json.loads((adapter / EVALUATION).read_text(encoding="utf-8"))
        arms = "\n".join(found["arms"])
        gain = f"Measured on {found['questions']} questions of the {found['split']} split:\n\n```text\n{arms}\n```\n"
    except (OSError, ValueError, KeyError, TypeError):
        gain = "Its gain is not measured; run `python train.py --mode evaluate` and export again.\n"
    return f"{text}\n## Gain\n\n{gain}\nBase model: {embedded.repository_of(str(notes['model']))}.\n"
