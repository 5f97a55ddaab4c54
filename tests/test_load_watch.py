"""The loader as a service: real watchers over real workspaces, killed, told to stop, disturbed and left to recover."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_server_life import is_running
from workshop import COMMAND, WAIT_SECONDS_MAX, Ended, Workshop, environment, stop, until

from edgeprofile import locks, outcomes, priority, snapshot
from edgeprofile.outcomes import Outcome

SLOW = "SELECT max(a.i + b.i) AS id FROM range(3000000) AS a(i), range(3000000) AS b(i)"
# What a model reads of a file can change while a watcher runs, without a change of the model.
FROM_FILE = "FROM '{name}.csv'"
WORKSPACE = """
[workspaces.{name}]
refresh = "{refresh}"
source.url = "duckdb://"
profiles = {{ sql = "{sql}", id = "id" }}
"""


class Watch:
    """Workspaces in a folder, and a process that watches them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[bytes]] = []

    def spaces(self, refresh: str = "1s", loader: str = "", **models: str) -> None:
        """Writes the settings: by a workspace's name, its model."""
        text = f'data_dir = "var"\n[loader]\nthreads = 1\n{loader}\n'
        text += "".join(WORKSPACE.format(name=name, refresh=refresh, sql=sql) for name, sql in models.items())
        (self.folder / "edgeprofile.toml").write_text(text)

    def rows(self, name: str, *ids: int) -> None:
        """Writes the file that the model FROM_FILE reads."""
        (self.folder / "new").write_text("\n".join(["id", *map(str, ids)]))
        (self.folder / "new").rename(self.folder / f"{name}.csv")

    def start(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        with self.log_file.open("ab") as log:
            command, changed = [*COMMAND, "load", "--watch", *arguments], environment() | (env or {})
            process = subprocess.Popen(command, cwd=self.folder, env=changed, stdout=log, stderr=log)
        self.started.append(process)
        return process

    @property
    def log_file(self) -> Path:
        return self.folder / "watch.log"

    def lines(self, name: str, outcome: str) -> list[dict[str, str]]:
        """What was said of an outcome of a workspace, by field."""
        found = []
        for line in self.log_file.read_text().splitlines():
            fields = {key: text or json.loads(quoted) for key, quoted, text in FIELD.findall(line)}
            if (fields.get("workspace"), fields.get("outcome")) == (name, outcome):
                found.append(fields)
        return found

    def home(self, name: str) -> Path:
        return self.folder / "var" / name

    def past(self, name: str) -> list[Outcome]:
        return outcomes.read(self.home(name)).last

    def count(self, name: str, outcome: str) -> int:
        return outcomes.read(self.home(name)).counts.get(outcome, 0)

    def profiles(self, name: str) -> int | None:
        with contextlib.suppress(Exception):
            return snapshot.current_manifest(self.home(name)).profiles
        return None

    def loader(self, name: str) -> int | None:
        """The pid of who is loading a workspace."""
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.home(name) / locks.LOADER).read_text())
            return pid if is_running(pid) else None
        return None

    def run(self, *arguments: str) -> Ended:
        return Workshop(self.folder).run(*arguments)

    def leftovers(self, name: str) -> list[Path]:
        home = self.home(name)
        return [*(home / snapshot.SNAPSHOTS).glob(snapshot.BUILDING + "*"), *home.glob("*.new"), *home.glob(".scr*")]


FIELD = re.compile(r'(\w+)=(?:("(?:[^"\\]|\\.)*")|(\S*))')


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    made = Watch(tmp_path)
    yield made
    for process in made.started:
        if process.poll() is None:
            stop(process)
    assert "Traceback" not in made.log_file.read_text()


def building(watch: Watch, name: str, process: subprocess.Popen[bytes]) -> int:
    """Waits until a workspace is being loaded, and the load has begun to build; gives its pid."""
    until(lambda: watch.leftovers(name) != [] and watch.loader(name) is not None, process)
    pid = watch.loader(name)
    assert pid is not None
    return pid


# --- cadence -------------------------------------------------------------------------------------------------------


