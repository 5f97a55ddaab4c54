"""Intilery's Profiles API, described."""

from __future__ import annotations

from edgeprofile.api import intilery
from edgeprofile.errors import (
    AnswerTooLarge,
    ApiError,
    BodyTooLarge,
    HeadersTooLarge,
    InternalError,
    MalformedQuery,
    NotReady,
    ProfileNotFound,
    RateLimited,
    Unauthorized,
    UrlTooLong,
)
from edgeprofile.openapi.document import ASKER, MORE, Example, Operation, Section
from edgeprofile.openapi.schemas import (
    MOMENT,
    SOME,
    STRING,
    VALUE,
    Json,
    a_list,
    an_object,
    answer,
    in_path,
    in_query,
    one_of,
    or_null,
    schema,
    with_commas,
)

BASE = f"{intilery.PREFIX.decode()}{{client}}/{{account}}/{{brand}}/v1/profiles"
PLACE = tuple(in_path(name, f"the workspace's setting `intilery.{name}`") for name in ("client", "account", "brand"))
ID = (
    in_path("idType", "one of the setting `intilery.id_types`", {"type": "string", "pattern": "^[^:]+$"}),
    in_path("id", "the id itself, percent-encoded; it may hold any character"),
)
ACTION: Json = {"type": "string", "pattern": "^[^,]+$"}
MOMENT_OR_DAY: Json = {"anyOf": [MOMENT, {"type": "string", "format": "date"}]}
QUERY = {
    "include": with_commas("include", "events of these actions only", ACTION),
    "exclude": with_commas("exclude", "no events of these actions", ACTION),
    "start": in_query("start", "from then: ISO 8601, a time or a day", MOMENT_OR_DAY),
    "end": in_query("end", "to then, included", MOMENT_OR_DAY),
    "sort": in_query("sort", "by time", {**one_of("asc", "desc"), "default": "desc"}),
    "from": in_query(
        "from",
        f"how many to pass; with `size` at most {intilery.REACH_MAX}",
        {"type": "integer", "minimum": 0, "maximum": intilery.REACH_MAX - intilery.SIZE_MAX, "default": 0},
    ),
    "size": in_query(
        "size",
        "how many to answer at most",
        {"type": "integer", "minimum": 1, "maximum": intilery.SIZE_MAX, "default": intilery.SIZE_MAX},
    ),
    "scrollId": in_query("scrollId", "the page behind the one whose answer had this; `scrollid` is read too", SOME),
}
SPELLING = "scrollid"
for name in ("include", "exclude"):
    QUERY[name]["schema"]["maxItems"] = intilery.ACTIONS_MAX
EVENTS_QUERY = tuple(QUERY[name] for name in intilery.PARAMETERS if name != SPELLING)
SHARED_QUERY = (QUERY["from"], QUERY["size"])
LIST_QUERY = (*SHARED_QUERY, QUERY["scrollId"])
COMMON: tuple[type[ApiError], ...] = (
    Unauthorized,
    RateLimited,
    AnswerTooLarge,
    BodyTooLarge,
    UrlTooLong,
    HeadersTooLarge,
    InternalError,
    NotReady,
)
TOLD = ("Cache-Control", "X-amzn-RequestId")
SEVERAL = "By an id type that is not unique, `data` has all who share the id, those updated last first."
SUMMARIES = {
    "traits": ("Traits of a profile", "Identifiers, attributes and metrics, flat."),
    "meta": ("Metadata of a profile, by its short name", "As `metadata`."),
    "metadata": (
        "Metadata of a profile",
        "Traits, who created the profile and when, its first and last event of each action, and its audiences.",
    ),
    "audiences": ("Audiences of a profile", "Traits, and the names of its audiences."),
}

PLACE_OF_JANE = {"client": "acme", "account": "marketing", "brand": "SHOP"}
JANE = {**PLACE_OF_JANE, "idType": "userId", "id": "12345"}
# What is left out stands for all other columns.
JANE_SHOWN = {"profile_id": "12345", "email": "jane@example.com", MORE: MORE, "days_since_last_order": 1}
KIND_SHOWN = {"order_placed": {"eventId": "…", MORE: MORE}, MORE: MORE}
METADATA = {
    **JANE_SHOWN,
    "createdTime": "2022-03-05T09:12:44Z",
    "audiencesStatic": ["high_spenders", "newsletter", "vip"],
    "firstEvent": KIND_SHOWN,
    "lastEvent": KIND_SHOWN,
    "lastActivityTime": "2025-06-10T12:34:56.000Z",
}
ANSWERS = {
    "traits": JANE_SHOWN,
    "meta": METADATA,
    "metadata": METADATA,
    "audiences": {**JANE_SHOWN, "audiences": ["high_spenders", "newsletter", "vip"]},
}


def _of_profile(what: str, title: str) -> Operation:
    summary, about = SUMMARIES[what]
    found = schema(f"Intilery{title}")
    return Operation(
        methods=("GET", "HEAD"),
        path=f"{BASE}/{{idType}}:{{id}}/{what}",
        id=f"intilery{what.capitalize()}",
        summary=summary,
        about=f"{about} {SEVERAL}",
        parameters=(*PLACE, *ID, *SHARED_QUERY),
        answers={200: answer("the profile, or all who share the id", {"anyOf": [_all_of(found), found]}, *TOLD)},
        errors=(MalformedQuery("ProfileID must be in format of id_type:id"), ProfileNotFound, *COMMON),
        security=[{"intileryToken": []}],
        examples={"jane": Example(JANE, ANSWERS[what])},
    )


