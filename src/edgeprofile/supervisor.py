"""The main process's work: a worker in every slot, another one where it dies, and new ones when what they are made of
changes.

A slot is a listening socket that outlives its workers. Who connects while one dies, or hands over to its successor,
waits in the socket's queue and is answered by the next; a socket that went with its worker would turn those away.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing.connection
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from typing import NamedTuple

from edgeprofile import notify
from edgeprofile.life import ENDING, RETIRING
from edgeprofile.settings import Settings
from edgeprofile.tls import Identity

TICK_S = 1.0
# A worker that takes longer to start, or beats no more, will not come to itself.
START_SECONDS_MAX = 120.0
SILENT_SECONDS_MAX = 30.0
# So many workers of one slot in a row, none of which lived longer, are a crash loop. It takes more of them where the
# last one served and was ended from outside: by an operator, or by a kernel that is short of memory.
SHORT_LIFE_S = 10.0
SHORT_LIVES_MAX, KILLS_MAX = 3, 10
RETRY_INTERVAL_S = 10.0
TO_END = (signal.SIGTERM, signal.SIGINT)
# How a worker ends that somebody told to, or killed.
ENDED_FROM_OUTSIDE = (0, -signal.SIGTERM, -signal.SIGKILL)

log = logging.getLogger("edgeprofile")


class Setup(NamedTuple):
    """What workers are made of; `description` is their /openapi.json. One is told from another by being another."""

    settings: Settings
    identity: Identity | None
    description: bytes = b""


# Starts a worker of a setup, for the slot of this number, and with where to beat.
Launch = Callable[[Setup, int, int], BaseProcess]
Revise = Callable[[Setup], Setup]


class Worker:
    """A worker process, its beats, and by which signals it is going to end, if it is."""

    def __init__(self, setup: Setup, process: BaseProcess, pulse: int) -> None:
        self.setup = setup
        self.process = process
        self.pulse = pulse
        self.started_at = time.monotonic()
        self._beat_at: float | None = None
        self._is_given_up = False
        self._plan: list[tuple[float, signal.Signals]] = []

    @property
    def is_ready(self) -> bool:
        return self._beat_at is not None

    @property
    def was_killed(self) -> bool:
        """Whether it served until somebody else than us ended it."""
        return self.is_ready and not self._is_given_up and self.process.exitcode in ENDED_FROM_OUTSIDE

    def plan(self, now: float, *steps: tuple[float, signal.Signals]) -> None:
        """Has it sent signals, each so many seconds from `now`, in the place of what was planned before."""
        self._plan = [(now + delay_s, number) for delay_s, number in steps]

    def attend(self, now: float) -> None:
        """Hears its beats, and sends what is due."""
        with contextlib.suppress(BlockingIOError):
            if os.read(self.pulse, 4096):
                self._beat_at = now
        silent_s, limit_s = now - (self._beat_at or self.started_at), SILENT_SECONDS_MAX
        if silent_s > (limit_s if self.is_ready else START_SECONDS_MAX):
            log.error("worker %d has given no sign of life for %.0f s and is killed", self.process.pid, silent_s)
            self._is_given_up = True
            self.process.kill()
        while self._plan and self._plan[0][0] <= now:
            self._send(self._plan.pop(0)[1])

    def _send(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        if number == signal.SIGKILL:
            log.warning("worker %d has not finished in time and is killed", self.process.pid)
        if self.process.is_alive():
            os.kill(self.process.pid, number)

    def seconds_to_next_step(self, now: float) -> float:
        return self._plan[0][0] - now if self._plan else TICK_S

    def is_gone(self) -> bool:
        """Whether the process has ended; then what was open for it is closed."""
        if self.process.is_alive():
            return False
        os.close(self.pulse)
        return True


class Slot:
    """`worker` serves; `successor` is being started to take its place, and `leaving` had it before."""

    def __init__(self, number: int, listener: socket.socket) -> None:
        self.number = number
        self.listener = listener
        self.worker: Worker | None = None
        self.successor: Worker | None = None
        self.leaving: Worker | None = None
        self.short_lives = 0
        self.start_at = 0.0

    @property
    def workers(self) -> list[Worker]:
        return [each for each in (self.worker, self.successor, self.leaving) if each is not None]

    @property
    def is_changing(self) -> bool:
        return self.successor is not None or self.leaving is not None


class Supervisor:
    """Runs workers of `setup`, one for each of the listening sockets. `reload` is asked for another setup at SIGHUP,
    `renew` every second; each returns the one that it is given where nothing has changed. `died` is told of each worker
    that ended before its time.
    """

    def __init__(
        self,
        setup: Setup,
        listeners: list[socket.socket],
        launch: Launch,
        *,
        reload: Revise,
        renew: Revise,
        died: Callable[[], None],
    ) -> None:
        self._wanted = setup
        self._proven = setup  # of which a worker became ready, but for the first one
        self._slots = [Slot(number, listener) for number, listener in enumerate(listeners)]
        self._launch = launch
        self._reload = reload
        self._renew = renew
        self._died = died
        self._status: int | None = None  # of the service's end, once that has begun
        self._delayed_until = 0.0
        self._renew_at = self._replace_at = self._alive_at = time.monotonic()
        self._is_ready = False
        self._had_terminal = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and has_terminal()

    def run(self) -> int:
        """Until a signal ends the service, or its workers end as fast as they are started; returns the exit status."""
        with _signals() as told:
            self._tick(time.monotonic())
            while self._status is None or self._workers():
                self._wait(told)
                for number in _read(told):
                    self._heed(signal.Signals(number), time.monotonic())
                self._tick(time.monotonic())
        return self._status

    def _workers(self) -> list[Worker]:
        return [worker for slot in self._slots for worker in slot.workers]

    def _wait(self, told: socket.socket) -> None:
        """Until something has happened, or has to."""
        now, workers = time.monotonic(), self._workers()
        steps_s = [worker.seconds_to_next_step(now) for worker in workers]
        opened: list[socket.socket | int] = [told]
        for worker in workers:
            opened += (worker.pulse, worker.process.sentinel)
        multiprocessing.connection.wait(opened, max(0.0, min([TICK_S, *steps_s])))

    def _heed(self, number: signal.Signals, now: float) -> None:
        server = self._wanted.settings.server
        if number in TO_END or self._is_hung_up(number):
            if self._status is None:
                # Whoever sends another than SIGTERM sits before it: no load balancer has to be told.
                self._end(now, 0, server.ready_delay_seconds if number == signal.SIGTERM else 0)
            elif now < self._delayed_until:
                self._end(now, self._status, 0)
        elif number == signal.SIGHUP and self._status is None:
            self._want(self._reload(self._wanted), now)

    def _is_hung_up(self, number: signal.Signals) -> bool:
        """A terminal that was closed is none any more, and sends the signal by which people ask for a reload."""
        return number == signal.SIGHUP and self._had_terminal and not has_terminal()

    def _end(self, now: float, status: int, delay_s: float) -> None:
        self._status = status
        self._delayed_until = now + delay_s
        notify.tell(notify.STOPPING)
        kill_s = delay_s + self._wanted.settings.server.drain_seconds
        for worker in self._workers():
            worker.plan(now, (0, ENDING), (delay_s, signal.SIGTERM), (kill_s, signal.SIGKILL))

    def _tick(self, now: float) -> None:
        for slot in self._slots:
            for worker in slot.workers:
                worker.attend(now)
            self._bury(slot, now)
            if self._status is None:
                self._hand_over(slot, now)
                if slot.worker is None and now >= slot.start_at:
                    slot.worker = self._start(slot, self._proven)
        if self._status is None:
            if now >= self._renew_at:
                self._renew_at = now + TICK_S
                self._want(self._renew(self._wanted), now)
            self._replace_next(now)
        elif now >= self._delayed_until:
            # Who connects from now on is refused at once, by the last worker that does not listen any more.
            for slot in self._slots:
                slot.listener.close()
        self._tell_supervisor(now)

    def _start(self, slot: Slot, setup: Setup) -> Worker | None:
        slot.start_at = time.monotonic() + TICK_S  # the next time, where it fails
        try:
            pulse, beats = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                return Worker(setup, self._launch(setup, slot.number, beats), pulse)
            except OSError:
                os.close(pulse)
                raise
            finally:
                os.close(beats)
        except OSError as error:
            log.error("no worker can be started: %s", error.strerror)
            return None

    def _want(self, setup: Setup, now: float) -> None:
        if setup is not self._wanted:
            self._wanted = setup
            self._replace_at = now

    # --- one worker for another --------------------------------------------------------------------------------

    def _bury(self, slot: Slot, now: float) -> None:
        """Sees which of a slot's processes have ended."""
        if slot.leaving is not None and slot.leaving.is_gone():
            slot.leaving = None
        if slot.successor is not None and slot.successor.is_gone():
            setup, slot.successor = slot.successor.setup, None
            self._replace_at = now + RETRY_INTERVAL_S
            if setup is self._wanted and setup is not self._proven:
                self._wanted = self._proven
            log.error("the workers stay as they were: one that should have been new ended before it was ready")
        if slot.worker is not None and slot.worker.is_gone():
            dead, slot.worker, slot.successor = slot.worker, slot.successor, None
            if self._status is None:
                self._count_death(slot, dead, now)

    def _count_death(self, slot: Slot, dead: Worker, now: float) -> None:
        log.error("worker %d ended with status %s and is replaced", dead.process.pid, dead.process.exitcode)
        self._died()
        slot.short_lives = slot.short_lives + 1 if now - dead.started_at < SHORT_LIFE_S else 0
        if slot.short_lives >= (KILLS_MAX if dead.was_killed else SHORT_LIVES_MAX):
            log.error("workers end as soon as they are started: giving up")
            self._end(now, 1, self._wanted.settings.server.ready_delay_seconds)

    def _hand_over(self, slot: Slot, now: float) -> None:
        """To a successor that is ready. Whoever it takes over from is left as long as its clients may need."""
        successor, worker = slot.successor, slot.worker
        if successor is None or worker is None or not successor.is_ready:
            return
        log.info("worker %d takes over from %d", successor.process.pid, worker.process.pid)
        slot.leaving, slot.worker, slot.successor = worker, successor, None
        self._proven = successor.setup
        drain_s = worker.setup.settings.server.drain_seconds
        worker.plan(now, (0, RETIRING), (drain_s, signal.SIGTERM), (2 * drain_s, signal.SIGKILL))

    def _replace_next(self, now: float) -> None:
        """Starts the successor of one worker that is not made as it should be now, unless another's is on its way."""
        if now < self._replace_at or any(slot.is_changing for slot in self._slots):
            return
        for slot in self._slots:
            outdated = slot.worker is not None and slot.worker.is_ready and slot.worker.setup is not self._wanted
            if outdated and now >= slot.start_at:
                slot.successor = self._start(slot, self._wanted)
                return

    # --- who started us ------------------------------------------------------------------------------------------

    def _tell_supervisor(self, now: float) -> None:
        if not self._is_ready and all(slot.worker is not None and slot.worker.is_ready for slot in self._slots):
            self._is_ready = True
            notify.tell(notify.READY)
        interval_s = notify.alive_interval_s()
        if interval_s is not None and now >= self._alive_at:
            self._alive_at = now + min(interval_s, TICK_S)
            notify.tell(notify.ALIVE)


@contextlib.contextmanager
def _signals() -> Iterator[socket.socket]:
    """A socket from which come the numbers of the signals that are for the main process."""
    told, teller = socket.socketpair()
    told.setblocking(False)
    teller.setblocking(False)
    os.register_at_fork(after_in_child=_forget_signals)
    with told, teller:
        signal.set_wakeup_fd(teller.fileno())
        for number in (*TO_END, signal.SIGHUP):
            # Where it is ignored, as SIGINT by what a shell runs in the background, it stays so; but SIGHUP reloads.
            if number != signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: None)
        try:
            yield told
        finally:
            signal.set_wakeup_fd(-1)


def _forget_signals() -> None:
    """In a process that was forked, before it has handlers of its own: what tells it to end must not be swallowed,
    and what comes to it must not be taken for the main process's.
    """
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number in (signal.SIGHUP, ENDING, RETIRING):
        signal.signal(number, signal.SIG_IGN)


def _read(told: socket.socket) -> bytes:
    try:
        return told.recv(4096)
    except BlockingIOError:
        return b""


def has_terminal() -> bool:
    """Whether there is a terminal that this process hangs on."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