def test_a_workspace_is_refreshed_again_and_again_and_published_only_where_it_is_new(watch: Watch) -> None:
    watch.spaces(shop=FROM_FILE.format(name="shop"))
    watch.rows("shop", 1, 2)
    process = watch.start()
    until(lambda: watch.count("shop", "unchanged") == 2, process)
    assert (watch.count("shop", "published"), watch.profiles("shop")) == (1, 2)
    watch.rows("shop", 1, 2, 3)
    until(lambda: len(watch.lines("shop", "published")) == 2, process)
    assert watch.profiles("shop") == 3
    assert len(snapshot.names(watch.home("shop"))) == 2
    assert stop(process) == 0
    past = watch.past("shop")
    assert all(one.finished_at <= other.started_at for one, other in itertools.pairwise(past))
    (first, _) = watch.lines("shop", "published")
    assert (first["profiles"], first["snapshot"]) == ("2", past[0].snapshot)
    assert 0 <= int(first["next_seconds"]) <= 1


def test_a_watcher_that_starts_again_waits_for_what_is_left_of_the_cadence(watch: Watch) -> None:
    watch.spaces(refresh="1h", shop="SELECT 1 AS id")
    assert watch.run("load").status == 0
    for starts in (1, 2):
        process = watch.start()
        until(lambda: len(watch.lines("shop", "watching")) == starts, process)  # noqa: B023
        assert stop(process) == 0
    assert [3_500 < int(line["next_seconds"]) <= 3_600 for line in watch.lines("shop", "watching")] == [True, True]
    assert len(watch.past("shop")) == 1


def test_a_hang_up_refreshes_all_now_and_again_where_a_refresh_was_running(watch: Watch) -> None:
    watch.spaces(refresh="1h", shop="SELECT 1 AS id", other="SELECT 1 AS id")
    assert watch.run("load").status == 0
    process = watch.start()
    until(lambda: bool(watch.lines("other", "watching")), process)
    process.send_signal(signal.SIGHUP)
    until(lambda: [watch.count(name, "unchanged") for name in ("shop", "other")] == [1, 1], process)
    process.send_signal(signal.SIGHUP)
    until(lambda: watch.loader("shop") is not None or watch.count("shop", "unchanged") > 1, process)
    process.send_signal(signal.SIGHUP)
    until(lambda: watch.count("shop", "unchanged") == 3, process)
    assert 3_000 < int(watch.lines("shop", "unchanged")[0]["next_seconds"]) <= 3_600


# --- failures ------------------------------------------------------------------------------------------------------


def test_one_that_fails_hurts_no_other_is_said_in_one_line_and_recovers(watch: Watch) -> None:
    watch.spaces(bad=FROM_FILE.format(name="bad"), good="SELECT 1 AS id")
    process = watch.start()
    until(lambda: watch.count("bad", "source_error") >= 2 and watch.count("good", "unchanged") >= 2, process)
    assert watch.profiles("bad") is None
    # The workspaces' lines are all that is said.
    assert all(line.startswith("time=") for line in watch.log_file.read_text().splitlines())
    # It is noted by the process that failed, and said by the watcher a moment later.
    until(lambda: len(watch.lines("bad", "source_error")) == watch.count("bad", "source_error"), process)
    failed = watch.lines("bad", "source_error")
    assert failed[0]["message"].startswith("the model cannot be read")
    assert failed[0]["next_seconds"] == "1"  # as long as the cadence, and no longer
    watch.rows("bad", 7)
    until(lambda: watch.profiles("bad") == 1, process)


def test_a_failure_keeps_the_old_snapshot_and_is_tried_again_sooner_than_the_cadence(watch: Watch) -> None:
    watch.spaces(refresh="1h", shop=FROM_FILE.format(name="shop"))
    watch.rows("shop", *range(100))
    process = watch.start()
    until(lambda: watch.profiles("shop") == 100, process)
    watch.rows("shop", 1)
    process.send_signal(signal.SIGHUP)
    until(lambda: bool(watch.lines("shop", "shrunk")), process)
    assert watch.profiles("shop") == 100
    assert 9 <= int(watch.lines("shop", "shrunk")[0]["next_seconds"]) <= 10
    process.send_signal(signal.SIGHUP)
    until(lambda: len(watch.lines("shop", "shrunk")) == 2, process)
    assert 18 <= int(watch.lines("shop", "shrunk")[1]["next_seconds"]) <= 20


