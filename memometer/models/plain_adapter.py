"""The DSPy adapter whose prompts are plain text: short, and in a form that small models continue rather than discuss.

One text output: the whole reply is the answer, so it always parses. The answer prompt with its two examples is 137
tokens (o200k) before any memory, 296 with ChatAdapter; a memory under a hard budget can spend the difference on
evidence.

Several outputs: the prompt ends with the first one's name, and the reply goes on from there, a line an output:

    Lines: 3, 7
    Status: answered
    Answer: Sourdough

The prompt of `memometer.reader.signatures.CitedAnswer` with its two examples is 212 tokens, 513 with ChatAdapter;
MultiRound's with three
322, and 713.
"""

from __future__ import annotations

import re
from typing import Any, Literal, get_args, get_origin

import dspy
from dspy.utils.exceptions import AdapterParseError


class PlainAdapter(dspy.Adapter):
    """System message: the instructions. User message: `Field: value` paragraphs, then the first output's name and a
    colon. Outputs may be text, one of several words (Literal), or a list of whole numbers; the last one is text."""

    def format_system_message(self, signature: type[dspy.Signature]) -> str:
        outputs = _outputs(signature)
        if len(outputs) == 1:
            return signature.instructions
        return signature.instructions + "\n\n" + "\n".join(f"{name.capitalize()}: …" for name in outputs)

    def format_user_message_content(
        self,
        signature: type[dspy.Signature],
        inputs: dict[str, Any],
        prefix: str = "",
        suffix: str = "",
        main_request: bool = False,
    ) -> str:
        fields = [_field(name, inputs[name]) for name in signature.input_fields if inputs.get(name) is not None]
        label = f"{next(iter(_outputs(signature))).capitalize()}:"
        return "\n\n".join(part for part in (prefix, *fields, suffix, label) if part)

    def format_assistant_message_content(
        self, signature: type[dspy.Signature], outputs: dict[str, Any], missing_field_message: str | None = None
    ) -> str:
        first, *rest = _outputs(signature)
        lines = [_written(outputs.get(first, missing_field_message))]
        for name in rest:
            if (value := _written(outputs.get(name, missing_field_message))) != NOTHING:
                lines.append(f"{name.capitalize()}: {value}")
        return "\n".join(lines)

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        """The outputs of a reply. What a reply of several leaves out is empty, and a Literal its first word; a reply
        that names no output is the last output, the answer. Raises AdapterParseError where there is no answer."""
        outputs = _outputs(signature)
        # A reasoning model may think aloud first; cut off in the middle of that, it has not answered.
        reply = completion.rpartition("</think>")[2].strip()
        if not reply or reply.startswith("<think>"):
            raise AdapterParseError("PlainAdapter", signature, completion, message="the reply holds no answer")
        if len(outputs) == 1:
            return dict.fromkeys(outputs, reply)
        texts = _by_label(list(outputs), reply)
        parsed = {name: _read(texts.get(name, ""), kind) for name, kind in outputs.items()}
        *others, answer = outputs
        # What the examples write for an empty text is an empty text; only an answer may say "none" and mean it.
        parsed |= {name: "" for name in others if str(parsed[name]).rstrip(".").lower() == NOTHING}
        if not parsed[answer]:
            raise AdapterParseError("PlainAdapter", signature, completion, message="the reply holds no answer")
        return parsed


NOTHING = "none"
"""How an empty list or text is written in an example."""


def _outputs(signature: type[dspy.Signature]) -> dict[str, Any]:
    """Output name -> its type. Raises ValueError for what cannot be written in a line."""
    outputs = {name: field.annotation for name, field in signature.output_fields.items()}
    *_, last = outputs.values()
    if last is not str or not all(kind in (str, list[int]) or get_origin(kind) is Literal for kind in outputs.values()):
        raise ValueError(
            f"PlainAdapter takes text, words of a Literal and lists of int, the last one text; got {outputs}; "
            "use dspy.ChatAdapter."
        )
    return outputs


def _field(name: str, value: Any) -> str:
    text = str(value).strip()
    return f"{name.capitalize()}:{chr(10) if chr(10) in text else ' '}{text}"


def _written(value: Any) -> str:
    return (", ".join(str(item) for item in value) if isinstance(value, list) else str(value)) or NOTHING


def _by_label(names: list[str], reply: str) -> dict[str, str]:
    """What stands behind each output's name, up to the next one; the first mention counts, for small models go on to
    invent the next question."""
    label = re.compile(rf"(?<![\w'])({'|'.join(names)})[\"'*_`]*\s*[:=]", re.IGNORECASE)
    found = list(label.finditer(reply))
    texts: dict[str, str] = {}
    ends = [*(match.start() for match in found[1:]), len(reply)]
    for match, end in zip(found, ends, strict=False):
        texts.setdefault(match[1].lower(), reply[match.end() : end])
    before = (reply[: found[0].start()] if found else reply).strip(" \n\"'`*_{")
    # The prompt ended with the first name, so what comes before any other is its value. Alone it is the answer, but
    # for a list of numbers: a reply that was cut before it came to the answer.
    if found or re.fullmatch(r"\[?\d+(\s*,\s*\d*)+\]?", before):
        texts.setdefault(names[0], before)
    else:
        texts[names[-1]] = before
    return texts


def _read(text: str, kind: Any) -> Any:
    if kind == list[int]:
        return [int(number) for number in re.findall(r"(?<!\d)\d{1,6}(?!\d)", text.strip().split("\n")[0])]
    text = text.strip().split("\n\n")[0].strip(" \t\n\"'`*_{},")
    if get_origin(kind) is Literal:
        words = get_args(kind)
        return next((word for word in words if re.match(rf"{word}\b", text, re.IGNORECASE)), words[0])
    return text
