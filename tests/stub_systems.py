"""Memory systems of the plug-in protocol for the tests: sound ones, and ones that break it in one way each."""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.error
import urllib.request
from typing import Any


class Sound:
    """Ranks turns by the words that they share with the question, and shows them unchanged."""

    def __init__(self, note: str = "", *, reverse: bool = False) -> None:
        self.note, self.reverse = note, reverse
        self.turns: dict[str, list[dict[str, Any]]] = {}

    def open(self, scope: str) -> None:
        self.turns[scope] = []

    def add(self, scope: str, turns: list[dict[str, Any]]) -> None:
        self.turns[scope] += turns

    def ready(self, scope: str) -> bool | None:
        return True

    def search(self, scope: str, question: str, limit: int, at: str) -> Any:
        words = set(question.lower().split())
        ranked = sorted(self.turns[scope], key=lambda turn: -len(words & set(turn["text"].lower().split())))
        ranked = ranked[::-1] if self.reverse else ranked
        return [self.item(turn) for turn in ranked[:limit]]

    def item(self, turn: dict[str, Any]) -> Any:
        return {"text": turn["text"], "turn_ids": [turn["id"]], "score": 0.5}

    def close(self, scope: str) -> None:
        del self.turns[scope]

    def describe(self) -> Any:
        return {"name": "sound", "versions": {"sound": "1"}, "parameters": {"note": self.note}, "degraded": []}


class Asynchronous(Sound):
    """Every method is a coroutine, and `ready` needs to be asked twice."""

    waited = False

    async def open(self, scope: str) -> None:  # type: ignore[override]
        super().open(scope)

    async def search(self, scope: str, question: str, limit: int, at: str) -> Any:
        return super().search(scope, question, limit, at)

    async def ready(self, scope: str) -> bool:  # type: ignore[override]
        self.waited, before = True, self.waited
        return before


class Prints(Sound):
    def add(self, scope: str, turns: list[dict[str, Any]]) -> None:
        print("adding", len(turns))
        os.write(1, b"from C \xff\n")
        super().add(scope, turns)


class Degraded(Sound):
    def describe(self) -> Any:
        return {**super().describe(), "degraded": ["spaCy is missing"]}


class Facts(Sound):
    """Shows facts without their source."""

    def item(self, turn: dict[str, Any]) -> Any:
        return {"text": f"{turn['speaker']} mentioned: {turn['text'][:30]}", "turn_ids": None, "score": None}


class Batches(Sound):
    """Shows a summary that comes from somewhere in three turns."""

    def search(self, scope: str, question: str, limit: int, at: str) -> Any:
        turns = self.turns[scope]
        parts = [turns[i : i + 3] for i in range(0, len(turns), 3)]
        return [{"text": "They talked.", "turn_ids": [t["id"] for t in part], "score": 1} for part in parts][:limit]


class NeedsParameter(Sound):
    def __init__(self, path: str) -> None:
        super().__init__()


class NoSearch:
    def open(self, scope: str) -> None: ...


class CrashAtStart(Sound):
    def __init__(self) -> None:
        raise RuntimeError("no licence file")


class CrashInAdd(Sound):
    def add(self, scope: str, turns: list[dict[str, Any]]) -> None:
        raise KeyError("speaker_id")


class Exits(Sound):
    def ready(self, scope: str) -> bool:
        sys.exit(3)


class Empty(Sound):
    def search(self, scope: str, question: str, limit: int, at: str) -> Any:
        return []


class BlankText(Sound):
    def item(self, turn: dict[str, Any]) -> Any:
        return {"text": " ", "turn_ids": [turn["id"]], "score": 1}


class CrashInSearch(Sound):
    """Fails from its second search, after the canary."""

    searched = 0

    def search(self, scope: str, question: str, limit: int, at: str) -> Any:
        self.searched += 1
        if self.searched > 1:
            raise ValueError("index is corrupt")
        return super().search(scope, question, limit, at)


