"""Error responses of the REST service: application/problem+json (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from memometer.cartridge.container import CartridgeError
from memometer.errors import UserError
from memometer.models.encoders import EncoderUnavailable
from memometer.serve.answering import ModelUnavailable
from memometer.serve.registry import AlreadyExists, NotFound
from memometer.serve.tenant_limits import NotAllowed
from memometer.store.episode import Conflict, StoreError

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 1


class PreconditionFailed(UserError):
    """The resource is not the one that If-Match names."""


STATUS: dict[type[Exception], int] = {
    NotFound: 404,
    PreconditionFailed: 412,
    AlreadyExists: 409,
    Conflict: 409,
    CartridgeError: 409,  # not 422: the body matches its schema (bytes) and conflicts with the state of the memory
    ModelUnavailable: 503,
    EncoderUnavailable: 503,
    StoreError: 503,
    NotAllowed: 403,
    UserError: 422,
}
"""Exception class -> HTTP status; the first match counts."""


class FieldError(BaseModel):
    """An invalid field of a request."""

    field: str
    message: str


class ProblemDetails(BaseModel):
    """Problem details of RFC 9457."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[FieldError] | None = None


def problem_response(
    status: int, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any
) -> JSONResponse:
    """Return a problem+json response; 429 and 503 get a Retry-After header."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **more}
    headers = dict(headers or {})
    if status in (429, 503):
        headers.setdefault("Retry-After", str(RETRY_SECONDS))
    return JSONResponse(body, status, headers, media_type=MEDIA_TYPE)


def add_error_handlers(app: FastAPI) -> None:
    """Make an application return all errors as problem+json, and describe them so in its OpenAPI document."""

    def user_error(_: Request, error: Exception) -> JSONResponse:
        return problem_response(next(status for kind, status in STATUS.items() if isinstance(error, kind)), str(error))

    def http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        path = getattr(request.scope.get("route"), "path", None)
        if error.status_code == 405 and path in (paths := request.app.openapi()["paths"]):
            headers["Allow"] = ", ".join(sorted(paths[path])).upper()  # Starlette lists the first route's methods only
        return problem_response(error.status_code, f"{str(error.detail).rstrip('.')}.", headers=headers)

    def validation_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        errors = [{"field": ".".join(map(str, e["loc"])), "message": str(e["msg"])} for e in error.errors()]
        detail = f"{errors[0]['field']}: {errors[0]['message']}."
        if "json" not in request.headers.get("content-type", "json"):
            detail += " Send a JSON body with the header Content-Type: application/json."
        return problem_response(422, detail, errors=errors)

    def internal_error(_: Request, __: Exception) -> JSONResponse:
        return problem_response(500, "Internal error; the service's log has the traceback.")

    app.add_exception_handler(UserError, user_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, validation_error)
    app.add_exception_handler(Exception, internal_error)
    plain = app.openapi
    app.openapi = lambda: app.openapi_schema or _with_media_type(plain())  # type: ignore[method-assign]


def _with_media_type(document: dict[str, Any]) -> dict[str, Any]:
    """Change the media type of error responses in an OpenAPI document to problem+json."""
    for path in document["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                if status[0] in "45" and "application/json" in response.get("content", {}):
                    response["content"] = {MEDIA_TYPE: response["content"]["application/json"]}
    return document
