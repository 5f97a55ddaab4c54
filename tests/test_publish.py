"""Publishing and keeping snapshots: killed at every step, pruned, rolled back, locked out, and out of disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from workshop import WAIT_SECONDS_MAX, Workshop, body, environment, roll_back, stop

from edgeprofile import locks, outcomes, reader, snapshot
from edgeprofile.errors import LoaderBusy, NoSnapshot, StoreError
from edgeprofile.loader.process import interruptible
from edgeprofile.loader.refresh import refresh
from edgeprofile.reader import Reader

# Loads a workspace, waits at a step, or is not given more than so many bytes a file.
LOADER = """
import resource, signal, sys
from pathlib import Path
from edgeprofile.loader.refresh import refresh
from workshop import Workshop
folder, step, bytes_max = sys.argv[1], sys.argv[2], int(sys.argv[3])
def at(reached):
    if reached == step:
        print("here", flush=True)
        sys.stdin.readline()
if bytes_max:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_max, bytes_max))
try:
    refresh(Workshop(Path(folder)).settings(), "shop", force=False, progress=lambda *_: None, at=at)
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""
# For each line "folder step", a process of its own that loads the workspace and kills itself at that step.
DOOMED = """
import os, signal, sys
from pathlib import Path
from edgeprofile.loader.refresh import refresh
from workshop import Workshop
for line in sys.stdin:
    folder, step = line.split()
    pid = os.fork()
    if pid == 0:
        def at(reached):
            if reached == step:
                os.kill(os.getpid(), signal.SIGKILL)
        refresh(Workshop(Path(folder)).settings(), "shop", force=False, progress=lambda *_: None, at=at)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
FIRST = "SELECT i AS id, 'first' AS word FROM range(200) AS made(i)"
SECOND = "SELECT i AS id, 'second' AS word FROM range(150) AS made(i)"
COUNTS = {"first": 200, "second": 150}


def python(script: str, *arguments: str) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env=environment() | {"PYTHONPATH": path},
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
    )


def loader(shop: Workshop, *, step: str = "", bytes_max: int = 0) -> subprocess.Popen[bytes]:
    return python(LOADER, str(shop.folder), step, str(bytes_max))


Kill = Callable[[Workshop, str], None]


@pytest.fixture(scope="module")
def kill_at() -> Iterator[Kill]:
    """Starts a loader of a workspace that dies at a step."""
    with python(DOOMED) as process:

        def kill(shop: Workshop, step: str) -> None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{shop.folder} {step}\n".encode())
            process.stdin.flush()
            assert int(process.stdout.readline()) == -signal.SIGKILL

        yield kill
        process.communicate(timeout=WAIT_SECONDS_MAX)


def served(shop: Workshop) -> str | None:
    """The one word that every profile of the current snapshot has, after reading all of it; None without a snapshot."""
    if shop.current() is None:
        return None
    manifest = reader.verify(shop.current_folder())
    words = [profile["word"] for profile in shop.profiles().values()]
    assert len(set(words)) == 1
    assert len(words) == manifest.profiles == COUNTS.get(words[0], 200)
    return str(words[0])


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


@pytest.fixture
def history(shop: Workshop) -> list[str]:
    """Four loads with `keep = 2`; the names of the snapshots, the oldest first."""
    names = []
    for number in range(4):
        shop.model(f"SELECT i AS id, 'v{number}' AS word FROM range(200) AS made(i)", keep=2).load()
        names.append(str(shop.current()))
    return names


# --- killed --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", snapshot.STEPS)
def test_a_loader_killed_at_any_step_leaves_the_old_snapshot_or_the_new_one(
    shop: Workshop, kill_at: Kill, step: str
) -> None:
    swapped = snapshot.STEPS.index(step) >= snapshot.STEPS.index("current_swapped")
    for before, model, after in ((None, FIRST, "first"), ("first", SECOND, "second")):
        shop.model(model)
        kill_at(shop, step)
        assert served(shop) == (after if swapped else before)
        assert shop.load() == ("unchanged" if swapped else "published")
        assert served(shop) == after
        assert shop.leftovers() == []


@pytest.mark.parametrize("step", snapshot.STEPS)
def test_a_loader_told_to_end_at_any_step_ends_in_good_order_and_one_that_is_nearly_done_is_done(
    shop: Workshop, step: str
) -> None:
    shop.model(FIRST).load()
    shop.model(SECOND)

    def load() -> None:
        with interruptible() as interrupted_at:

            def at(reached: str) -> None:
                interrupted_at(reached)
                if reached == step:
                    signal.raise_signal(signal.SIGTERM)
                    signal.raise_signal(signal.SIGTERM)

            refresh(shop.settings(), "shop", force=False, progress=lambda *_: None, at=at)

    with pytest.raises(KeyboardInterrupt):
        load()
    is_done = snapshot.STEPS.index(step) >= snapshot.STEPS.index("verified")
    assert served(shop) == ("second" if is_done else "first")
    assert len(snapshot.names(shop.home)) == 1 + is_done
    assert shop.leftovers() == []
    assert outcomes.read(shop.home).last[-1].outcome == ("published" if is_done else "interrupted")


def test_a_signal_is_an_interrupt_whatever_else_it_was_made_into() -> None:
    def query() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("Query interrupted")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), interruptible():
        query()
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(RuntimeError, match="no signal"), interruptible():
        raise RuntimeError("no signal")


def test_what_a_killed_loader_left_is_cleared_even_when_nothing_is_published(shop: Workshop, kill_at: Kill) -> None:
    shop.model(FIRST).load()
    shop.model(SECOND)
    for step in ("hashed", "current_written"):
        kill_at(shop, step)
        assert shop.leftovers() != []
    assert shop.model(FIRST).load() == "unchanged"
    assert shop.leftovers() == []


def test_every_step_is_passed_once_and_in_order(shop: Workshop) -> None:
    passed: list[str] = []
    shop.model(FIRST)
    refresh(shop.settings(), "shop", force=False, progress=lambda *_: None, at=passed.append)
    assert tuple(passed) == snapshot.STEPS


@pytest.mark.parametrize("step", ["verified", "renamed", "current_written"])
def test_a_failure_at_a_step_leaves_the_old_snapshot_and_nothing_half_done(shop: Workshop, step: str) -> None:
    def fail(reached: str) -> None:
        if reached == step:
            raise OSError(5, "Input/output error")

    shop.model(FIRST).load()
    with pytest.raises(StoreError, match=r"Input/output error"):
        refresh(shop.model(SECOND).settings(), "shop", force=False, progress=lambda *_: None, at=fail)
    assert served(shop) == "first"
    assert shop.load() == "published"
    assert served(shop) == "second"
    assert shop.leftovers() == []


# --- locked --------------------------------------------------------------------------------------------------------


def test_a_second_loader_ends_with_one_line_that_names_the_first(shop: Workshop) -> None:
    shop.model(FIRST)
    with loader(shop, step="hashed") as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"here\n"
        second = shop.run("load")
        assert (second.status, second.out) == (1, "")
        assert second.complaints == [f"edgeprofile: shop: workspace shop is being loaded by process {first.pid}"]
        rolled = shop.run("snapshots", "rollback", "--workspace", "shop")
        assert rolled.status == 1
        assert str(first.pid) in rolled.err
        first.communicate(b"go on\n", timeout=WAIT_SECONDS_MAX)
        assert first.returncode == 0
    assert served(shop) == "first"


def test_the_lock_of_a_dead_loader_locks_nobody_out(shop: Workshop) -> None:
    shop.model(FIRST)
    with loader(shop, step="hashed") as first:
        assert first.stdout is not None
        first.stdout.readline()
        with pytest.raises(LoaderBusy):
            shop.load()
        stop(first, signal.SIGKILL)
    assert (shop.home / locks.LOADER).read_text() == f"{first.pid}\n"
    assert shop.load() == "published"


# --- out of disk ---------------------------------------------------------------------------------------------------


def small_disk(shop: Workshop, script: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a shell script in which the workspace's folder is a disk of 2 MB. For root alone."""
    mount = f"mount -t tmpfs -o size=2m none {shop.home} && cp -a {shop.folder}/kept/. {shop.home}/ && "
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", mount + script],
        cwd=shop.folder,
        env=environment(),
        capture_output=True,
        timeout=WAIT_SECONDS_MAX,
        check=False,
    )


