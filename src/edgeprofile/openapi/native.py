"""The native API, described."""

from __future__ import annotations

from edgeprofile.api import erasure, native
from edgeprofile.api.problems import problem
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
    NotAcceptable,
    NotReady,
    ProfileNotFound,
    RateLimited,
    Unauthorized,
    UnknownField,
    UnknownNamespace,
    UrlTooLong,
)
from edgeprofile.openapi.document import ASKER, Example, Operation, Section
from edgeprofile.openapi.samples import SAMPLES, meaning_of
from edgeprofile.openapi.schemas import (
    BOOLEAN,
    MOMENT,
    SOME,
    STRING,
    VALUE,
    Json,
    a_list,
    an_object,
    answer,
    in_header,
    in_path,
    in_query,
    or_null,
    posted,
    schema,
    schemas_of,
    with_commas,
)

READ = ("GET", "HEAD")
BY_ID = f"{erasure.PREFIX.decode()}{{profile_id}}"
BY_IDENTIFIER = "/v1/profiles/identifier/{namespace}/{value}"
FORMS = tuple(native.FORMS.values())
Parameters = tuple[Json, ...]
KEYED: list[Json] = [{"key": []}]

PROFILE_ID = in_path("profile_id", "the primary id, percent-encoded; it may hold any character")
IDENTIFIER = (
    in_path("namespace", "an identifier that the workspace's model declares"),
    in_path("value", "its value, percent-encoded"),
)
SECTIONS = "|".join(native.FIELD_SECTIONS)
FIELD: Json = {"anyOf": [{"enum": list(native.FIELD_SECTIONS)}, {"pattern": f"^({SECTIONS})\\.[^,]+$"}]}
FIELDS = with_commas(
    "fields",
    "the sections that are wanted, or single fields, as `attributes.first_name`; without it, all",
    {"type": "string", **FIELD},
)
NONE_MATCH = in_header("If-None-Match", "the `etag` of an answer that you have", STRING)
DAY: Json = {"type": "string", "format": "date"}
TIME: Json = {"anyOf": [MOMENT, DAY]}
EVENTS = {
    "name": in_query(
        "name",
        "events of this name; repeated, of each of these",
        a_list(SOME, minItems=1, maxItems=native.EVENT_NAMES_MAX),
    ),
    "start": in_query("start", "events from then: a time of RFC 3339, or a day in UTC", TIME),
    "end": in_query("end", "events to then, included", TIME),
    "limit": in_query(
        "limit",
        "how many events a page has at most",
        {"type": "integer", "minimum": 1, "maximum": native.EVENTS_MAX, "default": native.EVENTS_MAX},
    ),
    "cursor": in_query(
        "cursor",
        "the `cursor` of the page before, with the same `name`, `start` and `end`",
        {"type": "string", "pattern": f"^{native.CURSOR.pattern}$"},
    ),
}
EVENT_PARAMETERS = tuple(EVENTS[name] for name in native.EVENT_PARAMETERS)

COMMON: tuple[type[ApiError], ...] = (
    Unauthorized,
    Forbidden,
    RateLimited,
    NotAcceptable,
    AnswerTooLarge,
    BodyTooLarge,
    UrlTooLong,
    HeadersTooLarge,
    InternalError,
    NotReady,
)
TOLD = ("ETag", "Cache-Control", "Vary", "X-Request-Id")
UNCHANGED = answer("the answer is still the one of `If-None-Match`", None, *TOLD)
LOOKED_UP = {200: answer("the profile", schema("Profile"), *TOLD, media_types=FORMS), 304: UNCHANGED}
PAGE = {200: answer("a page of events", schema("EventsPage"), *TOLD, media_types=FORMS), 304: UNCHANGED}
MANY = answer(
    "the profiles, in the order asked", schema("Profiles"), "Cache-Control", "X-Request-Id", media_types=FORMS
)

JANE = {"email": "jane@example.com", "_updated_at": "2025-06-10T12:34:56Z"}
ORDER = {
    "id": "order-12345006",
    "name": "order_placed",
    "time": "2025-06-10T12:34:56Z",
    "params": {"order_id": 12345006, "amount": 519.53, "status": "shipped", "channel": "web"},
}
A_PAGE = {"events": [ORDER], "cursor": "uBZp2zY3BgABAAAALQxfZA"}
NAMES = {
    "profile_id": "12345",
    "first_name": "Jane",
    "_audiences": {
        "high_spenders": True,
        "churn_risk": False,
        "newsletter": True,
        "vip": True,
        "new_customers": False,
    },
    "_updated_at": "2025-06-10T12:34:56Z",
}
ASKED_FOR = ["identifiers.profile_id", "attributes.first_name", "audiences"]

