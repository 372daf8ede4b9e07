"""Search for better reading prompts with DSPy's optimisers, and test what was found."""
