"""The model: which column becomes which field, whether it can be served, and the SQL that shapes it.

`plan` and `plan_events` compare what the settings declare with the columns that a model yields, and either give a
plan or raise a ModelError with one line for each thing to mend.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Literal, NamedTuple

from edgeprofile.errors import ModelError
from edgeprofile.history import EventsSchema
from edgeprofile.record import FIELDS_MAX, Field, Kind, Namespace, Schema, Section, Type
from edgeprofile.settings import Events, Profiles

RESERVED = ("_audiences", "_updated_at")
_AS_IT_IS = {
    "boolean": Kind.BOOLEAN,
    **dict.fromkeys(["tinyint", "smallint", "integer", "bigint"], Kind.INTEGER),
    **dict.fromkeys(["utinyint", "usmallint", "uinteger", "ubigint"], Kind.INTEGER),
    "float": Kind.FLOAT,
    "double": Kind.DOUBLE,
    "decimal": Kind.DECIMAL,
    "varchar": Kind.TEXT,
    "blob": Kind.BINARY,
    "date": Kind.DATE,
    **dict.fromkeys(["time", "time_ns"], Kind.TIME),
    **dict.fromkeys(["timestamp", "timestamp_s", "timestamp_ms", "timestamp_ns"], Kind.TIMESTAMP),
    **dict.fromkeys(["timestamp with time zone", "timestamptz_ns"], Kind.TIMESTAMP),
    "null": Kind.NULL,
}
_AS_TEXT = {
    **dict.fromkeys(["enum", "uuid", "bit", "interval", "time with time zone"], Kind.TEXT),
    **dict.fromkeys(["hugeint", "uhugeint", "bignum", "numeric"], Kind.NUMBER),
    "json": Kind.JSON,
}


class WarehouseType(NamedTuple):
    """A column's type: its id ("list"), its text ("INTEGER[]"), and what is inside with its name.

    They are DuckDB's, and "numeric": a number of any digits, which comes as text.
    """

    id: str
    text: str
    children: tuple[tuple[str, WarehouseType], ...] = ()


class Column(NamedTuple):
    """A column of the model's result."""

    name: str
    type: WarehouseType


class Shape(NamedTuple):
    """How a column is served: the type of its values, and the SQL type that the warehouse casts it to for that."""

    type: Type
    sql: str


class Unservable(Exception):
    """A type that has no form in JSON; says which."""


def shape(kind: WarehouseType) -> Shape:
    """The shape of a type. Raises Unservable."""
    if kind.id in _AS_IT_IS:
        return Shape(Type(_AS_IT_IS[kind.id]), kind.text)
    if kind.id in _AS_TEXT:
        return Shape(Type(_AS_TEXT[kind.id]), "VARCHAR")
    if kind.id == "variant":
        return Shape(Type(Kind.JSON), "JSON")
    inside = [(name, shape(child)) for name, child in kind.children]
    types = tuple(part.type for _, part in inside)
    named = ", ".join(f"{quoted(name)} {part.sql}" for name, part in inside)
    match kind.id:
        case "list":
            return Shape(Type(Kind.LIST, types), f"{inside[0][1].sql}[]")
        case "array":
            return Shape(Type(Kind.LIST, types), f"{inside[0][1].sql}{kind.text[kind.text.rindex('[') :]}")
        case "struct":
            return Shape(Type(Kind.STRUCT, types, tuple(name for name, _ in inside)), f"STRUCT({named})")
        case "tuple":
            return Shape(Type(Kind.TUPLE, types), f"TUPLE({', '.join(part.sql for _, part in inside)})")
        case "union":
            return Shape(Type(Kind.UNION, types), f"UNION({named})")
        case "map" if not kind.children[0][1].children:
            return Shape(Type(Kind.MAP, (Type(Kind.TEXT), types[1])), f"MAP(VARCHAR, {inside[1][1].sql})")
    raise Unservable(kind.text)


def identifies(kind: WarehouseType) -> bool:
    """Whether a type may be an identifier's: text, integers, UUIDs. A DECIMAL without a scale is an integer."""
    if kind.id == "decimal":
        return kind.text.endswith(",0)")
    try:
        return kind.id != "numeric" and shape(kind).type.kind in (Kind.TEXT, Kind.INTEGER, Kind.NUMBER)
    except Unservable:
        return False


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


