"""Prompts that answer a question from recalled turns, in one call or several."""
