"""Every type that DuckDB has is served with its exact value, or refused by one clear line."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from workshop import Workshop

from edgeprofile.errors import ModelError

BIGNUM = "123456789012345678901234567890123456789012345678901234567890"
# A type's name, the SQL of a value, and the JSON that it is served as; None where the field is left out.
SERVED = [
    ("null", "NULL", None),
    ("null of a type", "NULL::DATE", None),
    ("boolean", "true", "true"),
    ("tinyint", "(-128)::TINYINT", "-128"),
    ("utinyint", "255::UTINYINT", "255"),
    ("smallint", "(-32768)::SMALLINT", "-32768"),
    ("usmallint", "65535::USMALLINT", "65535"),
    ("integer", "(-2147483648)::INTEGER", "-2147483648"),
    ("uinteger", "4294967295::UINTEGER", "4294967295"),
    ("bigint", "(-9223372036854775808)::BIGINT", "-9223372036854775808"),
    ("ubigint", "18446744073709551615::UBIGINT", "18446744073709551615"),
    ("hugeint", "'-170141183460469231731687303715884105728'::HUGEINT", "-170141183460469231731687303715884105728"),
    ("uhugeint", "340282366920938463463374607431768211455::UHUGEINT", "340282366920938463463374607431768211455"),
    ("bignum", f"{BIGNUM}::BIGNUM", BIGNUM),
    ("decimal of 16 bits", "1.50::DECIMAL(4, 2)", "1.50"),
    ("decimal of 32 bits", "(-1234567.89)::DECIMAL(9, 2)", "-1234567.89"),
    ("decimal of 64 bits", "(-0.01)::DECIMAL(18, 2)", "-0.01"),
    ("decimal of 128 bits", "'0.00000000000000000000000000000000000001'::DECIMAL(38, 38)", "0." + "0" * 37 + "1"),
    ("decimal without a scale", f"{'9' * 38}::DECIMAL(38, 0)", "9" * 38),
    ("float", "0.1::FLOAT", "0.1"),
    ("float at its end", "3.4028235e38::FLOAT", "3.4028235e+38"),
    ("double", "(0.1 + 0.2::DOUBLE)::DOUBLE", "0.30000000000000004"),
    ("double at its start", "5e-324::DOUBLE", "5e-324"),
    ("negative zero", "'-0'::DOUBLE", "-0.0"),
    ("nan", "'nan'::DOUBLE", "null"),
    ("infinity", "'-infinity'::FLOAT", "null"),
    ("varchar", "'é😀\"\\' || chr(10) || chr(0) || chr(127)", '"é😀\\"\\\\\\n\\u0000\x7f"'),
    ("empty varchar", "''", '""'),
    ("blob", "'\\x00\\xFFa'::BLOB", '"AP9h"'),
    ("bit", "'0101'::BIT", '"0101"'),
    ("date", "DATE '2024-02-29'", '"2024-02-29"'),
    ("date before 1970", "DATE '0001-01-01'", '"0001-01-01"'),
    ("date beyond what RFC 3339 can say", "DATE '10000-01-01'", "null"),
    ("infinite date", "'infinity'::DATE", "null"),
    ("time", "TIME '12:34:56.789'", '"12:34:56.789"'),
    ("timetz", "TIMETZ '12:34:56+02'", '"12:34:56+02"'),
    ("time_ns", "'12:34:56.123456789'::TIME_NS", '"12:34:56.123456789"'),
    ("timestamp", "TIMESTAMP '2024-01-02 03:04:05.678901'", '"2024-01-02T03:04:05.678901Z"'),
    ("timestamp before 1970", "TIMESTAMP '1969-12-31 23:59:59.5'", '"1969-12-31T23:59:59.500Z"'),
    ("infinite timestamp", "'-infinity'::TIMESTAMP", "null"),
    ("timestamp_s", "'2024-01-02 03:04:05'::TIMESTAMP_S", '"2024-01-02T03:04:05Z"'),
    ("timestamp_ms", "'2024-01-02 03:04:05.678'::TIMESTAMP_MS", '"2024-01-02T03:04:05.678Z"'),
    ("timestamp_ns", "'2024-01-02 03:04:05.678901234'::TIMESTAMP_NS", '"2024-01-02T03:04:05.678901234Z"'),
    ("timestamptz", "'2024-01-02 03:04:05+02'::TIMESTAMPTZ", '"2024-01-02T01:04:05Z"'),
    ("timestamptz_ns", "'2024-01-02 03:04:05.000000001+02'::TIMESTAMPTZ_NS", '"2024-01-02T01:04:05.000000001Z"'),
    ("interval", "INTERVAL '1 month 2 days 3 seconds'", '"1 month 2 days 00:00:03"'),
    ("uuid", "'01234567-89AB-cdef-0123-456789abcdef'::UUID", '"01234567-89ab-cdef-0123-456789abcdef"'),
    ("enum", "'b\"'::ENUM('a', 'b\"')", '"b\\""'),
    ("list", "[1, NULL, 3]", "[1,null,3]"),
    ("empty list", "[]", "[]"),
    ("list of lists", "[[1], [], NULL]", "[[1],[],null]"),
    ("list of hugeints", "[5::HUGEINT]", "[5]"),
    ("array", "array_value(1.5::DOUBLE, 2)", "[1.5,2.0]"),
    ("struct", "{'a': 1, 'B \"': 'x', 'c': NULL}", '{"a":1,"B \\"":"x","c":null}'),
    ("struct of what is cast", "{'h': [5::UHUGEINT], 'i': INTERVAL 1 DAY}", '{"h":[5],"i":"1 day"}'),
    ("list of structs", "[{'a': DATE '2024-01-02'}]", '[{"a":"2024-01-02"}]'),
    ("map", "MAP {'k': 1, 'l': NULL}", '{"k":1,"l":null}'),
    (
        "map with other keys",
        "MAP {DATE '2024-01-02': [1], DATE '2020-01-02': []}",
        '{"2024-01-02":[1],"2020-01-02":[]}',
    ),
    ("map of structs", "MAP {1: {'a': 1::HUGEINT}}", '{"1":{"a":1}}'),
    ("union", "union_value(n := 1)::UNION(n INTEGER, t VARCHAR)", "1"),
    ("union of the other member", "union_value(t := 'x')::UNION(n INTEGER, t VARCHAR)", '"x"'),
    ("list of unions", "[union_value(n := 1::HUGEINT)]", "[1]"),
    ("tuple", "row(1, 'x', NULL)", '[1,"x",null]'),
    ("list of tuples", "[row(1, 2::HUGEINT)]", "[[1,2]]"),
    ("json", '\'{"a": [1, 2.50, null, 1e400], "b": "\\u00e9"}\'::JSON', '{"a":[1,2.50,null,1e400],"b":"\\u00e9"}'),
    ("json null", "'null'::JSON", "null"),
    ("json in a struct", "{'j': '[1, 2]'::JSON}", '{"j":[1,2]}'),
    ("variant", "{'a': 1, 'b': [2.5]}::VARIANT", '{"a":1,"b":[2.5]}'),
    ("variant of text", "'x'::VARIANT", '"x"'),
]
REFUSED = [
    ("geometry", "'POINT(1 2)'::GEOMETRY", "GEOMETRY"),
    ("map with keys that are no text", "MAP {[1]: 1}", r"MAP\(INTEGER\[\], INTEGER\)"),
    ("list of geometries", "['POINT(1 2)'::GEOMETRY]", "GEOMETRY"),
]


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, msgspec.Raw]:
    """The fields of one profile that has a value of every type."""
    shop = Workshop(tmp_path_factory.mktemp("types"))
    columns = ", ".join(f"{sql} AS v{number}" for number, (_, sql, _) in enumerate(SERVED))
    # One row before and one behind, so that a value is not read from the place of another row.
    others = ", ".join(f"NULL AS v{number}" for number in range(len(SERVED)))
    shop.model(f"SELECT 2 AS id, {columns} UNION ALL SELECT 1, {others} UNION ALL SELECT 3, {others}").load()
    return msgspec.json.decode(shop.bodies()["2"], type=dict[str, msgspec.Raw])


@pytest.mark.parametrize("number", range(len(SERVED)), ids=[name.replace(" ", "_") for name, *_ in SERVED])
def test_a_value_of_every_type_is_served_exactly(answer: dict[str, msgspec.Raw], number: int) -> None:
    name, _, expected = SERVED[number]
    raw = answer.get(f"v{number}")
    assert (None if raw is None else bytes(raw).decode()) == expected, name


def test_a_profile_without_any_value_has_only_its_id(tmp_path: Path) -> None:
    shop = Workshop(tmp_path).model("SELECT 1 AS id, NULL::INTEGER[] AS a, NULL::STRUCT(x DATE) AS b, NULL AS c")
    shop.load()
    assert set(shop.profiles()["1"]) == {"id", "_audiences", "_updated_at"}


@pytest.mark.parametrize(("sql", "kind"), [each[1:] for each in REFUSED], ids=[name for name, *_ in REFUSED])
def test_a_type_without_a_form_in_json_is_refused_by_name(tmp_path: Path, sql: str, kind: str) -> None:
    shop = Workshop(tmp_path).model(f"SELECT 1 AS id, {sql} AS place")
    with pytest.raises(ModelError, match=rf"^column place: type {kind} cannot be served: cast it in the model"):
        shop.load()


def test_a_field_may_have_any_name(tmp_path: Path) -> None:
    names = ['a "b"', "ß\\", "日本", "select", "_", " "]
    columns = ", ".join('1 AS "' + name.replace('"', '""') + '"' for name in names)
    shop = Workshop(tmp_path).model(f"SELECT 1 AS id, {columns}")
    shop.load()
    assert list(shop.profiles()["1"]) == ["id", *names, "_audiences", "_updated_at"]


def test_times_of_update_of_every_type_are_served_in_utc(tmp_path: Path) -> None:
    moment = "2024-01-02 03:04:05.678901"
    kinds = {
        "TIMESTAMP": "03:04:05.678901Z",
        "TIMESTAMPTZ": "03:04:05.678901Z",
        "TIMESTAMP_S": "03:04:06Z",
        "TIMESTAMP_MS": "03:04:05.679Z",
        "TIMESTAMP_NS": "03:04:05.678901Z",
        "DATE": "00:00:00Z",
    }
    found = {}
    for kind in kinds:
        (tmp_path / kind).mkdir()
        shop = Workshop(tmp_path / kind).model(f"SELECT 1 AS id, '{moment}'::{kind} AS changed", updated_at="changed")
        shop.load()
        assert "changed" not in shop.profiles()["1"]
        found[kind] = shop.profiles()["1"]["_updated_at"].removeprefix("2024-01-02T")
    assert found == kinds
