"""From a model of events to histories: order, refused rows, guards, and what is published when."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest
from test_load_types import SERVED
from workshop import Workshop, environment, events, roll_back, values

from edgeprofile import history, reader, snapshot
from edgeprofile.errors import FormatUnsupported, ModelError, RefreshRefused, SourceError, StoreError
from edgeprofile.loader.refresh import describe
from edgeprofile.reader import Reader

PEOPLE = "SELECT i AS id FROM range(1, 4) AS made(i)"
SECRET = "hush-4711"  # stands for a value that no line may show
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


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def table(sql: str, **keys: str) -> dict[str, str]:
    """The settings of a model of events."""
    return {"sql": sql, "profile": "profile", "name": "name", "time": "moment"} | keys


def happened(*rows: str, columns: str = "profile, name, moment, id") -> dict[str, str]:
    """A model that yields these events, each the SQL of its values."""
    made = f"SELECT * REPLACE (moment::TIMESTAMP AS moment) FROM ({values(*rows, columns=columns)})"
    return table(made, **({"id": "id"} if " id" in columns else {}))


def names(found: list[dict[str, Any]]) -> list[str]:
    return [each["name"] for each in found]


# --- what is served ------------------------------------------------------------------------------------------------


def test_what_is_read_back_is_what_the_warehouse_has(shop: Workshop) -> None:
    with duckdb.connect(str(shop.folder / "shop.duckdb")) as warehouse:
        warehouse.execute("""
            CREATE TABLE happened AS
            SELECT i AS number, hash(i) % 900 AS profile, 'e' || hash(i, 1) % 20_000 AS event,
                   ['page', 'buy', 'größe 😀'][(1 + hash(i, 2) % 3)::BIGINT] AS name,
                   TIMESTAMP '2024-01-01' + to_milliseconds((hash(i, 3) % 50_000)::BIGINT) AS moment,
                   CASE WHEN i % 7 > 0 THEN i / 3 END AS score, repeat(chr(955), (i % 40)::INTEGER) AS word,
                   {'a': i, 'b': [i]} AS nested
            FROM range(30_000) AS made(i)
        """)
        rows = warehouse.execute("FROM happened ORDER BY moment DESC, event, number").fetchall()
    expected: dict[str, list[dict[str, Any]]] = {}
    for number, profile, event, name, moment, score, word, nested in rows:
        params = {"number": number, **({} if score is None else {"score": score}), "word": word, "nested": nested}
        time = moment.isoformat(timespec="milliseconds" if moment.microsecond else "seconds") + "Z"
        expected.setdefault(str(profile), []).append({"id": event, "name": name, "time": time, "params": params})
    made = table("FROM happened ORDER BY number", id="event")
    shop.model("SELECT i AS id FROM range(800) AS made(i)", url="duckdb:///shop.duckdb", events=made).load()
    served = shop.events()
    assert served == {profile: found for profile, found in expected.items() if int(profile) < 800}
    manifest = shop.manifest()
    assert (manifest.events, manifest.histories) == (sum(map(len, served.values())), len(served))
    assert manifest.event_rows == 30_000
    assert manifest.events_rejected == {"unknown_profile": 30_000 - manifest.events}


def test_a_parameter_of_every_type_is_served_exactly(shop: Workshop) -> None:
    columns = ", ".join(f'{sql} AS "v{number}"' for number, (_, sql, _) in enumerate(SERVED))
    shop.model(PEOPLE, events=table(f"SELECT 2 AS profile, 'e' AS name, DATE '2024-01-02' AS moment, {columns}")).load()
    with shop.reader() as opened:
        [block] = history.read_directory("2", bytes(opened.directory("2") or b""))
        content = bytes(opened.event_segments[block.segment][block.offset : block.offset + block.length])
        [event] = history.read_block("2", block, content)
    params = ",".join(f'"v{n}":{text}' for n, (*_, text) in enumerate(SERVED) if text is not None)
    expected = f'{{"name":"e","time":"2024-01-02T00:00:00Z","params":{{{params}}}}}'
    assert history.body("2", event).decode() == expected


def test_events_come_by_time_then_by_the_text_of_their_id_then_by_their_name(shop: Workshop) -> None:
    rows = ["1, 'a', '2024-01-01', 10", "1, 'b', '2024-01-02', 9", "1, 'c', '2024-01-01', 9"]
    rows = ["1, 'd', '2024-01-01', 9", *rows, "1, 'e', '2024-01-01', NULL", "1, 'f', '2024-01-03', 1"]
    shop.model(PEOPLE, events=happened(*rows)).load()
    assert names(shop.events()["1"]) == list("fbeacd")
    assert [each.get("id") for each in shop.events()["1"]] == [1, 9, None, 10, 9, 9]


def test_events_of_one_time_without_an_id_stay_in_the_order_of_the_rows(shop: Workshop) -> None:
    sql = "SELECT 1 + i % 2 AS profile, 'n' || i AS name, TIMESTAMP '2024-01-01' AS moment FROM range(5000) AS made(i)"
    shop.model(PEOPLE, events=table(sql)).load()
    assert names(shop.events()["2"]) == [f"n{i}" for i in range(1, 5000, 2)]


@pytest.mark.parametrize(
    ("kind", "time"),
    [
        ("TIMESTAMP", "03:04:05.678901Z"),
        ("TIMESTAMPTZ", "03:04:05.678901Z"),
        ("TIMESTAMP_S", "03:04:06Z"),
        ("TIMESTAMP_MS", "03:04:05.679Z"),
        ("TIMESTAMP_NS", "03:04:05.678901Z"),
        ("DATE", "00:00:00Z"),
    ],
)
def test_times_of_every_type_are_served_in_utc(shop: Workshop, kind: str, time: str) -> None:
    sql = f"SELECT 1 AS profile, 'e' AS name, '2024-01-02 03:04:05.678901'::{kind} AS moment"
    shop.model(PEOPLE, events=table(sql)).load()
    assert shop.events() == {"1": [{"name": "e", "time": f"2024-01-02T{time}", "params": {}}]}


@pytest.mark.parametrize("year", ["0001-01-01", "1969-12-31 23:59:59.999999", "9999-12-31 23:59:59.999999"])
def test_the_first_and_the_last_moment_are_served(shop: Workshop, year: str) -> None:
    shop.model(PEOPLE, events=happened(f"1, 'e', '{year}'", columns="profile, name, moment")).load()
    assert shop.events()["1"][0]["time"] == (year.replace(" ", "T") if " " in year else f"{year}T00:00:00") + "Z"


def test_ids_and_profiles_are_found_by_their_text_and_ids_served_by_their_type(shop: Workshop) -> None:
    uuid = "01234567-89ab-cdef-0123-456789abcdef"
    sql = f"SELECT '{uuid}'::UUID AS profile, 'e' AS name, DATE '2024-01-02' AS moment"
    ids = {
        "TEXT": ("'a \"é\"'", 'a "é"'),
        "BIGINT": ("-7", -7),
        "HUGEINT": (2**100, 2**100),
        "UUID": (f"'{uuid}'", uuid),
    }
    for kind, (given, served) in ids.items():
        shop.model(f"SELECT '{uuid}' AS id", events=table(f"{sql}, {given}::{kind} AS id", id="id")).load()
        assert [each["id"] for each in shop.events()[uuid]] == [served]


def test_ids_profiles_names_and_parameters_are_any_unicode(shop: Workshop) -> None:
    odd = ["a/b", "日本語", "ελ-ام", "👩‍👩‍👧🇫🇷", "e\u0301", "\U0010ffff", 'say "é"\\\n', "\x01\x7f", " "]
    text = "".join(json.dumps({"t": each}) + "\n" for each in odd)
    (shop.folder / "odd.json").write_text(text)
    read = "read_json('odd.json', columns = {t: 'VARCHAR'})"
    sql = f'SELECT t AS profile, t AS name, t AS id, DATE \'2024-01-02\' AS moment, t AS "param ""é""\\" FROM {read}'
    shop.model(f"SELECT t AS id FROM {read}", events=table(sql, id="id")).load()
    event = {"time": "2024-01-02T00:00:00Z"}
    expected = {t: [{"id": t, "name": t, **event, "params": {'param "é"\\': t}}] for t in odd}
    assert shop.events() == expected


def test_names_of_parameters_may_be_those_of_anything_else(shop: Workshop) -> None:
    columns = ["id", "name", "time", "params", "_audiences", "_updated_at", "key", "at", "f0", "place", "row"]
    sql = "SELECT 1 AS profile, 'e' AS what, DATE '2024-01-02' AS day, "
    sql += ", ".join(f"{number} AS {column}" for number, column in enumerate(columns))
    shop.model(PEOPLE, events=table(sql, name="what", time="day")).load()
    assert shop.events()["1"][0]["params"] == {column: number for number, column in enumerate(columns)}


def test_without_a_model_of_events_there_are_none(shop: Workshop) -> None:
    shop.model(PEOPLE).load()
    manifest = shop.manifest()
    assert (shop.events(), manifest.events, manifest.events_schema) == ({}, 0, None)
    assert reader.verify(shop.current_folder()) == manifest


def test_a_model_of_events_may_yield_none(shop: Workshop) -> None:
    shop.model(PEOPLE, events=table("SELECT 1 AS profile, 'e' AS name, DATE '2024-01-02' AS moment WHERE false"))
    assert shop.load() == "published"
    assert shop.events() == {}
    assert shop.manifest().events_schema == {"has_id": False, "fields": []}


# --- size ----------------------------------------------------------------------------------------------------------


def test_a_history_may_be_of_many_batches_blocks_and_segments(shop: Workshop) -> None:
    sql = """
        SELECT 1 + (i % 50 = 0)::INTEGER AS profile, 'n' || i % 3 AS name, i AS number,
               TIMESTAMP '2024-01-01' + to_seconds(i) AS moment, repeat('x', (i % 499)::INTEGER) AS word
        FROM range(15_000) AS made(i)
    """
    shop.model(PEOPLE, events=table(sql)).load()
    found = shop.events()
    assert [each["params"]["number"] for each in found["1"]] == [i for i in range(14_999, -1, -1) if i % 50]
    assert [each["params"]["number"] for each in found["2"]] == list(range(14_950, -1, -50))
    with shop.reader() as opened:
        blocks = history.read_directory("1", bytes(opened.directory("1") or b""))
        assert len({block.segment for block in blocks}) > 2
        assert all(block.count <= history.BLOCK_EVENTS_MAX for block in blocks)
        assert opened.check_records() == 3


def test_an_event_over_64_kib_has_a_block_of_its_own_and_one_over_16_mib_is_refused(shop: Workshop) -> None:
    sizes = [10, 70_000, 10, 16_777_000, 17_000_000]
    rows = [f"1, 'e', '2024-01-0{n + 1}', repeat('x', {size})" for n, size in enumerate(sizes)]
    shop.model(PEOPLE, events=happened(*rows, columns="profile, name, moment, word"), rejects_max=0.2).load()
    assert [len(each["params"]["word"]) for each in shop.events()["1"]] == sizes[3::-1]
    assert shop.manifest().events_rejected == {"record_too_large": 1}
    with shop.reader() as opened:
        assert len(history.read_directory("1", bytes(opened.directory("1") or b""))) == 4


def test_more_events_than_the_memory_limit_has_room_for_load_in_bounded_memory(tmp_path: Path) -> None:
    for name, count in (("small", 1_000), ("large", 750_000)):
        (tmp_path / name).mkdir()
        sql = f"""
            SELECT 1 + i % 2 AS profile, 'e' AS name, TIMESTAMP '2024-01-01' + to_seconds(i * 7919 % {count}) AS moment,
                   repeat(md5(i::VARCHAR), 5) AS word
            FROM range({count}) AS made(i)
        """
        Workshop(tmp_path / name).model(PEOPLE, events=table(sql), memory_limit="64MB", threads=1)
    command = [sys.executable, "-c", BOUNDED, str(tmp_path / "small"), str(tmp_path / "large")]
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(command, env=environment() | {"PYTHONPATH": paths}, capture_output=True, check=True)
    before, after = map(int, done.stdout.split())
    assert Workshop(tmp_path / "large").manifest().file_bytes > 3 * 64_000_000
    assert after - before < 170_000_000  # the limit is DuckDB's; a few segments that are being written come on top


# --- refused rows --------------------------------------------------------------------------------------------------

GOOD = "1, 'e', '2024-01-01', 'good'"
REFUSED = [
    ("null_profile", "NULL, 'e', '2024-01-01', 'x'", True),
    ("null_name", "1, NULL, '2024-01-01', 'x'", True),
    ("empty_name", "1, '', '2024-01-01', 'x'", True),
    ("null_time", "1, 'e', NULL, 'x'", True),
    ("time_out_of_range", "1, 'e', 'infinity', 'x'", True),
    ("time_out_of_range", "1, 'e', '-infinity', 'x'", True),
    ("time_out_of_range", "1, 'e', '10000-01-01', 'x'", True),
    ("time_out_of_range", "1, 'e', '0001-01-01 (BC)', 'x'", True),
    ("unknown_profile", "9, 'e', '2024-01-01', 'x'", False),
    ("refused_profile", "4, 'e', '2024-01-01', 'x'", False),
]
# 4 has an identifier that 1 has too; 2 stands twice, but one of the rows is kept.
CONTESTED = values("1, 'a@x'", "4, 'a@x'", "2, 'b@x'", "2, 'c@x'", columns="id, email")


@pytest.mark.parametrize(("reason", "row", "is_fault"), REFUSED)
def test_an_event_that_cannot_be_served_is_refused_by_reason(
    shop: Workshop, reason: str, row: str, is_fault: bool
) -> None:
    made = happened(GOOD, row, "2, 'e', '2024-01-01', 'good too'")
    shop.model(CONTESTED, identifiers=["email"], events=made, rejects_max=0.5).load()
    assert {primary: [each["id"] for each in found] for primary, found in shop.events().items()} == {
        "1": ["good"],
        "2": ["good too"],
    }
    assert shop.manifest().events_rejected == {reason: 1}
    assert shop.manifest().refused == 2 + is_fault
    profile = row.split(",", maxsplit=1)[0]
    listed = {"id": None if profile == "NULL" else profile, "event": "x", "reason": reason}
    assert [each for each in shop.rejects() if "event" in each] == [listed]
    assert [each["reason"] for each in shop.rejects() if "event" not in each] == [
        "duplicate_id",
        "duplicate_identifier",
    ]


def test_the_first_hundred_of_each_reason_are_listed(shop: Workshop) -> None:
    sql = """
        SELECT CASE WHEN i < 150 THEN 7 WHEN i < 270 THEN NULL ELSE 1 END AS profile, 'e' AS name,
               DATE '2024-01-01' AS moment
        FROM range(400) AS made(i)
    """
    shop.model(PEOPLE, events=table(sql), rejects_max=0.5).load()
    assert shop.manifest().events_rejected == {"null_profile": 120, "unknown_profile": 150}
    expected = [{"id": None, "event": None, "reason": "null_profile"}] * 100
    assert shop.rejects() == expected + [{"id": "7", "event": None, "reason": "unknown_profile"}] * 100


def test_invalid_json_refuses_its_event(shop: Workshop) -> None:
    deep = "(repeat('[', 600) || repeat(']', 600))::JSON"
    sql = f"SELECT 1 AS profile, 'e' || i AS name, DATE '2024-01-01' AS moment, IF(i = 3, {deep}, '1'::JSON) AS notes "
    shop.model(PEOPLE, events=table(f"{sql} FROM range(200) AS made(i)")).load()
    assert shop.manifest().events_rejected == {"invalid_json": 1}
    assert len(shop.events()["1"]) == 199


@pytest.mark.parametrize(("refused", "published"), [(1, True), (2, False)])
def test_more_refused_events_than_rejects_max_fail_the_refresh(shop: Workshop, refused: int, published: bool) -> None:
    sql = f"""
        SELECT 1 AS profile, 'e' AS name, CASE WHEN i >= {refused} THEN DATE '2024-01-01' END AS moment
        FROM range(100) AS made(i)
    """
    shop.model(PEOPLE, events=table(sql), rejects_max=0.01)
    if published:
        assert shop.load() == "published"
        return
    with pytest.raises(RefreshRefused, match=r"^2 of 100 events were refused .null_time: 2., more than") as raised:
        shop.load()
    assert raised.value.outcome == "too_many_rejects"
    assert (shop.home / "rejects.ndjson").read_text().count("null_time") == 2
    assert (shop.current(), shop.leftovers()) == (None, [])


def test_events_of_nobody_are_no_fault_however_many_they_are(shop: Workshop) -> None:
    sql = "SELECT i AS profile, 'e' AS name, DATE '2024-01-01' AS moment FROM range(1, 100) AS made(i)"
    assert shop.model(PEOPLE, events=table(sql), rejects_max=0).load() == "published"
    assert shop.manifest().events == 3


# --- what is published when ----------------------------------------------------------------------------------------


def clicks(count: int, **columns: str) -> dict[str, str]:
    """A model of so many events, without ids, some of one time."""
    made = {"profile": "1 + i % 3", "name": "'n' || i % 5", "moment": "DATE '2024-01-01' + (i // 4)::INTEGER", "v": "i"}
    listed = ", ".join(f"{sql} AS {name}" for name, sql in (made | columns).items())
    return table(f"SELECT {listed} FROM range({count}) AS made(i)")


@pytest.mark.parametrize("with_id", [False, True])
def test_a_result_that_says_the_same_is_not_published_again(shop: Workshop, with_id: bool) -> None:
    made = clicks(5000) | ({"id": "v"} if with_id else {})
    assert shop.model(PEOPLE, events=made).load() == "published"
    old = shop.current()
    assert shop.load() == "unchanged"
    shuffled = made | ({"sql": f"{made['sql']} ORDER BY hash(i)"} if with_id else {})
    assert shop.model(PEOPLE, events=shuffled, threads=1).load() == "unchanged"
    assert shop.current() == old


@pytest.mark.parametrize(
    "events",
    [
        clicks(501),
        clicks(499),
        clicks(500, v="i + (i = 77)::INTEGER"),
        clicks(500, name="'n' || (i + (i = 77)::INTEGER) % 5"),
        clicks(500, moment="DATE '2024-01-01' + (i // 4)::INTEGER + INTERVAL (i = 77) MICROSECOND"),
        clicks(500, profile="1 + (i + (i = 77)::INTEGER) % 3"),
        clicks(500, w="NULL"),
        clicks(500) | {"id": "v"},
        None,
    ],
)
def test_a_result_whose_events_differ_is_published(shop: Workshop, events: dict[str, str] | None) -> None:
    shop.model(PEOPLE, events=clicks(500)).load()
    old = shop.bodies()
    keys: dict[str, Any] = {} if events is None else {"events": events}
    assert shop.model(PEOPLE, **keys).load() == "published"
    assert shop.bodies().keys() == old.keys()
    assert (shop.manifest().events_schema is None) == (events is None)


def test_a_loss_of_events_over_shrink_max_is_published_only_by_force(shop: Workshop) -> None:
    shop.model(PEOPLE, events=clicks(100)).load()
    old = shop.current()
    with pytest.raises(RefreshRefused, match=r"49 events where 100 are served") as raised:
        shop.model(PEOPLE, events=clicks(49)).load()
    assert (raised.value.outcome, shop.current()) == ("shrunk", old)
    assert shop.load(force=True) == "published"
    assert shop.model(PEOPLE, events=clicks(25)).load() == "published"
    with pytest.raises(RefreshRefused, match=r"0 events where 25 are served"):
        shop.model(PEOPLE, events=clicks(0)).load()


def test_a_rollback_brings_the_events_back(shop: Workshop) -> None:
    shop.model(PEOPLE, events=clicks(30)).load()
    before = shop.events()
    shop.model(PEOPLE, events=clicks(20)).load()
    assert shop.events() != before
    roll_back(shop.home)
    assert shop.events() == before


def test_a_snapshot_from_before_there_were_events_is_refused_by_name(shop: Workshop) -> None:
    shop.model(PEOPLE).load()
    file = shop.current_folder() / snapshot.MANIFEST
    file.write_text(file.read_text().replace('"format": 3', '"format": 1'))
    with pytest.raises(FormatUnsupported, match=r"has format 1; this build reads 3"):
        shop.manifest()
    assert shop.load() == "published"


# --- what is wrong with a model ------------------------------------------------------------------------------------

ROW = "SELECT 1 AS profile, 'e' AS name, DATE '2024-01-01' AS moment"
PROBLEMS = [
    (
        table("SELECT 1 AS profil"),
        [
            "column profile (events.profile) is not in the events' result: did you mean profil?",
            "column name (events.name) is not in the events' result: it yields profil",
            "column moment (events.time) is not in the events' result: it yields profil",
        ],
    ),
    (
        table(ROW, id="event"),
        ["column event (events.id) is not in the events' result: it yields profile, name, moment"],
    ),
    (table(f"{ROW}, 2 AS a, 3 AS A"), ["column a stands 2 times in the events' result: give each a name of its own"]),
    (
        table(ROW.replace("1 AS", "1.5 AS")),
        ["column profile (events.profile): expected text, an integer or a UUID, not "],
    ),
    (table(f"{ROW}, [1] AS e", id="e"), ["column e (events.id): expected text, an integer or a UUID, not INTEGER[]"]),
    (table(ROW.replace("'e'", "7")), ["column name (events.name): expected text, not INTEGER"]),
    (table(ROW.replace("DATE", "")), ["column moment (events.time): expected a timestamp or a date, not VARCHAR"]),
    (table(f"{ROW}, 'POINT(1 2)'::GEOMETRY AS place"), ["column place: type GEOMETRY cannot be served: cast it"]),
    (
        table(f"{ROW}, {', '.join(f'1 AS c{i}' for i in range(4094))}"),
        ["the events have 4094 parameters; they may have"],
    ),
    (table("SELEC 1"), ["the events' model's SQL: Parser Error"]),
    (table(f"{ROW}; {ROW}"), ["the events' model's SQL must be one SELECT statement"]),
]


@pytest.mark.parametrize(("events", "says"), PROBLEMS)
def test_each_problem_of_a_model_of_events_is_a_line(shop: Workshop, events: dict[str, str], says: list[str]) -> None:
    shop.model(PEOPLE, events=events)
    with pytest.raises(ModelError) as raised:
        shop.load()
    assert len(raised.value.problems) == len(says), raised.value.problems
    for line, expected in zip(raised.value.problems, says, strict=True):
        assert line.startswith(expected)
    assert (shop.current(), shop.leftovers()) == (None, [])


def test_the_problems_of_both_models_are_told_together(shop: Workshop) -> None:
    shop.model("SELECT 1 AS idd", events=table("SELECT 1 AS profile, 'e' AS name, 7 AS moment"))
    with pytest.raises(ModelError) as raised:
        describe(shop.settings(), "shop")
    assert [line.split(" (")[0] for line in raised.value.problems] == ["column id", "column moment"]


def test_an_error_half_way_says_which_model_and_shows_no_value(shop: Workshop) -> None:
    cast = f"IF(i = 900, '{SECRET}', '1')::INTEGER"
    sql = f"SELECT 1 AS profile, 'e' AS name, DATE '2024-01-01' AS moment, {cast} AS n FROM range(1000) AS made(i)"
    shop.model(PEOPLE, events=table(sql))
    with pytest.raises(SourceError, match=r"^the events' model could not be run: Conversion Error: ") as raised:
        shop.load()
    assert SECRET not in str(raised.value)


# --- what is told --------------------------------------------------------------------------------------------------


def test_progress_tells_each_stage(shop: Workshop) -> None:
    told: list[tuple[str, float, float]] = []
    shop.model(PEOPLE, events=clicks(10_000)).load(progress=lambda *each: told.append(each))
    stages = list(dict.fromkeys(stage for stage, *_ in told))
    assert stages == ["model", "records", "events: model", "events", "publish"]
    done = [done for stage, done, total in told if stage == "events" and total == 10_000]
    assert len(done) > 2
    assert done == sorted(set(done))
    assert done[-1] == 10_000


def test_commands_count_the_events(shop: Workshop) -> None:
    shop.model(PEOPLE, events=clicks(1234, profile="1 + i % 4"))
    loaded = shop.run("load")
    assert loaded.out.startswith("shop: published, 3 profiles and 926 events in ")
    [found] = json.loads(shop.run("status", "--json").out)
    assert (found["events"], found["events_rejected"]) == (926, {"unknown_profile": 308})
    assert found["last_refresh"]["events"] == 926
    assert "926" in shop.run("status").out
    assert "926" in shop.run("snapshots", "list", "--workspace", "shop").out
    assert (
        shop.run("snapshots", "verify", "--workspace", "shop").out
        == f"{shop.current()}: whole, 3 profiles, 926 events\n"
    )
    assert shop.run("config", "check").out == "shop: good, 1 fields, found by id, events of 1 parameters\n"


# --- damage --------------------------------------------------------------------------------------------------------


def test_verify_notices_every_flipped_byte_of_a_history_where_the_hash_does_not(shop: Workshop) -> None:
    shop.model(PEOPLE, events=clicks(12)).load()
    folder, file = shop.current_folder(), shop.current_folder() / snapshot.PROFILES
    content = file.read_bytes()
    with shop.reader() as opened:
        parts = [bytes(opened.directory("2") or b""), bytes(opened.event_segments[0])]
        assert len(events(opened, "2")) == 4
    for part in parts:
        assert part in content
        for at in range(len(part)):
            # Everywhere: LMDB leaves old copies of pages behind.
            file.write_bytes(content.replace(part, part[:at] + bytes([part[at] ^ 0x40]) + part[at + 1 :]))
            damaged = Reader(folder)
            with pytest.raises(StoreError):
                damaged.check_records()
            damaged.close()
    file.write_bytes(content)
    assert reader.verify(folder).events == 12


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"events": 11}, "has 12 events, not 11"),
        ({"histories": 2}, "has 3 profiles with events, not 2"),
        ({"event_segments": 3}, "lacks segment of events 2"),
        ({"event_segments": 0}, "damaged"),
        ({"events_schema": {"fields": 7}}, "cannot be opened"),
    ],
)
def test_a_manifest_that_counts_otherwise_is_noticed(shop: Workshop, change: dict[str, object], says: str) -> None:
    shop.model(PEOPLE, events=clicks(12)).load()
    file = shop.current_folder() / snapshot.MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(StoreError, match=says):
        reader.verify(shop.current_folder())
