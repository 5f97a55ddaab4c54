"""Loads from a real PostgreSQL: every type and text exactly as it stands there, streamed, and nothing changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from postgres import Postgres
from workshop import Workshop, environment

from edgeprofile.errors import ModelError, SourceError

SETUP = """
CREATE EXTENSION citext;
CREATE TYPE mood AS ENUM ('fine', 'so "so"');
CREATE TYPE place AS (street text, number int, opened timestamptz, worth numeric);
CREATE DOMAIN email AS text CHECK (VALUE LIKE '%@%');
CREATE DOMAIN price AS numeric(10, 2);
CREATE DOMAIN fair_price AS price CHECK (VALUE > 0);
"""
SMALL = "-0." + "0" * 50 + "1"
BIG = "1234567890123456789012345678901234567890.12345678901234567890"
# A type's name, the SQL of a value, and the JSON that it is served as; None where the field is left out.
SERVED = [
    ("null", "NULL", None),
    ("null of a type", "NULL::numeric", None),
    ("boolean", "true", "true"),
    ("smallint", "(-32768)::smallint", "-32768"),
    ("integer", "(-2147483648)::int", "-2147483648"),
    ("bigint at its end", "9223372036854775807", "9223372036854775807"),
    ("bigint at its start", "(-9223372036854775808)::bigint", "-9223372036854775808"),
    ("oid", "4294967295::oid", "4294967295"),
    ("real", "0.1::real", "0.1"),
    ("double precision", "0.1::float8 + 0.2::float8", "0.30000000000000004"),
    ("nan", "'NaN'::float8", "null"),
    ("numeric", "1.50::numeric", "1.50"),
    ("numeric with five digits behind the point", "0.12345::numeric(10, 5)", "0.12345"),
    ("numeric of many digits", f"{BIG}::numeric", BIG),
    ("negative numeric", f"-{BIG}::numeric", f"-{BIG}"),
    ("numeric of many digits behind the point", SMALL, SMALL),
    ("numeric zero", "0.00::numeric(4, 2)", "0.00"),
    ("numeric without a scale", "1e30::numeric", "1" + "0" * 30),
    ("numeric nan", "'NaN'::numeric", "null"),
    ("numeric infinity", "'-Infinity'::numeric", "null"),
    ("money", "12.34::money", '"$12.34"'),
    ("text", "E'é😀\"\\\\\\n\\x7f'", '"é😀\\"\\\\\\n\x7f"'),
    ("empty text", "''::text", '""'),
    ("varchar", "'x'::varchar(3)", '"x"'),
    ("char, which is padded", "'x'::char(3)", '"x  "'),
    ("name", "'pg_class'::name", '"pg_class"'),
    ("citext", "'Ann'::citext", '"Ann"'),
    ("one letter", "'x'::\"char\"", '"x"'),
    ("bytea", "'\\x00ff61'::bytea", '"AP9h"'),
    ("empty bytea", "''::bytea", '""'),
    ("bits", "B'0101'", '"0101"'),
    ("uuid", "'01234567-89AB-cdef-0123-456789abcdef'::uuid", '"01234567-89ab-cdef-0123-456789abcdef"'),
    ("enum", "'so \"so\"'::mood", '"so \\"so\\""'),
    ("json", '\'{"a": [1, 2.50, null, 1e400], "b": "\\u00e9", "b": 1}\'::json',
     '{"a":[1,2.50,null,1e400],"b":"\\u00e9","b":1}'),
    ("jsonb", f'\'{{"n": {BIG}, "z": [true, {{}}]}}\'::jsonb', f'{{"n":{BIG},"z":[true,{{}}]}}'),
    ("jsonb null", "'null'::jsonb", "null"),
    ("date", "date '2024-02-29'", '"2024-02-29"'),
    ("date before Christ", "date '0044-03-15 BC'", "null"),
    ("infinite date", "'infinity'::date", "null"),
    ("last date that can be said", "date '9999-12-31'", '"9999-12-31"'),
    ("first date that can be said", "date '0001-01-01'", '"0001-01-01"'),
    ("time", "time '12:34:56.789'", '"12:34:56.789"'),
    ("end of a day", "time '24:00'", '"24:00:00"'),
    ("timetz", "timetz '12:34:56+02'", '"12:34:56+02"'),
    ("timestamp", "timestamp '2024-01-02 03:04:05.678901'", '"2024-01-02T03:04:05.678901Z"'),
    ("timestamptz", "timestamptz '2024-01-02 03:04:05.5+02'", '"2024-01-02T01:04:05.500Z"'),
    ("timestamptz before 1970", "timestamptz '1969-12-31 23:59:59.999999Z'", '"1969-12-31T23:59:59.999999Z"'),
    ("infinite timestamptz", "'infinity'::timestamptz", "null"),
    ("infinite timestamp before all", "'-infinity'::timestamp", "null"),
    ("timestamptz after the year 9999", "timestamptz '294276-12-31 23:59:59Z'", "null"),
    ("interval", "interval '1 month 2 days 3 seconds'", '"1 mon 2 days 00:00:03"'),
    ("interval of 500 years", "interval '500 years'", '"500 years"'),
    ("inet", "'10.0.0.1'::inet", '"10.0.0.1"'),
    ("range", "'[1,5)'::int4range", '"[1,5)"'),
    ("point", "point(1.5, 2)", '"(1.5,2)"'),
    ("xml", "'<a/>'::xml", '"<a/>"'),
    ("text search vector", "'cat hat'::tsvector", "\"'cat' 'hat'\""),
    ("void", "pg_sleep(0)", '""'),
    ("composite", "row('Elm', 5, '2024-01-02 03:04:05+02', 1.50)::place",
     '{"street":"Elm","number":5,"opened":"2024-01-02T01:04:05+00:00","worth":1.50}'),
    ("record", "row(1, 'x', NULL)", '{"f1":1,"f2":"x","f3":null}'),
    ("domain", "'a@b'::email", '"a@b"'),
    ("domain of a domain", "1.5::fair_price", "1.50"),
    ("array", "ARRAY[1, NULL, 3]", "[1,null,3]"),
    ("empty array", "'{}'::text[]", "[]"),
    ("null array", "NULL::text[]", None),
    ("array of several dimensions", "'{{1,2},{3,4}}'::int[]", "[[1,2],[3,4]]"),
    ("array that begins at zero", "'[0:1]={1,2}'::int[]", "[1,2]"),
    ("array of texts", "ARRAY['a,\"b\"', NULL, '', '{']", '["a,\\"b\\"",null,"","{"]'),
    ("array of bigints", "ARRAY[9223372036854775807]", "[9223372036854775807]"),
    ("array of numerics", f"ARRAY[{BIG}, 'NaN', 'Infinity', 0.10]", f"[{BIG},null,null,0.10]"),
    ("array of floats", "ARRAY['NaN', '-Infinity', 0.1]::float8[]", "[null,null,0.1]"),
    ("array of booleans", "ARRAY[true, false]", "[true,false]"),
    ("array of uuids", "ARRAY['01234567-89AB-cdef-0123-456789abcdef'::uuid]",
     '["01234567-89ab-cdef-0123-456789abcdef"]'),
    ("array of enums", "ARRAY['fine', NULL]::mood[]", '["fine",null]'),
    ("array of jsonb", "ARRAY['{\"a\": 1.50}'::jsonb, '[]']", '[{"a":1.50},[]]'),
    ("array of dates", "ARRAY['2024-01-02', 'infinity', NULL, '10000-01-01', '0044-03-15 BC']::date[]",
     '["2024-01-02",null,null,null,null]'),
    ("array of timestamps", "ARRAY['2024-01-02 03:04:05', '-infinity']::timestamp[]", '["2024-01-02T03:04:05Z",null]'),
    ("array of timestamptz",
     "ARRAY[ARRAY['infinity', '2024-01-02 03:04:05.5+02'], ARRAY['10000-01-01', NULL]]::timestamptz[]",
     '[[null,"2024-01-02T01:04:05.5Z"],[null,null]]'),
    ("array of composites", "ARRAY[row('Elm', 5, NULL, NULL)::place]",
     '[{"street":"Elm","number":5,"opened":null,"worth":null}]'),
    ("array of intervals", "ARRAY[interval '1 day']", '["1 day"]'),
    ("array of a domain", "ARRAY['a@b'::email]", '["a@b"]'),
    ("old vector of integers", "'1 2'::int2vector", '"1 2"'),
]  # fmt: skip

# Loads two workspaces, one after another; says what the most memory was after each.
BOUNDED = """
import sys
from pathlib import Path
from workshop import Workshop
def peak_bytes():
    return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
