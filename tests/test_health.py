"""How a workspace fares, in one word and in full, after all that may become of its loads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from service import until
from workshop import NAME, Workshop, roll_back

from edgeprofile import health, locks, outcomes, snapshot
from edgeprofile.outcomes import Attempt, Outcome, Outcomes

CADENCE_S = 300.0


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path).model("SELECT unnest(['a', 'b', NULL]) AS id", rejects_max=1)


def look(shop: Workshop) -> tuple[str, dict[str, object], list[str]]:
    found, problems = health.of_workspace(shop.settings(), NAME)
    return str(found["health"]), found, problems


@pytest.fixture
def watched(shop: Workshop) -> Iterator[Workshop]:
    shop.load()
    with locks.watching(shop.home):
        yield shop


def note(shop: Workshop, outcome: str, **known: object) -> None:
    with locks.loading(shop.home):
        outcomes.note(shop.home, Attempt.begin().ended(outcome, **known))


def made_old(shop: Workshop, seconds: float) -> None:
    """Has all that happened have happened so much earlier."""

    def moved(outcome: Outcome) -> Outcome:
        earlier = {name: getattr(outcome, name) - seconds for name in ("started_at", "finished_at")}
        return msgspec.structs.replace(outcome, **earlier)

    known = outcomes.read(shop.home)
    assert known.settled is not None
    known = msgspec.structs.replace(known, last=[moved(each) for each in known.last], settled=moved(known.settled))
    (shop.home / outcomes.REFRESH).write_bytes(msgspec.json.encode(known))


def test_one_that_has_published_nothing_is_empty(shop: Workshop) -> None:
    word, found, problems = look(shop)
    assert (word, found["snapshot"], found["next_refresh_at"], problems) == ("empty", None, None, [])
    assert "profiles" not in found


def test_one_that_is_kept_fresh_is_ok(watched: Workshop) -> None:
    word, found, problems = look(watched)
    manifest = watched.manifest()
    assert (word, problems) == ("ok", [])
    assert found["watcher"] == {"pid": str(os.getpid()), "alive": True}
    assert (found["snapshot"], found["profiles"], found["rejected"]) == (manifest.name, 2, {"null_id": 1})
    assert 0 <= float(str(found["age"])) <= float(str(found["staleness"])) < 60
    assert found["refreshes"] == {"published": 1}
    last = outcomes.read(watched.home).last[-1]
    assert found["next_refresh_at"] == pytest.approx(last.started_at + CADENCE_S, abs=0.1)


def test_one_that_nobody_watches_is_neither_stale_nor_due(shop: Workshop) -> None:
    shop.load()
    made_old(shop, 86_400)
    word, found, problems = look(shop)
    assert (word, found["next_refresh_at"], found["watcher"], problems) == ("unwatched", None, None, [])


def test_one_whose_watcher_was_killed_says_so(shop: Workshop) -> None:
    shop.load()
    program = "import sys, time, pathlib; from edgeprofile import locks\n"
    program += "with locks.watching(pathlib.Path(sys.argv[1])): print(1, flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", program, str(shop.home)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"1\n"
    assert look(shop)[0] == "ok"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    word, _, problems = look(shop)
    assert word == "unwatched"
    assert f"process {process.pid}, which watched it, was killed" in problems[0]


def test_one_whose_last_refresh_failed_is_failing_until_one_succeeds(watched: Workshop) -> None:
    note(watched, "source_error", message="no answer")
    word, found, _ = look(watched)
    assert word == "failing"
    last = outcomes.read(watched.home).last[-1]
    assert found["next_refresh_at"] == pytest.approx(last.finished_at + 10, abs=0.1)
    note(watched, "timed_out")
    found = look(watched)[1]
    assert float(str(found["next_refresh_at"])) - time.time() == pytest.approx(20, abs=5), "twice as long"
    watched.load()
    assert look(watched)[0] == "ok"


def test_one_that_is_older_than_it_should_ever_be_is_stale_whatever_else_it_is(watched: Workshop) -> None:
    made_old(watched, CADENCE_S + 100)
    note(watched, "source_error")
    word, _, problems = look(watched)
    assert word == "stale"
    assert "s old, where" in problems[0]


def test_one_that_was_rolled_back_holds_until_the_next_load(watched: Workshop) -> None:
    watched.model("SELECT unnest(['a', 'b', 'c']) AS id").load()
    with locks.loading(watched.home):
        name = roll_back(watched.home).name
        outcomes.note(watched.home, Attempt.begin().ended("rolled_back", snapshot=name))
    word, found, _ = look(watched)
    assert (word, found["rolled_back"], found["snapshot"], found["next_refresh_at"]) == (
        "rolled_back",
        True,
        name,
        None,
    )
    watched.load()
    assert look(watched)[0] == "ok"


@pytest.mark.parametrize("content", [b"\xff", b"20250101T000000.000000Z-00000000\n"])
def test_one_that_cannot_be_read_is_damaged_and_says_why(watched: Workshop, content: bytes) -> None:
    (watched.home / snapshot.CURRENT).write_bytes(content)
    word, found, problems = look(watched)
    assert (word, found["snapshot"], len(problems)) == ("damaged", None, 1)


def test_one_that_is_being_loaded_says_since_when(shop: Workshop) -> None:
    shop.load()
    assert look(shop)[1]["loading_since"] is None
    began = time.time()
    with locks.loading(shop.home):
        since = until(lambda: look(shop)[1]["loading_since"], "it is seen to be loaded")
        assert began - 1 <= float(str(since)) <= time.time()
    assert look(shop)[1]["loading_since"] is None


def test_a_watcher_that_has_noted_nothing_yet_has_no_next_refresh() -> None:
    assert health.next_refresh_at(Outcomes(), CADENCE_S) is None
