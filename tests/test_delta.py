"""Delta refreshes: what the warehouse says of a profile is served, however its rows came, whatever ended when."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import hypothesis
import msgspec
import pytest
from batches import BATCHED, UPDATE, call
from conftest import MakeService
from hypothesis import given
from hypothesis import strategies as st
from living import Living
from postgres import Postgres
from service import until
from workshop import NAME, Workshop, environment

from edgeprofile import outcomes
from edgeprofile.errors import ModelError
from edgeprofile.loader import delta
from edgeprofile.loader.apply import LiveWriter
from edgeprofile.loader.changes import Erasures, Event, Update, Updates
from edgeprofile.loader.refresh import refresh
from edgeprofile.outcomes import Outcome
from edgeprofile.snapshot import current

TABLE = """
CREATE TABLE profiles (id VARCHAR, email VARCHAR, score INTEGER, gone BOOLEAN, seen TIMESTAMP);
INSERT INTO profiles VALUES
    ('ann', 'ann@example.com', 1, false, '2025-06-10 12:00:00'),
    ('bob', 'bob@example.com', 2, NULL, '2025-06-10 12:00:00'),
    ('cid', 'cid@example.com', 3, false, '2025-06-10 11:00:00');
"""
KEYS: dict[str, Any] = {"identifiers": ["email"], "updated_at": "seen", "deleted": "gone", "shrink_max": 1.0}
MODEL = "SELECT * FROM profiles -- all of them"


class Shop(Workshop):
    """A workshop with a warehouse of its own."""

    def sql(self, *statements: str) -> None:
        with duckdb.connect(str(self.folder / "warehouse.duckdb")) as connection:
            for statement in statements:
                connection.execute(statement)

    def put(self, id: str, score: int, at: str, *, email: str | None = None, gone: bool = False) -> None:
        """What a job in the warehouse does with a row."""
        self.sql(
            f"DELETE FROM profiles WHERE id = '{id}'",
            f"INSERT INTO profiles VALUES ('{id}', '{email or id + '@example.com'}', {score}, {gone}, '{at}')",
        )

    def settled(self, **keys: Any) -> Shop:
        self.model(MODEL, url="duckdb:///warehouse.duckdb", **(KEYS | keys))
        return self

    def refresh(self) -> Outcome:
        """As a watcher's child does."""
        return refresh(self.settings(), NAME, force=False, delta=True, progress=lambda *_: None)

    def delta(self) -> tuple[int | None, int | None]:
        """A refresh that has to be a delta; how many profiles it changed, and how many it took away."""
        done = self.refresh()
        assert done.outcome == "delta"
        return done.changed, done.deleted

    def delta_elsewhere(self) -> tuple[int | None, int | None]:
        """The same, in a process of its own."""
        command = [sys.executable, "-P", "-m", "edgeprofile.loader.child", "edgeprofile.toml", NAME, str(os.getpid())]
        ran = subprocess.run(command, cwd=self.folder, env=environment(), capture_output=True, check=True)
        done = msgspec.json.decode(ran.stdout, type=Outcome)
        assert done.outcome == "delta"
        return done.changed, done.deleted

    @contextmanager
    def living(self) -> Iterator[Living]:
        found = Living(self.current_folder())
        try:
            found.check()
            yield found
        finally:
            found.close()

    def scores(self) -> dict[str, int | None]:
        """The score of every profile that is served."""
        with self.living() as living:
            return {primary: (living.profile(primary) or {}).get("score") for primary in living.ids()}

    def say(self, id: str, **attributes: bytes) -> None:
        with LiveWriter(self.home) as writer:
            assert writer.update(Updates([Update(id, dict(attributes))])) == []

    def served(self) -> dict[str, dict[str, Any] | None]:
        """All that is served."""
        with self.living() as living:
            return {primary: living.profile(primary) for primary in living.ids()}

    def assert_as_after_a_full_refresh(self) -> None:
        """What is live is what the next snapshot holds."""
        before = self.served()
        assert self.load() == "published"
        assert self.served() == before


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    made = Shop(tmp_path)
    made.sql(TABLE)
    assert made.settled().load() == "published"
    return made


