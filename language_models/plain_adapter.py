"""The DSPy adapter for programs with one output: the whole reply is the answer, so it always parses.

The answer prompt with its two examples is 137 tokens (o200k) before any memory, 296 with ChatAdapter; a memory under a
hard budget can spend the difference on evidence.
"""

from __future__ import annotations

from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError


class PlainAdapter(dspy.Adapter):
    """System message: the instructions. User message: `Field: value` paragraphs, then the output's name and a colon."""

    def format_system_message(self, signature: type[dspy.Signature]) -> str:
        return signature.instructions

    def format_user_message_content(
        self,
        signature: type[dspy.Signature],
        inputs: dict[str, Any],
        prefix: str = "",
        suffix: str = "",
        main_request: bool = False,
    ) -> str:
        fields = [_field(name, inputs[name]) for name in signature.input_fields if inputs.get(name) is not None]
        return "\n\n".join(part for part in (prefix, *fields, suffix, f"{_output(signature).capitalize()}:") if part)

    def format_assistant_message_content(
        self, signature: type[dspy.Signature], outputs: dict[str, Any], missing_field_message: str | None = None
    ) -> str:
        return str(outputs.get(_output(signature), missing_field_message))

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        # A reasoning model may think aloud first; cut off in the middle of that, it has not answered.
        reply = completion.rpartition("</think>")[2].strip()
        if not reply or reply.startswith("<think>"):
            raise AdapterParseError("PlainAdapter", signature, completion, message="the reply holds no answer")
        return {_output(signature): reply}


def _output(signature: type[dspy.Signature]) -> str:
    outputs = list(signature.output_fields)
    if len(outputs) != 1 or signature.output_fields[outputs[0]].annotation is not str:
        raise ValueError(f"PlainAdapter takes one text output, got {outputs}; use dspy.ChatAdapter.")
    return outputs[0]


def _field(name: str, value: Any) -> str:
    text = str(value).strip()
    return f"{name.capitalize()}:{chr(10) if chr(10) in text else ' '}{text}"
