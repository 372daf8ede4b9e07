"""Prompts as token ids, the token that ends a reply, and greedy decoding: the same for training, evaluation and export.

Base models often declare another end token than the one with which their chat template ends a turn: Qwen2.5-3B declares
`<|endoftext|>`, and its template writes `<|im_end|>`. A model that is trained on the template and stopped by the
declared token continues after its answer, so the end token comes from the template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_REPLY = "REPLY-7c1"
"""A text that no chat template contains."""
GREEDY = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_new_tokens": None,
    "temperature": None,
    "top_p": None,
    "top_k": None,
}
"""transformers' generation values of greedy decoding. A model's own generation_config.json may contain others."""
SERVER_GREEDY = {
    "temperature": 0.0,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""The same for a server, such as vLLM, which otherwise takes its defaults from the model's generation_config.json."""


@dataclass(frozen=True)
class ChatFormat:
    """The prompt format of a model.

    Attributes:
        tokenizer: The tokenizer of transformers. Its `eos_token` is the end token.
        template_kwargs: Arguments of the chat template, such as `enable_thinking` of Qwen3.
        end_token: The token that ends a reply.
        stop_ids: Token ids that end a generated reply: the end token, and those that the model declares.
        end_is_new: True if the model does not declare the end token, so that its embedding may be untrained.
    """

    tokenizer: Any
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    end_token: str = ""
    stop_ids: tuple[int, ...] = ()
    end_is_new: bool = False

    @classmethod
    def of(
        cls, tokenizer: Any, declared: Sequence[int] = (), template_kwargs: Mapping[str, Any] | None = None
    ) -> ChatFormat:
        """Read the format of a tokenizer, and make the end token its `eos_token`.

        Args:
            tokenizer: The tokenizer; it is changed.
            declared: End tokens in the model's configuration.
            template_kwargs: Arguments of the chat template. None switches off the thinking of templates that have
                `enable_thinking`.
        """
        template = str(tokenizer.chat_template or "")
        if template_kwargs is None:
            template_kwargs = {"enable_thinking": False} if "enable_thinking" in template else {}
        known = {int(id) for id in (*declared, tokenizer.eos_token_id) if id is not None}
        end = end_token(tokenizer, template_kwargs) or tokenizer.eos_token or ""
        end_id = tokenizer.convert_tokens_to_ids(end) if end else None
        is_new = end_id is not None and end_id not in known
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or end
        if end:
            tokenizer.eos_token = end
        stops = tuple(dict.fromkeys([*([end_id] if end_id is not None else []), *sorted(known)]))
        return cls(tokenizer, dict(template_kwargs), end, stops, is_new)

    @property
    def end_id(self) -> int:
        """The id of the end token."""
        return self.stop_ids[0]

    def prompt_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the token ids of a prompt, with the chat template if there is one."""
        return prompt_ids(self.tokenizer, messages, self.template_kwargs)

    def reply_ids(self, reply: str) -> list[int]:
        """Return the token ids of a complete reply to a prompt, with the end token."""
        text = reply if self.tokenizer.chat_template else f" {reply}"
        return [*self.tokenizer(text, add_special_tokens=False)["input_ids"], *self.stop_ids[:1]]

    def as_trained(self, messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]] | str:
        """Return a prompt in the form that TRL accepts: messages with a chat template, otherwise plain text."""
        if self.tokenizer.chat_template:
            return [dict(message) for message in messages]
        return plain_text(messages)

    def decoding(self) -> dict[str, Any]:
        """Return the values that decide a greedy reply, for the record of a run."""
        return {
            "do_sample": False,
            "repetition_penalty": 1.0,
            "end_token": self.end_token,
            "stop_token_ids": list(self.stop_ids),
            "chat_template_kwargs": dict(self.template_kwargs),
        }


def end_token(tokenizer: Any, template_kwargs: Mapping[str, Any]) -> str | None:
    """Return the first special token after an assistant's text in the chat template; None if there is none."""
    if not tokenizer.chat_template:
        return None
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": _REPLY}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, **template_kwargs)
    after = text.rpartition(_REPLY)[2]
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    places = {after.find(token): token for token in sorted(added, key=len) if token and token in after}
    return places[min(places)] if places else None


def prompt_ids(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], template_kwargs: Mapping[str, Any] | None = None
) -> list[int]:
    """Return a prompt's token ids, with the chat template if there is one."""
    if tokenizer.chat_template:
        encoded = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_dict=True, **(template_kwargs or {})
        )
        return list(encoded["input_ids"])
    return list(tokenizer(plain_text(messages))["input_ids"])


def plain_text(messages: Sequence[Mapping[str, str]]) -> str:
    """Return messages as one text, for a model without a chat template. An example's reply follows its prompt's last
    line; paragraphs separate the examples."""
    parts: list[str] = []
    for message in messages:
        if message["role"] == "assistant":
            parts[-1] += f" {message['content']}"
        else:
            parts.append(message["content"])
    return "\n\n".join(parts)


def declared_ends(model: Any) -> list[int]:
    """Return the end tokens in a model's configuration and generation configuration."""
    found: list[int] = []
    for config in (model.config, getattr(model, "generation_config", None)):
        ids = getattr(config, "eos_token_id", None)
        found += [ids] if isinstance(ids, int) else list(ids or [])
    return found


def served_decoding(decoding: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request fields that make a server decode as the training did: greedily, to the same end token."""
    greedy = {name: SERVER_GREEDY[name] for name in ("temperature", "top_p")}
    body: dict[str, Any] = {"repetition_penalty": SERVER_GREEDY["repetition_penalty"]}
    if decoding.get("stop_token_ids"):
        body["stop_token_ids"] = decoding["stop_token_ids"]
    if decoding.get("chat_template_kwargs"):
        body["chat_template_kwargs"] = decoding["chat_template_kwargs"]
    return {**greedy, "extra_body": body}
