"""The service agrees with its OpenAPI document: valid and invalid random requests by schemathesis."""

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


def test_service_agrees_with_its_openapi_document(tmp_path: Path, server: Any) -> None:
    """All checks of schemathesis: no 5xx; statuses, media types and bodies as described; valid requests accepted,
    invalid ones and those without a token refused."""
    how = {"model": "openai/scripted", "api_base": server.url}
    with in_thread(f"sqlite:///{tmp_path}/memory.db", auth=True, **how) as service:
        headers = {"Authorization": f"Bearer {service.tokens.issue('ada', at=0.0)}"}
        service.put("/v1/memories/a", json={}, headers=headers)
        service.post("/memory/store", json={"text": "I sold the kayak.", "memory": "a", "id": "0"}, headers=headers)
        schema = schemathesis.openapi.from_url(f"{service.base_url}/openapi.json")
        called = []
        for found in schema.get_all_operations():
            operation = found.ok()
            for mode in schemathesis.GenerationMode:

                @bounded
                @given(case=operation.as_strategy(generation_mode=mode))
                def check(case: Any) -> None:
                    called.append(case.operation.label)
                    case.call_and_validate(headers=headers)

                with suppress(Unsatisfiable):  # an operation without parameters has no invalid requests
                    check()
        assert len(set(called)) >= 16
