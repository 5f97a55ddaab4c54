"""Batch's Profile API, described."""

from __future__ import annotations

from edgeprofile import attributes, exports, updates
from edgeprofile.api import batch
from edgeprofile.api.dialect import Answer
from edgeprofile.errors import (
    ApiError,
    BodyTooLarge,
    InternalError,
    LoaderUnavailable,
    MalformedBody,
    MalformedQuery,
    RateLimited,
    Unauthorized,
    UnsupportedMediaType,
    UrlTooLong,
)
from edgeprofile.gateway import KINDS
from edgeprofile.openapi import native
from edgeprofile.openapi.document import ASKER, Example, Operation, Section
from edgeprofile.openapi.schemas import (
    BOOLEAN,
    INT64,
    MOMENT,
    SOME,
    STRING,
    Json,
    a_list,
    an_object,
    answer,
    in_header,
    in_query,
    or_null,
    posted,
    schema,
    schemas_of,
)

PROJECT = in_header("X-Batch-Project", "the setting `batch.project` of the key's workspace", STRING, required=True)
EXPORT_ID = in_query("id", "what the request for the export answered, or the id of its file", SOME, required=True)
TOLD = ("Cache-Control", "X-Request-Id")
COMMON: tuple[type[ApiError], ...] = (Unauthorized, UrlTooLong, InternalError)
OVER_UPDATES = RateLimited(2, [])  # which has a limit of its own, of which there is no standard field
WRITTEN = {202: answer("what is not listed as an error is on disk, and served", schema("BatchWritten"), *TOLD)}
OUR_PROJECT = {"X-Batch-Project": "project_demo"}


def refuse(error: ApiError) -> Answer:
    """As the dialect, whose answers are Starlette's, and get their number last."""
    response = batch.refused(error)
    return response.status_code, [*response.raw_headers, (b"x-request-id", ASKER.request_id)], bytes(response.body)


# --- updates -------------------------------------------------------------------------------------------------------

TEXT: Json = {"type": "string", "minLength": 1, "maxLength": attributes.STRING_CHARS_MAX}
TEXTS = a_list(TEXT, maxItems=attributes.ITEMS_MAX)
PLAIN: list[Json] = [TEXT, INT64, {"type": "number"}, BOOLEAN, TEXTS]
CHANGE = an_object({"$add": TEXTS, "$remove": TEXTS}, [], minProperties=1, additionalProperties=False)
NAME = attributes.NAME.pattern
TYPED: Json = {
    f"^date\\({NAME}\\)$": or_null({**TEXT, "description": "ISO 8601, a date or a time"}),
    f"^url\\({NAME}\\)$": or_null({"type": "string", "minLength": 1, "maxLength": attributes.URL_CHARS_MAX}),
}
ATTRIBUTES = {
    "type": ["object", "null"],
    "properties": {name: or_null(TEXT) for name in attributes.NATIVE},
    "patternProperties": {f"^{NAME}$": {"anyOf": [*PLAIN, CHANGE, {"type": "null"}]}, **TYPED},
    "additionalProperties": False,
    "maxProperties": attributes.ATTRIBUTES_MAX,
    "description": "Each is set, or by `null` cleared; `$add` and `$remove` change an array.",
}
EVENT = an_object(
    {
        "name": {"type": "string", "pattern": f"^{NAME}$"},
        "attributes": {
            "type": ["object", "null"],
            "maxProperties": attributes.ATTRIBUTES_MAX,
            "description": "as those of a profile, or objects of such",
        },
        "time": {**or_null(TEXT), "description": "ISO 8601, within the last 24 hours; without it, now"},
    },
    ["name"],
    additionalProperties=False,
)
UPDATE = an_object(
    {
        "identifiers": an_object({"custom_id": SOME}, additionalProperties=False),
        "attributes": schema("BatchAttributes"),
        "events": {**or_null(a_list(schema("BatchEvent"), maxItems=updates.EVENTS_MAX))},
    },
    ["identifiers"],
    additionalProperties=False,
)
JANET = {
    "identifiers": {"custom_id": "54321"},
    "attributes": {"first_name": "Janet", "date(birthday)": "1989-07-20"},
    "events": [{"name": "order_placed", "attributes": {"amount": 19.9}}],
}
SCORE = {"identifiers": {"custom_id": "54321"}, "attributes": {"first_name": "Janet", "score": [1]}}
LEFT_OUT = {"category": "attribute", "bulk_index": 0, "reason": "a string is expected", "attribute": "score"}
PARTLY = Example(OUR_PROJECT, {"code": "SUCCESS_WITH_PARTIAL_ERRORS", "errors": [LEFT_OUT]}, [SCORE], 202)


