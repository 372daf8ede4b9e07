"""A finished run as tables, Markdown, LaTeX, one HTML page, data frames and MLflow runs."""
