"""Synthetic conversations with known evidence, in LOCOMO's format."""