def _all_of(found: Json) -> Json:
    return an_object({"data": a_list(found)}, additionalProperties=False)


def _page(schema_of_one: Json) -> Json:
    scroll = {**or_null(STRING), "description": "of the next page; `null` where there is no more"}
    return an_object({"scrollId": scroll, "data": a_list(schema_of_one, maxItems=intilery.SIZE_MAX)})


TITLES = {"traits": "Traits", "meta": "Metadata", "metadata": "Metadata", "audiences": "Audiences"}
TRAITS = an_object({}, additionalProperties=VALUE, description="columns of the model, by their names")
NAMES = a_list(STRING)
TIME: Json = {**MOMENT, "description": "to the millisecond"}
KINDS = an_object(
    {},
    additionalProperties=an_object({"eventId": VALUE, "eventTime": or_null(TIME)}, [], additionalProperties=VALUE),
    description="by action",
)
EVENT = an_object(
    {
        "id": VALUE,
        "externalId": VALUE,
        "email": VALUE,
        "customerId": VALUE,
        "userId": VALUE,
        "clientId": STRING,
        "accountId": STRING,
        "brandId": STRING,
        "eventId": VALUE,
        "eventTime": or_null(TIME),
        "receivedTime": VALUE,
        "eventAction": STRING,
        "source": VALUE,
        "rawData": an_object({}, additionalProperties=VALUE, description="the other parameters"),
    },
    ["clientId", "accountId", "brandId", "eventTime", "receivedTime", "eventAction", "rawData"],
)
ORDER = {
    "id": "b84ffb7f-55c4-c989-f612-ac8a0a862cd9",
    "externalId": "12345",
    "email": "jane@example.com",
    "customerId": "b84ffb7f-55c4-c989-f612-ac8a0a862cd9",
    "userId": "b84ffb7f-55c4-c989-f612-ac8a0a862cd9",
    "clientId": "acme",
    "accountId": "marketing",
    "brandId": "SHOP",
    "eventId": "order-12345006",
    "eventTime": "2025-06-10T12:34:56.000Z",
    "receivedTime": "2025-06-10T12:34:56.000Z",
    "eventAction": "order_placed",
    "source": "web",
    "rawData": {"order_id": 12345006, "amount": 519.53, "status": "shipped"},
}

SECTION = Section(
    name="Intilery",
    about="Intilery's Profiles API: traits, metadata, audiences and events of profiles, and a list of all.",
    operations=(
        Operation(
            methods=("GET", "HEAD"),
            path=BASE,
            id="intileryProfiles",
            summary="All profiles",
            about="Their traits, in the order of their primary ids. Go on by `scrollId` until `data` is empty.",
            parameters=(*PLACE, *LIST_QUERY),
            answers={200: answer("a page", schema("IntileryTraitsPage"), *TOLD)},
            errors=(MalformedQuery("size is a whole number from 1 to 100."), *COMMON),
            security=[{"intileryToken": []}],
            examples={"the first": Example({**PLACE_OF_JANE, "size": 1}, {"scrollId": "…", "data": [JANE_SHOWN]})},
        ),
        *(_of_profile(what.decode(), TITLES[what.decode()]) for what in intilery.WHATS),
        Operation(
            methods=("GET", "HEAD"),
            path=f"{BASE}/{{idType}}:{{id}}/{intilery.EVENTS.decode()}",
            id="intileryEvents",
            summary="Events of a profile, or of all who share an id",
            about="Go on by `scrollId` until `data` is empty.",
            parameters=(*PLACE, *ID, *EVENTS_QUERY),
            answers={200: answer("a page", schema("IntileryEventsPage"), *TOLD)},
            errors=(MalformedQuery("sort is asc or desc."), ProfileNotFound, *COMMON),
            security=[{"intileryToken": []}],
            examples={
                "the newest order": Example(
                    {**JANE, "include": ["order_placed"], "size": 1}, {"scrollId": "…", "data": [ORDER]}
                )
            },
        ),
    ),
    refuse=lambda error: intilery.IntileryApi.refuse(ASKER, error),
    error="IntileryError",
    code_at=("error", "code"),
    schemas={
        "IntileryTraits": TRAITS,
        "IntileryAudiences": an_object({"audiences": NAMES}, additionalProperties=VALUE),
        "IntileryMetadata": an_object(
            {
                "createdTime": VALUE,
                "createdBy": VALUE,
                "audiencesStatic": NAMES,
                "firstEvent": KINDS,
                "lastEvent": KINDS,
                "lastActivityTime": or_null(TIME),
            },
            ["audiencesStatic", "firstEvent", "lastEvent"],
            additionalProperties=VALUE,
        ),
        "IntileryTraitsPage": _page(schema("IntileryTraits")),
        "IntileryEvent": EVENT,
        "IntileryEventsPage": _page(schema("IntileryEvent")),
        "IntileryError": an_object({"error": an_object({"code": STRING, "message": STRING})}),
    },
    security={
        "intileryToken": {
            "type": "apiKey",
            "in": "header",
            "name": "auth-token",
            "description": "an API key of the client, account and brand",
        }
    },
)
