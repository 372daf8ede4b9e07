"""Measure, improve and train the memory of conversational agents."""
