"""The words that descriptions are made of: JSON Schema in few characters, parameters, answers, and their headers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

Json = dict[str, Any]

STRING: Json = {"type": "string"}
SOME: Json = {"type": "string", "minLength": 1}
BOOLEAN: Json = {"type": "boolean"}
MOMENT: Json = {"type": "string", "format": "date-time"}
INT64: Json = {"type": "integer", "format": "int64", "minimum": -(1 << 63), "maximum": (1 << 63) - 1}
VALUE: Json = {"description": "as the warehouse has it: a text, a number, true, false, or JSON"}
JSON, MSGPACK = "application/json", "application/msgpack"


def ref(kind: str, name: str) -> Json:
    """What stands among the components."""
    return {"$ref": f"#/components/{kind}/{name}"}


def schema(name: str) -> Json:
    return ref("schemas", name)


def schemas_of(*types: Any) -> Json:
    """The schemas of Structs by their names, those included that they are made of."""
    return msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")[1]


def properties_of(struct: Any) -> Json:
    """The schemas of a Struct's fields that are not read apart from it."""
    fields = [field for field in msgspec.structs.fields(struct) if field.type is not msgspec.Raw]
    return {field.name: schema_of(field.type) for field in fields}


def schema_of(type_: Any) -> Json:
    """The schema of a type, which may refer to those of Structs."""
    [made], _ = msgspec.json.schema_components([type_], ref_template="#/components/schemas/{name}")
    return made


def an_object(properties: Json, required: Iterable[str] | None = None, **more: Any) -> Json:
    """An object that has these, all of them unless `required` says which."""
    names = list(properties if required is None else required)
    return {"type": "object", "properties": properties, **({"required": names} if names else {}), **more}


def a_list(items: Json, **more: Any) -> Json:
    return {"type": "array", "items": items, **more}


def one_of(*texts: str) -> Json:
    return {"type": "string", "enum": list(texts)}


def or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


# --- requests ------------------------------------------------------------------------------------------------------


def in_path(name: str, about: str, schema: Json = SOME) -> Json:
    return {"name": name, "in": "path", "required": True, "description": about, "schema": schema}


def in_query(name: str, about: str, schema: Json, **more: Any) -> Json:
    return {"name": name, "in": "query", "description": about, "schema": schema, **more}


def in_header(name: str, about: str, schema: Json, **more: Any) -> Json:
    return {"name": name, "in": "header", "description": about, "schema": schema, **more}


def with_commas(name: str, about: str, items: Json, **more: Any) -> Json:
    """A parameter of the query string that is a list, with commas between its items."""
    return in_query(name, about, a_list(items, minItems=1), style="form", explode=False, **more)


def posted(schema: Json, *media_types: str, about: str = "") -> Json:
    body: Json = {"required": True, "content": {kind: {"schema": schema} for kind in media_types or (JSON,)}}
    return body | ({"description": about} if about else {})


# --- answers -------------------------------------------------------------------------------------------------------


def answer(about: str, schema: Json | None, *headers: str, media_types: Iterable[str] = (JSON,)) -> Json:
    """An answer with these of HEADERS, all of which it always has."""
    made: Json = {"description": about, "headers": {name: ref("headers", name) for name in headers}}
    if schema is not None:
        made["content"] = {kind: {"schema": schema} for kind in media_types}
    return made


def _header(about: str, schema: Json, example: Any) -> Json:
    return {"description": about, "required": True, "schema": schema, "example": example}


NATURAL: Json = {"type": "integer", "minimum": 0}
HEADERS: Json = {
    "Allow": _header("the methods that the path answers", STRING, "GET, HEAD"),
    "Cache-Control": _header("`no-store`, or of a profile the setting `server.cache_control`", STRING, "no-store"),
    "Content-Disposition": _header("the name of the file", STRING, 'attachment; filename="export_….ndjson.gz"'),
    "Content-Security-Policy": _header("what the page may load: its own files alone", STRING, "default-src 'none'"),
    "ETag": _header(
        "changes with the answer; send it back as `If-None-Match`",
        {"type": "string", "pattern": '^"[^"]+"$'},
        '"c90722a565ec59f3"',
    ),
    "RateLimit": _header("the bucket that denied, what is left in it, and the wait", STRING, '"peak";r=0;t=1'),
    "RateLimit-Policy": _header(
        "the key's buckets, each with a quota and its window in seconds",
        STRING,
        '"sustained";q=500;w=1, "peak";q=1000;w=1',
    ),
    "Retry-After": _header(
        "whole seconds, after which the request may be sent again", {"type": "integer", "minimum": 1}, 1
    ),
    "Vary": _header("an answer has two forms", STRING, "accept"),
    "WWW-Authenticate": _header("how a caller shows who it is", STRING, "Bearer"),
    "X-Request-Id": _header(
        "yours, where you sent one of up to 128 printable characters, else ours; the log has it beside a fault",
        {"type": "string", "minLength": 1, "maxLength": 128},
        "ecbcdb2cef47d27d",
    ),
    "X-amzn-RequestId": _header(
        "yours from `x-request-id`, else ours", {"type": "string", "minLength": 1, "maxLength": 128}, "ecbcdb2cef47d27d"
    ),
    "X-mp-rate-limit-exceeded": _header("whose limit is reached", {"const": "workspace"}, "workspace"),
    "X-mp-rate-limit-percentage-used": _header("how much of the key's tokens is gone", {**NATURAL, "maximum": 100}, 3),
}
