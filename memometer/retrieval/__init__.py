"""Rank the turns of a conversation for a question, without a language model."""
