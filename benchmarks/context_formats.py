"""Compare the context formats: tokens, and the evidence that fits a budget.

    python benchmarks/context_formats.py [--budgets 512,1024,2048] [--tokenizer o200k_base] [--out runs/formats]

The adaptive memory ranks the turns for the questions of LOCOMO's test part, or of the sample if LOCOMO is not
available. `same turns` prints the turns that the format `lines` shows in each format, and compares their tokens with
compact JSON. `same budget` fills the budget in each format, and reports the number of turns and the share of the
evidence of categories 1-4 among them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from locomo.dataset import load
from memometer.benchmarks.metrics import evidence_recall
from memometer.budget import best_first, pack, show
from memometer.reader.context_formats import FORMATS, form
from memometer.systems.adaptive import AdaptiveMemory
from memometer.token_counters import TokenCounter, counter_for


class CachedCounter:
    """A token counter that counts each text once, because every question needs most turns of its conversation."""

    def __init__(self, count: TokenCounter) -> None:
        self.name = count.name
        self._count = lru_cache(maxsize=None)(count)

    def __call__(self, text: str) -> int:
        return self._count(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", default="512,1024,2048")
    parser.add_argument("--tokenizer", default="o200k_base")
    parser.add_argument("--out", type=Path, default=Path("runs/formats"))
    args = parser.parse_args()
    count = CachedCounter(counter_for(tokenizer=args.tokenizer))
    formats = {name: form(name) for name in FORMATS}
    data = load(None)
    measured: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    memory = AdaptiveMemory(count=count)
    for conversation in data.part("test"):
        state = memory.new()
        for session in conversation.sessions:
            memory.observe(state, session.turns)
        places = {turn.id: place for place, turn in enumerate(state.turns)}
        for question in conversation.questions:
            if not question.answerable or not question.evidence:
                continue
            ranking = list(best_first(memory.scores(state, question.text)))
            for budget in map(int, args.budgets.split(",")):
                lines = [places[id] for id in pack(state, ranking, budget, count).turn_ids]
                for name, printed in formats.items():
                    recall = pack(state, ranking, budget, count, form=printed)
                    values = measured[name, budget]
                    values["tokens"].append(show(state, lines, count, form=printed).tokens)
                    values["turns"].append(len(recall.turn_ids))
                    values["filled"].append(recall.tokens / budget)
                    values["evidence"].append(evidence_recall(question.evidence, recall.turn_ids) or 0.0)
    table: list[dict[str, Any]] = []
    print(f"{data.prefix}{count.name}; {len(next(iter(measured.values()))['tokens'])} questions of the test part")
    print(f"{data.prefix}budget  format  same turns: tokens  against JSON  same budget: turns  filled %  evidence %")
    for (name, budget), columns in sorted(measured.items(), key=lambda item: (item[0][1], FORMATS.index(item[0][0]))):
        mean = {key: sum(values) / len(values) for key, values in columns.items()}
        against = mean["tokens"] / (sum(measured["json", budget]["tokens"]) / len(columns["tokens"])) - 1
        table.append({"format": name, "budget": budget, "against_json": against, **mean})
        print(
            f"{data.prefix}{budget:>6,}  {name:<6}  {mean['tokens']:>18,.0f}  {100 * against:>+11.1f}%  "
            f"{mean['turns']:>18.1f}  {100 * mean['filled']:>8.1f}  {100 * mean['evidence']:>10.1f}"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "formats.json").write_text(json.dumps(table, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
