"""A connection to a system of the plug-in protocol, and what its three kinds share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

MOST_REPLY = 64 * 1024 * 1024
"""Bytes of one reply at most."""


class Connection(Protocol):
    """A connection to a system.

    Attributes:
        starts: How often the system was started. A system that is started again has forgotten everything.
        metered: True if the model calls of the system go to the metered endpoint.
    """

    starts: int
    metered: bool

    def begin(self) -> int:
        """Start the system if it does not run. Returns `starts`."""
        ...

    def call(self, method: str, params: Mapping[str, Any], *, timeout_seconds: float) -> Any:
        """Call a method of the system.

        Args:
            method: Its name.
            params: Its arguments.
            timeout_seconds: The time after which the call has failed.

        Raises:
            PluginError: The system failed, or sent no reply in time.
        """
        ...

    def stop(self) -> None:
        """End the connection, and the process of the system if there is one."""
        ...

    def source(self) -> str:
        """Return a digest of the source of the system; empty if it is unknown."""
        ...

    def notices(self) -> list[str]:
        """Return sentences about what went wrong without a failed call."""
        ...

    def peak_memory(self) -> int | None:
        """Return the bytes of memory that the system used at most; None if unknown."""
        ...


def seconds(value: float) -> str:
    """Format a time limit."""
    return f"{value:g} s"


def error_text(error: Any) -> str:
    """Return the error of a reply as one line; it is a text, or an object with `message` as in JSON-RPC."""
    text = error.get("message") if isinstance(error, dict) else error
    return " ".join(str(text).encode("utf-8", "replace").decode().split())[:400]
