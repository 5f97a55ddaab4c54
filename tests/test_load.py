"""From a model to a snapshot: sources, order, identifiers, refused rows, guards, and what is published when."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from workshop import COMMAND, WAIT_SECONDS_MAX, Workshop, environment, values

from edgeprofile import snapshot
from edgeprofile.errors import RefreshRefused, SourceError
from edgeprofile.reader import NAMESPACE_KEY
from edgeprofile.record import normalize

HOLDER = """
import sys, duckdb
held = duckdb.connect(sys.argv[1], read_only=sys.argv[2] == "read")
print("held", flush=True)
sys.stdin.read()
"""
BOUNDED = """
import sys
from pathlib import Path
from workshop import Workshop
def peak_bytes():
    return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
small, large = Workshop(Path(sys.argv[1])), Workshop(Path(sys.argv[2]))
small.load()
before = peak_bytes()
large.load()
print(before, peak_bytes())
"""


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def people(*rows: str) -> str:
    """A model of people with an email and a time of update."""
    return f"SELECT id, email, changed::TIMESTAMP AS changed FROM ({values(*rows, columns='id, email, changed')})"


# --- sources -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["parquet", "csv", "json"])
def test_files_are_found_by_a_glob_from_the_folder_of_the_settings(shop: Workshop, form: str) -> None:
    (shop.folder / "in").mkdir()
    for part in range(3):
        rows = f"SELECT i AS id, 'n' || i AS name FROM range({part * 10}, {part * 10 + 10}) AS made(i)"
        duckdb.sql(f"COPY ({rows}) TO '{shop.folder}/in/part{part}.{form}'")
    shop.model(f"FROM 'in/*.{form}'")
    ended = shop.run("load", "--config", str(shop.folder / "edgeprofile.toml"))
    assert ended.status == 0
    assert shop.profiles() == {
        str(i): {"id": i, "name": f"n{i}", "_audiences": {}, "_updated_at": shop.profiles()[str(i)]["_updated_at"]}
        for i in sorted(range(30), key=str)
    }


def test_the_folder_of_the_settings_counts_and_not_the_one_that_a_command_runs_in(shop: Workshop) -> None:
    (shop.folder / "rows.csv").write_text("id\n7\n")
    shop.model("FROM 'rows.csv'")
    (elsewhere := shop.folder / "elsewhere").mkdir()
    command = [*COMMAND, "load", "--config", str(shop.folder / "edgeprofile.toml")]
    subprocess.run(command, cwd=elsewhere, env=environment(), check=True, capture_output=True)
    assert list(shop.profiles()) == ["7"]
    assert not list(elsewhere.iterdir())


@pytest.fixture
def warehouse(shop: Workshop) -> Path:
    """A DuckDB file with a table, and a model over it."""
    file = shop.folder / "warehouse.duckdb"
    with duckdb.connect(str(file)) as connection:
        connection.execute("CREATE TABLE people AS SELECT i AS id FROM range(3) AS made(i)")
    shop.model("FROM people", url="duckdb:///warehouse.duckdb")
    return file


def test_a_duckdb_file_is_only_read(shop: Workshop, warehouse: Path) -> None:
    before = warehouse.read_bytes()
    assert shop.load() == "published"
    assert list(shop.profiles()) == ["0", "1", "2"]
    assert warehouse.read_bytes() == before
    assert not list(shop.folder.glob("*.wal"))


@pytest.mark.parametrize("way", ["read", "write"])
def test_a_duckdb_file_that_another_process_writes_is_a_clear_error(shop: Workshop, warehouse: Path, way: str) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(warehouse), way], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        if way == "read":
            assert shop.load() == "published"
        else:
            with pytest.raises(
                SourceError, match=r"^the warehouse warehouse.duckdb cannot be opened: .*lock"
            ) as raised:
                shop.load()
            assert "\n" not in str(raised.value)
        holder.communicate(timeout=WAIT_SECONDS_MAX)


# --- order and identifiers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "ids"),
    [
        (
            "VARCHAR",
            ["é", "z", "Z", "10", "9", "\U0001f600", "\uffff", "a\u0301", "a", "aa", " ", "ab c", "-1", "\x00", "日本"],
        ),
        ("BIGINT", ["10", "9", "-1", "-10", "1", "9223372036854775807", "0", "100"]),
        ("HUGEINT", ["-170141183460469231731687303715884105728", "5", "49"]),
        ("UUID", ["ffffffff-0000-4000-8000-000000000000", "00000000-0000-4000-8000-000000000001"]),
        ("ENUM('b', 'a', 'c')", ["b", "c", "a"]),
    ],
)
def test_profiles_stand_in_the_binary_order_of_their_ids(shop: Workshop, kind: str, ids: list[str]) -> None:
    (shop.folder / "ids.json").write_text("".join(json.dumps({"id": each}) + "\n" for each in ids))
    shop.model(f"SELECT id::{kind} AS id FROM read_json('ids.json', columns = {{id: 'VARCHAR'}})").load()
    assert list(shop.bodies()) == sorted(ids, key=str.encode)


def test_of_rows_with_one_id_the_newest_stays(shop: Workshop) -> None:
    rows = [
        "1, 'old', '2024-01-01'",
        "1, 'new', '2024-03-01'",
        "1, 'mid', '2024-02-01'",
        "1, 'none', NULL",
        "2, 'b', NULL",
    ]
    shop.model(people(*rows), updated_at="changed", rejects_max=1).load()
    assert shop.profiles()["1"]["email"] == "new"
    assert shop.manifest().rejected == {"duplicate_id": 3}
    assert shop.rejects() == [{"id": "1", "reason": "duplicate_id"}] * 3


def test_of_profiles_that_claim_one_identifier_the_newest_stays(shop: Workshop) -> None:
    rows = ["1, 'A@x', '2024-01-01'", "2, 'a@x', '2024-03-01'", "3, 'a@X', NULL", "4, 'b@x', NULL", "5, 'b@x', NULL"]
    email = {"column": "email", "normalize": "lower"}
    shop.model(people(*rows), updated_at="changed", identifiers=[email], rejects_max=1).load()
    assert list(shop.profiles()) == ["2", "4"]
    assert shop.found("email", "A@X") == ["2"]
    assert shop.found("email", "b@x") == ["4"]
    assert shop.rejects() == [{"id": each, "reason": "duplicate_identifier"} for each in ("1", "3", "5")]


def test_a_row_refused_for_one_reason_takes_no_identifier_from_another(shop: Workshop) -> None:
    rows = ["'1', 'a@x', '2024-01-01'", "'', 'a@x', '2024-03-01'", "NULL, 'a@x', '2024-03-01'"]
    shop.model(people(*rows), updated_at="changed", identifiers=["email"], rejects_max=1).load()
    assert shop.found("email", "a@x") == ["1"]


def test_an_identifier_that_many_may_have_lists_them_newest_first(shop: Workshop) -> None:
    rows = ["1, 'a', '2024-01-01'", "2, 'a', '2024-03-01'", "3, 'a', NULL", "4, 'b', NULL", "5, 'a', '2024-02-01'"]
    shop.model(people(*rows), updated_at="changed", identifiers=[{"column": "email", "unique": False}]).load()
    assert shop.found("email", "a") == ["2", "5", "1", "3"]
    assert shop.found("email", "b") == ["4"]
    assert shop.manifest().identifiers == {"email": 2}


def test_empty_and_absent_identifiers_lead_nowhere_and_refuse_nobody(shop: Workshop) -> None:
    shop.model(people("1, '', NULL", "2, '', NULL", "3, NULL, NULL", "4, NULL, NULL"), identifiers=["email"]).load()
    assert len(shop.profiles()) == 4
    assert shop.found("email", "") == []
    assert shop.manifest().identifiers == {"email": 0}


def test_integers_and_uuids_find_a_profile_by_their_text(shop: Workshop) -> None:
    uuid = "0A234567-89ab-cdef-0123-456789abcdef"
    sql = f"SELECT 'x' AS id, -42 AS number, '{uuid}'::UUID AS tag, 170141183460469231731687303715884105727 AS wide"
    shop.model(sql, identifiers=["number", "tag", "wide"]).load()
    assert shop.found("number", "-42") == ["x"]
    assert shop.found("tag", uuid.lower()) == ["x"]
    assert shop.found("wide", str(2**127 - 1)) == ["x"]
    served = {"id": "x", "number": -42, "tag": uuid.lower(), "wide": 2**127 - 1}
    assert shop.profiles()["x"].items() >= served.items()


def test_sql_lowers_every_identifier_as_a_lookup_does(shop: Workshop) -> None:
    cased = {
        c
        for c in range(0x110000)
        if chr(c) not in (chr(c).lower(), chr(c).upper(), chr(c).casefold()) or chr(c).istitle()
    }
    cased |= {c for c in range(0x20000) if chr(c).lower() != chr(c) or chr(c).upper() != chr(c)}
    sample = cased | set(random.Random(2).sample(range(0x110000), 2_000))
    words = [
        "Straße",
        "STRASSE",
        "ΑΣ",
        "ΌΣΟΣ",
        "İstanbul",
        "ISPARTA",
        "Ǆǅǆ",
        "ÀÉ",
        "A\u0300",
        "ﬃ",
        "K\u212a",
        "ẞ",
        "Ω\u2126",
    ]
    texts = words + [f"A{chr(c)}Z" for c in sorted(sample) if not 0xD800 <= c < 0xE000]
    (shop.folder / "texts.json").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    sql = "SELECT row_number() OVER () AS id, text FROM read_json('texts.json', columns = {text: 'VARCHAR'})"
    shop.model(sql, identifiers=[{"column": "text", "unique": False, "normalize": "lower"}]).load()
    with shop.reader() as opened, opened.txn.cursor(opened.identifiers) as cursor:
        indexed = {bytes(key)[NAMESPACE_KEY.size :].decode() for key, _ in cursor}
        assert indexed == {normalize(text, "lower") for text in texts}
        assert [text for text in texts if not opened.primaries("text", text)] == []


# --- refused rows --------------------------------------------------------------------------------------------------


def test_refused_rows_are_counted_and_the_first_hundred_of_each_reason_listed(shop: Workshop) -> None:
    bad = """
        SELECT i::VARCHAR AS id, 'm' || i AS email, NULL::JSON AS notes FROM range(10) AS made(i)
        UNION ALL SELECT NULL, NULL, NULL FROM range(150)
        UNION ALL SELECT '', NULL, NULL FROM range(101)
        UNION ALL SELECT repeat('é', 256), NULL, NULL
        UNION ALL SELECT 'long' || i, repeat('x', 510), NULL FROM range(3) AS made(i)
        UNION ALL SELECT '5', NULL, NULL
        UNION ALL SELECT 'z' || i, 'm' || i, NULL FROM range(2) AS made(i)
    """
    shop.model(bad, identifiers=["email"], rejects_max=1).load()
    counts = {
        "duplicate_id": 1,
        "duplicate_identifier": 2,
        "empty_id": 101,
        "id_too_long": 1,
        "identifier_too_long": 3,
        "null_id": 150,
    }
    assert shop.manifest().rejected == counts
    assert (shop.manifest().rows, shop.manifest().profiles) == (268, 10)
    listed = [(each["id"], each["reason"]) for each in shop.rejects()]
    assert [reason for _, reason in listed] == [r for r, count in counts.items() for _ in range(min(count, 100))]
    assert {each for each in listed if "identifier" in each[1]} == {
        *(("z" + i, "duplicate_identifier") for i in "01"),
        *((f"long{i}", "identifier_too_long") for i in range(3)),
    }


def test_an_id_and_an_identifier_of_the_greatest_length_are_served(shop: Workshop) -> None:
    shop.model("SELECT repeat('i', 511) AS id, repeat('e', 509) AS email", identifiers=["email"]).load()
    assert shop.found("email", "e" * 509) == ["i" * 511]
    assert shop.manifest().rejected == {}


@pytest.mark.parametrize(("refused", "rejects_max", "published"), [(1, 0.01, True), (2, 0.01, False), (1, 0, False)])
def test_more_refused_rows_than_rejects_max_fail_the_refresh(
    shop: Workshop, refused: int, rejects_max: float, published: bool
) -> None:
    sql = f"SELECT CASE WHEN i >= {refused} THEN i END AS id FROM range(100) AS made(i)"
    shop.model(sql, rejects_max=rejects_max)
    if published:
        assert shop.load() == "published"
        return
    with pytest.raises(RefreshRefused, match=rf"^{refused} of 100 rows were refused .null_id: {refused}.") as raised:
        shop.load()
    assert raised.value.outcome == "too_many_rejects"
    assert shop.current() is None
    assert (shop.home / "rejects.ndjson").read_text().count("null_id") == refused
    assert shop.leftovers() == []


# --- guards, and what is published when ----------------------------------------------------------------------------


def numbers(count: int, **keys: str) -> str:
    """A model of `count` profiles, with more columns."""
    return f"SELECT i AS id{''.join(f', {sql} AS {name}' for name, sql in keys.items())} FROM range({count}) AS made(i)"


@pytest.mark.parametrize("before", [0, 3])
def test_an_empty_result_is_published_only_by_force(shop: Workshop, before: int) -> None:
    if before:
        shop.model(numbers(before)).load()
    old = shop.current()
    with pytest.raises(RefreshRefused, match=r"no profiles"):
        shop.model(numbers(0)).load()
    assert shop.current() == old
    assert shop.load(force=True) == "published"
    assert shop.profiles() == {}


def test_a_result_that_lost_more_than_shrink_max_is_published_only_by_force(shop: Workshop) -> None:
    shop.model(numbers(100)).load()
    old = shop.current()
    with pytest.raises(RefreshRefused, match=r"49 profiles where 100 are served") as raised:
        shop.model(numbers(49)).load()
    assert raised.value.outcome == "shrunk"
    assert shop.current() == old
    assert shop.load(force=True) == "published"
    assert len(shop.profiles()) == 49
    assert shop.model(numbers(25)).load() == "published"
    assert shop.model(numbers(24), shrink_max=0).run("load").status == 1


def test_a_damaged_current_snapshot_does_not_switch_the_guard_off(shop: Workshop) -> None:
    shop.model(numbers(100)).load()
    shop.model(numbers(101)).load()
    (shop.current_folder() / snapshot.MANIFEST).write_bytes(b"{")
    with pytest.raises(RefreshRefused, match=r"3 profiles where 100 are served"):
        shop.model(numbers(3)).load()


def test_a_damaged_file_is_published_anew_though_the_result_says_the_same(shop: Workshop) -> None:
    shop.model(numbers(500)).load()
    file = shop.current_folder() / snapshot.PROFILES
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert shop.load() == "published"
    assert shop.load() == "unchanged"


@pytest.mark.parametrize("keys", [{}, {"updated_at": "changed"}])
def test_a_result_that_says_the_same_is_not_published_again(shop: Workshop, keys: dict[str, str]) -> None:
    sql = numbers(500, name="'n' || i", changed="TIMESTAMP '2024-01-01' + INTERVAL (i) HOUR")
    assert shop.model(sql, **keys).load() == "published"
    old = shop.current()
    assert shop.load() == "unchanged"
    assert shop.model(f"{sql} ORDER BY hash(i)", **keys).load() == "unchanged"
    assert shop.current() == old
    assert len(list(shop.snapshots.iterdir())) == 1
    assert shop.load(force=True) == "published"


@pytest.mark.parametrize("change", ["name", "changed", "score", "more", "fewer", "column"])
def test_a_result_that_says_anything_else_is_published(shop: Workshop, change: str) -> None:
    columns = {"name": "'n' || i", "score": "i / 2", "changed": "TIMESTAMP '2024-01-01'"}
    shop.model(numbers(500, **columns), updated_at="changed").load()
    others = {
        "name": "CASE i WHEN 499 THEN 'N499' ELSE 'n' || i END",
        "score": "(i / 2) + 1e-12",
        "changed": "TIMESTAMP '2024-01-01 00:00:00.000001'",
    }
    if change == "column":
        columns = {"title": columns.pop("name"), **columns}
    count = {"more": 501, "fewer": 499}.get(change, 500)
    columns |= {change: others[change]} if change in others else {}
    assert shop.model(numbers(count, **columns), updated_at="changed").load() == "published"
    assert len(shop.bodies()) == count


def test_a_damaged_snapshot_is_replaced_even_by_a_result_that_says_the_same(shop: Workshop) -> None:
    shop.model(numbers(500)).load()
    old = shop.current_folder()
    (old / "profiles.mdb").write_bytes((old / "profiles.mdb").read_bytes()[:-4096])
    assert shop.load() == "published"
    assert len(shop.bodies()) == 500


def test_an_audience_keeps_its_number_even_while_it_is_away(shop: Workshop) -> None:
    def numbered(*audiences: str) -> object:
        shop.model(numbers(2, **dict.fromkeys(audiences, "i = 0")), audiences=list(audiences)).load()
        return shop.manifest().schema["audience_ids"]

    assert numbered("vip", "new") == {"vip": 1, "new": 2}
    assert numbered("new", "lost") == {"vip": 1, "new": 2, "lost": 3}
    assert numbered("other", "vip") == {"vip": 1, "new": 2, "lost": 3, "other": 4}
    assert shop.profiles()["0"]["_audiences"] == {"other": True, "vip": True}


# --- size ----------------------------------------------------------------------------------------------------------


def test_a_model_far_larger_than_the_memory_limit_loads_in_bounded_memory(tmp_path: Path) -> None:
    for name, count in (("small", 1_000), ("large", 600_000)):
        (tmp_path / name).mkdir()
        sql = numbers(count, email=f"(i * 7919 % {count}) || '@x'", wide="repeat(md5(i::VARCHAR), 6)")
        Workshop(tmp_path / name).model(sql, identifiers=["email"], memory_limit="64MB", threads=1)
    command = [sys.executable, "-c", BOUNDED, str(tmp_path / "small"), str(tmp_path / "large")]
    paths = [str(Path(__file__).parent), *sys.path]
    done = subprocess.run(command, env=environment() | {"PYTHONPATH": ":".join(paths)}, capture_output=True, check=True)
    before, after = map(int, done.stdout.split())
    file_bytes = Workshop(tmp_path / "large").manifest().file_bytes
    assert file_bytes > 3 * 64_000_000
    assert after - before < 170_000_000  # the limit is DuckDB's; a few segments that are being written come on top


def test_progress_tells_each_stage_and_how_far_the_records_are(shop: Workshop) -> None:
    told: list[tuple[str, float, float]] = []
    shop.model(numbers(10_000, email="i"), identifiers=["email"]).load(progress=lambda *each: told.append(each))
    assert list(dict.fromkeys(stage for stage, *_ in told)) == ["model", "records", "identifiers: email", "publish"]
    done = [done for stage, done, total in told if stage == "records" and total == 10_000]
    assert len(done) > 2
    assert done == sorted(set(done))
    assert done[-1] == 10_000


def test_the_statement_may_end_in_a_semicolon_and_a_comment(tmp_path: Path) -> None:
    shop = Workshop(tmp_path).model("SELECT 1 AS id, 'é;' AS text; -- that is all; é\n")
    shop.load()
    assert list(shop.bodies()) == ["1"]


def test_an_older_row_stays_where_the_newest_of_its_id_is_refused(tmp_path: Path) -> None:
    sql = """
        SELECT 'a' AS id, 'old@x' AS email, TIMESTAMP '2020-01-01' AS at UNION ALL
        SELECT 'a', repeat('x', 600), TIMESTAMP '2021-01-01' UNION ALL
        SELECT 'a', 'older@x', TIMESTAMP '2019-01-01' UNION ALL
        SELECT 'b', 'b@x', TIMESTAMP '2020-01-01'
    """
    shop = Workshop(tmp_path).model(sql, updated_at="at", identifiers=["email"], rejects_max=1.0)
    shop.load()
    assert shop.manifest().rejected == {"duplicate_id": 1, "identifier_too_long": 1}
    assert shop.found("email", "old@x") == ["a"]


def test_a_column_with_a_collation_is_sorted_and_told_apart_by_its_bytes(tmp_path: Path) -> None:
    sql = """
        SELECT id COLLATE NOCASE AS id, email COLLATE NOCASE AS email
        FROM (VALUES ('b', 'B@x'), ('A', 'a@x'), ('a', 'A@x'), ('B', 'b@x')) AS made(id, email)
    """
    shop = Workshop(tmp_path).model(sql, identifiers=["email"])
    shop.load()
    assert [shop.found("email", email) for email in ("A@x", "B@x", "a@x", "b@x")] == [["a"], ["b"], ["A"], ["B"]]
    assert list(shop.bodies()) == ["A", "B", "a", "b"]


def test_a_load_gives_way_to_lookups(shop: Workshop) -> None:
    shop.model("SELECT '1' AS id")
    script = (
        "import atexit, os, sys; atexit.register(lambda: print(os.nice(0))); from edgeprofile.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script, "load"], cwd=shop.folder, capture_output=True, check=True)
    assert int(done.stdout.split()[-1]) == os.nice(0) + 10
