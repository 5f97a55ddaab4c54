"""Processes that are killed at every step of a batch and of a publication: no update that was acknowledged is lost,
none is done by half, and none is taken back by a refresh that was building meanwhile."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from living import living
from workshop import WAIT_SECONDS_MAX, Workshop, environment, roll_back

from edgeprofile import reader, snapshot
from edgeprofile.loader.apply import STEPS, LiveWriter
from edgeprofile.loader.changes import Updates, read

ROWS = "SELECT i AS id, 'of the model' AS word FROM range(200) AS made(i)"
OTHER_ROWS = "SELECT i AS id, 'of the later model' AS word FROM range(1, 201) AS made(i)"
# What is written before a process dies, and by it.
BEFORE, DYING, AFTER = ({str(n): word for n in (3, 4, 500)} for word in ("before", "dying", "after"))

# For each line "folder what step", a process of its own that does it and kills itself at that step.
DOOMED = """
import os, signal, sys
from pathlib import Path
from workshop import Workshop
from test_live_crash import DYING, write
from edgeprofile.loader.refresh import refresh
for line in sys.stdin:
    folder, what, step = line.split()
    pid = os.fork()
    if pid == 0:
        shop = Workshop(Path(folder))
        def at(reached):
            if what == "refresh" and reached == "hashed":
                write(shop, DYING)
            if reached == step:
                os.kill(os.getpid(), signal.SIGKILL)
        if what == "refresh":
            refresh(shop.settings(), "shop", force=False, progress=lambda *_: None, at=at)
        else:
            write(shop, DYING, at=at)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
CRAMPED = """
import resource, signal, sys
from pathlib import Path
from workshop import Workshop
from test_live_crash import write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
write(Workshop(Path(sys.argv[1])), {"1": "x" * 30_000, "2": "y" * 30_000})
"""
# Writes updates until the disk takes no more, then frees some of it and goes on. Prints what was acknowledged.
FILLING = """
import sys
from pathlib import Path
from workshop import Workshop
from test_live_crash import write
from edgeprofile.errors import DiskFull
shop = Workshop(Path(sys.argv[1]))
done, refused = [], 0
for number in range(10_000):
    try:
        write(shop, {f"{number}-{n}": "x" * 4000 for n in range(20)})
    except DiskFull as error:
        refused += 1
        if refused == 3:
            break
        continue
    done.append(number)
(shop.home / "filler").unlink()
write(shop, {"last": "done"})
print(*done, refused)
"""


def write(shop: Workshop, words: dict[str, str], at: snapshot.AtStep = snapshot.nothing) -> None:
    """One batch, which gives each of these profiles a word and an event of it."""
    updates: list[object] = [
        [primary, {"word": f'"{word}"'.encode()}, {}, {}, [[None, word[:9], 1_700_000_000_000_000, {}]]]
        for primary, word in words.items()
    ]
    with LiveWriter(shop.home, at) as writer:
        assert writer.update(read({"updates": updates}, Updates)) == []


def words(shop: Workshop) -> dict[str, str]:
    """The word of every profile that is served."""
    with living(shop.home) as served:
        served.check()
        return {primary: (served.profile(primary) or {})["word"] for primary in served.ids()}


def events(shop: Workshop, primary: str) -> list[str]:
    with living(shop.home) as served:
        return [event["name"] for event in served.events_of(primary)]


def model(first: int, word: str) -> dict[str, str]:
    return {str(n): word for n in range(first, 200 + first)}


Kill = Callable[[Workshop, str, str], None]


