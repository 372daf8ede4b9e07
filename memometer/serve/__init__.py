"""Memories by tenant and name, kept in a store, and what a service around them needs."""

import os
from pathlib import Path

TENANT = "local"
"""Whose memories the command line speaks of, and a service that asks for no token."""


def default_url() -> str:
    """MEMOMETER_URL, else one file in the user's data folder."""
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return os.environ.get("MEMOMETER_URL") or f"sqlite:///{data / 'memometer' / 'memory.db'}"