# --- what changes --------------------------------------------------------------------------------------------------


def test_rows_that_are_new_changed_deleted_and_restored_are_served_without_a_new_snapshot(shop: Shop) -> None:
    name = shop.current()
    shop.put("ann", 10, "2025-06-10 12:01:00")
    shop.put("dan", 4, "2025-06-10 12:01:00")
    shop.put("bob", 2, "2025-06-10 12:02:00", gone=True)
    assert shop.delta() == (2, 1)
    assert shop.scores() == {"ann": 10, "cid": 3, "dan": 4}
    shop.put("bob", 20, "2025-06-10 12:03:00")
    shop.put("dan", 4, "2025-06-10 12:03:00", gone=True)
    assert shop.delta() == (1, 1)
    assert shop.scores() == {"ann": 10, "bob": 20, "cid": 3}
    assert shop.current() == name
    shop.assert_as_after_a_full_refresh()


def test_no_answer_has_the_column_that_marks_deletions(shop: Shop) -> None:
    shop.put("ann", 10, "2025-06-10 12:01:00")
    assert shop.delta() == (1, 0)
    assert shop.served()["ann"] == {
        "id": "ann",
        "email": "ann@example.com",
        "score": 10,
        "_audiences": {},
        "_updated_at": "2025-06-10T12:01:00Z",
    }


def test_a_full_refresh_leaves_deleted_rows_out_without_a_fault(shop: Shop) -> None:
    shop.put("ann", 1, "2025-06-10 12:01:00", gone=True)
    shop.sql("INSERT INTO profiles VALUES ('bob', 'b@example.com', 9, true, '2025-06-10 11:00:00')")
    assert shop.settled(rejects_max=0.25).load() == "published"
    assert shop.scores() == {"bob": 2, "cid": 3}
    assert shop.manifest().rejected == {"deleted": 1, "duplicate_id": 1}
    assert [each["reason"] for each in shop.rejects()] == ["duplicate_id"]


def test_of_rows_with_one_id_the_newest_says_whether_it_is_deleted(shop: Shop) -> None:
    shop.sql("INSERT INTO profiles VALUES ('ann', 'ann@example.com', 9, true, '2025-06-10 12:00:01')")
    assert shop.delta() == (0, 1)
    assert "ann" not in shop.scores()
    assert shop.settled(rejects_max=1.0).load() == "published"
    assert shop.scores() == {"bob": 2, "cid": 3}


def test_a_column_of_deletions_is_boolean(shop: Shop) -> None:
    with pytest.raises(ModelError, match=r"column score \(profiles.deleted\): expected BOOLEAN, not INTEGER"):
        shop.settled(deleted="score").load()
    with pytest.raises(ModelError, match=r"column none \(profiles.deleted\) is not in the model's result"):
        shop.settled(deleted="none").load()


def test_identifiers_move_with_their_rows(shop: Shop) -> None:
    shop.put("ann", 1, "2025-06-10 12:01:00", email="new@example.com")
    shop.put("bob", 2, "2025-06-10 12:01:00", email="ann@example.com")
    shop.put("cid", 3, "2025-06-10 12:01:00", gone=True)
    assert shop.delta() == (2, 1)
    with shop.living() as living:
        assert living.found("email", "new@example.com") == ["ann"]
        assert living.found("email", "ann@example.com") == ["bob"]
        assert living.found("email", "bob@example.com") == living.found("email", "cid@example.com") == []


def test_what_was_seen_before_is_not_written_again(shop: Shop) -> None:
    live = shop.current_folder() / "live.mdb"
    before = live.read_bytes()
    assert shop.delta() == (0, 0)
    shop.put("ann", 10, "2025-06-10 12:00:30")
    assert (shop.delta(), shop.delta()) == ((1, 0), (0, 0))
    assert live.read_bytes() != before