def test_a_disk_that_takes_no_more_is_a_clear_error_and_the_old_snapshot_stays(shop: Workshop) -> None:
    shop.model(FIRST).load()
    large = "SELECT i AS id, 'second' AS word, md5(i::VARCHAR) AS noise FROM range(60000) AS made(i)"
    shop.model(large)
    for bytes_max in (10_000, 100_000, 2_000_000):
        with loader(shop, bytes_max=bytes_max) as cramped:
            _, err = cramped.communicate(timeout=WAIT_SECONDS_MAX)
        assert cramped.returncode == 1
        assert err.startswith((b"StoreError: ", b"SourceError: "))
        assert err.count(b"\n") == 1
        assert served(shop) == "first"
        assert shop.leftovers() == []
    if os.geteuid() == 0:
        shutil.copytree(shop.home, shop.folder / "kept")
        run = f"{sys.executable} -m edgeprofile load; echo status $?; cp -a {shop.home} {shop.folder}/after"
        done = small_disk(shop, run)
        assert done.stdout == b"status 1\n", done.stderr
        assert b"disk is full" in done.stderr
        assert b"Traceback" not in done.stderr
        shutil.rmtree(shop.home)
        shutil.copytree(shop.folder / "after", shop.home)
        assert served(shop) == "first"
        assert shop.leftovers() == []
    assert shop.load() == "published"
    assert len(shop.bodies()) == 60_000


