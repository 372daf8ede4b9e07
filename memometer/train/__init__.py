"""Train a reader's weights: supervised, distillation, or GRPO through TRL or an Arbor server."""
