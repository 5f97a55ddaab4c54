"""The loader as a service: every workspace is refreshed by its cadence, each time by a process of its own.

This process loads nothing itself. It stays small for months, and outlives a crash, a hang and a blow-up of whatever
it starts. It is one event loop, on which each workspace has a task; whoever else is to live as long as the watcher
can have one too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import msgspec

from edgeprofile import locks, notify, outcomes, snapshot
from edgeprofile.errors import EdgeprofileError
from edgeprofile.loader.export_queue import ExportQueue
from edgeprofile.loader.overlay import DUE_AT_SHARE
from edgeprofile.loader.updates import UpdateServer
from edgeprofile.outcomes import BUSY, HELD, Attempt, Outcome
from edgeprofile.schedule import backoff_s, erasure_delay_s, first_delay_s, next_delay_s
from edgeprofile.settings import Settings

# Without the current folder on the path, where a file of a customer's may be named like a module.
CHILD = (sys.executable, "-P", "-m", "edgeprofile.loader.child")
EXPORTS_AT_ONCE = 1
# Shorter than supervisors wait. What is killed then was sorting very many identifiers, which nothing interrupts.
STOP_SECONDS_MAX = 8.0
# What is said of a workspace before any refresh.
WATCHING = "watching"

# Of which workspace, what happened, and in how many seconds its next refresh is due.
Say = Callable[[str, Outcome, float], None]


def watch(settings: Settings, names: list[str], say: Say) -> None:
    """Keeps these workspaces fresh until SIGTERM or SIGINT. SIGHUP refreshes all of them now.

    Raises LoaderBusy where one of them has a watcher already.
    """
    with contextlib.ExitStack() as held:
        for name in names:
            held.enter_context(locks.watching(snapshot.home(settings.data_dir, name)))
        asyncio.run(Watcher(settings, names, say).run())


class Watcher:
    """All that runs in a watching process. At most `loader.parallel` workspaces are refreshed at once."""

    def __init__(self, settings: Settings, names: list[str], say: Say) -> None:
        slots, exporting = asyncio.Semaphore(settings.loader.parallel), asyncio.Semaphore(EXPORTS_AT_ONCE)
        self._watched = [Watched(settings, name, slots, exporting, say) for name in names]
        self._stopping = asyncio.Event()
        self._on_terminal = sys.stdout.isatty()

    async def run(self) -> None:
        """Until it is told to stop; then what is running is ended, and leaves nothing half-published."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stopping.set)
        # A shell has its background processes ignore SIGINT.
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGINT, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        notify.tell(notify.READY)
        async with asyncio.TaskGroup() as running:
            tasks = [running.create_task(watched.run()) for watched in self._watched]
            tasks.append(running.create_task(_say_alive()))
            await self._stopping.wait()
            notify.tell(notify.STOPPING)
            # Once, however often it is told: another time would cut short what ends the refreshes.
            for task in tasks:
                task.cancel()

    def _hang_up(self) -> None:
        # A terminal that was closed is none any more, and sends the signal by which people ask for a refresh.
        if self._on_terminal and not sys.stdout.isatty():
            self._stopping.set()
            return
        for watched in self._watched:
            watched.wake.set()


async def _say_alive() -> None:
    """To the supervisor, as long as the loop turns. What a refresh does is another process, which has a limit."""
    while (interval_s := notify.alive_interval_s()) is not None:
        notify.tell(notify.ALIVE)
        await asyncio.sleep(interval_s)


