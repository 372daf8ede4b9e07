"""Language models and text encoders: loading, calling, counting what they cost."""