CODES = [
    {"const": kind.code, "title": kind.title, "description": f"{kind.status}: {meaning_of(kind)}"} for kind in SAMPLES
]
SCHEMAS = schemas_of(native.Many) | {
    "Profile": an_object(
        {
            "_audiences": an_object(
                {}, additionalProperties=BOOLEAN, description="by name, whether the profile is in it"
            ),
            "_updated_at": {**MOMENT, "description": "when the profile was last updated"},
        },
        ["_updated_at"],
        additionalProperties=VALUE,
        description="Identifiers, attributes and metrics by their names, then `_audiences` and `_updated_at`. "
        "A field that the profile lacks is left out.",
    ),
    "Profiles": an_object({"profiles": a_list(or_null(schema("Profile")))}),
    "Event": an_object(
        {"id": STRING, "name": STRING, "time": or_null(MOMENT), "params": an_object({}, additionalProperties=VALUE)},
        ["name", "time", "params"],
    ),
    "EventsPage": an_object(
        {
            "events": a_list(schema("Event"), maxItems=native.EVENTS_MAX, description="the newest first"),
            "cursor": {**or_null(STRING), "description": "of the next page; `null` on the last, and only there"},
        }
    ),
    "Problem": an_object(
        {
            "type": {"type": "string", "description": "where the code is described"},
            "title": STRING,
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": {"type": "string", "description": "what is wrong with this request; the text is not stable"},
            "code": {"type": "string", "description": "stable", "oneOf": CODES},
            "valid": a_list(STRING, description="what would be known in the place of what is not"),
            "retry_after": {"type": "integer", "minimum": 1, "description": "as `Retry-After`"},
            "bytes": {"type": "integer", "description": "how large the answer would be"},
            "bytes_max": {"type": "integer", "description": "how large it may be"},
        },
        ["type", "title", "status", "detail", "code"],
        description="RFC 9457",
    ),
}
ASKED = SCHEMAS["Asked"]
ASKED["oneOf"] = [
    {"properties": {"id": SOME, "namespace": {"type": "null"}, "value": {"type": "null"}}, "required": ["id"]},
    {
        "properties": {"id": {"type": "null"}, "namespace": STRING, "value": SOME},
        "required": ["namespace", "value"],
    },
]
SCHEMAS["Many"]["properties"]["fields"] = {
    **or_null(a_list({"type": "string", **FIELD}, minItems=1)),
    "description": "as the parameter of a lookup; a name may hold a comma here",
}


def _lookup(path: str, id: str, about: str, found_by: Parameters, sent: Json, *more: type[ApiError]) -> Operation:
    return Operation(
        methods=READ,
        path=path,
        id=id,
        summary=about,
        parameters=(*found_by, FIELDS, NONE_MATCH),
        answers=LOOKED_UP,
        errors=(MalformedPath, *more, UnknownField, ProfileNotFound, *COMMON),
        security=KEYED,
        examples={"jane": Example({**sent, "fields": ASKED_FOR}, NAMES)},
    )


def _events(path: str, id: str, about: str, found_by: Parameters, sent: Json, *more: type[ApiError]) -> Operation:
    return Operation(
        methods=READ,
        path=f"{path}/events",
        id=id,
        summary=about,
        about="The newest first. A page may have fewer events than `limit`, or none: only a `cursor` of `null` tells "
        "that it is the last.",
        parameters=(*found_by, *EVENT_PARAMETERS, NONE_MATCH),
        answers=PAGE,
        errors=(MalformedPath, *more, MalformedQuery, ProfileNotFound, *COMMON),
        security=KEYED,
        examples={"the newest order": Example({**sent, "name": ["order_placed"], "limit": 1}, A_PAGE)},
    )


EMAIL = {"namespace": "email", "value": "jane@example.com"}
SECTION = Section(
    name="Profiles",
    about="Profiles and their events, by the primary id or by any other identifier.",
    operations=(
        _lookup(BY_ID, "profile", "A profile by its primary id", (PROFILE_ID,), {"profile_id": "12345"}),
        Operation(
            methods=("DELETE",),
            path=BY_ID,
            id="eraseProfile",
            summary="Erase a profile",
            about="By a key with scope `write`. The profile, its events and what updates said of it are gone for good "
            "when this is answered, also from later loads. The answer is the same where there is no such profile.",
            parameters=(PROFILE_ID,),
            answers={204: answer("erased, or never there", None, "Cache-Control", "X-Request-Id")},
            errors=(MalformedPath, Unauthorized, Forbidden, RateLimited, UrlTooLong, InternalError, LoaderUnavailable),
            security=KEYED,
            examples={"somebody": Example({"profile_id": "nobody-1"}, status=204)},
        ),
        _lookup(
            BY_IDENTIFIER,
            "profileByIdentifier",
            "A profile by another identifier",
            IDENTIFIER,
            EMAIL,
            UnknownNamespace,
        ),
        _events(BY_ID, "events", "A profile's events", (PROFILE_ID,), {"profile_id": "12345"}),
        _events(
            BY_IDENTIFIER,
            "eventsByIdentifier",
            "A profile's events, by another identifier",
            IDENTIFIER,
            EMAIL,
            UnknownNamespace,
        ),
        Operation(
            methods=("POST",),
            path=native.MANY_PATH.decode(),
            id="profiles",
            summary="Many profiles at once",
            about=f"Up to {native.MANY_MAX} in one answer, all from one snapshot; identifiers stay out of URLs. "
            "It takes as many tokens of the key's limits as it asks for profiles.",
            body=posted(schema("Many"), about="sent as JSON, whatever its `Content-Type` says"),
            answers={200: MANY},
            errors=(MalformedBody, UnknownNamespace, UnknownField, *COMMON),
            security=KEYED,
            examples={
                "one that is there, and one that is not": Example(
                    {},
                    {"profiles": [JANE, None]},
                    {
                        "profiles": [{"id": "12345"}, {"namespace": "email", "value": "no@body.example"}],
                        "fields": ["identifiers.email"],
                    },
                )
            },
        ),
    ),
    refuse=lambda error: problem(error, ASKER.request_id),
    error="Problem",
    code_at=("code",),
    schemas=SCHEMAS,
    security={
        "key": {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "sk_live_…",
            "description": "an API key, which `edgeprofile keys create` makes",
        }
    },
)
