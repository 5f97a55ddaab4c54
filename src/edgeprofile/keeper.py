"""A child process that is kept running, for what a service should have but can do without."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
import threading
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Self

from edgeprofile.watch import ParentWatcher, Watcher

RESTART_INTERVAL_S = 1.0
KILL_INTERVAL_S = 0.1
OVERLAP_S = 2.0
# What outlives the main process may finish what it has begun.
DRAIN_SECONDS_MAX = 15.0

log = logging.getLogger("edgeprofile")


class Keeper(threading.Thread):
    """Runs `work` in a process called `name` while the context lasts; one that dies is started again.

    It is forked, as Granian forks its workers, and so it goes on with the settings and the code that they have,
    whatever lies on disk by then. It must have nothing to finish when the context ends, by which it is killed.
    """

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self._ending = threading.Event()
        self._swapping = threading.Lock()
        self._process = self._forked()  # the first one before there is any thread

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        # More than once, because another may just have been started.
        while self.is_alive():
            self._process.kill()
            self.join(KILL_INTERVAL_S)

    def renew(self, work: Callable[[], None]) -> None:
        """Has another process do this work. Once that has had time to begin, the one before is told to end."""
        with self._swapping:
            self._work = work
            old, self._process = self._process, self._forked()
        end = threading.Timer(OVERLAP_S, old.terminate)
        end.daemon = True
        end.start()

    def run(self) -> None:
        """Waits for the process's end, and starts another."""
        while True:
            process = self._process
            process.join()
            if self._ending.is_set():
                return
            if process is not self._process:
                continue
            if process.exitcode == -signal.SIGTERM:
                # Some supervisors tell every process of a service to end, and not the first alone.
                log.info("%s was told to end", self.name)
                return
            log.error("%s ended with status %s and is started again", self.name, process.exitcode)
            if self._ending.wait(RESTART_INTERVAL_S):
                return
            with self._swapping:
                if process is self._process:
                    self._process = self._forked()

    def _forked(self) -> ForkProcess:
        process = multiprocessing.get_context("fork").Process(target=self._live, daemon=True)
        process.start()
        return process

    def _live(self) -> None:
        name_process(self.name)
        # What a terminal sends is for the main process, whose handler this one has of it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        Watcher(ParentWatcher(DRAIN_SECONDS_MAX)).start()
        self._work()


def name_process(name: str) -> None:
    """Calls this process so for ps, top and pgrep: by 15 characters, where there is such a file."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)
