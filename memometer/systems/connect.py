"""Make the connection to a system that `--systems` names."""

from __future__ import annotations

from collections.abc import Mapping

from memometer.systems import specification as kinds
from memometer.systems.command import Command
from memometer.systems.connection import Connection
from memometer.systems.http_client import Http
from memometer.systems.in_process import InProcess
from memometer.systems.specification import Specification


def connect(specification: Specification, environment: Mapping[str, str]) -> Connection:
    """Return a connection. Nothing is started before its first call.

    Args:
        specification: A class in this process, a command or a URL.
        environment: Environment variables that lead the model calls of the system to the metered endpoint.
    """
    if specification.kind == kinds.COMMAND:
        return Command(specification.target, environment)
    if specification.kind == kinds.HTTP:
        return Http(specification.target, environment)
    return InProcess(specification.target, specification.parameters, environment)
