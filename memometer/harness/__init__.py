"""Plan an evaluation, run it over every conversation, and resume it."""
