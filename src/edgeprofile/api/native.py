"""The native API: what its requests mean, for the compiled lookup, and the routes that are no lookups.

The compiled callable (`ext/lookup.pyx`) answers `/v1/profiles/…`; what it meets for the first time (a query string,
an Accept header, a value that is not ASCII) it asks here, and remembers.
"""

from __future__ import annotations

import base64
import re
from typing import Annotated
from urllib.parse import unquote_to_bytes

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgeprofile._events import Wanted
from edgeprofile._store import Workspace
from edgeprofile.api.pages import runs_of
from edgeprofile.api.query import RFC_3339, number_of, once, parameters, range_us
from edgeprofile.errors import MalformedBody, MalformedQuery, NotReady, UnknownField
from edgeprofile.life import Life
from edgeprofile.record import Runs, Schema

FIELD_SECTIONS = ("identifiers", "attributes", "metrics", "audiences")
# The forms of an answer, by the numbers that the compiled lookup has for them; 0 is none.
FORMS = {1: "application/json", 2: "application/msgpack"}
# Of an Accept header; what stands behind them is not looked at.
RANGES_MAX = 100
QUALITY = re.compile(r"0(\.[0-9]*)?|1(\.0*)?")
MANY_PATH = b"/v1/profiles/lookup"
MANY_MAX = 100
# An error quotes what it is about, which may be long.
ERROR_CHARS_MAX = 300
# Of events, as _events.pxd has them.
EVENTS_MAX = 100
EVENT_NAMES_MAX = 32
EVENT_PARAMETERS = ("name", "start", "end", "limit", "cursor")
CURSOR = re.compile(r"[A-Za-z0-9_-]{22}")


def parse_fields(query: bytes, schema: Schema, newest: Schema) -> tuple[Runs, bool] | None:
    """What `fields=` of a query string chooses: runs of field numbers, and whether audiences are among it.

    What only `newest`, a later schema of the same, has is known too, and chooses nothing.

    None where there is no such parameter: the whole profile. Raises UnknownField.
    """
    pairs = [part.partition(b"=") for part in query.split(b"&")]
    values = [value for name, _, value in pairs if unquote_to_bytes(name) == b"fields"]
    if not values:
        return None
    return choose([token for value in values for token in _text(value).split(",")], schema, newest)


def choose(tokens: list[str], schema: Schema, newest: Schema) -> tuple[Runs, bool]:
    """As `parse_fields`, of the sections and fields themselves. Raises UnknownField, of an empty list too."""
    if tokens in ([], [""]):
        raise _unknown("", newest)
    known = _known(newest)
    if schema is not newest:
        known = {token: set[int]() for token in known} | _known(schema)
    numbers: set[int] = set()
    for token in dict.fromkeys(tokens):
        if token not in known:
            raise _unknown(token, newest)
        numbers |= known[token]
    with_audiences = any(token.partition(".")[0] == "audiences" for token in tokens)
    return runs_of(numbers), with_audiences


def _text(value: bytes) -> str:
    return unquote_to_bytes(value.replace(b"+", b" ")).decode("utf-8", "replace")


def _known(schema: Schema) -> dict[str, set[int]]:
    """By section, and by section and field: the numbers of the fields that it chooses."""
    known: dict[str, set[int]] = {section: set() for section in FIELD_SECTIONS}
    for number, field in enumerate(schema.fields):
        # Metrics are attributes too, for those who ask by the word that the API has always had.
        for section in (field.section, "attributes") if field.section == "metrics" else (field.section,):
            known[section].add(number)
            known[f"{section}.{field.name}"] = {number}
    return known


def _unknown(token: str, schema: Schema) -> UnknownField:
    valid = [*FIELD_SECTIONS, *(f"{field.section}.{field.name}" for field in schema.fields)]
    named = f"fields names {token[:100]!r}, which this workspace does not have."
    return UnknownField(named if token else "fields has an empty item.", members={"valid": valid})


class Asked(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One of many: by `id`, or by `namespace` and `value`."""

    id: str | None = None
    namespace: str | None = None
    value: str | None = None


class Many(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /v1/profiles/lookup`."""

    profiles: Annotated[list[Asked], msgspec.Meta(max_length=MANY_MAX)]
    fields: list[str] | None = None


_many = msgspec.json.Decoder(Many)


def parse_many(body: bytes) -> tuple[list[Asked], list[str] | None]:
    """Whom a body asks for, and the fields that it chooses. Raises MalformedBody, which tells the place."""
    try:
        # As text, so that the place of what is not UTF-8 is that in the body.
        many = _many.decode(body.decode())
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedBody(f"{str(error)[:ERROR_CHARS_MAX]}.") from None
    return many.profiles, many.fields


def parse_events(query: bytes) -> Wanted:
    """What the query string of an events route asks for. Raises MalformedQuery, which names the parameter."""
    given = parameters(query, EVENT_PARAMETERS)
    start, end, limit, cursor = (once(given, name) for name in EVENT_PARAMETERS[1:])
    names = list(dict.fromkeys(given["name"]))
    if len(names) > EVENT_NAMES_MAX:
        raise MalformedQuery(f"name is given for more than {EVENT_NAMES_MAX} names.")
    start_us, end_us = range_us(start, end, RFC_3339)
    return Wanted(
        names,
        start_us,
        end_us,
        number_of("limit", limit, 1, EVENTS_MAX, EVENTS_MAX),
        None if cursor is None else _cursor(cursor),
    )


def _cursor(text: str) -> bytes:
    """The bytes of a cursor. That it is one of these events is for who has them to tell."""
    found = base64.urlsafe_b64decode(text + "==") if CURSOR.fullmatch(text) else b""
    if base64.urlsafe_b64encode(found) != f"{text}==".encode():
        raise MalformedQuery("cursor is not one that an answer had.")
    return found


def accepted(header: bytes) -> int:
    """Which of FORMS an Accept header (RFC 9110) prefers, the first of equals; 0 for none."""
    if not header.strip():
        return 1
    qualities = {form: _quality_of(name, header.decode("latin-1").lower()) for form, name in FORMS.items()}
    best = max(qualities, key=lambda form: qualities[form])
    return best if qualities[best] > 0 else 0


def _quality_of(name: str, header: str) -> float:
    """The quality of a media type: of the ranges that cover it, the most specific decides."""
    best, quality = -1, 0.0
    for part in header.split(",", RANGES_MAX)[:RANGES_MAX]:
        range_, *parameters = (piece.strip() for piece in part.split(";"))
        specificity = {"*/*": 0, "application/*": 1, name: 2}.get(range_, -1)
        if specificity > best:
            best, quality = specificity, _quality(parameters)
    return quality


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            return float(value) if QUALITY.fullmatch(value) else 0
    return 1


def routes(workspaces: list[Workspace], life: Life) -> list[Route]:
    """The routes that need no key."""

    def fine() -> Response:
        return JSONResponse({"status": "ok"}, headers={"cache-control": "no-store"})

    async def livez(request: Request) -> Response:
        return fine()

    async def readyz(request: Request) -> Response:
        if life.is_ending:
            raise NotReady("This server is about to end. Ask another.")
        if not any(workspace.store is not None for workspace in workspaces):
            raise NotReady()
        return fine()

    return [Route("/livez", livez), Route("/readyz", readyz)]