class Plan(NamedTuple):
    """What a refresh does with the model's columns.

    `columns` are SQL expressions over them, one a field of the schema, in its order; `key` and `updated` are
    those of the primary id's text and of the time of update (None where the model has none), which the column `moment`
    tells; `deleted` is the one that is true where the profile is none any more.
    """

    schema: Schema
    types: tuple[Type, ...]
    columns: tuple[str, ...]
    key: str
    updated: str | None
    fingerprint: str
    moment: Column | None
    deleted: str


def plan(
    profiles: Profiles, columns: list[Column], audience_ids: dict[str, int], dialect_columns: dict[str, str]
) -> Plan:
    """The plan for a model with these columns. `audience_ids` are those given so far. Raises ModelError.

    `dialect_columns` has, by the keys that name them, other columns of which an answer is made.
    """
    problems: list[str] = []
    by_name = {column.name: column for column in columns}
    problems += _duplicates(columns, "the model's result")
    chosen = list(_choose(profiles, by_name, problems))
    shapes = [_check(section, column, problems) for section, column in chosen]
    served = {column.name: column for _, column in chosen}
    problems += [_missing(n, key, "what is served", served) for key, n in dialect_columns.items() if n not in served]
    if profiles.updated_at is not None and profiles.updated_at in by_name:
        problems += _check_moment(by_name[profiles.updated_at], "profiles.updated_at")
    if profiles.deleted in by_name and by_name[profiles.deleted].type.id != "boolean":
        found = by_name[profiles.deleted].type.text
        problems.append(f"column {profiles.deleted} (profiles.deleted): expected BOOLEAN, not {found}")
    if len(chosen) > FIELDS_MAX:
        problems.append(f"the model yields {len(chosen)} fields; a profile may have {FIELDS_MAX}: leave some out")
    if problems:
        raise ModelError(problems)
    ids = dict(audience_ids)
    for section, column in chosen:
        if section == "audiences":
            ids.setdefault(column.name, max(ids.values(), default=0) + 1)
    return Plan(
        schema=Schema(
            fields=tuple(Field(column.name, section, column.type.text) for section, column in chosen),
            namespaces=(
                Namespace(profiles.id),
                *(Namespace(i.column, i.unique, i.normalize) for i in profiles.identifiers),
            ),
            audience_ids=ids,
        ),
        types=tuple(s.type for s in shapes),
        columns=tuple(_cast(column, s) for (_, column), s in zip(chosen, shapes, strict=True)),
        key=_key(profiles.id),
        updated=None if profiles.updated_at is None else f"CAST({quoted(profiles.updated_at)} AS TIMESTAMP)",
        fingerprint=hashlib.sha256(repr((profiles, chosen)).encode()).hexdigest(),
        moment=None if profiles.updated_at is None else by_name[profiles.updated_at],
        deleted="false" if profiles.deleted is None else f"coalesce({quoted(profiles.deleted)}, false)",
    )


class EventsPlan(NamedTuple):
    """What a refresh does with the columns of the events' model.

    `columns` are SQL expressions over them, one for each of the schema's names, in their order; `key` and `time` are
    those of the text of the profile's primary id and of the time, to the microsecond. `types` has one a column.
    """

    schema: EventsSchema
    types: tuple[Type, ...]
    columns: tuple[str, ...]
    key: str
    time: str
    fingerprint: str


def plan_events(events: Events, columns: list[Column], dialect_params: dict[str, str]) -> EventsPlan:
    """The plan for a model of events with these columns. Raises ModelError.

    `dialect_params` has, by the keys that name them, parameters of which an answer is made.
    """
    problems: list[str] = []
    by_name = {column.name: column for column in columns}
    problems += _duplicates(columns, "the events' result")
    declared = {events.profile: "profile", events.name: "name", events.time: "time"}
    declared |= {events.id: "id"} if events.id is not None else {}
    for name, key in declared.items():
        if name not in by_name:
            problems.append(_missing(name, f"events.{key}", "the events' result", by_name))
        else:
            problems += _check_declared(by_name[name], key)
    params = [column for column in columns if column.name not in declared]
    shapes = [_check("params", column, problems) for column in params]
    served = {column.name: column for column in params}
    problems += [_missing(n, key, "what events have", served) for key, n in dialect_params.items() if n not in served]
    if len(params) > FIELDS_MAX - 3:
        problems.append(f"the events have {len(params)} parameters; they may have {FIELDS_MAX - 3}: leave some out")
    if problems:
        raise ModelError(problems)
    time = f"CAST({quoted(events.time)} AS TIMESTAMP)"
    fields = [(Type(Kind.TEXT), f"CAST({quoted(events.name)} AS VARCHAR)"), (Type(Kind.TIMESTAMP), time)]
    if events.id is not None:
        found = shape(by_name[events.id].type)
        fields.insert(0, (found.type, _cast(by_name[events.id], found)))
    fields += [(found.type, _cast(column, found)) for column, found in zip(params, shapes, strict=True)]
    return EventsPlan(
        schema=EventsSchema(
            has_id=events.id is not None,
            fields=tuple(Field(column.name, "params", column.type.text) for column in params),
        ),
        types=tuple(type for type, _ in fields),
        columns=tuple(column for _, column in fields),
        key=_key(events.profile),
        time=time,
        fingerprint=hashlib.sha256(repr((events, columns)).encode()).hexdigest(),
    )


