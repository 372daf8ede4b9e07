"""Improve a memory on LOCOMO's training conversations.

    python optimize.py --target retrieval       fit the ranking's weights to evidence labels; no model is asked

Writes ranking/weights.json, and prints evidence recall on the validation conversations before and after.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
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
    p.add_argument("--out", type=Path, metavar="FILE", help="default: the weights that come with the project")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    from language_models.tokens import counter_for
    from locomo.dataset import DataError, load
    from locomo.retrieval import examples, recalls
    from locomo.split_data import part
    from ranking.ranker import SHIPPED, fit

    try:
        data = load(args.data)
    except DataError as error:
        print(f"optimize.py: {error}", file=sys.stderr)
        return USAGE
    if data.stand_in:
        print("optimize.py: weights are fitted on LOCOMO, not on a stand-in; see --data.", file=sys.stderr)
        return USAGE
    out: Path = args.out or SHIPPED
    if not out.parent.is_dir():
        print(f"optimize.py: --out {out} is in no folder that exists; make {out.parent} first.", file=sys.stderr)
        return USAGE
    train, validation = part(data, "train"), part(data, "validation")
    labelled = [example for conversation in train for example in examples(conversation)]
    print(f"Fitting on {len(labelled)} questions of {', '.join(c.id for c in train)} …", flush=True)
    fitted = fit(labelled, seed=args.seed, fitted_on=[c.id for c in train])
    ranker = replace(fitted, made_by=f"python optimize.py --target retrieval --seed {args.seed}")
    count = counter_for(tokenizer=None)
    print(f"Evidence recall on {', '.join(c.id for c in validation)}, {count.name} tokens:")
    print("  " + "".join(f"{budget:>8,}" for budget in BUDGETS))
    for name, weights in (("untrained", None), ("fitted", ranker)):
        found = recalls(validation, weights, BUDGETS, count)
        print("  " + "".join(f"{100 * value:8.1f}" for value in found.values()) + f"  {name}")
    ranker.save(out)
    print(f"Written to {out}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
