"""What is known of past refreshes: a file that stays small, counts that survive, and what is said to be how old."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from service import change_manifest
from workshop import Workshop, values

from edgeprofile import locks, outcomes, snapshot
from edgeprofile.errors import DiskFull, LoaderBusy, ModelError, RefreshRefused, SettingsError, SourceError
from edgeprofile.outcomes import KEPT, MESSAGE_CHARS_MAX, SUCCESSES, Attempt, Outcome, Outcomes

ENDED = st.builds(
    Outcome,
    outcome=st.sampled_from([*SUCCESSES, "rolled_back", "source_error", "crashed"]),
    started_at=st.floats(0, 2e9),
    finished_at=st.floats(0, 2e9),
    seconds=st.floats(0, 1e5),
    message=st.text(),
    evicted=st.none() | st.integers(0, 10**9),
)


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path).model("SELECT i AS id FROM range(10) AS made(i)")


@given(st.lists(ENDED, max_size=2 * KEPT + 5))
def test_the_last_are_kept_and_all_are_counted(ended: list[Outcome]) -> None:
    known = Outcomes()
    for each in ended:
        known = msgspec.json.decode(msgspec.json.encode(known.plus(each)), type=Outcomes)
    assert [each.started_at for each in known.last] == [each.started_at for each in ended[-KEPT:]]
    assert known.counts == Counter(each.outcome for each in ended)
    assert known.refreshes == sum(each.outcome != "rolled_back" for each in ended)
    assert known.seconds == pytest.approx(sum(each.seconds for each in ended))
    assert known.evicted == sum(each.evicted or 0 for each in ended)
    settled = [each for each in ended if each.outcome in (*SUCCESSES, "rolled_back")]
    assert known.rolled_back == (bool(settled) and settled[-1].outcome == "rolled_back")


def test_the_file_stays_small_whatever_went_wrong(shop: Workshop) -> None:
    shop.load()
    for _ in range(KEPT + 5):
        outcomes.note(shop.home, Attempt.begin().failed(SourceError("x" * 100_000)))
    assert (shop.home / outcomes.REFRESH).stat().st_size < KEPT * (MESSAGE_CHARS_MAX + 500)
    assert outcomes.read(shop.home).counts == {"published": 1, "source_error": KEPT + 5}


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"outcome":"published"', b'{"counts":{"published":"x"}}'])
def test_a_damaged_file_keeps_nothing_from_being_loaded(shop: Workshop, content: bytes) -> None:
    shop.load()
    (shop.home / outcomes.REFRESH).write_bytes(content)
    assert outcomes.read(shop.home) == Outcomes()
    assert shop.load() == "unchanged"
    assert outcomes.read(shop.home).counts == {"unchanged": 1}


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ModelError(["a", "b"]), "model_error"),
        (SourceError("a"), "source_error"),
        (RefreshRefused("a", outcome="shrunk"), "shrunk"),
        (DiskFull(), "disk_full"),
        (LoaderBusy("a"), "store_error"),
        (SettingsError("a"), "settings_error"),
        (KeyboardInterrupt(), "interrupted"),
        (RuntimeError("Query interrupted"), "interrupted"),
        (KeyError("jane@example.com"), "crashed"),
    ],
)
def test_every_error_has_a_word_and_only_foreseen_ones_are_quoted(error: BaseException, outcome: str) -> None:
    failed = Attempt.begin().failed(error)
    assert failed.outcome == outcome
    assert "jane" not in failed.message


def test_what_was_found_unchanged_is_as_fresh_as_if_it_were_published(shop: Workshop) -> None:
    shop.load()
    change_manifest(shop.current_folder(), started_at=1_000.0, finished_at=2_000.0)
    (shop.home / outcomes.REFRESH).unlink()
    assert outcomes.read(shop.home).seen_at(shop.manifest()) == 1_000
    before = time.time()
    assert shop.load() == "unchanged"
    assert before <= outcomes.read(shop.home).seen_at(shop.manifest()) <= time.time()
    (found,) = json.loads(shop.run("status", "--json").out)
    assert found["staleness"] < 600 < found["age"]


def test_staleness_is_at_most_a_cadence_and_the_longest_of_the_last_refreshes() -> None:
    known = Outcomes()
    assert known.staleness_max_s(300) == 300
    for outcome, seconds in (("published", 20.0), ("unchanged", 10.0), ("source_error", 500.0)):
        known = known.plus(Outcome(outcome=outcome, started_at=0, finished_at=0, seconds=seconds))
    assert known.staleness_max_s(300) == 320
    assert known.staleness_max_s(5) == 40


def test_what_a_watcher_lets_grow_stale_is_a_problem_but_not_what_nobody_watches(shop: Workshop) -> None:
    shop.load()
    change_manifest(shop.current_folder(), started_at=time.time() - 3_600)
    (shop.home / outcomes.REFRESH).unlink()
    assert shop.run("status").status == 0
    with locks.watching(shop.home):
        stale = shop.run("status")
    assert stale.status == 1
    assert "shop: what is served is 3,60" in stale.out
    assert " s old, where 300 s is the most" in stale.out


# --- evictions, guards and rollbacks -------------------------------------------------------------------------------


def ids(shop: Workshop, *wanted: str, **keys: Any) -> Workshop:
    return shop.model(values(*(f"'{each}'" for each in wanted), columns="id"), **keys)


def test_evictions_are_counted_in_the_manifest_the_outcomes_and_status(shop: Workshop) -> None:
    ids(shop, "a", "b", "c", "d").load()
    assert shop.manifest().evicted == 0
    ids(shop, "b", "d", "e", "f", "g").load()
    assert shop.manifest().evicted == 2
    ended = ids(shop, "e", "f", "g").run("load")
    assert ", 2 evicted (snapshot " in ended.out
    assert outcomes.read(shop.home).evicted == 4
    assert [each.evicted for each in outcomes.read(shop.home).last] == [0, 2, 2]
    assert json.loads(shop.run("status", "--json").out)[0]["evicted"] == 2
    assert ", 2 evicted " in shop.run("status").out


def test_what_a_damaged_snapshot_lost_is_not_known_and_no_reason_to_keep_it(shop: Workshop) -> None:
    ids(shop, "a", "b", "c").load()
    for content in (b"damage", bytes(shop.manifest().file_bytes)):
        (shop.current_folder() / snapshot.PROFILES).write_bytes(content)
        assert ids(shop, "b", "c", "d").load() == "published"
        assert shop.manifest().evicted is None


def test_a_snapshot_that_no_guard_has_looked_at_says_so(shop: Workshop) -> None:
    ids(shop, "a", "b", "c").load()
    with pytest.raises(RefreshRefused):
        ids(shop, "a").load()
    assert not shop.manifest().forced
    assert shop.load(force=True) == "published"
    assert shop.manifest().forced
    assert f"{shop.current()} (forced) " in shop.run("status").out
    (found,) = json.loads(shop.run("status", "--json").out)
    assert (found["forced"], found["refreshes"]) == (True, {"published": 2, "shrunk": 1})
    assert [each["outcome"] for each in found["history"]] == ["published", "shrunk", "published"]


def test_a_rollback_is_seen_until_something_is_loaded(shop: Workshop) -> None:
    for wanted in ("ab", "cd"):
        ids(shop, *wanted, shrink_max=1).load()
    first = shop.manifest().previous
    shop.run("snapshots", "rollback", "--workspace", "shop")
    assert f"{first} (rolled back) " in shop.run("status").out
    (found,) = json.loads(shop.run("status", "--json").out)
    assert (found["rolled_back"], found["snapshot"]) == (True, first)
    assert (found["last_refresh"]["outcome"], found["last_refresh"]["snapshot"]) == ("rolled_back", first)
    # Its own age counts, and not that of the later snapshot that was found good.
    assert found["staleness"] >= time.time() - outcomes.read(shop.home).last[1].started_at
    ids(shop, "a", "b").load()
    assert not outcomes.read(shop.home).rolled_back
    assert shop.manifest().name == first
