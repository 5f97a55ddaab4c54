"""Bad models: each ends a real `edgeprofile load` with a clear line and a status, and the old snapshot is served on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from workshop import Ended, Workshop, side_by_side, values

from edgeprofile.errors import SourceError

GOOD = values("1, 'first@mail.example', true", "2, 'second@mail.example', false", columns="id, email, vip")
SECRET = "hush-4711"  # stands for a value that no line may show


class Bad(NamedTuple):
    """A model, keys of its settings, what each line must say, and the exit status."""

    name: str
    sql: str
    says: list[str]
    keys: Mapping[str, Any] = MappingProxyType({})
    status: int = 1


MODELS = [
    Bad(
        "an id column that is missing",
        "SELECT 1 AS idd, 2 AS name",
        ["column id (profiles.id) is not in the model's result: did you mean idd?"],
    ),
    Bad(
        "columns that are missing",
        "SELECT 1 AS id, 'x' AS e_mail, 2 AS lifetime",
        [
            "column email (profiles.identifiers) is not in the model's result: did you mean e_mail?",
            "column revenue (profiles.metrics) is not in the model's result: it yields id, e_mail, lifetime",
            "column vip (profiles.audiences) is not in the model's result: it yields id, e_mail, lifetime",
            "column stamp (profiles.updated_at) is not in the model's result: it yields id, e_mail, lifetime",
        ],
        {"identifiers": ["email"], "metrics": ["revenue"], "audiences": ["vip"], "updated_at": "stamp"},
    ),
    Bad(
        "columns that a dialect misses",
        "SELECT 1 AS id, true AS opted, TIMESTAMP '2025-01-01' AS at",
        [
            "column at (mparticle.created) is not in what is served: it yields id, opted",
            "column opted_out (mparticle.opted_out) is not in what is served: did you mean opted?",
        ],
        {
            "updated_at": "at",
            "mparticle": {"org": "1", "account": "2", "workspace": "3", "mpid": "id", "created": "at"}
            | {"opted_out": "opted_out"},
        },
    ),
    Bad(
        "columns and parameters that Intilery misses",
        "SELECT 1 AS id, 'csv' AS made_by",
        [
            "column made (intilery.created) is not in what is served: did you mean made_by?",
            "column author (intilery.created_by) is not in what is served: it yields id, made_by",
            "column origin (intilery.source) is not in what events have: it yields channel",
            "column at (intilery.received) is not in what events have: it yields channel",
        ],
        {
            "events": {
                "sql": "SELECT 1 AS id, 'a' AS name, DATE '2025-01-01' AS at, 'web' AS channel",
                "profile": "id",
                "name": "name",
                "time": "at",
            },
            "intilery": {"client": "c", "account": "a", "brand": "b", "created": "made", "created_by": "author"}
            | {"source": "origin", "received": "at"},
        },
    ),
    Bad("a null id", "SELECT NULL::INTEGER AS id", ["1 of 1 rows were refused (null_id: 1)"]),
    Bad("an id without a type", "SELECT NULL AS id", ["column id: an identifier is text, an integer or a UUID"]),
    Bad("an empty id", "SELECT '' AS id", ["1 of 1 rows were refused (empty_id: 1)"]),
    Bad(
        "ids that stand twice",
        f"SELECT '{SECRET}' AS id FROM range(5)",
        ["4 of 5 rows were refused (duplicate_id: 4), more than rejects_max allows (1.00%)"],
    ),
    Bad(
        "an id that is too long", f"SELECT repeat('{SECRET}', 57) AS id", ["1 of 1 rows were refused (id_too_long: 1)"]
    ),
    Bad(
        "an identifier that is too long",
        f"SELECT 1 AS id, repeat('{SECRET}', 57) AS email",
        ["1 of 1 rows were refused (identifier_too_long: 1)"],
        {"identifiers": ["email"]},
    ),
    Bad(
        "a unique identifier that many claim",
        f"SELECT i AS id, '{SECRET}' AS email FROM range(3) AS made(i)",
        ["2 of 3 rows were refused (duplicate_identifier: 2)"],
        {"identifiers": ["email"]},
    ),
    Bad(
        "a row of 20 MB",
        f"SELECT 1 AS id, repeat('{SECRET}', 2300000) AS story",
        ["1 of 1 rows were refused (record_too_large: 1)"],
    ),
    Bad("a syntax error", "SELEC 1 AS id", ['the model\'s SQL: Parser Error: syntax error at or near "SELEC"']),
    Bad("a bracket that is not closed", "SELECT (1 AS id", ["the model's SQL: Parser Error"]),
    Bad("a comment alone", "-- nothing", ["the model's SQL must be one SELECT statement"]),
    Bad("a bracket too many", "SELECT 1 AS id) AS made, (SELECT 2 AS other", ["the model's SQL: Parser Error"]),
    Bad(
        "a table that is missing",
        "FROM people",
        ["the model's SQL: Catalog Error: Table with name people does not exist"],
    ),
    Bad(
        "a column that is missing in SQL",
        "SELECT nix AS id",
        ['the model\'s SQL: Binder Error: Referenced column "nix"'],
    ),
    Bad("a file that is missing", "FROM 'nothing/*.parquet'", ["the model cannot be read: IO Error: No files found"]),
    Bad("a file of something else", "FROM 'noise.parquet'", ["No magic bytes found at end of file"]),
    Bad("two statements", "SELECT 1 AS id; SELECT 2 AS id", ["the model's SQL must be one SELECT statement"]),
    Bad("an insert", "INSERT INTO t VALUES (1)", ["the model's SQL"]),
    Bad("a new table", "CREATE TABLE t AS SELECT 1 AS id", ["the model's SQL"]),
    Bad("a file that would be written", "COPY (SELECT 1 AS id) TO 'stolen.csv'", ["the model's SQL"]),
    Bad("a change of settings", "SET memory_limit = '1GB'", ["the model's SQL"]),
    Bad(
        "a bad cast half-way",
        f"SELECT i AS id, IF(i = 900, '{SECRET}', '1')::INTEGER AS n FROM range(1000) AS made(i)",
        ["the model could not be run: Conversion Error: Could not convert string …"],
    ),
    Bad(
        "bad JSON half-way",
        f"SELECT i AS id, IF(i = 900, '{{{SECRET}', '1')::JSON AS n FROM range(1000) AS made(i)",
        ["the model could not be run: "],
    ),
    Bad(
        "a number that overflows",
        "SELECT i AS id, (4711471100 + i)::INTEGER AS n FROM range(10) AS made(i)",
        ["the model could not be run: Conversion Error: Type INT64 with value …"],
    ),
    Bad("bytes that are no UTF-8", "SELECT i AS id, name FROM 'latin.csv', range(1) AS made(i)", ["the model"]),
    Bad("bytes that are no text", f"SELECT decode('{SECRET}\\xFF'::BLOB) AS id", ["the model could not be run: "]),
    Bad(
        "an id of type DOUBLE",
        "SELECT 1.5::DOUBLE AS id",
        ["column id: an identifier is text, an integer or a UUID, not DOUBLE"],
    ),
    Bad(
        "an id of type STRUCT",
        "SELECT {'a': 1} AS id",
        ["column id: an identifier is text, an integer or a UUID, not STRUCT(a INTEGER)"],
    ),
    Bad(
        "an audience of type INTEGER",
        "SELECT 1 AS id, 1 AS vip",
        ["column vip: an audience is BOOLEAN, not INTEGER"],
        {"audiences": ["vip"]},
    ),
    Bad(
        "a time of update of type VARCHAR",
        "SELECT 1 AS id, '2024-01-01' AS stamp",
        ["column stamp (profiles.updated_at): expected a timestamp or a date, not VARCHAR"],
        {"updated_at": "stamp"},
    ),
    Bad(
        "columns whose names are taken",
        "SELECT 1 AS id, 2 AS _audiences, 3 AS _updated_at",
        [
            "column '_audiences': the name is taken by the answer",
            "column '_updated_at': the name is taken by the answer",
        ],
    ),
    Bad("two columns of one name", "SELECT 1 AS id, 2 AS a, 3 AS a", ["column a stands 2 times in the model's result"]),
    Bad("names that differ in case", "SELECT 1 AS id, 2 AS total, 3 AS Total", ["column total stands 2 times"]),
    Bad(
        "5,000 columns",
        f"SELECT 1 AS id, {', '.join(f'1 AS c{i}' for i in range(5000))}",
        ["the model yields 5001 fields; a profile may have 4096: leave some out"],
    ),
    Bad("an empty result", "SELECT 1 AS id WHERE false", ["the model gave no profiles"]),
    Bad(
        "no DuckDB file",
        "FROM people",
        ["the warehouse noise.parquet cannot be opened"],
        {"url": "duckdb:///noise.parquet"},
    ),
    Bad(
        "no file of that name",
        "FROM people",
        ["the warehouse none.duckdb cannot be opened"],
        {"url": "duckdb:///none.duckdb"},
    ),
    Bad("a setting of the wrong kind", GOOD, ["workspaces.shop.profiles.id: expected a column, found 7"], {"id": 7}, 2),
    Bad(
        "an SQL file that is missing",
        GOOD,
        ["workspaces.shop.profiles.sql: expected SQL in UTF-8"],
        {"sql": "no.sql"},
        2,
    ),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A workspace that serves a good snapshot."""
    shop = Workshop(tmp_path_factory.mktemp("good")).model(GOOD)
    shop.load()
    (shop.folder / "noise.parquet").write_bytes(bytes(range(256)) * 64)
    (shop.folder / "latin.csv").write_bytes(b"name\n" + SECRET.encode() + b"\xff\n")
    return shop


