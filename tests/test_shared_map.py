"""The file that workers share: its life, and real processes that take from one cell at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgeprofile import _limiter, limiter
from edgeprofile.errors import StoreError
from edgeprofile.limiter import policy

SECOND = 10**9
DEFAULT = limiter.policy(500, 1000, 120)
CELLS, COUNTERS = 16_384, 2_048


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shared.map"


def compiled(limits: limiter.Policy) -> _limiter.Policy:
    return _limiter.Policy(limits.pairs)


# The file


def test_a_name_has_one_cell_in_every_process_that_opens_the_file(path: Path) -> None:
    one, other = _limiter.SharedMap(path), _limiter.SharedMap(str(path))
    names = [b"%d:native" % number for number in range(1_000)]
    cells = [one.cell(name) for name in names]
    assert len(set(cells)) == len(names)
    assert [other.cell(name) for name in reversed(names)] == cells[::-1]


def test_a_full_file_refuses_new_names_and_keeps_the_old(path: Path) -> None:
    shared = _limiter.SharedMap(path)
    cells = {shared.cell(b"%d" % number) for number in range(CELLS)}
    assert cells == set(range(CELLS))
    with pytest.raises(StoreError, match="cells are taken"):
        shared.cell(b"one more")
    assert shared.cell(b"77") in cells


def test_counters_and_cells_outlive_the_process(path: Path) -> None:
    shared = _limiter.SharedMap(path)
    shared.add(0, 2)
    shared.add(COUNTERS - 1, 2**63)
    cell = shared.cell(b"key")
    assert shared.take(cell, compiled(DEFAULT), 1_000, now_ns=SECOND) == 0
    del shared
    again = _limiter.SharedMap(path)
    assert [again.counter(index) for index in (0, 1, COUNTERS - 1)] == [2, 0, 2**63]
    assert again.cell(b"key") == cell
    assert again.take(cell, compiled(DEFAULT), 1, now_ns=SECOND) == SECOND // 1_000


def test_the_file_is_for_its_owner_only(path: Path) -> None:
    _limiter.SharedMap(path)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("damage", ["empty", "truncated", "too long", "other layout"])
def test_a_file_of_another_layout_is_replaced(path: Path, damage: str) -> None:
    old = _limiter.SharedMap(path)
    old.add(0, 1)
    size, inode = path.stat().st_size, path.stat().st_ino
    if damage == "other layout":
        with path.open("r+b") as file:
            file.write(path.read_bytes()[:64].replace(b"map 1", b"map 0"))
    else:
        os.truncate(path, {"empty": 0, "truncated": size - 1, "too long": size + 1}[damage])
    fresh = _limiter.SharedMap(path)
    assert fresh.counter(0) == 0
    assert (path.stat().st_size, path.stat().st_ino == inode) == (size, False)
    assert list(path.parent.iterdir()) == [path]


def test_what_a_process_left_that_died_while_creating_is_no_obstacle(path: Path) -> None:
    path.with_name("shared.map.new").write_bytes(b"half")
    _limiter.SharedMap(path)
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_cannot_be_opened_is_a_store_error(path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be opened"):
        _limiter.SharedMap(path / "missing" / "shared.map")
    path.mkdir()
    with pytest.raises(StoreError, match="cannot be opened"):
        _limiter.SharedMap(path)


# Several processes


@contextmanager
def workers(number: int, code: str, path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that have imported the limiter, printed `ready` and wait for a line before they run `code`."""
    opening = "import sys; from edgeprofile import _limiter, limiter; path = sys.argv[1]; print('ready', flush=True)"
    command = [sys.executable, "-c", f"{opening}; input()\n{code}", str(path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    started = [subprocess.Popen(command, **pipes) for _ in range(number)]
    try:
        for worker in started:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        for worker in started:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        yield started
    finally:
        for worker in started:
            worker.kill()
            worker.communicate()


# Both hold 100,000 tokens (the peak of the second holds more) and take over 90 s for the next: none during a test.
SLOW = {"plain": (0.01, 100_000, 0), "two buckets": (0.01, 1_000_000.51, 0.1)}
HAMMER = """
shared = _limiter.SharedMap(path)
cell, limits = shared.cell(b"key"), _limiter.Policy(limiter.policy(*{limits}).pairs)
while True:
    if shared.take(cell, limits, 1) == 0:
        shared.add(0, 1)
    elif {stops}:
        break
"""


@pytest.mark.parametrize("kind", SLOW)
def test_processes_that_share_a_cell_take_exactly_what_it_holds(path: Path, kind: str) -> None:
    with workers(3, HAMMER.format(limits=SLOW[kind], stops=True), path) as started:
        assert [worker.wait(60) for worker in started] == [0, 0, 0]
    assert _limiter.SharedMap(path).counter(0) == 100_000


SPEND = """
shared = _limiter.SharedMap(path)
cell, calls = shared.cell(b"partner"), 0
while True:
    minute, _, wait_ns = shared.take_window(cell, 2_500, 100_000_000)
    calls += 1
    if wait_ns:
        break
    if calls % 3:
        shared.add(minute % 2_048, 2_500)
    else:
        shared.give_back(cell, minute, 2_500)
"""


def test_processes_that_share_a_quota_use_exactly_its_total_in_a_minute(path: Path) -> None:
    with workers(3, SPEND, path) as started:
        assert [worker.wait(60) for worker in started] == [0, 0, 0]
    used = [_limiter.SharedMap(path).counter(minute) for minute in range(COUNTERS)]
    # Should a minute have ended meanwhile, the last process stopped when nothing was left of the one behind it.
    [last] = [used[minute] for minute in range(COUNTERS) if used[minute] and not used[(minute + 1) % COUNTERS]]
    assert max(used) == last == 100_000_000


def test_a_process_killed_in_the_middle_leaves_the_cell_usable(path: Path) -> None:
    shared = _limiter.SharedMap(path)
    limits = compiled(policy(*SLOW["plain"]))
    with workers(1, HAMMER.format(limits=SLOW["plain"], stops=False), path) as (victim,):
        while shared.counter(0) < 1_000 and victim.poll() is None:
            pass
        victim.send_signal(signal.SIGKILL)
        assert victim.wait(60) == -signal.SIGKILL
    cell, mine = shared.cell(b"key"), 0
    while shared.take(cell, limits, 1) == 0:
        mine += 1
    # It may have died between taking a token and counting it.
    assert shared.counter(0) + mine in (99_999, 100_000)


def test_processes_that_claim_the_same_names_at_once_agree_on_the_cells(path: Path) -> None:
    claim = "shared = _limiter.SharedMap(path); print(hash(tuple(shared.cell(b'%d' % name) for name in range(16_384))))"
    with workers(3, claim, path) as started:
        assert len({worker.stdout.read() for worker in started if worker.stdout is not None}) == 1
        assert [worker.wait(60) for worker in started] == [0, 0, 0]


@pytest.mark.parametrize("before", [None, b"of another layout"])
def test_processes_that_create_the_file_at_once_share_one(path: Path, before: bytes | None) -> None:
    if before is not None:
        path.write_bytes(before)
    with workers(4, "_limiter.SharedMap(path).add(0, 1)", path) as started:
        assert [worker.wait(60) for worker in started] == [0, 0, 0, 0]
    assert _limiter.SharedMap(path).counter(0) == 4
    assert list(path.parent.iterdir()) == [path]
