"""An error of every kind, as a request might meet it: what the document shows of errors is made of these."""

from __future__ import annotations

from inspect import getdoc

from edgeprofile import limiter
from edgeprofile.errors import (
    AnswerTooLarge,
    ApiError,
    BodyTooLarge,
    Forbidden,
    HeadersTooLarge,
    InternalError,
    LoaderUnavailable,
    MalformedBody,
    MalformedPath,
    MalformedQuery,
    MethodNotAllowed,
    NoSuchRoute,
    NotAcceptable,
    NotReady,
    ProfileNotFound,
    RateLimited,
    Unauthorized,
    UnknownField,
    UnknownNamespace,
    UnsupportedMediaType,
    UrlTooLong,
)
from edgeprofile.settings import Limits

LIMITS = Limits()
POLICY = limiter.policy(LIMITS.rate, LIMITS.burst_rate, LIMITS.burst_seconds)
SAMPLES: dict[type[ApiError], ApiError] = {
    type(error): error
    for error in (
        MalformedPath("The path's last segment is empty."),
        UnknownNamespace("The workspace has no such namespace.", members={"valid": ["profile_id", "email"]}),
        UnknownField("fields has an empty item.", members={"valid": ["identifiers", "attributes.first_name"]}),
        MalformedQuery("limit is a whole number from 1 to 100."),
        MalformedBody("Object missing required field `profiles`."),
        Unauthorized(),
        Forbidden("This key may not read profiles."),
        ProfileNotFound(),
        NoSuchRoute(),
        MethodNotAllowed("GET, HEAD"),
        NotAcceptable(
            "A profile is answered as application/json or application/msgpack.",
            members={"valid": ["application/json", "application/msgpack"]},
        ),
        AnswerTooLarge(1_100_094, LIMITS.response_bytes_max),
        BodyTooLarge(LIMITS.request_bytes_max),
        UrlTooLong(8_192),
        UnsupportedMediaType("A body is application/json."),
        RateLimited(1, limiter.rate_limit_headers(POLICY, 1, 1_000_000)),
        HeadersTooLarge(32_768, 100),
        InternalError(),
        NotReady(),
        LoaderUnavailable(),
    )
}


def meaning_of(kind: type[ApiError]) -> str:
    """When there is such an error: the first paragraph of what is said of its class."""
    return " ".join((getdoc(kind) or "").partition("\n\n")[0].split())


def sample_of(error: ApiError | type[ApiError]) -> ApiError:
    """The error itself, or one of that kind."""
    return SAMPLES[error] if isinstance(error, type) else error
