"""Improve a memory on LOCOMO's training conversations.

    python optimize.py --target retrieval                       fit the ranking to evidence labels; no model is asked
    python optimize.py --target retrieval --encoder minilm      the same, and how the encoder's tokens are compared

Writes the weights into ranking/, and prints evidence recall on the validation conversations before and after.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
# Many small products: BLAS threads would only wait for each other, spinning. Set before NumPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

USAGE = 2
BUDGETS = (512, 1024, 2048, 4096)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    p.add_argument("--target", choices=["retrieval"], required=True, help="what is improved")
    p.add_argument("--data", metavar="FILE", help="locomo10.json (default: LOCOMO_PATH, data/, the network)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--encoder", metavar="NAME", help="minilm, or the folder of a BERT")
    p.add_argument("--out", type=Path, metavar="FOLDER", help="default: ranking/, the weights that the project uses")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    from language_models import encoders
    from language_models.tokens import counter_for
    from locomo.dataset import DataError, aside, load
    from locomo.retrieval import fit, lesson, recalls
    from locomo.split_data import part
    from memory_system import MemorySystem
    from ranking import late, ranker

    try:
        data = load(args.data)
        encoder = encoders.load(args.encoder, say=aside) if args.encoder else None
    except (DataError, encoders.EncoderUnavailable) as error:
        return _refuse(str(error))
    if data.stand_in and not args.out:
        return _refuse("weights that the project uses are fitted on LOCOMO, this is a stand-in; give --out FOLDER.")
    if not (encoder is None or isinstance(encoder, encoders.CachedTokens)):
        return _refuse(f"{encoder.name} gives no token vectors; use --encoder minilm, or the folder of a BERT.")
    if args.out and args.out.exists() and not args.out.is_dir():
        return _refuse(f"--out {args.out} is a file; give a folder.")

    def say(text: str) -> None:
        print(f"{data.mark}{text}", flush=True)

    train, validation = part(data, "train"), part(data, "validation")
    if encoder and len(train) < 2:
        return _refuse("with an encoder it takes two conversations: each is compared by what the others taught.")
    name = encoder.name if encoder else ""
    say(f"Fitting on {', '.join(c.id for c in train)}{f' with {name}' if name else ''} …")
    lessons = {c.id: lesson(c, encoder) for c in train} if encoder else None
    made_by = (
        f"python optimize.py --target retrieval{f' --encoder {args.encoder}' if encoder else ''} --seed {args.seed}"
    )
    weights, token_map = fit(train, lessons, encoder=name, seed=args.seed, made_by=made_by)
    count = counter_for(tokenizer=None)
    memory = MemorySystem(count=count, ranker=weights, encoder=encoder, token_map=token_map)
    say(f"Evidence recall on {', '.join(c.id for c in validation)}, {count.name} tokens:")
    say("  " + "".join(f"{budget:>8,}" for budget in BUDGETS))
    for label, found in recalls(validation, memory, BUDGETS, count).items():
        say("  " + "".join(f"{100 * value:8.1f}" for value in found) + f"  {label}")
    for path, value in (
        (ranker.SHIPPED_WITH_ENCODER if encoder else ranker.SHIPPED, weights),
        (late.SHIPPED, token_map),
    ):
        if value is not None:
            to = args.out / path.name if args.out else path
            to.parent.mkdir(parents=True, exist_ok=True)
            value.save(to)
            say(f"Written to {to}.")
    return 0


def _refuse(why: str) -> int:
    print(f"optimize.py: {why}", file=sys.stderr)
    return USAGE


if __name__ == "__main__":
    sys.exit(main())
