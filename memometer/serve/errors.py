"""Every error of the service as RFC 9457 has it: application/problem+json with a title, a status and a sentence."""

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
from memometer.models.encoders import EncoderUnavailable
from memometer.serve.answering import NoModel
from memometer.serve.tenants import NotThere, Refused, Taken
from memometer.store.episode import Conflict, StoreError

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 1

STATUS: dict[type[Exception], int] = {
    NotThere: 404,
    Taken: 409,
    Conflict: 409,
    CartridgeError: 409,  # its description says bytes, and these are: they do not go together with what is here
    Refused: 422,
    NoModel: 503,
    EncoderUnavailable: 503,
    StoreError: 503,
}
"""What each of our errors is in HTTP; its message is one sentence for the caller."""


class Wrong(BaseModel):
    """One thing that is wrong with a request."""

    where: str
    what: str


class Problem(BaseModel):
    """RFC 9457's problem details."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[Wrong] | None = None


def problem(status: int, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any) -> JSONResponse:
    """A response. 429 and 503 say when to try again."""
    said = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **more}
    headers = dict(headers or {})
    if status in (429, 503):
        headers.setdefault("Retry-After", str(RETRY_SECONDS))
    return JSONResponse(said, status, headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Make every error of an application a problem."""

    def ours(_: Request, error: Exception) -> JSONResponse:
        return problem(next(status for kind, status in STATUS.items() if isinstance(error, kind)), str(error))

    def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        path = getattr(request.scope.get("route"), "path", None)
        if error.status_code == 405 and path in (described := request.app.openapi()["paths"]):
            headers["Allow"] = ", ".join(sorted(described[path])).upper()  # of all its routes, not of the first
        return problem(error.status_code, _sentence(error), headers=headers)

    def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        wrong = [{"where": ".".join(map(str, each["loc"])), "what": str(each["msg"])} for each in error.errors()]
        said = f"{wrong[0]['where']}: {wrong[0]['what']}."
        if "json" not in request.headers.get("content-type", "json"):
            said += " The body is read as JSON with the header Content-Type: application/json."
        return problem(422, said, errors=wrong)

    def fault(_: Request, __: Exception) -> JSONResponse:
        return problem(500, "The service failed; it is written in its log.")

    for kind in STATUS:
        app.add_exception_handler(kind, ours)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, fault)


def described(document: dict[str, Any]) -> dict[str, Any]:
    """An OpenAPI document whose errors are of the media type that they are sent as."""
    for path in document["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                if status[0] in "45" and "application/json" in response.get("content", {}):
                    response["content"] = {MEDIA_TYPE: response["content"]["application/json"]}
    return document


def _sentence(error: HTTPException) -> str:
    said = str(error.detail)
    return said if said.endswith(".") else f"{said}."
