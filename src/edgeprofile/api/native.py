"""The native API: what its requests mean, for the compiled lookup, and the routes that are no lookups.

The compiled callable (`ext/lookup.pyx`) answers `GET /v1/profiles/…`; what it meets for the first time (a query
string, an Accept header, a value that is not ASCII) it asks here, and remembers.
"""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgeprofile import record
from edgeprofile._store import Workspace
from edgeprofile.errors import NotReady, UnknownField
from edgeprofile.record import Runs, Schema

FIELD_SECTIONS = ("identifiers", "attributes", "metrics", "audiences")


def parse_fields(query: bytes, schema: Schema) -> tuple[Runs, bool] | None:
    """What `fields=` of a query string chooses: runs of field numbers, and whether audiences are among it.

    None where there is no such parameter: the whole profile. Raises UnknownField.
    """
    pairs = [part.partition(b"=") for part in query.split(b"&")]
    values = [value for name, _, value in pairs if unquote_to_bytes(name) == b"fields"]
    if not values:
        return None
    tokens = [token for value in values for token in _text(value).split(",")]
    if tokens == [""]:
        raise _unknown("", schema)
    numbers: set[int] = set()
    for token in tokens:
        numbers |= _numbers(token, schema)
    with_audiences = any(token.partition(".")[0] == "audiences" for token in tokens)
    return _runs(numbers), with_audiences


def _text(value: bytes) -> str:
    return unquote_to_bytes(value.replace(b"+", b" ")).decode("utf-8", "replace")


def _numbers(token: str, schema: Schema) -> set[int]:
    section, dot, name = token.partition(".")
    if section not in FIELD_SECTIONS:
        raise _unknown(token, schema)
    found = {n for n, field in enumerate(schema.fields) if field.section == section and (not dot or field.name == name)}
    if section == "attributes":
        # Metrics are attributes too, for those who ask by the word that the API has always had.
        found |= {
            n for n, field in enumerate(schema.fields) if field.section == "metrics" and (not dot or field.name == name)
        }
    if dot and not found:
        raise _unknown(token, schema)
    return found


def _unknown(token: str, schema: Schema) -> UnknownField:
    valid = [*FIELD_SECTIONS, *(f"{field.section}.{field.name}" for field in schema.fields)]
    named = f"fields names {token[:100]!r}, which this workspace does not have."
    return UnknownField(named if token else "fields has an empty item.", members={"valid": valid})


def _runs(numbers: set[int]) -> Runs:
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return tuple(runs)


def accepts_json(header: bytes) -> bool:
    """Whether an Accept header (RFC 9110) leaves application/json: the most specific range decides."""
    if not header.strip():
        return True
    best, accepted = -1, False
    for part in header.decode("latin-1").lower().split(","):
        range_, *parameters = (piece.strip() for piece in part.split(";"))
        specificity = {"*/*": 0, "application/*": 1, "application/json": 2}.get(range_, -1)
        if specificity > best:
            best, accepted = specificity, _quality(parameters) > 0
    return accepted


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0
    return 1


def lowered(value: bytes) -> bytes:
    """An identifier's value, UTF-8 but not ASCII, in lower case as the index has it."""
    return record.normalize(value.decode(), "lower").encode()


def routes(workspaces: list[Workspace]) -> list[Route]:
    """The routes that need no key."""

    def fine() -> Response:
        return JSONResponse({"status": "ok"}, headers={"cache-control": "no-store"})

    async def livez(request: Request) -> Response:
        return fine()

    async def readyz(request: Request) -> Response:
        if not any(workspace.store is not None for workspace in workspaces):
            raise NotReady()
        return fine()

    return [Route("/livez", livez), Route("/readyz", readyz)]