def test_a_load_that_is_killed_is_noted_cleared_away_and_tried_again(watch: Watch) -> None:
    watch.spaces(shop=SLOW)
    process = watch.start()
    first = building(watch, "shop", process)
    os.kill(first, signal.SIGKILL)
    until(lambda: watch.count("shop", "crashed") == 1, process)
    assert "was ended by signal 9 (Killed)" in watch.past("shop")[0].message
    until(lambda: watch.loader("shop") not in (None, first), process)
    building(watch, "shop", process)
    assert len(watch.leftovers("shop")) <= 2
    assert stop(process) == 0
    assert watch.leftovers("shop") == []


def test_one_that_hangs_is_ended_at_its_time_and_delays_no_other(watch: Watch) -> None:
    watch.spaces(loader='timeout = "6s"', slow=SLOW, good="SELECT 1 AS id")
    process = watch.start()
    until(lambda: watch.count("slow", "timed_out") > 0 and watch.count("good", "unchanged") > 0, process)
    assert watch.past("slow")[0].message == "ended after loader.timeout (6s)"
    assert 6 <= watch.past("slow")[0].seconds < 60


def test_settings_are_read_anew_and_a_fault_in_them_is_a_failure_like_others(watch: Watch) -> None:
    watch.spaces(shop="SELECT 1 AS id", other="SELECT 1 AS id")
    process = watch.start()
    until(lambda: watch.profiles("other") == 1, process)
    watch.spaces(shop="SELECT unnest([1, 2]) AS id")
    until(lambda: watch.profiles("shop") == 2 and watch.count("other", "settings_error") > 0, process)
    assert "has no workspace other any more" in watch.lines("other", "settings_error")[0]["message"]
    watch.spaces(shop="SELECT unnest([1, 2, 3]) AS id", other="SELECT 1 AS id")
    unchanged = watch.count("other", "unchanged")
    until(lambda: watch.profiles("shop") == 3 and watch.count("other", "unchanged") > unchanged, process)


# --- its end -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_of_a_model_ends_all_in_good_order_however_often_it_comes(
    watch: Watch, number: signal.Signals
) -> None:
    watch.spaces(shop="SELECT 1 AS id")
    assert watch.run("load").status == 0
    watch.spaces(shop=SLOW)
    process = watch.start()
    pid = building(watch, "shop", process)
    process.send_signal(number)
    os.kill(pid, number)  # as a terminal or a supervisor may, which tells every process
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
    assert process.wait(WAIT_SECONDS_MAX) == 0
    assert not is_running(pid)
    assert (watch.leftovers("shop"), watch.profiles("shop")) == ([], 1)
    assert watch.past("shop")[-1].outcome == "interrupted"
    assert locks.watcher(watch.home("shop")) is None


def test_a_watcher_that_was_killed_takes_its_load_with_it_and_another_goes_on(watch: Watch) -> None:
    watch.spaces(shop=SLOW)
    process = watch.start()
    pid = building(watch, "shop", process)
    process.kill()
    process.wait()
    until(lambda: not is_running(pid))
    assert watch.leftovers("shop") == []
    status = watch.run("status")
    assert status.status == 1
    assert f"process {process.pid}, which watched it, was killed" in status.out
    watch.spaces(shop="SELECT 1 AS id")
    process = watch.start()
    until(lambda: watch.profiles("shop") == 1, process)
    (found,) = json.loads(watch.run("status", "--json").out)
    assert (found["watcher"], found["problem"]) == ({"pid": str(process.pid), "alive": True}, None)


# Pretends to have been started by a process that is gone by now.
ORPHAN = "from edgeprofile.loader.child import main; main('edgeprofile.toml', 'shop', '1234567')"


