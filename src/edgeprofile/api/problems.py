"""The one translator from an ApiError to an answer: `application/problem+json`, RFC 9457."""

from __future__ import annotations

import msgspec

from edgeprofile.errors import ApiError

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
