"""What each format of remembered turns costs in tokens, and in evidence that a budget then holds.

    python benchmarks/formats.py [--budgets 512,1024,2048] [--tokenizer o200k_base] [--out runs/formats]

Real recalls: the adaptive memory is asked the questions of LOCOMO's test part (its weights come from other
conversations; from our sample where LOCOMO is not there). `same turns` prints the very turns that lines show in each
format; its tokens stand beside those of compact JSON. `same budget` lets the format fill the budget: how many turns it
holds, and what share of the evidence of categories 1-4 is among them.
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


class Remembering:
    """The counts of a counter, each made once: every question tries most rows of its conversation."""

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
    count = Remembering(counter_for(tokenizer=args.tokenizer))
    forms = {name: form(name) for name in FORMATS}
    data = load(None)
    found: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
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
                for name, printed in forms.items():
                    recall = pack(state, ranking, budget, count, form=printed)
                    figures = found[name, budget]
                    figures["tokens"].append(show(state, lines, count, form=printed).tokens)
                    figures["turns"].append(len(recall.turn_ids))
                    figures["filled"].append(recall.tokens / budget)
                    figures["evidence"].append(evidence_recall(question.evidence, recall.turn_ids) or 0.0)
    table: list[dict[str, Any]] = []
    print(f"{data.prefix}{count.name}; {len(next(iter(found.values()))['tokens'])} questions of the test part")
    print(f"{data.prefix}budget  format  same turns: tokens  against JSON  same budget: turns  filled %  evidence %")
    for (name, budget), figures in sorted(found.items(), key=lambda item: (item[0][1], FORMATS.index(item[0][0]))):
        mean = {key: sum(values) / len(values) for key, values in figures.items()}
        against = mean["tokens"] / (sum(found["json", budget]["tokens"]) / len(figures["tokens"])) - 1
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