def test_a_load_whose_watcher_is_gone_before_it_begins_does_not_begin(watch: Watch) -> None:
    watch.spaces(shop="SELECT 1 AS id")
    watch.log_file.touch()
    done = subprocess.run([sys.executable, "-c", ORPHAN], cwd=watch.folder, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")
    assert watch.past("shop") == []


# As a watcher does whose refresh's process took a minute to start.
SLOW_START = """
import os, time
from edgeprofile.loader.child import main
main('edgeprofile.toml', 'shop', str(os.getppid()), str(time.time() - 60), str(time.monotonic() - 60))
"""


def test_what_a_refresh_takes_and_is_as_old_as_counts_from_before_its_process_started(watch: Watch) -> None:
    watch.spaces(shop="SELECT 1 AS id")
    watch.log_file.touch()
    before = time.time()
    subprocess.run([sys.executable, "-c", SLOW_START], cwd=watch.folder, env=environment(), check=True)
    (noted,) = watch.past("shop")
    assert noted.seconds > 60
    assert before - 60 <= noted.started_at < noted.finished_at - 60
    manifest = snapshot.current_manifest(watch.home("shop"))
    assert outcomes.read(watch.home("shop")).seen_at(manifest) == noted.started_at


# --- beside others -------------------------------------------------------------------------------------------------


def test_a_second_watcher_ends_with_one_line_but_a_load_by_hand_works(watch: Watch) -> None:
    watch.spaces(refresh="1h", shop="SELECT 1 AS id", other="SELECT 1 AS id")
    process = watch.start("--workspace", "shop")
    until(lambda: watch.count("shop", "published") == 1, process)
    assert (watch.lines("other", "watching"), watch.past("other")) == ([], [])
    second = watch.run("load", "--watch")
    assert second.status == 1
    assert second.complaints == [f"edgeprofile: workspace shop is being watched by process {process.pid}"]
    by_hand = watch.run("load", "--force")
    assert (by_hand.status, by_hand.out.count("published")) == (0, 2)


def test_a_watcher_waits_for_a_load_by_hand_which_is_no_failure(watch: Watch) -> None:
    watch.spaces(refresh="2s", shop="SELECT 1 AS id")
    with locks.loading(watch.home("shop")):
        process = watch.start()
        until(lambda: bool(watch.lines("shop", "busy")), process)
        assert f"is being loaded by process {os.getpid()}" in watch.lines("shop", "busy")[0]["message"]
    until(lambda: watch.count("shop", "published") == 1, process)
    assert len(watch.lines("shop", "busy")) == 1
    assert watch.past("shop")[0].outcome == "published"


def test_what_was_rolled_back_to_stays_until_somebody_loads(watch: Watch) -> None:
    watch.spaces(refresh="1h", shop=FROM_FILE.format(name="shop"))
    for rows in ((1, 2), (1, 2, 3)):
        watch.rows("shop", *rows)
        assert watch.run("load").status == 0
    process = watch.start()
    until(lambda: bool(watch.lines("shop", "watching")), process)
    assert watch.run("snapshots", "rollback", "--workspace", "shop").status == 0
    process.send_signal(signal.SIGHUP)
    until(lambda: bool(watch.lines("shop", "held")), process)
    assert (watch.profiles("shop"), watch.past("shop")[-1].outcome) == (2, "rolled_back")
    watch.rows("shop", 1, 2, 3, 4)
    assert watch.run("load").status == 0
    watch.rows("shop", 1, 2, 3, 4, 5)
    process.send_signal(signal.SIGHUP)
    until(lambda: watch.profiles("shop") == 5, process)


def test_a_refresh_that_was_starting_when_somebody_rolled_back_does_not_undo_that(watch: Watch) -> None:
    watch.spaces(shop=FROM_FILE.format(name="shop"))
    for rows in ((1, 2), (1, 2, 3)):
        watch.rows("shop", *rows)
        assert watch.run("load").status == 0
    assert watch.run("snapshots", "rollback", "--workspace", "shop").status == 0
    watch.rows("shop", 1, 2, 3, 4)
    watch.log_file.touch()
    subprocess.run([sys.executable, "-c", SLOW_START], cwd=watch.folder, env=environment(), check=True)
    assert (watch.profiles("shop"), watch.past("shop")[-1].outcome) == (2, "rolled_back")


def test_no_more_are_loaded_at_once_than_may_be_and_each_has_its_turn(watch: Watch) -> None:
    names = ("a", "b", "c")
    watch.spaces(loader="parallel = 1", **dict.fromkeys(names, "SELECT 1 AS id"))
    process = watch.start()
    until(lambda: all(watch.count(name, "unchanged") > 0 for name in names), process)
    assert stop(process) == 0
    past = sorted((each for name in names for each in watch.past(name)), key=lambda each: each.started_at)
    assert all(one.finished_at <= other.started_at for one, other in itertools.pairwise(past))


# --- what it is to the system --------------------------------------------------------------------------------------


def priority_of_io(pid: int) -> int:
    """By ioprio_get(2), whose number is one more than that of its setter."""
    number = priority.IOPRIO_SET[os.uname().machine] + 1
    return ctypes.CDLL(None).syscall(number, priority.IOPRIO_WHO_PROCESS, pid)  # type: ignore[no-any-return]


def test_a_load_is_gentle_and_the_first_to_go_but_the_watcher_is_not(watch: Watch) -> None:
    watch.spaces(shop=SLOW)
    process = watch.start()
    pid = building(watch, "shop", process)
    niceness = {each: os.getpriority(os.PRIO_PROCESS, each) for each in (process.pid, pid)}
    assert niceness[pid] == min(niceness[process.pid] + priority.NICENESS, 19)
    session = Path(f"/proc/{pid}/autogroup")  # where the kernel has such
    assert not session.exists() or session.read_text().split()[-1] == str(priority.NICENESS)
    left = os.sched_getaffinity(process.pid) - os.sched_getaffinity(pid)
    assert len(left) == (1 if len(os.sched_getaffinity(process.pid)) > 1 else 0)
    threads = [int(thread.name) for thread in Path(f"/proc/{pid}/task").iterdir()]
    # Those of a thread that has ended meanwhile cannot be had.
    assert {priority_of_io(thread) for thread in threads} - {-1} == {priority.IOPRIO_IDLE}
    assert priority_of_io(process.pid) != priority.IOPRIO_IDLE
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "500\n"
    assert Path(f"/proc/{process.pid}/oom_score_adj").read_text() != "500\n"


def test_the_watching_process_has_no_warehouse_in_it() -> None:
    program = "import sys, edgeprofile.cli, edgeprofile.loader.watch; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {name for name in done.stdout.split() if re.match(r"_?duckdb|pyarrow", name)} == set()


def on_terminal(watch: Watch, see: Callable[[bytes], bool]) -> tuple[subprocess.Popen[bytes], bytes]:
    """Watches on a terminal until something is seen there, and closes it."""
    screen, terminal = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "load", "--watch"], cwd=watch.folder, env=environment(), stdout=terminal, stderr=terminal
    )
    watch.started.append(process)
    os.close(terminal)
    seen = b""
    while not see(seen):
        seen += os.read(screen, 65_536)
    os.close(screen)
    return process, seen


def test_on_a_terminal_a_refresh_is_one_line_for_people_and_a_closed_terminal_ends_it(watch: Watch) -> None:
    watch.spaces(refresh="1h", shop="SELECT 1 AS id", bad="FROM 'none.csv'")
    watch.log_file.touch()
    process, seen = on_terminal(watch, lambda text: b"published" in text and b"source_error" in text)
    assert "━".encode() not in seen
    lines = sorted(line[9:] for line in seen.decode().splitlines())
    assert [line.split(" ", 2)[:2] for line in lines] == [
        ["bad:", "source_error:"],
        ["bad:", "watching;"],
        ["shop:", "published,"],
        ["shop:", "watching;"],
    ]
    assert re.search(r"; next in 0:00:(09|10)$", lines[0])
    assert re.search(r"; next in (0:5\d:\d\d|1:00:00)$", lines[2])
    process.send_signal(signal.SIGHUP)  # which the terminal's driver would send to a process that it controls
    assert process.wait(WAIT_SECONDS_MAX) == 0