for folder in sys.argv[1:]:
    Workshop(Path(folder)).load()
    print(peak_bytes())
"""


@pytest.fixture(scope="module")
def database(postgres: Postgres) -> str:
    return postgres.database(SETUP)


Model = Callable[..., Workshop]


@pytest.fixture
def model(postgres: Postgres, database: str, tmp_path: Path) -> Model:
    """Makes a workspace whose model runs in the database."""

    def make(sql: str, **keys: Any) -> Workshop:
        return Workshop(tmp_path).model(sql, url=postgres.url(database), **keys)

    return make


# --- types ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answer(postgres: Postgres, database: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, msgspec.Raw]:
    """The fields of one profile that has a value of every type, and neighbours that have none."""
    columns = ", ".join(f"{sql} AS v{number}" for number, (_, sql, _) in enumerate(SERVED))
    shop = Workshop(tmp_path_factory.mktemp("types"))
    shop.model(
        f"SELECT id, made.* FROM generate_series(1, 3) AS id LEFT JOIN (SELECT {columns}) AS made ON id = 2",
        url=postgres.url(database),
    ).load()
    assert set(shop.profiles()["1"]) == set(shop.profiles()["3"]) == {"id", "_audiences", "_updated_at"}
    return msgspec.json.decode(shop.bodies()["2"], type=dict[str, msgspec.Raw])


@pytest.mark.parametrize("number", range(len(SERVED)), ids=[name.replace(" ", "_") for name, *_ in SERVED])
def test_a_value_of_every_type_is_served_exactly(answer: dict[str, msgspec.Raw], number: int) -> None:
    name, _, expected = SERVED[number]
    raw = answer.get(f"v{number}")
    assert (None if raw is None else bytes(raw).decode()) == expected, name


def test_text_in_every_script_comes_through_exactly(model: Model) -> None:
    # Every character there is but NUL, which PostgreSQL has not, and halves of characters, which are none.
    shop = model(
        """
        SELECT code / 1000 AS id, string_agg(chr(code), '' ORDER BY code) AS letters
        FROM generate_series(1, 1114111) AS code WHERE code NOT BETWEEN 55296 AND 57343 GROUP BY 1
        """
    )
    shop.load()
    found = {int(id): profile["letters"] for id, profile in shop.profiles().items()}
    codes = [code for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000]
    assert "".join(found[block] for block in sorted(found)) == "".join(map(chr, codes))


def test_a_database_of_another_encoding_is_served_in_utf_8(postgres: Postgres, tmp_path: Path) -> None:
    database = postgres.database("CREATE TABLE t AS SELECT 1 AS id, chr(233) || chr(255) AS name", "ENCODING 'LATIN1'")
    shop = Workshop(tmp_path).model("SELECT * FROM t WHERE name LIKE 'é%'", url=postgres.url(database))
    shop.load()
    assert shop.profiles()["1"]["name"] == "éÿ"


def test_bytes_of_no_encoding_refuse_their_row(postgres: Postgres, tmp_path: Path) -> None:
    rows = "SELECT 1 AS id, 'é' AS name UNION ALL SELECT 2, convert_from('\\xff', 'SQL_ASCII')"
    url = postgres.url(postgres.database(options="ENCODING 'SQL_ASCII'"))
    shop = Workshop(tmp_path).model(rows, url=url, rejects_max=0.5)
    shop.load()
    assert shop.profiles()["1"]["name"] == "é"
    assert shop.rejects() == [{"id": "2", "reason": "invalid_utf8"}]


def test_profiles_are_found_by_identifiers_of_every_type_that_may_be_one(model: Model) -> None:
    uuid = "01234567-89ab-cdef-0123-456789abcdef"
    shop = model(
        f"SELECT '{uuid}'::uuid AS id, 9007199254740993 AS number, 'Ann@X.Org'::email AS email, 'fine'::mood AS mood",
        identifiers=["number", {"column": "email", "normalize": "lower"}, {"column": "mood", "unique": False}],
    )
    shop.load()
    assert shop.found("number", "9007199254740993") == [uuid]
    assert shop.found("email", "ann@x.org") == [uuid]
    assert shop.found("mood", "fine") == [uuid]


def test_times_of_update_keep_their_order_and_are_served_in_utc(model: Model) -> None:
    shop = model(
        """
        SELECT 1 AS id, moment::timestamptz AS moment, moment AS said
        FROM (VALUES ('-infinity'), ('2024-01-02 03:04:05+02'), ('2024-01-02 02:04:05Z')) AS made (moment)
        UNION ALL SELECT 2, 'infinity', 'infinity' UNION ALL SELECT 2, now(), 'now'
        """,
        updated_at="moment",
        rejects_max=1,
    )
    shop.load()
    assert shop.profiles()["1"]["_updated_at"] == "2024-01-02T02:04:05Z"
    assert shop.profiles()["2"] | {"_audiences": {}} == {
        "id": 2,
        "said": "infinity",
        "_audiences": {},
        "_updated_at": None,
    }


@pytest.mark.parametrize("sql", ["1.5::numeric", "'{1}'::int[]", "'{}'::jsonb", "now()", "1.5::float8"])
def test_what_is_no_identifier_is_refused_by_name(model: Model, sql: str) -> None:
    with pytest.raises(ModelError, match=r"^column id: an identifier is text, an integer or a UUID, not [A-Z]"):
        model(f"SELECT {sql} AS id").load()


# --- the model -----------------------------------------------------------------------------------------------------


def test_events_are_loaded_from_the_same_server(model: Model, postgres: Postgres, database: str) -> None:
    postgres.ask(
        """
        CREATE TABLE orders (customer bigint, id uuid, placed timestamptz, total numeric(10, 2), items jsonb);
        INSERT INTO orders SELECT 1 + n % 2, gen_random_uuid(), '2024-01-01Z'::timestamptz + n * interval '1 hour',
            n / 100.0, jsonb_build_array(n) FROM generate_series(1, 5) AS n
        """,
        database,
        "loader",
    )
    events = {"sql": "SELECT *, 'order' AS name FROM orders", "profile": "customer", "name": "name", "time": "placed"}
    shop = model("SELECT DISTINCT customer AS id FROM orders", events=events | {"id": "id"})
    shop.load()
    found = [{**each["params"], "time": each["time"]} for each in shop.events()["2"]]
    assert found == [{"total": n / 100, "items": [n], "time": f"2024-01-01T{n:02d}:00:00Z"} for n in (5, 3, 1)]
    assert shop.manifest().events == 5


def test_the_same_rows_twice_are_unchanged(model: Model) -> None:
    shop = model("SELECT n AS id, n / 3.0 AS share, ARRAY[n] AS all FROM generate_series(1, 1000) AS n")
    assert [shop.load(), shop.load()] == ["published", "unchanged"]


def test_the_statement_may_be_any_that_can_stand_in_brackets(model: Model) -> None:
    shop = model("/* ; */ WITH made AS (VALUES (1, $$;--'$$)) TABLE made; -- that is all; é\n", id="column1")
    shop.load()
    assert shop.profiles()["1"]["column2"] == ";--'"


def test_a_field_may_have_any_name(model: Model) -> None:
    names = ['a "b"', "ß\\", "日本", "select", "_", " ", "c0", "edgeprofile_given"]
    columns = ", ".join('1 AS "' + name.replace('"', '""') + '"' for name in names)
    shop = model(f"SELECT 1 AS id, {columns}")
    shop.load()
    assert list(shop.profiles()["1"]) == ["id", *names, "_audiences", "_updated_at"]


def test_to_plan_a_model_runs_nothing_of_it(model: Model, postgres: Postgres, database: str) -> None:
    postgres.ask(
        "CREATE FUNCTION boom(n int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'boom %', n; END $$",
        database,
        "loader",
    )
    shop = model("SELECT boom(n) AS id, n AS number FROM generate_series(1, 3) AS n")
    ended = shop.run("config", "check")
    assert (ended.status, ended.out) == (0, "shop: good, 2 fields, found by id\n")
    with pytest.raises(SourceError, match=r"^the model could not be run: boom …$"):
        shop.load()


def test_a_model_changes_nothing_in_the_warehouse(model: Model, postgres: Postgres, database: str) -> None:
    postgres.ask(
        """
        CREATE TABLE precious AS SELECT 1 AS id;
        CREATE FUNCTION wipe() RETURNS int LANGUAGE sql AS 'DELETE FROM precious RETURNING 1';
        """,
        database,
        "loader",
    )
    with pytest.raises(SourceError, match="cannot execute DELETE in a read-only transaction"):
        model("SELECT wipe() AS id").load()
    assert postgres.ask("SELECT count(*) FROM precious", database) == "1"


def test_a_load_needs_no_pyarrow(model: Model, tmp_path: Path) -> None:
    (tmp_path / "pyarrow.py").write_text("raise ImportError")
    shop = model("SELECT 1 AS id, now() AS at, ARRAY[1.5] AS all")
    path = os.pathsep.join([str(tmp_path), environment().get("PYTHONPATH", "")])
    assert shop.run("load", env={"PYTHONPATH": path}).status == 0


def test_a_warehouse_may_be_given_years(model: Model) -> None:
    assert model("SELECT 1 AS id", timeout="9999d").load() == "published"


# --- many rows, and large ones -------------------------------------------------------------------------------------


@pytest.mark.alone
def test_memory_stays_bounded_however_many_rows_there_are(
    postgres: Postgres, database: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folders = []
    for rows in (20_000, 700_000):
        folders.append(tmp_path_factory.mktemp("rows"))
        Workshop(folders[-1]).model(
            f"SELECT hashint8(n)::text || n AS id, repeat('x', 350) AS text FROM generate_series(1, {rows}) AS n",
            url=postgres.url(database),
            memory_limit="96MB",
            threads=1,
        )
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, *map(str, folders)],
        cwd=Path(__file__).parent,
        capture_output=True,
        check=True,
        env=environment(),
    )
    few, many = map(int, done.stdout.split())
    assert Workshop(folders[1]).manifest().record_bytes > 280_000_000
    assert many - few < 170_000_000  # the limit is DuckDB's; the driver's batches and segments come on top


def test_a_row_of_20_mb_is_refused_and_the_others_are_served(model: Model) -> None:
    shop = model(
        "SELECT n AS id, repeat('é', CASE n WHEN 3 THEN 10000000 ELSE n END) AS story FROM generate_series(1, 5) AS n",
        rejects_max=0.5,
    )
    shop.load()
    assert list(shop.profiles()) == ["1", "2", "4", "5"]
    assert shop.rejects() == [{"id": "3", "reason": "record_too_large"}]


def test_progress_tells_how_many_rows_have_come(model: Model, postgres: Postgres, database: str) -> None:
    shop = model(
        """
        SELECT n AS id, repeat('x', 5000) AS text FROM generate_series(1, 4000) AS n
        UNION ALL SELECT 0, pg_advisory_xact_lock_shared(1)::text
        """
    )
    with postgres.holding("SELECT pg_advisory_lock(1)", database) as release:
        told: list[float] = []

        def progress(stage: str, done: float, total: float) -> None:
            if stage == "model" and done and not told:
                assert total == 0
                told.append(done)
                release()

        shop.load(progress=progress)
    assert told
    assert told[0] < 4001
    assert shop.manifest().profiles == 4001


def test_sixteen_hundred_columns_come_through(model: Model) -> None:
    shop = model(f"SELECT 1 AS id, {', '.join(f'{n}::numeric AS f{n}' for n in range(1600))}")
    shop.load()
    assert json.loads(shop.bodies()["1"])["f1599"] == 1599