# --- which rows ----------------------------------------------------------------------------------------------------


def test_rows_that_come_late_within_the_overlap_are_not_lost_and_earlier_ones_wait_for_a_full_refresh(
    shop: Shop,
) -> None:
    shop.put("ann", 10, "2025-06-10 12:10:00")
    assert shop.delta() == (1, 0)
    shop.put("bob", 20, "2025-06-10 12:09:00")
    shop.put("cid", 30, "2025-06-10 12:08:59.999999")
    assert shop.delta() == (1, 0)
    assert shop.scores() == {"ann": 10, "bob": 20, "cid": 3}
    assert shop.load() == "published"
    assert shop.scores() == {"ann": 10, "bob": 20, "cid": 30}


@pytest.mark.parametrize("year", [1, 1969, 2600])
def test_only_the_warehouses_clock_counts(shop: Shop, year: int) -> None:
    when = f"{year:04}-01-01 00:00"
    shop.sql(f"UPDATE profiles SET seen = '{when}:00'")
    shop.load()
    shop.put("ann", 10, f"{when}:01")
    done = shop.refresh()
    # A time so far ahead of ours is a fault: nothing may be hidden by it.
    assert done.outcome == ("published" if year == 2600 else "delta")
    assert shop.scores()["ann"] == 10


def test_a_time_far_ahead_hides_nothing_that_comes_after_it(shop: Shop) -> None:
    shop.put("ann", 10, "9999-12-31")
    shop.put("bob", 20, "infinity")
    assert shop.delta() == (2, 0)
    shop.put("cid", 30, "2025-06-10 12:00:01")
    assert shop.delta() == (1, 0)
    assert shop.scores() == {"ann": 10, "bob": 20, "cid": 30}