# --- kept, pruned and rolled back ----------------------------------------------------------------------------------


def test_the_current_snapshot_and_the_kept_ones_before_it_stay(shop: Workshop, history: list[str]) -> None:
    assert snapshot.names(shop.home) == history[1:]
    assert sorted(path.name for path in shop.snapshots.iterdir()) == history[1:]
    shop.model("SELECT 1 AS id, 'v9' AS word", keep=1).load(force=True)
    assert snapshot.names(shop.home) == [history[3], shop.current()]
    assert shop.manifest().previous == history[3]


def test_rollback_swaps_back_step_by_step_until_nothing_is_before(shop: Workshop, history: list[str]) -> None:
    for name, word in ((history[2], "v2"), (history[1], "v1")):
        ended = shop.run("snapshots", "rollback", "--workspace", "shop")
        assert ended.status == 0
        assert name in ended.out
        assert (shop.current(), served(shop)) == (name, word)
    with pytest.raises(NoSnapshot, match=rf"there is no snapshot before {history[1]}"):
        roll_back(shop.home)
    assert shop.current() == history[1]


def test_a_load_after_a_rollback_publishes_and_keeps_what_was_rolled_back_to(
    shop: Workshop, history: list[str]
) -> None:
    roll_back(shop.home)
    assert shop.load() == "published"
    assert served(shop) == "v3"
    assert shop.manifest().previous == history[2]
    assert history[2] in snapshot.names(shop.home)
    assert roll_back(shop.home).name == history[2]


def test_rollback_passes_over_a_damaged_snapshot_and_refuses_where_all_are(shop: Workshop, history: list[str]) -> None:
    for name in history[1:3]:
        with (shop.snapshots / name / snapshot.PROFILES).open("r+b") as file:
            file.seek(5000)
            kept = file.read(6)
            file.seek(5000)
            file.write(b"damage")
    ended = shop.run("snapshots", "rollback", "--workspace", "shop")
    assert ended.status == 1
    assert ended.complaints == [f"edgeprofile: snapshot {history[2]}: profiles.mdb does not match its SHA-256"]
    assert shop.current() == history[3]
    with (shop.snapshots / history[1] / snapshot.PROFILES).open("r+b") as file:
        file.seek(5000)
        file.write(kept)
    assert roll_back(shop.home).name == history[1]


def test_a_reader_goes_on_with_a_snapshot_that_was_pruned(shop: Workshop) -> None:
    shop.model(FIRST, keep=1).load()
    held = Reader(shop.current_folder())
    for number in range(3):
        shop.model(f"SELECT i AS id, 'later{number}' AS word FROM range(200) AS made(i)", keep=1).load()
    assert held.name not in snapshot.names(shop.home)
    assert sum(b'"word":"first"' in body(held, primary) for primary in held.ids()) == 200
    held.close()


@pytest.mark.parametrize("broken", [snapshot.MANIFEST, snapshot.CURRENT])
def test_rollback_leads_away_from_a_snapshot_too_damaged_to_say_what_was_before_it(
    shop: Workshop, history: list[str], broken: str
) -> None:
    file = shop.home / broken if broken == snapshot.CURRENT else shop.snapshots / history[3] / broken
    file.write_bytes(b"garbage")
    expected = history[3] if broken == snapshot.CURRENT else history[2]
    assert roll_back(shop.home).name == expected
    assert shop.current() == expected


def test_a_publication_that_fails_behind_the_rename_leaves_no_snapshot_that_nobody_follows(shop: Workshop) -> None:
    shop.model(FIRST, keep=1).load()

    def at(step: str) -> None:
        if step == "folder_synced":
            raise OSError(28, "No space left on device")

    for number in range(3):
        shop.model(f"SELECT 1 AS id, 'v{number}' AS word", keep=1)
        with pytest.raises(StoreError, match="the disk is full"):
            refresh(shop.settings(), "shop", force=True, progress=lambda *_: None, at=at)
    assert snapshot.names(shop.home) == [shop.current()]
    assert served(shop) == "first"


def test_audience_ids_are_not_given_twice_after_a_rollback(shop: Workshop) -> None:
    shop.model("SELECT 1 AS id, true AS a", audiences=["a"]).load()
    shop.model("SELECT 1 AS id, true AS a, true AS b", audiences=["a", "b"]).load()
    roll_back(shop.home)
    shop.model("SELECT 1 AS id, true AS a, true AS c", audiences=["a", "c"]).load()
    assert shop.manifest().schema["audience_ids"] == {"a": 1, "b": 2, "c": 3}