@pytest.fixture(scope="module")
def kill_at() -> Iterator[Kill]:
    """Starts a process that does something to a workspace and dies at a step of it."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", DOOMED]
    with subprocess.Popen(command, env=environment() | {"PYTHONPATH": path}, stdin=pipe, stdout=pipe) as process:

        def kill(shop: Workshop, what: str, step: str) -> None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{shop.folder} {what} {step}\n".encode())
            process.stdin.flush()
            assert int(process.stdout.readline()) == -signal.SIGKILL

        yield kill
        process.communicate(timeout=WAIT_SECONDS_MAX)


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    shop = Workshop(tmp_path).model(ROWS)
    shop.load()
    return shop


# --- killed --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
def test_a_writer_killed_at_any_step_did_all_of_a_batch_or_none(shop: Workshop, kill_at: Kill, step: str) -> None:
    write(shop, BEFORE)
    kill_at(shop, "update", step)
    visible = words(shop)
    assert visible in (model(0, "of the model") | BEFORE, model(0, "of the model") | DYING)
    assert (visible["3"] == "dying") == (step in STEPS[STEPS.index("live_committed") :])

    done = step != "overlay_written"
    with LiveWriter(shop.home) as writer:
        writer.catch_up()
    expected = model(0, "of the model") | (DYING if done else BEFORE)
    assert words(shop) == expected
    assert events(shop, "500") == ["before"] + ["dying"] * done, "an event is added once, however often it is tried"
    shop.load()
    assert words(shop) == expected
    assert events(shop, "500") == ["before"] + ["dying"] * done
    reader.verify(shop.current_folder())


@pytest.mark.parametrize("step", snapshot.STEPS)
def test_a_refresh_killed_at_any_step_takes_no_update_back(shop: Workshop, kill_at: Kill, step: str) -> None:
    write(shop, BEFORE)
    shop.model(OTHER_ROWS)
    kill_at(shop, "refresh", step)
    said = DYING if snapshot.STEPS.index(step) >= snapshot.STEPS.index("hashed") else BEFORE
    swapped = snapshot.STEPS.index(step) >= snapshot.STEPS.index("current_swapped")
    before, after = model(0, "of the model"), model(1, "of the later model")
    assert words(shop) == (after if swapped else before) | said
    assert events(shop, "4") == ["before"] + ["dying"] * (said is DYING)

    write(shop, AFTER)
    assert words(shop) == (after if swapped else before) | AFTER
    shop.load()
    assert words(shop) == after | AFTER
    assert events(shop, "4") == ["before"] + ["dying"] * (said is DYING) + ["after"]
    assert shop.leftovers() == []


def test_a_writer_killed_behind_the_overlay_leaves_its_batch_to_a_refresh_and_to_a_rollback(
    shop: Workshop, kill_at: Kill
) -> None:
    shop.load(force=True)
    kill_at(shop, "update", "overlay_committed")
    assert words(shop) == model(0, "of the model")
    roll_back(shop.home)
    assert words(shop) == model(0, "of the model") | DYING
    kill_at(shop, "update", "overlay_committed")
    shop.load()
    assert words(shop) == model(0, "of the model") | DYING
    assert events(shop, "3") == ["dying", "dying"]


def test_updates_from_another_process_go_on_while_snapshots_are_published(shop: Workshop) -> None:
    """The overlay, the lock and CURRENT are all that the two share."""
    script = """
import sys
from pathlib import Path
from test_live_crash import words, write
from edgeprofile import snapshot
from edgeprofile.loader.apply import LiveWriter
from edgeprofile.loader.changes import Updates, read
from workshop import Workshop
shop = Workshop(Path(sys.argv[1]))
with LiveWriter(shop.home) as writer:
    for number in range(100_000):
        update = [str(number % 250), {"word": b'"%d"' % number}]
        writer.update(read({"updates": [update]}, Updates))
        if number == 20:
            print("going", flush=True)
        if (shop.folder / "enough").exists():
            print(number, flush=True)
            break
"""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, "-c", script, str(shop.folder)]
    with subprocess.Popen(command, env=environment() | {"PYTHONPATH": path}, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"going\n"
        for number in range(3):
            shop.model(f"SELECT i AS id, 'of model {number}' AS word FROM range(200) AS made(i)").load()
        (shop.folder / "enough").touch()
        last = int(process.stdout.readline())
    expected = model(0, "of model 2")
    for number in range(max(0, last - 249), last + 1):
        expected[str(number % 250)] = str(number)
    assert words(shop) == expected
    shop.load()
    assert words(shop) == expected


# --- out of disk ---------------------------------------------------------------------------------------------------


def test_a_disk_that_takes_no_more_refuses_updates_and_loses_none(shop: Workshop) -> None:
    path = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    with pytest.raises(subprocess.CalledProcessError) as cramped:
        subprocess.run(
            [sys.executable, "-c", CRAMPED, str(shop.folder)],
            env=environment() | path,
            capture_output=True,
            check=True,
        )
    assert b"StoreError: an update could not be written: " in cramped.value.stderr
    assert words(shop) == model(0, "of the model")
    if os.geteuid() != 0:
        return
    shutil.copytree(shop.home, shop.folder / "kept")
    run = f"mount -t tmpfs -o size=6m none {shop.home} && cp -a {shop.folder}/kept/. {shop.home}/ && "
    run += f"dd if=/dev/zero of={shop.home}/filler bs=1M count=2 2> /dev/null && "
    run += f"{sys.executable} -c '{FILLING}' {shop.folder}; cp -a {shop.home} {shop.folder}/after"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", run],
        env=environment() | path,
        capture_output=True,
        timeout=WAIT_SECONDS_MAX,
        check=False,
    )
    assert done.stderr == b""
    *numbers, refused = map(int, done.stdout.split())
    assert numbers
    assert refused == 3
    shutil.rmtree(shop.home)
    shutil.copytree(shop.folder / "after", shop.home)
    found = words(shop)
    assert found["last"] == "done"
    written = {int(primary.split("-")[0]) for primary in found if "-" in primary}
    assert {*numbers} <= written
    assert all(f"{number}-{n}" in found for number in written for n in range(20)), "no batch is there by half"
    shop.load()
    assert words(shop) == found
