"""What a service says of itself, described: its life, its API, and the page that shows it."""

from __future__ import annotations

from collections.abc import Iterable

from edgeprofile.api import reference
from edgeprofile.errors import ApiError, InternalError, NoSuchRoute, NotReady, UrlTooLong
from edgeprofile.openapi import native
from edgeprofile.openapi.document import MORE, OPENAPI, Example, Operation, Section
from edgeprofile.openapi.schemas import STRING, Json, an_object, answer, in_path, one_of, schema

OBJECT: Json = {"type": "object"}
COMMON: tuple[type[ApiError], ...] = (UrlTooLong, InternalError)
FINE = answer("it does", schema("Fine"), "Cache-Control")
# How the answers begin, by their paths.
STARTS = {
    "/livez": {"status": "ok"},
    "/readyz": {"status": "ok"},
    reference.DOCUMENT_PATH: {"openapi": OPENAPI, "info": {"title": "edgeprofile", MORE: MORE}, MORE: MORE},
    reference.PAGE_PATH: f"<!doctype html>{MORE}",
    f"{reference.PAGE_PATH}/{{file}}": f"// Draws openapi.json.{MORE}",
}
HELD = ("ETag", "Cache-Control")
UNCHANGED = answer("the answer is still the one of `If-None-Match`", None, *HELD)


def _operation(
    path: str, id: str, summary: str, answers: dict[int, Json], *errors: type[ApiError], **more: Json
) -> Operation:
    return Operation(
        methods=native.READ,
        path=path,
        id=id,
        summary=summary,
        parameters=(*more.values(), *((native.NONE_MATCH,) if 304 in answers else ())),
        answers=answers,
        errors=(*errors, *COMMON),
        examples={"its start": Example({"file": "docs.js"} if more else {}, STARTS[path])},
    )


def _operations(with_page: bool) -> Iterable[Operation]:
    yield _operation("/livez", "alive", "Whether the process serves", {200: FINE})
    yield _operation(
        "/readyz", "ready", "Whether a snapshot is served, and the server is not about to end", {200: FINE}, NotReady
    )
    description = answer("the document", schema("OpenApi"), *HELD)
    yield _operation(
        reference.DOCUMENT_PATH, "description", "This description, as OpenAPI 3.1", {200: description, 304: UNCHANGED}
    )
    if with_page:
        page = answer("the page", {"type": "string"}, *HELD, "Content-Security-Policy", media_types=["text/html"])
        yield _operation(
            reference.PAGE_PATH, "page", "The same as a page, which needs no other site", {200: page, 304: UNCHANGED}
        )
        file = answer("the file", {"type": "string"}, *HELD, media_types=reference.MEDIA_TYPES)
        name = in_path("file", "the file's name", one_of(*reference.FILES))
        yield _operation(
            f"{reference.PAGE_PATH}/{{file}}",
            "pageFile",
            "What the page is made of",
            {200: file, 304: UNCHANGED},
            NoSuchRoute,
            file=name,
        )


def section(*, with_page: bool) -> Section:
    return Section(
        name="Service",
        about="Whether the service is well, and what it serves. No key is needed.",
        operations=tuple(_operations(with_page)),
        refuse=native.SECTION.refuse,
        error="Problem",
        code_at=("code",),
        schemas={
            "Fine": an_object({"status": {"const": "ok"}}),
            "OpenApi": an_object({"openapi": {**STRING, "pattern": "^3\\.1\\."}, "info": OBJECT, "paths": OBJECT}),
        },
    )
