"""The OpenAPI document (3.1) of sections, one a surface, which describe their operations beside what serves them.

What goes wrong is not described but asked for: an error's status, headers and body in the document are what the surface
itself makes of such an error, and what it means is the first paragraph of its docstring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, NamedTuple

import msgspec

from edgeprofile.api.dialect import Answer
from edgeprofile.errors import ApiError
from edgeprofile.openapi.samples import meaning_of, sample_of
from edgeprofile.openapi.schemas import HEADERS, Json, ref

OPENAPI = "3.1.1"
ABOUT = (
    "Customer profiles, served from a snapshot of a warehouse: by an API of our own and, where the settings turn them "
    "on, in the wire formats of others. Every request but those of the section Service needs an API key, which decides "
    "the workspace. Paths, names of fields, statuses and codes are stable; the texts of errors are not."
)
# Of every error: who asked has said it, or it says nothing of the error.
UNTOLD = ("content-type", "content-length", "cache-control", "pragma")


class Asker(NamedTuple):
    """What an error's answer needs of a request."""

    request_id: bytes


ASKER = Asker(b"ecbcdb2cef47d27d")
Refused = ApiError | type[ApiError]
Refuse = Callable[[ApiError], Answer]


MORE = "…"


class Example(NamedTuple):
    """A request, by the values of its parameters and its body, and its answer.

    An ellipsis in a text stands for what is another one each time, or the caller's own; as a name, for more members.
    """

    sent: Json
    answer: Any = None
    body: Any = None
    status: int = 200


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What is asked at a path, by one method or by several alike. `answers` are those that are no errors, by status."""

    methods: Sequence[str]
    path: str
    id: str
    summary: str
    about: str = ""
    parameters: Sequence[Json] = ()
    body: Json | None = None
    answers: Mapping[int, Json]
    errors: Sequence[Refused]
    security: Sequence[Json] = ()
    examples: Mapping[str, Example] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Section:
    """A surface. `error` is the schema of its errors, in which the code stands at `code_at`, if there is one.

    `before` has the errors that a request meets before it comes to the surface, and whose they are. Its paths are also
    found under each of `bases`, URLs with variables, the first of which its callers know.
    """

    name: str
    about: str
    operations: Sequence[Operation]
    refuse: Refuse
    error: str
    code_at: Sequence[str | int] = ()
    schemas: Json
    security: Json = field(default_factory=dict)
    before: Mapping[Refused, Section] = field(default_factory=dict)
    bases: Sequence[Json] = ()


def document(sections: Iterable[Section]) -> Json:
    """All of it as an object."""
    paths: dict[str, Json] = {}
    tags: list[Json] = []
    schemas: Json = {}
    responses: Json = {}
    security: Json = {}
    for section in sections:
        tags.append({"name": section.name, "description": section.about})
        schemas |= section.schemas
        security |= section.security
        for operation in section.operations:
            at = paths.setdefault(operation.path, {"servers": list(section.bases)} if section.bases else {})
            for method in operation.methods:
                at[method.lower()] = _described(section, operation, method, responses)
    components = {"schemas": schemas, "responses": responses, "headers": HEADERS, "securitySchemes": security}
    info = {"title": "edgeprofile", "version": version("edgeprofile"), "description": ABOUT}
    made = {"openapi": OPENAPI, "info": info, "servers": [{"url": "/"}], "tags": tags, "paths": paths}
    return made | {"components": components}


def _described(section: Section, operation: Operation, method: str, responses: Json) -> Json:
    is_head = method == "HEAD"
    answers = {str(status): answer for status, answer in operation.answers.items()}
    for (owner, status), kinds in _by_status(section, operation.errors).items():
        name = ".".join([owner.name, str(status), *(_kind(each).__name__ for each in kinds)])
        refusal = _refusal(owner, kinds)
        if responses.setdefault(name, refusal) != refusal:  # of the same kinds, but told otherwise
            name += f".{operation.id}"
            responses[name] = refusal
        answers[str(status)] = responses[name] if is_head else ref("responses", name)
    described: Json = {
        "operationId": operation.id + ("Head" if is_head else ""),
        "tags": [section.name],
        "summary": operation.summary,
        "description": "As GET, with the headers alone." if is_head else operation.about,
        "parameters": [_with_examples(parameter, operation.examples) for parameter in operation.parameters],
        "responses": {status: _answered(status, answers[status], operation, is_head) for status in sorted(answers)},
        "security": list(operation.security),
    }
    if operation.body is not None:
        described["requestBody"] = _body(operation.body, operation.examples)
    return {name: value for name, value in described.items() if value or name == "security"}


def _with_examples(parameter: Json, examples: Mapping[str, Example]) -> Json:
    name = parameter["name"]
    shown = {key: {"value": each.sent[name]} for key, each in examples.items() if name in each.sent}
    return parameter | {"examples": shown} if shown else parameter


def _body(body: Json, examples: Mapping[str, Example]) -> Json:
    shown = {key: {"value": each.body} for key, each in examples.items() if each.body is not None}
    content = {kind: {**media, "examples": shown} for kind, media in body["content"].items()}
    return {**body, "content": content}


def _answered(status: str, answer: Json, operation: Operation, is_head: bool) -> Json:
    if is_head:
        return {name: value for name, value in answer.items() if name != "content"}
    shown = {key: {"value": each.answer} for key, each in operation.examples.items() if str(each.status) == status}
    shown = {key: value for key, value in shown.items() if value["value"] is not None}
    if not shown or "content" not in answer:
        return answer
    first, *rest = answer["content"].items()
    return {**answer, "content": {first[0]: {**first[1], "examples": shown}, **dict(rest)}}


# --- errors --------------------------------------------------------------------------------------------------------


def _by_status(section: Section, errors: Sequence[Refused]) -> dict[tuple[Section, int], list[Refused]]:
    """The errors by who answers them, and with which status."""
    found: dict[tuple[Section, int], list[Refused]] = {}
    for error in errors:
        owner = section.before.get(error, section)
        found.setdefault((owner, owner.refuse(sample_of(error))[0]), []).append(error)
    return found


def _refusal(section: Section, kinds: Sequence[Refused]) -> Json:
    """The answer to all that goes wrong with one status."""
    answers = [section.refuse(sample_of(kind)) for kind in kinds]
    bodies = [msgspec.json.decode(body) for _, _, body in answers]
    [media_type] = {value for _, headers, _ in answers for name, value in headers if name == b"content-type"}
    schema = ref("schemas", section.error)
    codes = list(dict.fromkeys(_code_in(body, section.code_at) for body in bodies))
    if section.code_at:
        schema = {"allOf": [schema, _narrowed(section.code_at, codes)]}
    sent = [{name.decode() for name, _ in headers} for _, headers, _ in answers]
    told = [f"`{code}`: {meaning_of(_kind(kind))}" for kind, code in zip(kinds, codes, strict=False)]
    if len(codes) < len(kinds) or not section.code_at:
        told = [meaning_of(_kind(kind)) for kind in kinds]
    names = [_kind(kind).__name__ for kind in kinds]
    examples = {name: {"value": body} for name, body in zip(names, bodies, strict=True)}
    return {
        "description": told[0] if len(told) == 1 else "\n".join(f"- {each}" for each in told),
        "headers": {HEADER_NAMES[name]: _header(name, all(name in each for each in sent)) for name in _names(sent)},
        "content": {media_type.decode(): {"schema": schema, "examples": examples}},
    }


def _names(sent: list[set[str]]) -> Iterator[str]:
    yield from sorted({name for each in sent for name in each if name not in UNTOLD})


def _header(name: str, is_always: bool) -> Json:
    shared = ref("headers", HEADER_NAMES[name])
    return shared if is_always else {**HEADERS[HEADER_NAMES[name]], "required": False}


def _kind(error: Refused) -> type[ApiError]:
    return error if isinstance(error, type) else type(error)


def _code_in(body: Any, place: Sequence[str | int]) -> str:
    for step in place:
        body = body[step]
    return str(body)


def _narrowed(place: Sequence[str | int], codes: list[str]) -> Json:
    """A schema that has one of these codes there, and says nothing of the rest."""
    if not place:
        return {"enum": codes}
    first, *rest = place
    inner = _narrowed(rest, codes)
    return {"properties": {first: inner}} if isinstance(first, str) else {"items": inner}


HEADER_NAMES = {name.lower(): name for name in HEADERS}
