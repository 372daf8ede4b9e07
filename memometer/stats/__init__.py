"""Intervals, paired tests and trade-off curves for scores that are clustered by conversation."""