class Watched:
    """One workspace and its schedule. Setting `wake` refreshes it now, or at the end of the refresh that is running."""

    def __init__(
        self, settings: Settings, name: str, slots: asyncio.Semaphore, exporting: asyncio.Semaphore, say: Say
    ) -> None:
        self.wake = asyncio.Event()
        self._name = name
        self._slots = slots
        self._say = say
        self._said = ""
        self._home = snapshot.home(settings.data_dir, name)
        self._cadence_s = settings.workspaces[name].refresh_s
        self._timeout = settings.loader.timeout
        self._timeout_s = settings.loader.timeout_s
        self._command = (*CHILD, str(settings.file), name, str(os.getpid()))
        self._exports = ExportQueue(self._home, exporting)
        self._updates = UpdateServer(
            self._home, exports=self._exports, on_erasure=self._erased, on_damage=self.wake.set
        )
        self._erase_within_s = settings.workspaces[name].erase_within_s
        self._alarm: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Takes its updates, writes its exports and keeps it fresh, until it is cancelled."""
        async with self._updates, asyncio.TaskGroup() as running:
            running.create_task(self._exports.run())
            await self._see_to_erasures()
            try:
                await self.keep_fresh()
            finally:
                if self._alarm is not None:
                    self._alarm.cancel()

    async def keep_fresh(self) -> None:
        """Refreshes it by its cadence. Whatever becomes of a refresh, there is a next one."""
        delay_s, failures = self._first_delay_s(), 0
        self._tell(Attempt.begin().ended(WATCHING), delay_s)
        while True:
            await self._sleep(delay_s)
            # Who waits here is served in turn: a slow workspace delays the others, but no refresh is left out.
            async with self._slots:
                # Who asks for a refresh from here on means one that begins later.
                self.wake.clear()
                began = time.monotonic()
                outcome = await self._refresh()
            if outcome.outcome == BUSY:
                # Somebody loads it by hand: when that has ended well, there is nothing to do for a while.
                delay_s = backoff_s(self._cadence_s, 1)
                self._tell(outcome, delay_s)
                await self._sleep(delay_s)
                delay_s = self._first_delay_s()
                continue
            await self._updates.refreshed()
            await self._see_to_erasures()
            failures = 0 if outcome.outcome in (*outcomes.SUCCESSES, HELD) else failures + 1
            took_s = time.monotonic() - began
            delay_s = next_delay_s(self._cadence_s, took_s, failures, random.random())
            self._tell(outcome, delay_s)

    async def _see_to_erasures(self) -> None:
        """Has a refresh begin when what was erased has to go from disk, however long the cadence is."""
        due_at = await self._updates.erasure_due_at(self._erase_within_s)
        if due_at is not None:
            self._erased(erasure_delay_s(due_at - time.time(), self._erase_within_s * DUE_AT_SHARE))

    def _erased(self, delay_s: float | None = None) -> None:
        """Of several the first counts; the others are asked for behind the refresh that it brings."""
        if self._alarm is None:
            delay_s = self._erase_within_s * DUE_AT_SHARE if delay_s is None else delay_s
            self._alarm = asyncio.get_running_loop().call_later(delay_s, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self.wake.set()

    async def _sleep(self, delay_s: float) -> None:
        # Not by wait_for: that of Python 3.11 forgets a cancellation which comes together with what it waits for.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self.wake.wait()

    def _first_delay_s(self) -> float:
        """By the age of what is served, so that to start again does not load everything again."""
        age_s = None
        with contextlib.suppress(EdgeprofileError, OSError):
            manifest = snapshot.current_manifest(self._home)
            age_s = time.time() - outcomes.read(self._home).seen_at(manifest)
        return first_delay_s(self._cadence_s, age_s)

    def _tell(self, outcome: Outcome, delay_s: float) -> None:
        """Says what happened; of what goes on and on, only that it has begun."""
        if outcome.outcome not in (BUSY, HELD) or outcome.outcome != self._said:
            self._say(self._name, outcome, delay_s)
        self._said = outcome.outcome

    async def _refresh(self) -> Outcome:
        """Runs a refresh, and notes what that could not note itself."""
        attempt = Attempt.begin()
        if outcomes.read(self._home).rolled_back:
            return attempt.held(self._name)
        try:
            told, status = await self._run(attempt)
            outcome = msgspec.json.decode(told, type=Outcome)
            if outcome.outcome != "settings_error":
                return outcome
        except TimeoutError:
            outcome = attempt.ended("timed_out", message=f"ended after loader.timeout ({self._timeout})")
        except OSError as error:
            outcome = attempt.ended("crashed", message=f"no process could be started: {error.strerror}")
        except msgspec.MsgspecError:
            outcome = attempt.ended("crashed", message=f"the process that loaded {_end_of(status)}")
        await asyncio.to_thread(self._note, outcome)
        return outcome

    def _note(self, outcome: Outcome) -> None:
        with contextlib.suppress(EdgeprofileError, OSError), locks.loading(self._home):
            snapshot.clear(self._home)
            outcomes.note(self._home, outcome)

    async def _run(self, attempt: Attempt) -> tuple[bytes, int]:
        """Runs the refresh's process; gives what it printed, and its status. None outlives this call.

        Its start is a part of the attempt: what is served is as old as that, and no refresh is sooner done.
        Raises TimeoutError where it took too long and was killed, OSError where it could not be started.
        """
        process = await asyncio.create_subprocess_exec(
            *self._command,
            *map(str, attempt),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C reaches it by way of this process alone; and see be_gentle
        )
        try:
            async with asyncio.timeout(self._timeout_s):
                told, _ = await process.communicate()
            assert process.returncode is not None
            return told, process.returncode
        except TimeoutError:
            await _kill(process)
            raise
        finally:
            await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Has a process interrupt itself. One that takes too long is killed, with all that it started."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS_MAX):
            await process.wait()
    except TimeoutError:
        await _kill(process)


async def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _end_of(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"ended with status {status}"
    why = ", perhaps because memory ran out" if -status == signal.SIGKILL else ""
    return f"was ended by signal {-status} ({signal.strsignal(-status)}){why}"
