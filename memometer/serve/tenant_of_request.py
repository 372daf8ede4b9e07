"""The tenant of a REST request, for route functions."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request


def tenant_of(request: Request) -> str:
    """Return the tenant that RequestGuard has set."""
    tenant: str = request.state.tenant
    return tenant


Tenant = Annotated[str, Depends(tenant_of)]
