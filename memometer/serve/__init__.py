"""Memories by tenant and name, and their interfaces: REST, MCP, LangGraph and DSPy."""

import os

from memometer.run.environment import user_data_folder

LOCAL_TENANT = "local"
"""The tenant of the command line and of a service without access tokens."""


def default_url() -> str:
    """Return the store URL from MEMOMETER_URL, or that of a SQLite file in the user's data folder."""
    return os.environ.get("MEMOMETER_URL") or f"sqlite:///{user_data_folder() / 'memory.db'}"


def former_default_notice() -> str:
    """Return a sentence about a store in a former default location; empty if none would be overlooked."""
    former, current = (user_data_folder().with_name(name) / "memory.db" for name in ("adaptive-memory", "memometer"))
    if os.environ.get("MEMOMETER_URL"):
        return ""
    if os.environ.get("ADAPTIVE_MEMORY_URL"):
        return "ADAPTIVE_MEMORY_URL is not read any more; set MEMOMETER_URL to its value."
    if former.exists() and not current.exists():
        return f"{former} is not read any more; to use it: export MEMOMETER_URL=sqlite:///{former}"
    return ""
