"""Synthetic conversations with known evidence, in LOCOMO's shape."""
