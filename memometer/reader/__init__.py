"""The reader: prompts that answer a question from recalled turns, in one call or several."""