def _check_declared(column: Column, key: str) -> Iterator[str]:
    """What is wrong with the type of a column that the settings name as an event's `key`."""
    if key == "time":
        yield from _check_moment(column, "events.time")
        return
    is_text = identifies(column.type) and shape(column.type).type.kind is Kind.TEXT
    if key == "name" and not is_text:
        yield f"column {column.name} (events.{key}): expected text, not {column.type.text}"
    elif not identifies(column.type):
        yield f"column {column.name} (events.{key}): expected text, an integer or a UUID, not {column.type.text}"


def _key(column: str) -> str:
    """The text of a primary id, in the binary order, whatever collation the column has: that of LMDB's keys."""
    return f"CAST({quoted(column)} AS VARCHAR) COLLATE C"


def _missing(name: str, key: str, where: str, by_name: dict[str, Column]) -> str:
    near = difflib.get_close_matches(name, by_name, 1)
    advice = f"did you mean {near[0]}?" if near else f"it yields {', '.join(by_name) or 'nothing else'}"
    return f"column {name} ({key}) is not in {where}: {advice}"


def _choose(profiles: Profiles, by_name: dict[str, Column], problems: list[str]) -> Iterator[tuple[Section, Column]]:
    """The columns in the order of an answer; those that are declared but missing become problems."""
    declared: list[tuple[Section, str, str]] = [
        ("identifiers", profiles.id, "id"),
        *(("identifiers", i.column, "identifiers") for i in profiles.identifiers),
        *(("metrics", name, "metrics") for name in profiles.metrics),
        *(("audiences", name, "audiences") for name in profiles.audiences),
    ]
    unserved = [(profiles.updated_at, "updated_at"), (profiles.deleted, "deleted")]
    named = {name for _, name, _ in declared} | {name for name, _ in unserved}
    for name, key in [(n, k) for _, n, k in declared] + unserved:
        if name is not None and name not in by_name:
            problems.append(_missing(name, f"profiles.{key}", "the model's result", by_name))
    attributes: list[tuple[Section, str]] = [("attributes", name) for name in by_name if name not in named]
    order = [(section, name) for section, name, _ in declared]
    found = [pair for pair in order if pair[0] == "identifiers"] + attributes
    found += [pair for pair in order if pair[0] != "identifiers"]
    for section, name in found:
        if name in by_name:
            yield section, by_name[name]


def _duplicates(columns: list[Column], where: str) -> Iterator[str]:
    for name, count in Counter(column.name.lower() for column in columns).items():
        if count > 1:
            yield f"column {name} stands {count} times in {where}: give each a name of its own"


def _check(section: Section | Literal["params"], column: Column, problems: list[str]) -> Shape:
    nothing = Shape(Type(Kind.NULL), column.type.text)
    if (column.name in RESERVED and section != "params") or not column.name:
        problems.append(f"column {column.name!r}: the name is taken by the answer itself: rename it in the model")
    try:
        found = shape(column.type)
    except Unservable as error:
        problems.append(f"column {column.name}: type {error} cannot be served: cast it in the model, to text or JSON")
        return nothing
    if section == "identifiers" and not identifies(column.type):
        problems.append(f"column {column.name}: an identifier is text, an integer or a UUID, not {column.type.text}")
    if section == "audiences" and found.type.kind is not Kind.BOOLEAN:
        problems.append(f"column {column.name}: an audience is BOOLEAN, not {column.type.text}")
    return found


def _check_moment(column: Column, key: str) -> Iterator[str]:
    if _AS_IT_IS.get(column.type.id) not in (Kind.TIMESTAMP, Kind.DATE):
        yield f"column {column.name} ({key}): expected a timestamp or a date, not {column.type.text}"


def _cast(column: Column, found: Shape) -> str:
    name = quoted(column.name)
    return name if found.sql == column.type.text else f"CAST({name} AS {found.sql})"
