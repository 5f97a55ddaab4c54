"""The main process apart from what its workers do: who is started, told to end and killed, and when."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from service import until
from test_server_life import has_stopped

from edgeprofile import supervisor
from edgeprofile.life import ENDING, RETIRING
from edgeprofile.settings import Server, Settings
from edgeprofile.supervisor import Setup, Supervisor

FORK = multiprocessing.get_context("fork")
BEAT_INTERVAL_S = 0.02
KILLS_MAX = 5
DRAIN_S = 0.2


def setup_of(kind: str) -> Setup:
    """What makes workers of this kind: "broken" or "stuck" at their start, "silent" after it, or good ones."""
    return Setup(Settings(data_dir=Path(kind), server=Server(drain_seconds=DRAIN_S, ready_delay_seconds=0)), None)


class Main:
    """A main process in `folder`, where it and its workers note what happens to them, each on a line."""

    def __init__(self, folder: Path, slots: int, kind: str = "good") -> None:
        self._notes = folder / "notes"
        self._kind = folder / "kind"
        self._notes.touch()
        self.want(kind)
        self.process = FORK.Process(target=self._run, args=(slots,))
        self.process.start()

    def want(self, kind: str) -> None:
        self._kind.write_text(kind)

    def reload(self, kind: str) -> None:
        self.want(kind)
        self.tell(signal.SIGHUP)

    def tell(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def notes(self, *kinds: str) -> list[str]:
        """The lines, of these kinds if any are given; a line is what happened, the slot, the kind of the worker."""
        lines = self._notes.read_text().splitlines()
        return [line for line in lines if not kinds or line.split()[0] in kinds]

    def pids(self, kind: str) -> list[int]:
        return [int(line.split()[3]) for line in self.notes("ready") if line.split()[2] == kind]

    def status(self) -> int | None:
        """The exit status, which is waited for."""
        self.process.join(20)
        return self.process.exitcode

    def _note(self, what: str) -> None:
        with self._notes.open("a") as notes:
            notes.write(f"{what}\n")

    def _run(self, slots: int) -> None:
        supervisor.START_SECONDS_MAX = supervisor.SILENT_SECONDS_MAX = 1.0
        supervisor.KILLS_MAX = KILLS_MAX
        listeners = [socket.socket() for _ in range(slots)]
        kinds = {"good": setup_of("good")}
        first = kinds.setdefault(self._kind.read_text(), setup_of(self._kind.read_text()))

        def revised(_: Setup) -> Setup:
            return kinds.setdefault(self._kind.read_text(), setup_of(self._kind.read_text()))

        died = partial(self._note, "died")
        main = Supervisor(first, listeners, self._launch, reload=revised, renew=lambda setup: setup, died=died)
        os._exit(main.run())

    def _launch(self, setup: Setup, number: int, pulse: int) -> BaseProcess:
        process = FORK.Process(target=self._work, args=(setup.settings.data_dir.name, number, pulse))
        process.start()
        return process

    def _work(self, kind: str, number: int, pulse: int) -> None:
        who = f"{number} {kind} {os.getpid()}"
        self._note(f"start {who}")
        if kind == "broken":
            os._exit(3)
        for told, word in ((ENDING, "ending"), (RETIRING, "retiring")):
            signal.signal(told, lambda *_, word=word: self._note(f"{word} {who}"))
        signal.signal(signal.SIGTERM, lambda *_: self._end(who))
        if kind != "stuck":
            self._note(f"ready {who}")
            os.write(pulse, b".")
        while True:
            select.select([], [], [], BEAT_INTERVAL_S)
            if kind != "silent" and kind != "stuck":
                os.write(pulse, b".")

    def _end(self, who: str) -> None:
        self._note(f"end {who}")
        os._exit(0)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Main]]:
    started: list[Main] = []

    def begin(slots: int, kind: str = "good") -> Main:
        started.append(Main(tmp_path, slots, kind))
        return started[-1]

    yield begin
    for main in started:
        if main.process.is_alive():
            main.tell(signal.SIGTERM)
            main.process.join(20)
        assert not main.process.is_alive()


def without_pids(lines: list[str]) -> list[str]:
    return [line.rpartition(" ")[0] for line in lines]


def test_workers_are_replaced_one_by_one_each_once_its_successor_is_ready(start: Callable[..., Main]) -> None:
    main = start(3)
    until(lambda: len(main.pids("good")) == 3, "all are ready")
    main.reload("other")
    until(lambda: len(main.notes("end")) == 3, "all were replaced")
    steps = without_pids(main.notes())[6:]
    words = ("start {} other", "ready {} other", "retiring {} good", "end {} good")
    assert steps == [word.format(number) for number in range(3) for word in words]


def test_what_workers_cannot_be_made_of_changes_nothing(start: Callable[..., Main]) -> None:
    main = start(2)
    until(lambda: len(main.pids("good")) == 2, "all are ready")
    for kind in ("broken", "stuck"):
        main.reload(kind)
        until(lambda: any(kind in line for line in main.notes("start")), "it is tried")  # noqa: B023
        until(lambda: not os.path.exists(f"/proc/{started(main, kind)}"), "it is gone")  # noqa: B023
    os.kill(main.pids("good")[0], signal.SIGKILL)
    until(lambda: len(main.pids("good")) == 3, "another takes its place")
    assert main.notes("retiring", "end") == []
    assert main.notes("died") == ["died"], "only what served is counted"
    assert len([line for line in main.notes("start") if "good" not in line]) == 2, "each was tried once"


def started(main: Main, kind: str) -> int:
    return int(next(line for line in main.notes("start") if kind in line).split()[3])


def test_a_worker_that_gives_no_sign_of_life_is_replaced(start: Callable[..., Main]) -> None:
    main = start(2)
    until(lambda: len(main.pids("good")) == 2, "all are ready")
    os.kill(main.pids("good")[0], signal.SIGSTOP)
    until(lambda: len(main.pids("good")) == 3, "another takes its place")
    main.tell(signal.SIGTERM)
    assert main.status() == 0
    assert len(main.notes("ending")) == len(main.notes("end")) == 2
    assert main.notes("died") == ["died"]


@pytest.mark.parametrize("kind", ["broken", "stuck", "silent"])
def test_workers_that_do_not_come_to_life_are_tried_three_times(start: Callable[..., Main], kind: str) -> None:
    main = start(1, kind)
    assert main.status() == 1
    assert without_pids(main.notes("start")) == [f"start 0 {kind}"] * 3


def kill_ready(main: Main, times: int) -> None:
    """Kills each worker of a slot as soon as it serves, and waits for the next one."""
    for number in range(times):
        os.kill(main.pids("good")[number], signal.SIGKILL)
        until(lambda: len(main.pids("good")) == number + 2, "another takes its place")  # noqa: B023


def test_workers_that_somebody_kills_are_no_crash_loop_before_there_are_many(start: Callable[..., Main]) -> None:
    main = start(1)
    until(lambda: main.pids("good") != [], "one serves")
    kill_ready(main, KILLS_MAX - 1)
    os.kill(main.pids("good")[-1], signal.SIGKILL)
    assert main.status() == 1
    assert len(main.pids("good")) == KILLS_MAX


def test_one_that_ends_by_itself_behind_others_that_were_killed_is_a_crash_loop(start: Callable[..., Main]) -> None:
    main = start(1)
    until(lambda: main.pids("good") != [], "one serves")
    kill_ready(main, supervisor.SHORT_LIVES_MAX)
    os.kill(main.pids("good")[-1], signal.SIGQUIT)
    assert main.status() == 1


def test_the_end_comes_in_the_middle_of_a_change_too(start: Callable[..., Main]) -> None:
    main = start(2)
    until(lambda: len(main.pids("good")) == 2, "all are ready")
    main.reload("stuck")
    until(lambda: len(main.notes("start")) == 3, "a successor is on its way")
    main.tell(signal.SIGTERM)
    assert main.status() == 0
    assert len(main.notes("end")) == 3


def test_one_that_does_not_end_is_killed_and_the_end_is_a_good_one(start: Callable[..., Main]) -> None:
    main = start(2)
    until(lambda: len(main.pids("good")) == 2, "all are ready")
    stopped = main.pids("good")[0]
    os.kill(stopped, signal.SIGSTOP)
    until(lambda: has_stopped(stopped), "it does nothing any more")
    main.tell(signal.SIGTERM)
    assert main.status() == 0
    assert len(main.notes("end")) == 1