@pytest.fixture(scope="module")
def loaded(served: Workshop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Workshop, Ended]]:
    """What became of a load of each bad model, where a good one is served."""

    def load(bad: Bad) -> tuple[Workshop, Ended]:
        folder = tmp_path_factory.getbasetemp() / "bad" / bad.name
        shutil.copytree(served.folder, folder)
        shop = Workshop(folder).model(bad.sql, **bad.keys)
        return shop, shop.run("load")

    return dict(zip([bad.name for bad in MODELS], side_by_side(load, MODELS), strict=True))


@pytest.mark.parametrize("bad", MODELS, ids=[bad.name.replace(" ", "_") for bad in MODELS])
def test_a_bad_model_is_a_clear_line_and_the_old_snapshot_stays(
    served: Workshop, loaded: dict[str, tuple[Workshop, Ended]], bad: Bad
) -> None:
    shop, ended = loaded[bad.name]
    assert ended.status == bad.status
    lines = ended.complaints
    assert len(lines) == len(bad.says), ended.err
    for line, says in zip(lines, bad.says, strict=True):
        assert line.startswith("edgeprofile: shop: " if bad.status == 1 else "edgeprofile: ")
        assert says in line
        assert len(line) < 400
    assert SECRET not in ended.err + ended.out
    assert "Traceback" not in ended.err
    assert ended.out == ""
    assert_served_as_before(shop, served)


