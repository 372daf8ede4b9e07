"""`memometer codebook`: show the vector codebook of a memory."""

from __future__ import annotations

from collections.abc import Sequence

from memometer.commands.memory import memory_options, open_memories, print_result, utf8_text
from memometer.serve import LOCAL_TENANT


def main(argv: Sequence[str] | None = None) -> int:
    """Print the energies of the codes, and the goal; with --json and --vectors also the vectors."""
    parser = memory_options("Show the codebook of a memory's vectors: recurring ones, and how much energy each has.")
    parser.add_argument(
        "--goal", action="append", default=[], type=utf8_text, metavar="TEXT",
        help="text of a goal; may be repeated, and the mean vector is the goal",
    )  # fmt: skip
    parser.add_argument("--vectors", action="store_true", help="print the vectors too (needs --json)")
    args = parser.parse_args(argv)
    if args.vectors and not args.json:
        parser.error("--vectors needs --json")
    with open_memories(args) as memories:
        codes = memories.codebook(LOCAL_TENANT, args.memory, goals=args.goal)
        at = memories.now()
    if codes is None:
        print_result(args, {"energy": {"count": 0}, "goal": []}, f"Memory {args.memory} has no vectors.")
        return 0
    dumped = {name: array.tolist() for name, array in codes.dump().items()}
    energy, goal = codes.energy_stats(time=at / 3600), dumped.pop("goal")
    data = {"energy": energy, "goal": goal, **(dumped if args.vectors else {})}
    lines = [f"{name:<6} {value:,.4g}" for name, value in energy.items()]
    print_result(
        args, data, "\n".join([f"{len(codes.long)} codes and {len(codes.short)} recent vectors; energies:", *lines])
    )
    return 0
