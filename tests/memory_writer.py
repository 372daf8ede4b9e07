"""A model for memory systems that extract facts: it fills the JSON schemas and tools of a request from its text."""

from __future__ import annotations

import json
import re
import zlib
from typing import Any

_LINE = re.compile(r"^(?:\[[\d:T-]+\] )?([A-Z]\w*): (.+)$", re.MULTILINE)
_DIMENSIONS = 64


def answer(body: dict[str, Any]) -> dict[str, Any]:
    """The reply to a chat or embedding request of OpenAI's protocol."""
    if "input" in body:
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        data = [{"object": "embedding", "index": i, "embedding": vector(str(text))} for i, text in enumerate(texts)]
        tokens = sum(len(str(text)) for text in texts)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "model": body.get("model"), "data": data, "usage": usage}
    text = "\n".join(str(message.get("content") or "") for message in body["messages"])
    message: dict[str, Any] = {"role": "assistant", "content": None}
    finish = "stop"
    if tools := body.get("tools"):
        # A memory system that updates facts offers several tools; the first one that inserts is called.
        tool = next((t["function"] for t in tools if "Patch" not in t["function"]["name"]), tools[0]["function"])
        arguments = json.dumps(fill(tool["parameters"], text))
        call = {"id": "call_1", "type": "function", "function": {"name": tool["name"], "arguments": arguments}}
        message["tool_calls"], finish = [call], "tool_calls"
    elif schema := ((body.get("response_format") or {}).get("json_schema") or {}).get("schema"):
        message["content"] = json.dumps(fill(schema, text))
    else:
        message["content"] = free(text)
    prompt, reply = len(text), len(str(message))
    usage = {"prompt_tokens": prompt, "completion_tokens": reply, "total_tokens": prompt + reply}
    choice = {"index": 0, "finish_reason": finish, "message": message}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


def vector(text: str) -> list[float]:
    """A vector of the words of a text; texts that share words are near."""
    found = [0.0] * _DIMENSIONS
    for word in re.findall(r"\w+", text.lower()):
        found[zlib.crc32(word.encode()) % _DIMENSIONS] += 1.0
    norm = sum(value * value for value in found) ** 0.5 or 1.0
    return [value / norm for value in found]


def lines(text: str) -> list[tuple[str, str]]:
    """The (speaker, words) of the conversation in a prompt."""
    return _LINE.findall(text)


def free(text: str) -> str:
    """JSON that a prompt describes in words only."""
    said = lines(text)
    if "lossless_restatement" in text:
        window = lines(text.split("[Current Window Dialogues]")[-1].split("[Requirements]")[0])
        return json.dumps([{"lossless_restatement": f"{who} said: {what}", "keywords": [who]} for who, what in window])
    if '"facts"' in text:
        return json.dumps({"facts": [what for _, what in said]})
    return json.dumps({"queries": [], "required_info": [], "keywords": [], "tags": [], "context": "talk"})


def fill(schema: dict[str, Any], text: str, root: dict[str, Any] | None = None, name: str = "") -> Any:
    """A value of a JSON schema, with the last line of the conversation as its texts."""
    root = root or schema
    if "$ref" in schema:
        found: Any = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        return fill(found, text, root, name)
    if options := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
        return fill(options[0], text, root, name)
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object" or "properties" in schema:
        return {key: fill(value, text, root, key) for key, value in (schema.get("properties") or {}).items()}
    who, what = (lines(text) or [("Somebody", "something")])[-1]
    if kind == "array":
        if name in ("extracted_entities", "nodes"):
            first, second = (fill(schema["items"], text, root, name) for _ in range(2))
            return [first | {"name": who, "id": who}, second | {"name": "the talk", "id": "the talk"}]
        whole = name in ("edges", "extracted_edges", "facts", "memories")
        return [fill(schema["items"], text, root, name)] if whole else []
    names = {
        "source_entity_name": who,
        "target_entity_name": "the talk",
        "source_node_id": who,
        "target_node_id": "the talk",
        "relation_type": "SAID_IN",
        "relationship_name": "said_in",
        "name": who,
        "valid_at": None,
        "invalid_at": None,
    }
    if name in names:
        return names[name]
    return {"integer": 0, "number": 0.0, "boolean": False, "null": None}.get(str(kind), f"{who} said: {what}")
