"""The service does what its OpenAPI document says, whatever it is asked: random requests, right and wrong."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client", reason="the service is not installed: pip install '.[service]'")
schemathesis = pytest.importorskip("schemathesis", reason="it is not installed: pip install '.[dev]'")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis.errors import Unsatisfiable  # noqa: E402

from tests.serving import in_thread  # noqa: E402

bounded = settings(max_examples=3, deadline=None, database=None, derandomize=True, suppress_health_check=HealthCheck)


def test_the_service_does_what_its_description_says(tmp_path: Path, server: Any) -> None:
    """All that schemathesis checks: no 5xx, statuses, types and bodies as described, right requests accepted, wrong
    ones refused, and nothing without the token."""
    how = {"model": "openai/scripted", "api_base": server.url}
    with in_thread(f"sqlite:///{tmp_path}/memory.db", auth=True, **how) as service:
        headers = {"Authorization": f"Bearer {service.access.grant('ada', at=0.0)}"}
        service.put("/v1/memories/a", json={}, headers=headers)
        service.post("/memory/store", json={"text": "I sold the kayak.", "memory": "a", "id": "0"}, headers=headers)
        schema = schemathesis.openapi.from_url(f"{service.base_url}/openapi.json")
        asked = []
        for found in schema.get_all_operations():
            operation = found.ok()
            for mode in schemathesis.GenerationMode:

                @bounded
                @given(case=operation.as_strategy(generation_mode=mode))
                def check(case: Any) -> None:
                    asked.append(case.operation.label)
                    case.call_and_validate(headers=headers)

                with suppress(Unsatisfiable):  # nothing can be asked wrongly of what takes nothing
                    check()
        assert len(set(asked)) >= 16
