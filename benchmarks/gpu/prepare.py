"""Prepare a GPU run of fifteen minutes on a machine without a network: prompts, code, wheels and weights in pieces.

    python benchmarks/gpu/prepare.py --tier tiny --budget 1024

Writes .gpu/ in the current folder: base/ with the prompts, the scripts, a vocabulary and wheels, and part00/, part01/ …
with pieces of the model's GGUF file, each small enough for one transfer.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

PIECE_BYTES = 57_000_000
WHEELS = (
    "trl==1.16.0 datasets==5.2.0 multiprocess==0.70.19 dill==0.4.1 xxhash==4.1.0 gguf==0.19.0 dspy==3.4.1 gepa==0.1.4 "
    "json-repair==0.64.5 orjson==3.13.0 pydantic==2.14.3 pydantic-core==2.50.4 annotated-types==0.8.0 "
    "typing-inspection==0.4.5 jsonschema==4.26.0 jsonschema-specifications==2025.9.1 referencing==0.37.0 "
    "rpds-py==2026.9.1 attrs==26.1.0 cloudpickle==3.1.2 jsonpointer==3.12 diskcache==5.6.3 tiktoken==0.14.0 "
    "threadpoolctl==3.8.0 filelock==3.32.7 cachetools==7.3.2"
).split()
"""What a machine with PyTorch, transformers, peft, accelerate and pandas still needs."""


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tier", default="tiny", choices=["tiny", "small", "base"])
    p.add_argument("--budget", type=int, default=1024, help="tokens of memory in a prompt (default 1024)")
    p.add_argument("--data", help="locomo10.json (default: as train.py finds it)")
    p.add_argument("--python", default="3.12", help="Python version of the GPU machine (default 3.12)")
    p.add_argument("--limit", type=int, help="questions of each part at most, for a trial")
    p.add_argument("--no-wheels", action="store_true")
    p.add_argument("--no-weights", action="store_true", help="the machine has the weights already")
    return p


def main(argv: list[str] | None = None) -> int:
    """Write .gpu/ and print its size."""
    args = parser().parse_args(argv)
    out = Path(".gpu")
    base = out / "base"
    shutil.rmtree(out, ignore_errors=True)
    base.mkdir(parents=True)
    write_prompts(args, base)
    for name in ("run.py", "analyse.py"):
        shutil.copy(Path(__file__).parent / name, base)
    copy_vocabulary(base / "tiktoken")
    if not args.no_wheels:
        download_wheels(base / "wheels", args.python)
    pieces = 0 if args.no_weights else split_weights(args.tier, out)
    size = sum(file.stat().st_size for file in base.rglob("*") if file.is_file()) / 1e6
    print(f"{out}: base with {size:.1f} MB, {pieces} pieces of the weights")
    return 0


def write_prompts(args: argparse.Namespace, base: Path) -> None:
    """Write the prompts of training, validation and test, with and without the worked examples."""
    from memometer.commands import train
    from memometer.token_counters import counter_for
    from memometer.train import plan, prompt_dataset

    flags = ["--mode", "sft", "--model", f"embedded:{args.tier}", "--rounds", "0", "--budgets", str(args.budget)]
    flags += ["--data", args.data] if args.data else []
    options = train.options_of(vars(train.parser().parse_args(flags)))
    data, count = plan.load_data(options), counter_for()
    parts = {"train": 620, "validation": 100, "test": 0}
    for part, most in parts.items():
        conversations = data.part(part)
        asked = tuple(q for c in conversations for q in c.questions if prompt_dataset.is_labelled(q))
        if most:
            asked, _ = prompt_dataset.choose_questions(conversations, most, absent_share=0.1, seed=0)
        asked = asked[: args.limit]
        for examples in (False, True) if part == "test" else (False,):
            prompts = prompt_dataset.reading_prompts(
                conversations, asked, budgets=[args.budget], rounds=0, count=count,
                examples=examples, benchmark=data.benchmark,
            )  # fmt: skip
            name = f"{part}_examples" if examples else part
            with gzip.open(base / f"{name}.jsonl.gz", "wt", encoding="ascii") as file:
                for prompt in prompts:
                    file.write(json.dumps(prompt.as_json()) + "\n")
    meta = {
        "sha256": data.sha256, "tier": args.tier, "budget": args.budget, "kind": data.kind, "benchmark": data.benchmark,
    }  # fmt: skip
    (base / "meta.json").write_text(json.dumps(meta))


def copy_vocabulary(target: Path) -> None:
    """Copy the o200k vocabulary, with which the reward counts tokens, from LiteLLM's package."""
    import litellm.litellm_core_utils as package

    folder = Path(next(iter(package.__path__))) / "tokenizers"
    target.mkdir()
    for file in folder.iterdir():
        if file.name == "fb374d419588a4632f3f557e76b4b70aebbca790":  # tiktoken's name of o200k_base
            shutil.copy(file, target)


def download_wheels(target: Path, python: str) -> None:
    """Download the wheels for Linux x86-64."""
    tags = [word for n in ("2_28", "2_27", "2_24", "2_17") for word in ("--platform", f"manylinux_{n}_x86_64")]
    tags += ["--platform", "manylinux2014_x86_64"]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    for wheel in WHEELS:
        python_flags = ["--python-version", python, "--implementation", "cp"]
        subprocess.run([*command, *python_flags, *tags, "-d", str(target), wheel], check=True)


def split_weights(tier: str, out: Path) -> int:
    """Split the GGUF file into pieces; return their number."""
    from memometer.models import embedded

    path = embedded.weights(tier)
    count = 0
    with path.open("rb") as file:
        while block := file.read(PIECE_BYTES):
            folder = out / f"part{count:02}"
            folder.mkdir()
            (folder / "piece").write_bytes(block)
            count += 1
    (out / "base" / "gguf.json").write_text(json.dumps({"name": path.name, "pieces": count}))
    return count


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    sys.exit(main())
