"""mParticle's Profile API and its access tokens, described."""

from __future__ import annotations

from edgeprofile.api import mparticle, tokens
from edgeprofile.errors import (
    AnswerTooLarge,
    ApiError,
    BodyTooLarge,
    Forbidden,
    HeadersTooLarge,
    InternalError,
    MalformedBody,
    MalformedPath,
    MalformedQuery,
    NotReady,
    ProfileNotFound,
    RateLimited,
    Unauthorized,
    UrlTooLong,
)
from edgeprofile.openapi.document import ASKER, Example, Operation, Section
from edgeprofile.openapi.schemas import (
    BOOLEAN,
    INT64,
    JSON,
    SOME,
    STRING,
    VALUE,
    Json,
    a_list,
    an_object,
    answer,
    in_path,
    one_of,
    or_null,
    posted,
    schema,
    with_commas,
)
from edgeprofile.signing import TOKEN_SECONDS

PLACE = tuple(in_path(name, f"the workspace's setting `mparticle.{name}`") for name in ("org", "account", "workspace"))
BASE = "/".join(part.decode() for part in mparticle.ROOT)
PROFILE = f"{BASE}/{{org}}/{{account}}/{{workspace}}/{{mpid}}"
RESOLVE = f"{BASE}/resolve/{{org}}/{{account}}/{{workspace}}"
MPID = in_path("mpid", "in digits, without a plus or leading zeros", INT64)
FIELDS = with_commas("fields", "what the answer has beside the times", one_of(*mparticle.FIELDS), required=True)
TOLD = ("Cache-Control", "X-Request-Id", "X-mp-rate-limit-percentage-used")
FOUND = {200: answer("the profile", schema("MParticleProfile"), *TOLD)}
COMMON: tuple[type[ApiError], ...] = (
    MalformedQuery,
    Unauthorized,
    Forbidden,
    ProfileNotFound,
    AnswerTooLarge,
    BodyTooLarge,
    UrlTooLong,
    RateLimited,
    HeadersTooLarge,
    InternalError,
    NotReady,
)
BEARER: list[Json] = [{"mparticleToken": []}]
MILLISECONDS: Json = {"type": "integer", "description": "since 1970"}
IDENTITY = an_object({"type": STRING, "encoding": {"const": "none"}, "value": STRING})

HEAD = {
    "mpid": 12345,
    "created_timestamp_ms": 1646471564000,
    "last_stored_timestamp_ms": 1749558896000,
    "is_opted_out": False,
    "limit_ad_tracking": None,
}
JANE = {"org": "1", "account": "2", "workspace": "3"}
IDENTITIES = [
    {"type": "customer_id", "encoding": "none", "value": "12345"},
    {"type": "email", "encoding": "none", "value": "jane@example.com"},
    {"type": "mobile_number", "encoding": "none", "value": "+999705936705"},
]
SHOWN = Example({**JANE, "mpid": 12345, "fields": ["user_identities"]}, {**HEAD, "user_identities": IDENTITIES})
RESOLVED = Example(
    {**JANE, "fields": ["user_identities"]},
    {**HEAD, "user_identities": IDENTITIES},
    {"environment_type": "production", "identity": {"type": "customer_id", "value": "12345"}},
)


def _profile(methods: tuple[str, ...], id: str, summary: str, about: str = "") -> Operation:
    return Operation(
        methods=methods,
        path=PROFILE,
        id=id,
        summary=summary,
        about=about,
        parameters=(*PLACE, MPID, FIELDS),
        answers=FOUND,
        errors=(MalformedPath("The mpid is not an integer of 64 bits."), *COMMON),
        security=BEARER,
        examples={"jane": SHOWN},
    )