@pytest.mark.parametrize("kind", ["DATE", "TIMESTAMPTZ", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS"])
def test_a_moment_may_be_of_any_type(shop: Shop, kind: str) -> None:
    (shop.folder / "model.sql").write_text(f"SELECT * REPLACE (seen::{kind} AS seen) FROM profiles")
    shop.put("bob", 20, "2025-06-10 12:00:00")
    assert shop.load() == "published"
    shop.put("ann", 10, "2025-06-10 12:01:00")
    assert shop.delta() == (1, 0)
    assert shop.scores()["ann"] == 10


def test_the_watermark_outlives_processes_and_snapshots_and_is_behind_no_row_that_was_not_brought(shop: Shop) -> None:
    shop.put("ann", 10, "2025-06-10 12:10:00")
    assert [shop.delta_elsewhere() for _ in range(2)] == [(1, 0), (0, 0)]
    shop.put("bob", 20, "2025-06-10 12:08:00")
    assert shop.delta() == (0, 0)
    assert shop.load() == "published"
    assert shop.manifest().watermark_us == 1_749_557_400_000_000


def test_a_watcher_brings_deltas_to_callers_while_it_takes_updates(make_service: MakeService) -> None:
    service = make_service({"shop": BATCHED})
    service.run_sql(
        "CREATE TABLE profiles AS SELECT 'ann' AS profile_id, 'ann@example.com' AS email, 'd1' AS device_id, "
        "1.5 AS lifetime_value, true AS high_spenders, false AS churn_risk, TIMESTAMP '2025-06-10' AS updated_at"
    )
    service.load()
    service.watch()
    service.start()
    key = service.key(scopes=("read", "write"))
    name = current(service.home())
    for value in (2, 3):
        said = [{"identifiers": {"custom_id": "ann"}, "attributes": {"mood": value}}]
        assert service.ask(call(UPDATE, key, said)).status == 202
        service.run_sql(f"UPDATE profiles SET lifetime_value = {value}, updated_at = '2025-06-1{value}'")
        service.watcher().send_signal(signal.SIGHUP)
        expected = {"lifetime_value": value, "mood": value}
        until(lambda: expected.items() <= service.get("/v1/profiles/id/ann", key).json().items(), "the delta")  # noqa: B023
    assert current(service.home()) == name


# --- when it is full instead ---------------------------------------------------------------------------------------


def test_every_nth_refresh_is_full_whoever_counts(shop: Shop) -> None:
    shop.settled(full_refresh=3).load()
    ended = []
    for number in range(6):
        shop.put("ann", 100 + number, f"2025-06-10 12:0{number}:30")
        ended.append(shop.refresh().outcome)
    assert ended == ["delta", "delta", "published", "delta", "delta", "published"]
    assert shop.settled(full_refresh=1).refresh().outcome == "unchanged"


def change_nothing(shop: Shop) -> None:
    pass


def remove_time(shop: Shop) -> None:
    shop.sql("ALTER TABLE profiles DROP gone")
    shop.model(MODEL, url="duckdb:///warehouse.duckdb", identifiers=["email"])


def change_model(shop: Shop) -> None:
    shop.settled(identifiers=[{"column": "email", "normalize": "lower"}])


def add_column(shop: Shop) -> None:
    shop.sql("ALTER TABLE profiles ADD COLUMN name VARCHAR")


def damage_layer(shop: Shop) -> None:
    (shop.current_folder() / "live.mdb").write_bytes(b"x" * 8192)


def cut_snapshot(shop: Shop) -> None:
    os.truncate(shop.current_folder() / "profiles.mdb", 8192)


def damage_record(shop: Shop) -> None:
    file = shop.current_folder() / "profiles.mdb"
    file.write_bytes(file.read_bytes().replace(b'"ann@example.com"', b'"anx@example.com"'))


def test_a_damaged_live_layer_brings_a_full_refresh_where_nothing_changed_too(shop: Shop) -> None:
    damage_layer(shop)
    assert shop.refresh().outcome == "published"
    damage_layer(shop)
    assert shop.load() == "published"
    assert shop.delta() == (0, 0)


@pytest.mark.parametrize(
    ("change", "ended"),
    [
        (change_nothing, "delta"),
        (remove_time, "published"),
        (change_model, "published"),
        (add_column, "published"),
        (damage_layer, "published"),
        (cut_snapshot, "published"),
        (damage_record, "published"),
    ],
)
def test_what_a_delta_cannot_bring_is_brought_by_a_full_refresh(
    shop: Shop, change: Callable[[Shop], None], ended: str
) -> None:
    shop.put("ann", 10, "2025-06-10 12:01:00")
    change(shop)
    assert shop.refresh().outcome == ended
    assert shop.scores() == {"ann": 10, "bob": 2, "cid": 3}


def test_more_rows_than_a_delta_may_have_are_brought_by_a_full_refresh(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, few in (("ROWS_MAX", 1), ("LIVE_ROWS_MAX", 1), ("BYTES_MAX", 100)):
        with monkeypatch.context() as patch:
            patch.setattr(delta, name, few)
            shop.sql("UPDATE profiles SET score = score + 1, seen = '2025-06-10 12:01:00'")
            assert shop.refresh().outcome == "published"
    assert shop.scores() == {"ann": 4, "bob": 5, "cid": 6}


def test_more_deletions_than_shrink_max_allows_are_left_to_the_guard_of_a_full_refresh(shop: Shop) -> None:
    shop.settled(shrink_max=0.5).load()
    shop.sql("UPDATE profiles SET gone = id <> 'ann', seen = '2025-06-10 12:01:00'")
    with pytest.raises(Exception, match="more of a loss than shrink_max allows"):
        shop.refresh()
    assert outcomes.read(shop.home).last[-1].outcome == "shrunk"
    assert shop.scores() == {"ann": 1, "bob": 2, "cid": 3}


def test_refused_rows_are_counted_and_so_many_that_they_are_a_fault_are_left_to_a_full_refresh(shop: Shop) -> None:
    at = "TIMESTAMP '2025-06-10 12:01:00'"
    shop.put("ann", 10, "2025-06-10 12:01:00")
    shop.sql(f"INSERT INTO profiles SELECT NULL, NULL, 0, false, {at} FROM range(100)")
    done = shop.refresh()
    assert (done.outcome, done.changed, done.rejected) == ("delta", 1, 100)
    shop.sql(f"INSERT INTO profiles VALUES ('', NULL, 0, false, {at})")
    with pytest.raises(Exception, match="101 of 104 rows were refused"):
        shop.refresh()


def test_a_full_refresh_that_says_what_the_snapshot_says_is_published_over_a_delta(shop: Shop) -> None:
    shop.put("ann", 10, "2025-06-10 12:01:00")
    assert shop.delta() == (1, 0)
    shop.put("ann", 1, "2025-06-10 12:00:00")
    assert shop.load() == "published"
    assert shop.scores()["ann"] == 1
    assert shop.load() == "unchanged"


# --- with updates --------------------------------------------------------------------------------------------------


def test_what_updates_said_lies_over_the_new_row(shop: Shop) -> None:
    shop.say("ann", score=b"100")
    shop.put("ann", 10, "2025-06-10 12:01:00", email="new@example.com")
    assert shop.delta() == (1, 0)
    shop.say("ann", mood=b'"fine"')
    served = shop.served()["ann"]
    assert served is not None
    assert (served["score"], served["email"], served["mood"]) == (100, "new@example.com", "fine")
    shop.say("ann", score=b"null")
    assert shop.scores()["ann"] == 10
    shop.assert_as_after_a_full_refresh()


def test_a_writer_that_was_open_meanwhile_sees_what_a_delta_brought(shop: Shop) -> None:
    with LiveWriter(shop.home) as writer:
        writer.update(Updates([Update("ann", {"mood": b"1"})]))
        shop.put("ann", 10, "2025-06-10 12:01:00")
        assert shop.delta_elsewhere() == (1, 0)
        writer.update(Updates([Update("ann", {"mood": b"2"}), Update("eve", {"mood": b"3"})]))
        shop.put("ann", 11, "2025-06-10 12:02:00")
        assert shop.delta_elsewhere() == (1, 0)
        writer.update(Updates([Update("bob", {"other": b"4"})]))
    served = shop.served()
    assert served["ann"] is not None
    assert served["eve"] is not None
    assert served["bob"] is not None
    assert (served["ann"]["score"], served["ann"]["mood"]) == (11, 2)
    assert (served["eve"]["mood"], served["bob"]["other"]) == (3, 4)
    shop.assert_as_after_a_full_refresh()


def test_a_deletion_takes_what_updates_said_before_it_and_not_what_they_say_after(shop: Shop) -> None:
    event = Event("e1", "bought", 1_750_000_000_000_000, {})
    with LiveWriter(shop.home) as writer:
        writer.update(Updates([Update("ann", {"mood": b"1"}, events=[event]), Update("bob", {"mood": b"1"})]))
    shop.sql("UPDATE profiles SET gone = true, seen = '2025-06-10 12:01:00' WHERE id IN ('ann', 'bob')")
    assert shop.delta() == (0, 2)
    assert shop.scores() == {"cid": 3}
    shop.say("ann", plan=b'"new"')
    shop.put("bob", 20, "2025-06-10 12:02:00")
    assert shop.delta() == (1, 0)
    with shop.living() as living:
        ann, bob = living.profile("ann"), living.profile("bob")
        assert ann is not None
        assert bob is not None
        assert (ann["plan"], "mood" in ann, "mood" in bob, bob["score"]) == ("new", False, False, 20)
        assert living.events_of("ann") == []
    shop.assert_as_after_a_full_refresh()


def test_a_row_that_a_delta_brought_and_a_full_refresh_lacks_is_evicted_with_what_updates_said(shop: Shop) -> None:
    shop.put("dan", 4, "2025-06-10 12:01:00")
    assert shop.delta() == (1, 0)
    shop.say("dan", mood=b"1")
    shop.sql("DELETE FROM profiles WHERE id = 'dan'")
    assert shop.load() == "published"
    assert set(shop.scores()) == {"ann", "bob", "cid"}


def test_what_was_erased_stays_so_whatever_a_delta_brings(shop: Shop) -> None:
    with LiveWriter(shop.home) as writer:
        writer.erase(Erasures(["ann"]))
    shop.put("ann", 10, "2025-06-10 12:01:00")
    assert shop.delta() == (0, 0)
    assert shop.scores() == {"bob": 2, "cid": 3}


def test_an_erasure_is_seen_to_by_a_full_refresh_in_time(shop: Shop) -> None:
    with LiveWriter(shop.home) as writer:
        writer.erase(Erasures(["ann"]))
    assert shop.refresh().outcome == "delta"
    shop.settled(erase_within="1s")
    until(lambda: shop.refresh().outcome == "published", "a full refresh")
    assert shop.refresh().outcome == "delta"


def test_the_events_of_a_profile_that_is_back_are_back(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.sql(TABLE, "CREATE TABLE happened AS SELECT 'ann' AS who, 'page' AS what, TIMESTAMP '2025-01-01' AS seen")
    shop.settled(full_refresh=12)
    text = (tmp_path / "edgeprofile.toml").read_text()
    events = f'[workspaces.{NAME}.events]\nsql = "FROM happened"\nprofile = "who"\nname = "what"\ntime = "seen"\n'
    (tmp_path / "edgeprofile.toml").write_text(text + events)
    assert shop.load() == "published"
    shop.put("ann", 1, "2025-06-10 12:01:00", gone=True)
    assert shop.delta() == (0, 1)
    with shop.living() as living:
        assert living.events_of("ann") == []
    shop.put("ann", 1, "2025-06-10 12:02:00")
    assert shop.delta() == (1, 0)
    with shop.living() as living:
        assert [each["name"] for each in living.events_of("ann")] == ["page"]


# --- whatever ends it ----------------------------------------------------------------------------------------------

KILLED_AT = """
import os, signal, sys
from pathlib import Path
from edgeprofile import settings
from edgeprofile.loader.refresh import refresh
def at(step):
    if step == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)
refresh(settings.load(Path("edgeprofile.toml"), {}), "shop", force=False, delta=True, progress=lambda *_: None, at=at)
"""


@pytest.mark.parametrize(
    "step", ["overlay_written", "overlay_committed", "live_written", "live_committed", "announced"]
)
def test_whatever_moment_it_is_killed_at_the_next_one_ends_the_same(shop: Shop, step: str) -> None:
    shop.say("bob", mood=b"1")
    shop.put("ann", 10, "2025-06-10 12:10:00", email="new@example.com")
    shop.put("bob", 2, "2025-06-10 12:10:00", gone=True)
    shop.put("dan", 4, "2025-06-10 12:10:00")
    killed = subprocess.run([sys.executable, "-c", KILLED_AT, step], cwd=shop.folder, env=environment(), check=False)
    assert killed.returncode == -signal.SIGKILL
    shop.say("cid", mood=b"2")
    assert shop.refresh().outcome == "delta"
    assert shop.scores() == {"ann": 10, "cid": 3, "dan": 4}
    shop.assert_as_after_a_full_refresh()


# --- whatever comes after what ------------------------------------------------------------------------------------

IDS = st.sampled_from(["a", "b", "c"])
STEPS = st.one_of(
    st.tuples(st.just("put"), IDS, st.integers(0, 3), st.sampled_from(["x", "y"]), st.booleans()),
    st.tuples(st.just("remove"), IDS),
    st.tuples(st.just("say"), IDS, st.sampled_from(["mood", "score"]), st.integers(10, 13)),
    st.tuples(st.just("delta")),
    st.tuples(st.just("full")),
)
Row = tuple[int, str, bool]


class Expected:
    """What is in the warehouse, and what is served, as plain dictionaries."""

    def __init__(self) -> None:
        self.warehouse: dict[str, Row] = {}
        self.written: set[str] = set()
        self.rows: dict[str, Row] = {}
        self.said: dict[str, dict[str, int]] = {}

    def refresh(self, *, is_full: bool) -> None:
        alive = {id for id, (_, _, gone) in self.warehouse.items() if not gone}
        marked = self.warehouse.keys() & self.written - alive
        for id in self.rows.keys() & (self.rows.keys() - alive if is_full else marked):
            del self.rows[id]
            self.said.pop(id, None)
        self.rows |= {id: self.warehouse[id] for id in (alive if is_full else alive & self.written)}
        self.written.clear()

    def served(self) -> dict[str, tuple[int | None, str | None, int | None]]:
        made = {}
        for id in self.rows.keys() | self.said.keys():
            score, email, _ = self.rows.get(id, (None, None, False))
            said = self.said.get(id, {})
            made[id] = (said.get("score", score), email, said.get("mood"))
        return made


@hypothesis.settings(max_examples=12)
@given(st.lists(STEPS, min_size=4, max_size=12))
def test_what_is_served_is_what_the_warehouse_and_updates_said(steps: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shop, expected = Shop(Path(folder)), Expected()
        shop.sql(
            "CREATE TABLE profiles (id VARCHAR, email VARCHAR, score INTEGER, gone BOOLEAN, seen TIMESTAMP)",
            "INSERT INTO profiles SELECT 'z' || n, NULL, 0, false, '2025-06-10' FROM range(4) AS made(n)",
        )
        shop.settled(full_refresh=1_024).load()
        for number, (step, *told) in enumerate([*steps, ("delta",), ("full",)]):
            match step, *told:
                case "put", id, score, email, gone:
                    shop.put(id, score, f"2025-06-10 00:00:{number:02}", email=f"{id}@{email}", gone=gone)
                    expected.warehouse[id] = score, f"{id}@{email}", gone
                    expected.written.add(id)
                case "remove", id:
                    shop.sql(f"DELETE FROM profiles WHERE id = '{id}'")
                    expected.warehouse.pop(id, None)
                case "say", id, name, value:
                    shop.say(id, **{name: b"%d" % value})
                    expected.said.setdefault(id, {})[name] = value
                case "delta", *_:
                    shop.delta()
                    expected.refresh(is_full=False)
                case "full", *_:
                    assert shop.load() in ("published", "unchanged")
                    expected.refresh(is_full=True)
            with shop.living() as living:
                found = {each: living.profile(each) or {} for each in living.ids() if not each.startswith("z")}
            served = {each: (got.get("score"), got.get("email"), got.get("mood")) for each, got in found.items()}
            assert served == expected.served()


# --- another warehouse ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["timestamptz", "timestamp", "date"])
def test_postgresql_is_asked_only_for_what_changed(postgres: Postgres, tmp_path: Path, kind: str) -> None:
    database = postgres.database(
        f'CREATE TABLE profiles (id text, score int, gone boolean, "At" {kind});'
        f"INSERT INTO profiles SELECT 'p' || n, n, false, '2025-06-10 12:00:00+00' FROM generate_series(1, 5) AS n;"
        f"INSERT INTO profiles VALUES ('old', 1, false, '2025-06-01');"
    )
    shop = Shop(tmp_path)
    shop.model(
        "SELECT *, 1 / (score - 6) AS share FROM profiles", url=postgres.url(database), updated_at="At", deleted="gone"
    )
    assert shop.load() == "published"
    postgres.ask(
        "UPDATE profiles SET score = 50, \"At\" = '2025-06-10 12:00:30+00' WHERE id = 'p1';"
        "UPDATE profiles SET gone = true, \"At\" = '2025-06-10 12:00:30+00' WHERE id = 'p2';"
        # What is older is not computed, let alone sent.
        "UPDATE profiles SET score = 6 WHERE id = 'old';",
        database,
    )
    assert shop.delta() == (1, 1)
    assert shop.scores() == {"old": 1, "p1": 50, "p3": 3, "p4": 4, "p5": 5}
