"""Insider's user profile API, described."""

from __future__ import annotations

from edgeprofile.api import insider
from edgeprofile.errors import (
    AnswerTooLarge,
    BodyTooLarge,
    HeadersTooLarge,
    InternalError,
    MalformedBody,
    NotReady,
    ProfileNotFound,
    RateLimited,
    Unauthorized,
    UrlTooLong,
)
from edgeprofile.openapi.document import ASKER, Example, Operation, Section
from edgeprofile.openapi.schemas import (
    BOOLEAN,
    STRING,
    VALUE,
    a_list,
    an_object,
    answer,
    in_header,
    or_null,
    posted,
    properties_of,
    schema,
    schema_of,
    schemas_of,
)

ASKED = properties_of(insider.Body)
BODY = {
    "attributes": {
        **schema_of(insider.Attributes),
        "description": "names of identifiers, attributes and metrics, ours or with `c_` before it; `*` is all of them",
    },
    "quota": {**ASKED["quota"], "description": "whether the answer is to tell of the quota"},
    "insider_id": {**ASKED["insider_id"], "description": "the primary id, in the place of `identifiers`"},
    "identifiers": {
        **ASKED["identifiers"],
        "description": f"{', '.join(insider.KINDS)}, and `custom`, an object of more; the first that is there decides",
    },
    "events": or_null(schema("InsiderEvents")),
}
# What stands there must not be null in the one place that is wanted.
WANTS = [
    {
        "anyOf": [
            {"required": ["insider_id"], "properties": {"insider_id": {"type": "string", "minLength": 1}}},
            {"required": ["identifiers"], "properties": {"identifiers": {"type": "object", "minProperties": 1}}},
        ]
    },
    {
        "anyOf": [
            {"required": ["attributes"], "properties": {"attributes": {"type": "array"}}},
            {"required": ["events"], "properties": {"events": {"type": "object"}}},
        ]
    },
]
EVENTS = {**properties_of(insider.Events), "wanted": schema_of(insider.WantedEvents)}
NUMBER = {"type": "number", "minimum": 0}
IID = {**STRING, "description": "the primary id"}

SECTION = Section(
    name="Insider",
    about="Insider's user profile API: attributes and events of one profile.",
    operations=(
        Operation(
            methods=("POST",),
            path=insider.PATH.decode(),
            id="insiderProfile",
            summary="Attributes and events of a profile",
            about="Costs units of the partner's quota of a minute, and a token of the key's limits.",
            parameters=(
                in_header(
                    "X-PARTNER-NAME",
                    "the workspace, by its setting `insider.partner`",
                    STRING,
                    required=True,
                ),
            ),
            body=posted(schema("InsiderBody")),
            answers={200: answer("what was asked for", schema("InsiderProfile"), "Cache-Control", "X-Request-Id")},
            errors=(
                insider.InvalidPartner(),
                insider.NotJson("content type must be application/json"),
                MalformedBody("events.wanted[1].params must be an array of at most 100 names"),
                Unauthorized,
                ProfileNotFound,
                RateLimited(12, []),
                AnswerTooLarge,
                BodyTooLarge,
                UrlTooLong,
                HeadersTooLarge,
                InternalError,
                NotReady,
            ),
            security=[{"insiderToken": []}],
            examples={
                "Jane's orders": Example(
                    {"X-PARTNER-NAME": "demo"},
                    {
                        "attributes": {"first_name": "Jane", "c_tier": "gold", "iid": "12345"},
                        "events": {"order_placed": [{"amount": 519.53, "created_date": "2025-06-10T12:34:56Z"}]},
                    },
                    {
                        "identifiers": {"email": "jane@example.com"},
                        "attributes": ["first_name", "c_tier"],
                        "events": {
                            "start_date": 1748736000,
                            "end_date": 1751328000,
                            "wanted": [{"event_name": "order_placed", "params": ["amount", "timestamp"]}],
                        },
                    },
                )
            },
        ),
    ),
    refuse=lambda error: insider.InsiderApi.refuse(ASKER, error),
    error="InsiderError",
    schemas=schemas_of(insider.WantedEvent)
    | {
        "InsiderBody": an_object(BODY, [], allOf=WANTS),
        "InsiderEvents": an_object(EVENTS, ["start_date", "end_date", "wanted"]),
        "InsiderProfile": an_object(
            {
                "attributes": an_object({"iid": IID}, additionalProperties=VALUE),
                "events": an_object(
                    {},
                    additionalProperties=a_list(an_object({}, additionalProperties=VALUE)),
                    description="of each that is wanted, the newest first",
                ),
                "quota": an_object({"cost": NUMBER, "used": NUMBER, "total": NUMBER}, description="in units"),
            },
            ["attributes"],
        ),
        "InsiderError": {
            "oneOf": [
                an_object({"error": STRING}, additionalProperties=False),
                an_object({"success": BOOLEAN, "message": STRING}, additionalProperties=False),
            ]
        },
    },
    security={
        "insiderToken": {
            "type": "apiKey",
            "in": "header",
            "name": "X-REQUEST-TOKEN",
            "description": "an API key of the partner's workspace",
        }
    },
)