def _updates(path: str, kind: str, id: str, summary: str) -> Operation:
    count = KINDS[kind].updates_max
    return Operation(
        methods=("POST",),
        path=path,
        id=id,
        summary=summary,
        about=f"Up to {count:,} of them, by a key with scope `write`. Limits count updates and not calls. A part of an "
        "update that is wrong is left out and listed; the rest is written.",
        parameters=(PROJECT,),
        body=posted(a_list(schema("BatchUpdate"), minItems=1, maxItems=count), about="plain, or packed by gzip"),
        answers=WRITTEN,
        errors=(
            MalformedBody("The body is no JSON that can be read: unexpected end."),
            MalformedQuery("The body is an array of updates."),
            OVER_UPDATES,
            *COMMON,
            BodyTooLarge,
            UnsupportedMediaType,
            LoaderUnavailable,
        ),
        security=native.KEYED,
        examples={
            "an update and an event": Example(OUR_PROJECT, {"code": "SUCCESS"}, [JANET], 202),
            "an attribute that is left out": PARTLY,
        },
    )


# --- exports -------------------------------------------------------------------------------------------------------

TOO_MANY = RateLimited(batch.EXPORTS_RETRY_S, [])
LINKS = {
    name: {"operationId": id, "parameters": {"id": "$response.body#/id"}}
    for name, id in (("status", "batchExportStatus"), ("file", "batchExportFile"))
}
STRUCTS = schemas_of(batch.Wanted, updates.Problem)
WANTED, PROBLEM = STRUCTS["Wanted"], STRUCTS["Problem"]
WANTED["properties"]["attributes"]["items"] = {
    "type": "string",
    "anyOf": [
        {"enum": list(attributes.NATIVE)},
        {"pattern": r"^[^$]", "minLength": 1, "maxLength": exports.NAME_CHARS_MAX},
    ],
}
NOT_EMPTY = {"type": "array", "minItems": 1}
WANTED["anyOf"] = [{"required": [name], "properties": {name: NOT_EMPTY}} for name in ("attributes", "identifiers")]
FILE = an_object({"id": STRING, "part": {"const": 1}, "size": {"type": "integer"}, "url": STRING})
EXPORT = an_object(
    {
        "id": STRING,
        "request_date": MOMENT,
        "scope": {"const": "PROFILE_ATTRIBUTES"},
        "status": {"type": "string", "enum": list(exports.STATUSES)},
        "request": an_object(
            {"export_type": {"const": batch.EXPORT_TYPE}, "attributes": a_list(STRING), "identifiers": a_list(STRING)}
        ),
        "files": a_list(FILE, maxItems=1),
        "start_date": MOMENT,
        "completion_date": MOMENT,
    },
    ["id", "request_date", "scope", "status", "request", "files"],
)
ASKED = {
    "export_type": batch.EXPORT_TYPE,
    "attributes": ["$email_address", "first_name"],
    "identifiers": ["custom_id"],
}
SHOWN = {
    "id": "export_…",
    "request_date": "…",
    "scope": "PROFILE_ATTRIBUTES",
    "status": "SUCCESS",
    "request": ASKED,
    "files": [{"id": "file_…", "part": 1, "size": 355, "url": "/2.4/exports/download?id=file_…"}],
    "start_date": "…",
    "completion_date": "…",
}