def assert_served_as_before(shop: Workshop, served: Workshop) -> None:
    """CURRENT is what it was, what it names can be read, and nothing lies about."""
    assert shop.current() == served.current()
    assert shop.bodies() == served.bodies()
    assert shop.leftovers() == []
    assert [path.name for path in shop.snapshots.iterdir()] == [served.current()]
    assert not (shop.folder / "stolen.csv").exists()


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (f"O'Brien {SECRET}", "INTEGER"),
        (f"{SECRET}\nsecond line", "INTEGER"),
        (f"first line\n{SECRET}", "DATE"),
        (f'{{"name": "{SECRET}"', "JSON"),
        (f"it's \"{SECRET}\" isn't it", "UUID"),
        (SECRET, "BOOLEAN"),
        (f"x' {SECRET}", "ENUM('a')"),
        (f"[{SECRET}", "INTEGER[]"),
        (f"'{SECRET}'", "STRUCT(a INTEGER)"),
        ("4711471100", "BIGINT::INTEGER"),
        ("4711471100", "BIGINT::DECIMAL(4, 2)"),
        ("-4711471100.5", "DOUBLE::UTINYINT"),
        ("4711471100", "BIGINT * 4711471100 * 4711471100"),
    ],
)
def test_no_error_of_the_warehouse_shows_a_value(tmp_path: Path, value: str, kind: str) -> None:
    (tmp_path / "rows.json").write_text(json.dumps({"v": value}))
    sql = f"SELECT 1 AS id, v::{kind} AS n FROM read_json('rows.json', columns = {{v: 'VARCHAR'}})"
    shop = Workshop(tmp_path).model(sql)
    with pytest.raises(SourceError, match=r"\Athe model could not be run: \w+ (of Range )?Error: [^\n]+\Z") as raised:
        shop.load()
    for text in (str(raised.value), (shop.home / "refresh.json").read_text()):
        assert SECRET not in text
        assert "4711" not in text


def test_a_failure_is_kept_for_status(served: Workshop, tmp_path: Path) -> None:
    shutil.copytree(served.folder, tmp_path, dirs_exist_ok=True)
    shop = Workshop(tmp_path).model(f"SELECT i AS id, IF(i = 9, '{SECRET}', '1')::INT AS n FROM range(10) AS made(i)")
    with pytest.raises(SourceError):
        shop.load()
    status = shop.run("status")
    assert status.status == 0
    assert "source_error" in status.out
    assert SECRET not in status.out


def test_rows_of_20_mb_and_more_are_refused_and_the_others_served(tmp_path: Path) -> None:
    sql = (
        "SELECT i AS id, repeat('é', CASE WHEN i IN (3, 5) THEN 10000000 ELSE i END) AS story FROM range(8) AS made(i)"
    )
    shop = Workshop(tmp_path).model(sql, rejects_max=0.5)
    shop.load()
    assert list(shop.profiles()) == ["0", "1", "2", "4", "6", "7"]
    assert shop.rejects() == [{"id": each, "reason": "record_too_large"} for each in "35"]


def test_a_record_just_under_16_mib_is_served(tmp_path: Path) -> None:
    shop = Workshop(tmp_path).model("SELECT 1 AS id, repeat('x', 16777000) AS story")
    shop.load()
    assert shop.profiles()["1"]["story"] == "x" * 16_777_000


def test_json_that_is_nested_over_500_deep_refuses_its_row(tmp_path: Path) -> None:
    brackets = """'{"[": "[\\"[[[", "in": ' || repeat('[', d) || repeat(']', d) || '}'"""
    sql = f"SELECT d AS id, ({brackets})::JSON AS notes FROM (VALUES (1), (499), (500), (5000)) AS made(d)"
    shop = Workshop(tmp_path).model(sql, rejects_max=1)
    shop.load()
    assert list(shop.profiles()) == ["1", "499"]
    assert shop.rejects() == [{"id": each, "reason": "invalid_json"} for each in ("500", "5000")]