class DiesOnce(CrashInSearch):
    """Its process ends in the first question, once."""

    def search(self, scope: str, question: str, limit: int, at: str) -> Any:
        self.searched += 1
        if self.searched > 1 and not os.path.exists(os.environ["DIED"]):
            open(os.environ["DIED"], "w").close()
            os._exit(9)
        return Sound.search(self, scope, question, limit, at)


class HangsInAdd(Sound):
    def add(self, scope: str, turns: list[dict[str, Any]]) -> None:
        time.sleep(600)


class HangsInSearch(CrashInSearch):
    def search(self, scope: str, question: str, limit: int, at: str) -> Any:
        self.searched += 1
        if self.searched > 1:
            time.sleep(600)
        return Sound.search(self, scope, question, limit, at)


class UnknownId(Sound):
    def item(self, turn: dict[str, Any]) -> Any:
        return {**super().item(turn), "turn_ids": ["no such turn"]}


class NaNScore(Sound):
    def item(self, turn: dict[str, Any]) -> Any:
        return {**super().item(turn), "score": float("nan")}


class TextIsNumber(Sound):
    def item(self, turn: dict[str, Any]) -> Any:
        return {**super().item(turn), "text": 7}


class IdsAreText(Sound):
    def item(self, turn: dict[str, Any]) -> Any:
        return {**super().item(turn), "turn_ids": turn["id"]}


class ReturnsObject(Sound):
    def search(self, scope: str, question: str, limit: int, at: str) -> Any:
        return {"results": super().search(scope, question, limit, at)}


class NotJson(Sound):
    def item(self, turn: dict[str, Any]) -> Any:
        return {**super().item(turn), "text": b"bytes"}


class Duplicates(Sound):
    def search(self, scope: str, question: str, limit: int, at: str) -> Any:
        return [item for item in super().search(scope, question, limit, at) for _ in range(3)]


class Floods(Sound):
    """Writes much more to standard error than a pipe holds."""

    def add(self, scope: str, turns: list[dict[str, Any]]) -> None:
        sys.stderr.write("warning: " + "x" * 2_000_000 + "\n")
        super().add(scope, turns)


class AsksModel(Sound):
    """Calls the model of OPENAI_BASE_URL: a chat and an embedding for each session, a stream for each search."""

    def __init__(self) -> None:
        super().__init__()
        self.url, self.key = os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"]

    def post(self, route: str, body: dict[str, Any]) -> str:
        request = urllib.request.Request(f"{self.url}/{route}", json.dumps(body).encode())
        request.add_header("Authorization", f"Bearer {self.key}")
        with urllib.request.urlopen(request) as reply:
            return str(reply.read().decode())

    def add(self, scope: str, turns: list[dict[str, Any]]) -> None:
        text = "\n".join(turn["text"] for turn in turns)
        self.post("chat/completions", {"model": "any", "messages": [{"role": "user", "content": text}]})
        self.post("embeddings", {"model": "any-encoder", "input": [text]})
        super().add(scope, turns)

    def search(self, scope: str, question: str, limit: int, at: str) -> Any:
        messages = [{"role": "user", "content": question}]
        stream = self.post("chat/completions", {"model": "any", "messages": messages, "stream": True})
        assert "usage" not in stream, "it did not ask for the usage"
        assert stream.rstrip().endswith("[DONE]")
        return super().search(scope, question, limit, at)


class RetriesModel(AsksModel):
    """Asks again after a failed call."""

    def post(self, route: str, body: dict[str, Any]) -> str:
        try:
            return super().post(route, body)
        except urllib.error.HTTPError:
            return super().post(route, body)


class Shares(Sound):
    """Searches all scopes."""

    def search(self, scope: str, question: str, limit: int, at: str) -> Any:
        return [{"text": t["text"], "turn_ids": None} for turns in self.turns.values() for t in turns][:limit]