def _export(path: str) -> Operation:
    return Operation(
        methods=("POST",),
        path=path,
        id="batchExport",
        summary="Begin an export of all profiles",
        about=f"By a key with scope `read`. At most {exports.KEPT_MAX} of a workspace are kept, each for 24 hours.",
        parameters=(PROJECT,),
        body=posted(schema("BatchExportRequest")),
        answers={202: answer("the export's id", schema("BatchExportId"), *TOLD) | {"links": LINKS}},
        errors=(
            MalformedBody("The body is no JSON that can be read: unexpected end."),
            MalformedQuery("An export has attributes, identifiers, or both."),
            TOO_MANY,
            *COMMON,
            BodyTooLarge,
            UnsupportedMediaType,
            LoaderUnavailable,
        ),
        security=native.KEYED,
        examples={"all": Example(OUR_PROJECT, {"id": "export_…"}, ASKED, 202)},
    )


def _of_export(path: str, id: str, summary: str, about: str, answers: dict[int, Json], example: Example) -> Operation:
    return Operation(
        methods=("GET",),
        path=path,
        id=id,
        summary=summary,
        about=about,
        parameters=(PROJECT, EXPORT_ID),
        answers=answers,
        errors=(
            MalformedQuery("id is given once."),
            RateLimited,
            *COMMON,
            batch.NoExport("There is no such export, or no more."),
        ),
        security=native.KEYED,
        examples={"all": example},
    )


FOUND = {200: answer("the export", schema("BatchExport"), *TOLD)}
BYTES: Json = {"type": "string", "format": "binary"}
TOLD_OF_FILE = (*TOLD, "Content-Disposition", "ETag")
PACKED = {
    200: answer("gzip of a line of JSON for each profile", BYTES, *TOLD_OF_FILE, media_types=[batch.GZIP]),
    206: answer("the part of it that `Range` asked for", BYTES, *TOLD_OF_FILE, media_types=[batch.GZIP]),
    416: answer("the file has no such part", None),
}
ITS_ID = {**OUR_PROJECT, "id": "export_…"}
MASS = _updates("/profiles/mass-update", "mass-update", "batchMassUpdate", "Update many profiles")
STATUS = "How far an export is"
# By their paths, so that there is no route of the dialect that is not described.
OPERATIONS = {
    each.path: each
    for each in (
        _updates("/profiles/update", "update", "batchUpdate", "Update profiles"),
        MASS,
        _export("/profiles/export"),
        _of_export("/exports/view", "batchExportStatus", STATUS, "", FOUND, Example(ITS_ID, SHOWN)),
        _of_export(
            "/exports/download",
            "batchExportFile",
            "The file of an export",
            "Once its status is `SUCCESS`. Parts of it may be asked for by `Range`.",
            PACKED,
            Example(ITS_ID),
        ),
    )
}

SECTION = Section(
    name="Batch",
    about="Batch's Profile API: updates of profiles, and exports. N is any number, and `/2.N` may be left out.",
    operations=tuple(OPERATIONS[path.decode()] for path in batch.Batch.ROUTES),
    refuse=refuse,
    error="BatchError",
    code_at=("error_code",),
    schemas={
        "BatchUpdate": UPDATE,
        "BatchAttributes": ATTRIBUTES,
        "BatchEvent": EVENT,
        "BatchProblem": PROBLEM,
        "BatchWritten": {
            "oneOf": [
                an_object({"code": {"const": "SUCCESS"}}, additionalProperties=False),
                an_object(
                    {
                        "code": {"const": "SUCCESS_WITH_PARTIAL_ERRORS"},
                        "errors": a_list(schema("BatchProblem"), minItems=1, maxItems=updates.PROBLEMS_MAX + 1),
                    }
                ),
            ]
        },
        "BatchExportRequest": WANTED,
        "BatchExportId": an_object({"id": STRING}),
        "BatchExport": EXPORT,
        "BatchError": an_object({"error_code": STRING, "error_message": STRING}),
    },
    before={UrlTooLong: native.SECTION},
    bases=[{"url": "/2.{minor}", "variables": {"minor": {"default": "4"}}}, {"url": "/"}],
)
