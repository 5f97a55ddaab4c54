"""The one translator from an ApiError to an answer, `application/problem+json` of RFC 9457, also for Starlette apps."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from edgeprofile._exchange import log_fault, request_id_of
from edgeprofile.errors import ApiError, InternalError, MethodNotAllowed, NoSuchRoute

Headers = list[tuple[bytes, bytes]]
PROBLEM_TYPE = b"application/problem+json"


def problem(error: ApiError, request_id: bytes) -> tuple[int, Headers, bytes]:
    """Status, headers and body. `type` is a relative reference to where the code is documented."""
    body = {
        "type": f"/docs#{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        **error.members,
    }
    headers: Headers = [
        (b"content-type", PROBLEM_TYPE),
        (b"cache-control", b"no-store"),
        (b"x-request-id", request_id),
        *error.headers,
    ]
    return error.status, headers, msgspec.json.encode(body)


def request_id(request: Request) -> bytes:
    """The caller's where it sent a sane one, else one of ours, the same each time that it is asked for."""
    if "request_id" not in request.scope:
        sent = request.headers.get("x-request-id")
        named = request_id_of(sent.encode("latin-1") if sent else None)
        request.scope["request_id"] = named or secrets.token_hex(8).encode()
    number: bytes = request.scope["request_id"]
    return number


async def refuse(request: Request, error: Exception) -> Response:
    """Every error of a Starlette app, as the same problems as the lookup's."""
    if isinstance(error, HTTPException):
        # Starlette keeps the methods in a set, whose order differs from process to process.
        allow = (error.headers or {}).get("Allow", "GET, HEAD")
        known: ApiError = MethodNotAllowed(", ".join(sorted(allow.split(", "))))
        error = known if error.status_code == 405 else NoSuchRoute()
    number = request_id(request)
    if not isinstance(error, ApiError):
        log_fault(number, error)
        error = InternalError()
    status, headers, body = problem(error, number)
    return Response(body, status, {name.decode(): value.decode() for name, value in headers})


# For `exception_handlers`, which Starlette wants to have of any type of error.
HANDLERS: Mapping[Any, Any] = {ApiError: refuse, HTTPException: refuse, Exception: refuse}
