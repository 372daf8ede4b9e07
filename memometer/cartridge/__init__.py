"""Cartridges: the state of a memory system as one portable file."""
