# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "mem0ai==2.2.1", "fastembed==0.9.1", "spacy==3.8.18", "sentence-transformers==6.2.0", "torch==2.13.0",
#   "en_core_web_sm @ https://github.com/explosion/spacy-models/releases/download/en_core_web_sm-3.8.0/en_core_web_sm-3.8.0-py3-none-any.whl",
# ]
# ///
"""mem0 with keyword search (fastembed) and linked entities (spaCy). `fastembed` downloads a list of stop words."""

from __future__ import annotations

from mem0_memory import Mem0


class Mem0Hybrid(Mem0):
    """mem0 in an environment with all optional packages. The parameters are those of Mem0."""
