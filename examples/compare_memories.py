"""Compare memory systems from Python: evidence recall at one budget, on the built-in sample conversation.

python examples/compare_memories.py
"""

from statistics import mean

from locomo.dataset import SAMPLE, read
from memometer.systems import load
from memometer.token_counters import counter_for

BUDGET_TOKENS = 150
count = counter_for(tokenizer="o200k_base")
(conversation,) = read(SAMPLE).conversations
questions = [question for question in conversation.questions if question.answerable and question.evidence]

print(f"{len(questions)} questions, {len(conversation.turns)} turns, {BUDGET_TOKENS} tokens of o200k_base")
for name in ("recent", "session", "bm25", "adaptive"):
    memory = load(name)(count=count)
    state = memory.new()
    for session in conversation.sessions:
        memory.observe(state, session.turns)
    recalls = [memory.recall(state, question.text, BUDGET_TOKENS) for question in questions]
    found = [
        len(set(question.evidence) & set(recall.turn_ids)) / len(question.evidence)
        for question, recall in zip(questions, recalls, strict=True)
    ]
    tokens = mean(recall.tokens for recall in recalls)
    print(f"{name:<10} evidence recall {100 * mean(found):5.1f} %   mean context {tokens:5.1f} tokens")
