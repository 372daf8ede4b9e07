"""A DSPy adapter with short plain-text prompts, which small models complete more reliably than chat templates.

With one text output, the whole reply is the answer, so it always parses. The answer prompt with its two examples has
137 tokens (o200k_base) without the memory, compared with 296 in ChatAdapter.

With several outputs, the prompt ends with the name of the first one, and the reply continues with one line per output:

    Lines: 3, 7
    Status: answered
    Answer: Sourdough

The prompt of `memometer.reader.signatures.CitedAnswer` with its two examples has 212 tokens, compared with 513 in
ChatAdapter. The prompt of `MultiRound` with three examples has 322, compared with 713.
"""

from __future__ import annotations

import re
from typing import Any, Literal, get_args, get_origin

import dspy
from dspy.utils.exceptions import AdapterParseError

from memometer.models.replies import without_fence, without_thoughts, without_wrappers


class PlainAdapter(dspy.Adapter):
    """Formats the instructions as the system message, and the inputs as `Field: value` paragraphs.

    The user message ends with the name of the first output and a colon. Outputs may be text, a Literal of words, or a
    list of integers; the last one must be text.
    """

    def format_system_message(self, signature: type[dspy.Signature]) -> str:
        """Return the instructions, followed by the form of the reply if there are several outputs."""
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
        """Return the inputs as paragraphs, and the name of the first output."""
        fields = [_field(name, inputs[name]) for name in signature.input_fields if inputs.get(name) is not None]
        label = f"{next(iter(_outputs(signature))).capitalize()}:"
        return "\n\n".join(part for part in (prefix, *fields, suffix, label) if part)

    def format_assistant_message_content(
        self, signature: type[dspy.Signature], outputs: dict[str, Any], missing_field_message: str | None = None
    ) -> str:
        """Return the outputs of a worked example."""
        first, *rest = _outputs(signature)
        lines = [_written(outputs.get(first, missing_field_message))]
        for name in rest:
            if (value := _written(outputs.get(name, missing_field_message))) != NOTHING:
                lines.append(f"{name.capitalize()}: {value}")
        return "\n".join(lines)

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        """Return the outputs of a reply.

        Missing outputs are empty, and a missing Literal is its first word. A reply without the name of an output is the
        last output, the answer.

        Raises:
            AdapterParseError: the reply has no answer.
        """
        outputs = _outputs(signature)
        reply = without_thoughts(completion)
        reply = without_wrappers(reply) if len(outputs) == 1 else without_fence(reply)
        if not reply:
            raise AdapterParseError("PlainAdapter", signature, completion, message="the reply contains no answer")
        if len(outputs) == 1:
            return dict.fromkeys(outputs, reply)
        texts = _by_label(list(outputs), reply)
        parsed = {name: _read(texts.get(name, ""), kind) for name, kind in outputs.items()}
        *others, answer = outputs
        # The examples write "none" for an empty text. Only an answer may mean the word itself.
        parsed |= {name: "" for name in others if str(parsed[name]).rstrip(".").lower() == NOTHING}
        if not parsed[answer]:
            raise AdapterParseError("PlainAdapter", signature, completion, message="the reply contains no answer")
        return parsed


NOTHING = "none"
"""An empty list or text in an example."""


def _outputs(signature: type[dspy.Signature]) -> dict[str, Any]:
    """Return the type of each output. Raises ValueError for a type that does not fit on a line."""
    outputs = {name: field.annotation for name, field in signature.output_fields.items()}
    *_, last = outputs.values()
    if last is not str or not all(kind in (str, list[int]) or get_origin(kind) is Literal for kind in outputs.values()):
        raise ValueError(
            f"PlainAdapter supports str, Literal and list[int] outputs, the last one a str; got {outputs}; "
            "use dspy.ChatAdapter."
        )
    return outputs


def _field(name: str, value: Any) -> str:
    text = str(value).strip()
    return f"{name.capitalize()}:{chr(10) if chr(10) in text else ' '}{text}"


def _written(value: Any) -> str:
    return (", ".join(str(item) for item in value) if isinstance(value, list) else str(value)) or NOTHING


def _by_label(names: list[str], reply: str) -> dict[str, str]:
    """Return the text after each output's name, up to the next name.

    The first occurrence of a name counts, because small models continue with questions that they invent.
    """
    label = re.compile(rf"(?<![\w'])({'|'.join(names)})[\"'*_`]*\s*[:=]", re.IGNORECASE)
    found = list(label.finditer(reply))
    texts: dict[str, str] = {}
    ends = [*(match.start() for match in found[1:]), len(reply)]
    for match, end in zip(found, ends, strict=False):
        texts.setdefault(match[1].lower(), reply[match.end() : end])
    before = (reply[: found[0].start()] if found else reply).strip(" \n\"'`*_{")
    # The prompt ended with the first name, so the text before any other name is its value. A reply without names is the
    # answer, unless it is a list of numbers: then it was cut off before the answer.
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
