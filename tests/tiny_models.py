"""Models of two layers with random weights, over bytes, for tests of training. They need PyTorch and transformers."""

from __future__ import annotations

from pathlib import Path

END, STOP, PAD = "<end>", "<stop>", "<pad>"
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}<end>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def write_tiny_model(folder: Path, *, declared_end: str = END, window: int = 4096, hidden: int = 32) -> Path:
    """Write a Llama whose chat template ends replies with `<end>`.

    Args:
        folder: The folder to write to.
        declared_end: The end token of tokenizer and configuration; `<stop>` makes it like a base model.
        window: The context window in tokens.
        hidden: The width of the hidden state.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {letter: n for n, letter in enumerate([*letters, END, PAD, STOP])}
    inner = Tokenizer(models.BPE(vocab=words, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([END, PAD, STOP])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=declared_end, pad_token=PAD)
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=window,
        initializer_range=0.2,  # so that what is above the hidden state can move the choice of a letter
        eos_token_id=words[declared_end],
        pad_token_id=words[PAD],
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
