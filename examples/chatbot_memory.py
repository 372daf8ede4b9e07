"""A chatbot's memory: add turns, and recall those that match a question. It needs no key and no language model.

python examples/chatbot_memory.py
"""

import tempfile

import memometer

with tempfile.TemporaryDirectory() as folder, memometer.open_memory(f"{folder}/memory.db") as memory:
    memory.add("I sold the kayak to my cousin.", speaker="Nadia")
    memory.add("The vet closes at six on Fridays.", speaker="Oskar")
    memory.add("My cousin paid me in honey.", speaker="Nadia")

    recall = memory.recall("Who bought the kayak?", budget_tokens=60)
    print(recall.text)
    print(f"{recall.tokens} tokens, turns {', '.join(recall.turn_ids)}")
