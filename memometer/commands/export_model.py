"""Write a trained adapter as a model that other programs load, with its prompt and its model card.

    memometer export-model sft_checkpoints/best --gguf reader.gguf        for evaluate.py, ask, llama.cpp
    memometer export-model sft_checkpoints/best --ollama reader/          a GGUF with a Modelfile
    memometer export-model grpo_checkpoints/best --merged reader/         complete weights for transformers and vLLM

The GGUF contains the prompt that the adapter was trained with, so these need no --program:

    python evaluate.py --model embedded:reader.gguf
    memometer ask "Who bought the kayak?" --model embedded:reader.gguf
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from memometer.commands.help_formatter import HelpFormatter


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    p.add_argument("adapter", type=Path, metavar="ADAPTER", help="folder of a trained adapter, such as .../best")
    form = p.add_mutually_exclusive_group(required=True)
    form.add_argument("--gguf", type=Path, metavar="FILE", help="one GGUF file; needs a GGUF or embedded base model")
    form.add_argument("--ollama", type=Path, metavar="DIR", help="a folder with a GGUF file and a Modelfile")
    form.add_argument("--merged", type=Path, metavar="DIR", help="a folder with complete weights; needs PyTorch")
    p.add_argument(
        "--quantize",
        choices=["f32", "f16", "q8_0", "q4_1", "q4_k_m"],
        help="number format of the changed matrices (default q8_0; f32 and f16 for all; q4_k_m needs llama-quantize)",
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Export an adapter.

    Returns:
        0.

    Raises:
        UserError: The adapter cannot be exported in this form.
    """
    args = parser().parse_args(argv)
    from memometer.train.export_model import Exported, export

    found: Exported = export(
        args.adapter, gguf=args.gguf, ollama=args.ollama, merged=args.merged, quantize=args.quantize
    )
    for line in found.lines:
        print(line)
    return 0