SECTION = Section(
    name="mParticle",
    about="mParticle's Profile API: profiles by their mpid, or by an identity that never changes.",
    operations=(
        _profile(("GET", "HEAD"), "mparticleProfile", "A profile by its mpid"),
        _profile(("POST",), "mparticleProfilePosted", "The same by POST", "A body is not looked at."),
        Operation(
            methods=("POST",),
            path=RESOLVE,
            id="mparticleResolve",
            summary="A profile by an immutable identity",
            about="The type is one of the setting `mparticle.immutable`.",
            parameters=(*PLACE, FIELDS),
            body=posted(schema("MParticleIdentity"), about="sent as JSON, whatever its `Content-Type` says"),
            answers=FOUND,
            errors=(MalformedBody("identity is not an object of two texts, type and value."), *COMMON),
            security=BEARER,
            examples={"jane": RESOLVED},
        ),
    ),
    refuse=lambda error: mparticle.Dialect.refuse(ASKER, error),
    error="MParticleErrors",
    code_at=("errors", 0, "code"),
    schemas={
        "MParticleProfile": an_object(
            {
                "mpid": INT64,
                "created_timestamp_ms": or_null(MILLISECONDS),
                "last_stored_timestamp_ms": MILLISECONDS,
                "is_opted_out": BOOLEAN,
                "limit_ad_tracking": or_null(BOOLEAN),
                "device_identities": a_list(IDENTITY),
                "user_identities": a_list(IDENTITY),
                "account_userattributes": {"type": "null"},
                "user_attributes": an_object(
                    {},
                    additionalProperties=VALUE,
                    description="texts, or lists of texts, unless the setting `values_as_text` is off",
                ),
                "audience_memberships": a_list(
                    an_object(
                        {
                            "audience_id": {"type": "integer"},
                            "audience_name": STRING,
                            "expiration_timestamp_ms": {"type": "null"},
                        }
                    )
                ),
                "attribution": VALUE,
            },
            HEAD,
        ),
        "MParticleIdentity": an_object(
            {
                "environment_type": one_of(*mparticle.ENVIRONMENTS),
                "identity": an_object({"type": STRING, "value": SOME}),
            }
        ),
        "MParticleErrors": an_object({"errors": a_list(an_object({"code": STRING, "message": STRING}), minItems=1)}),
    },
    security={
        "mparticleToken": {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": f"an access token of `{tokens.PATH.decode()}`, or an API key",
        }
    },
)

PARAMETERS: dict[str, Json] = {
    "grant_type": one_of("client_credentials"),
    "client_id": {**STRING, "description": "the public id of an API key: the 12 characters behind `sk_live_`"},
    "client_secret": {**STRING, "description": "the whole key"},
    "audience": {**STRING, "description": "the setting `mparticle.audience`, or left out"},
}
TOKEN_REQUEST = an_object({name: PARAMETERS[name] for name in tokens.PARAMETERS}, ["grant_type"])
FORM, JSON_REQUEST = "application/x-www-form-urlencoded", {JSON: {"schema": schema("TokenRequest")}}
TOKENS = Section(
    name="Tokens",
    about="Access tokens for mParticle's API, by OAuth 2.0's client credentials.",
    operations=(
        Operation(
            methods=("POST",),
            path=tokens.PATH.decode(),
            id="token",
            summary="An access token",
            about="The client's id and secret come in the body, or by HTTP Basic.",
            body={"required": True, "content": {FORM: {"schema": schema("TokenForm")}, **JSON_REQUEST}},
            answers={200: answer("a token", schema("Token"), "Cache-Control", "X-Request-Id")},
            errors=(
                MalformedBody("grant_type is missing."),
                tokens.TokenRefused("unauthorized_client", "The client may not read profiles by this API."),
                tokens.TokenRefused("unsupported_grant_type", "grant_type is not client_credentials."),
                tokens.TokenRefused("invalid_target", "audience is not the one that tokens are given for."),
                Unauthorized,
                BodyTooLarge,
                UrlTooLong,
                RateLimited,
                HeadersTooLarge,
                InternalError,
            ),
            security=[{"client": []}, {}],
            examples={
                "a client's": Example(
                    {},
                    {"access_token": "eyJ0…", "expires_in": TOKEN_SECONDS, "token_type": "Bearer"},
                    {
                        "grant_type": "client_credentials",
                        "client_id": "…",
                        "client_secret": "sk_live_…",
                        "audience": "https://api.mparticle.com",
                    },
                )
            },
        ),
    ),
    refuse=lambda error: tokens.Tokens.refuse(ASKER, error),
    error="TokenError",
    code_at=("error",),
    schemas={
        "TokenRequest": TOKEN_REQUEST,
        # No name stands twice, not even one that is not known.
        "TokenForm": {**TOKEN_REQUEST, "additionalProperties": STRING},
        "Token": an_object(
            {"access_token": STRING, "expires_in": {"const": TOKEN_SECONDS}, "token_type": {"const": "Bearer"}}
        ),
        "TokenError": an_object({"error": STRING, "error_description": STRING}, description="RFC 6749, 5.2"),
    },
    security={"client": {"type": "http", "scheme": "basic", "description": "an API key's public id, and the key"}},
)
