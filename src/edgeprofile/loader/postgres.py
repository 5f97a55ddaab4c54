"""What is PostgreSQL's own: how a model is wrapped there, so that each of its types comes through exactly.

The driver reads some types wrongly (arrays of several dimensions, money) and others not at all. So only those that it
reads exactly are sent as they are; PostgreSQL itself makes text or JSON of all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edgeprofile.loader.model import WarehouseType, quoted

# Of the transaction that a question is asked in, so that nothing is left behind in a pooled connection.
_LOCAL = {
    "client_encoding": "UTF8",
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "standard_conforming_strings": "on",
    # A query whose loader is gone ends by itself.
    "client_connection_check_interval": "10s",
}
_MILLISECONDS_MAX = 2**31 - 1
# Finite, but no moment that an answer can say, as infinities are not: they keep their place in the order of updates.
_LATEST, _EARLIEST = "200000-01-01", "4000-01-01 BC"

_AS_IT_IS = ("bool", "int2", "int4", "int8", "float4", "float8", "text", "varchar", "bpchar", "bytea", "time")
_MOMENTS = ("date", "timestamp", "timestamptz")
_NUMBERS = ("numeric", "float4", "float8")
_JSON = WarehouseType("json", "JSON")


class Served(NamedTuple):
    """How a column is asked for: its SQL, and its type where that of what arrives does not say it."""

    sql: str
    type: WarehouseType | None = None


class PostgresType(NamedTuple):
    """A type of pg_type, its domain taken off. `element` is the name of what an array is of, "" where it is none.

    `kind` is its typtype ("b" base, "c" composite, "e" enum, "p" pseudo, …), `category` its typcategory ("S" is text).
    """

    name: str
    kind: str
    category: str
    element: str


def begin(lock_timeout_s: float) -> list[str]:
    """What comes before a question, and must be followed by END. The model can change nothing."""
    wanted = _LOCAL | {"lock_timeout": f"{min(int(lock_timeout_s * 1000), _MILLISECONDS_MAX)}ms"}
    values = ", ".join(f"('{name}', '{value}')" for name, value in wanted.items())
    return [
        "BEGIN TRANSACTION READ ONLY",
        f"SELECT set_config(name, value, true) FROM (VALUES {values}) AS wanted (name, value) "
        "JOIN pg_settings USING (name) "
        # A database without an encoding hands its bytes out as they are: only the rows of bad ones are refused.
        "WHERE name <> 'client_encoding' OR current_setting('server_encoding') <> 'SQL_ASCII'",
    ]


END = "ROLLBACK"


def types_of(sql: str, count: int) -> str:
    """SQL that yields a PostgresType for each of the model's columns, in their order, and runs nothing of the model."""
    columns = _columns(count)
    types = ", ".join(f"pg_typeof({column})::oid" for column in columns)
    return f"""
        WITH RECURSIVE edgeprofile_given AS (
            SELECT given.type, given.place FROM (SELECT 1) AS one LEFT JOIN (\n{sql}\n) AS model ({", ".join(columns)})
            ON false CROSS JOIN LATERAL unnest(ARRAY[{types}]) WITH ORDINALITY AS given (type, place)
        ), edgeprofile_based AS (
            SELECT type, place FROM edgeprofile_given
            UNION ALL
            SELECT typbasetype, place FROM edgeprofile_based JOIN pg_type ON oid = type WHERE typtype = 'd'
        )
        SELECT CASE WHEN kind.typnamespace = 'pg_catalog'::regnamespace THEN kind.typname::text ELSE '' END,
               kind.typtype::text, kind.typcategory::text, coalesce(element.typname::text, '')
        FROM edgeprofile_based JOIN pg_type AS kind ON kind.oid = edgeprofile_based.type
        LEFT JOIN pg_type AS element ON element.oid = kind.typelem AND element.typarray = kind.oid
        WHERE kind.typtype <> 'd' ORDER BY place
    """


def wrapped(sql: str, names: Sequence[str], columns: Sequence[Served]) -> str:
    """The model's SQL with each column as it is to be served.

    Because of OFFSET, the planner computes each of the model's columns once, however often it is named here.
    """
    served = ", ".join(f"{column.sql} AS {quoted(name)}" for name, column in zip(names, columns, strict=True))
    once = f"SELECT * FROM (\n{sql}\n) AS model OFFSET 0"
    return f"SELECT {served} FROM ({once}) AS model ({', '.join(_columns(len(names)))})"


def _columns(count: int) -> list[str]:
    return [f"c{number}" for number in range(count)]


def served(number: int, kind: PostgresType) -> Served:
    """How the model's column of this number is asked for."""
    column = f"c{number}"
    if kind.element:
        return Served(_array(f"to_json({column})::text", kind.element), _JSON)
    if kind.kind == "c" or kind.name == "record":
        return Served(f"to_json({column})::text", _JSON)
    if kind.name in _AS_IT_IS:
        return Served(f"{column}::{kind.name}")
    if kind.name in _MOMENTS:
        return Served(
            f"CASE WHEN {column} > '{_LATEST}' THEN '{_LATEST}' WHEN {column} < '{_EARLIEST}' THEN '{_EARLIEST}' "
            f"ELSE {column}::{kind.name} END"
        )
    match kind.name:
        case "numeric":
            return Served(f"{column}::text", WarehouseType("numeric", "NUMERIC"))
        case "json" | "jsonb":
            return Served(f"{column}::text", _JSON)
        case "uuid":
            return Served(f"{column}::text", WarehouseType("uuid", "UUID"))
        case "oid":
            return Served(f"{column}::int8")
    if kind.kind == "e":
        return Served(f"{column}::text", WarehouseType("enum", "ENUM"))
    if kind.category == "S":  # such as citext and name
        return Served(f"{column}::text")
    # As the type itself writes its values, which is not always what a cast to text gives.
    return Served(f"CASE WHEN {column} IS NOT NULL THEN format('%s', {column}) END")


def _array(json: str, element: str) -> str:
    """JSON of an array, whose elements look as they do outside of one: what is neither finite nor sayable is null."""
    # An element stands behind a bracket or a comma, which no number and no moment has inside.
    if element in _NUMBERS:
        return _replaced(json, '"[^"]*"', "null")
    if element == "date":
        return _replaced(json, r'([[,])"(?!\d{4}-\d\d-\d\d")[^"]*"', r"\1null")
    if element in _MOMENTS:
        in_utc = _replaced(json, r'"(\d{4}-\d\d-\d\dT[\d:.]+)(\+00:00)?"', r'"\1Z"')
        return _replaced(in_utc, r'([[,])"[^"Z]*"', r"\1null")
    return json


def _replaced(text: str, pattern: str, by: str) -> str:
    return f"regexp_replace({text}, '{pattern}', '{by}', 'g')"
