"""Benchmarks: conversations, questions about them, and how an answer is scored."""
