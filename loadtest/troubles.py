"""What befalls a service that is soaked: loads that swap its snapshots, killed workers, updates, reloads."""

from __future__ import annotations

import http.client
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
from bench_updates import update
from harness import BenchError, Server, Shop
from memory import worker_pids

from edgeprofile import demo, keys, outcomes, snapshot

UPDATES_A_CALL = 100
# How long a worker that was killed may be on the mind of who asked it.
IN_HAND_NS = 5_000_000_000
REPLACED_SECONDS_MAX = 30.0
LOADED_SECONDS_MAX = 120.0


class Trouble(threading.Thread):
    """Does something every so many seconds while the context lasts. Raises BenchError at its end where that failed."""

    def __init__(self, every_s: float, do: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self.times = 0
        self._every_s, self._do = every_s, do
        self._stopping = threading.Event()
        self._fault: Exception | None = None

    def run(self) -> None:
        """Until stopped, or it fails. What takes longer than its interval is done again at once."""
        due_at = time.monotonic() + self._every_s
        try:
            while not self._stopping.wait(max(0.0, due_at - time.monotonic())):
                due_at = max(due_at, time.monotonic() - self._every_s) + self._every_s
                self._do()
                self.times += 1
        except (OSError, http.client.HTTPException, BenchError) as fault:
            self._fault = fault

    def __enter__(self) -> Trouble:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self.join()
        if self._fault is not None:
            raise BenchError(f"{type(self._do.__self__).__name__} failed: {self._fault}")  # type: ignore[attr-defined]


class Loader:
    """Has the watcher load the shop, which publishes a new snapshot each time, for what it loads has changed."""

    def __init__(self, shop: Shop, watcher: int) -> None:
        self._home, self._watcher = snapshot.home(shop.loaded.data_dir, demo.WORKSPACE), watcher
        self.seconds = 0.0

    def load(self) -> None:
        """Once. Raises BenchError where nothing is published."""
        before = outcomes.read(self._home).counts
        began = time.monotonic()
        os.kill(self._watcher, signal.SIGHUP)
        while (after := outcomes.read(self._home).counts) == before:
            if time.monotonic() - began > LOADED_SECONDS_MAX:
                raise BenchError("the watcher has not loaded")
            time.sleep(0.02)
        if after["published"] == before.get("published", 0):
            raise BenchError(f"nothing was published: {after}")
        self.seconds += time.monotonic() - began


class Kill(NamedTuple):
    """When a worker was killed, by the monotonic clock, and the ports of the clients whose connections it had."""

    at_ns: int
    ports: frozenset[int]


class Failure(NamedTuple):
    """A request that failed, as openloop.c notes it: when, with what status (0: none), and from which port."""

    at_ns: int
    status: int
    port: int


class Killer:
    """Kills the worker that was started last, so that there is one that has seen it all."""

    def __init__(self, server: Server, workers: int) -> None:
        self.kills: list[Kill] = []
        self._server, self._workers = server, workers

    def kill(self) -> None:
        """Once, and waits for another. Raises BenchError where none comes."""
        youngest = max(worker_pids(self._server), key=_started_at)
        kill = Kill(time.monotonic_ns(), frozenset(_client_ports(youngest, self._server.port)))
        os.kill(youngest, signal.SIGKILL)
        self.kills.append(kill)
        give_up = time.monotonic() + REPLACED_SECONDS_MAX
        while len(found := worker_pids(self._server)) < self._workers or youngest in found:
            if time.monotonic() > give_up:
                raise BenchError("a worker that was killed has not been replaced")
            time.sleep(0.05)

    def connections(self) -> int:
        """How many all workers have now."""
        return sum(len(_client_ports(pid, self._server.port)) for pid in worker_pids(self._server))

    def excuses(self, failed: Failure) -> bool:
        """Whether a request was in the hands of a worker that was killed."""
        return failed.status == 0 and any(
            failed.port in kill.ports and 0 <= failed.at_ns - kill.at_ns < IN_HAND_NS for kill in self.kills
        )


def _started_at(pid: int) -> int:
    """In ticks since boot; 0 of one that is gone."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[19])
    return 0


def _client_ports(pid: int, port: int) -> list[int]:
    """The clients' ends of the connections to `port` that a process has open."""
    held = set()
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                held.add(os.readlink(entry).removeprefix("socket:[").removesuffix("]"))
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ports = [int(line[2][-4:], 16) for line in lines if line[1].endswith(f":{port:04X}") and line[9] in held]
    return list(filter(None, ports))  # a socket that listens has none at its other end


class Updater:
    """Sends updates by Batch's API, and repeats the call where the worker that had it was killed."""

    def __init__(self, server: Server, shop: Shop) -> None:
        batch = shop.loaded.workspaces[demo.WORKSPACE].batch
        assert batch is not None
        key = keys.create(shop.loaded.data_dir, demo.WORKSPACE, scopes=["write"])[0]
        self._headers = [f"Authorization: Bearer {key}", f"X-Batch-Project: {batch.project}"]
        self._headers.append("Content-Type: application/json")
        self._server = server
        self._calls = 0
        self.repeated = 0

    def send(self) -> None:
        """One call. Raises BenchError where it is not answered as it should be."""
        self._calls += 1
        body = msgspec.json.encode([update(n, self._calls % 5) for n in range(UPDATES_A_CALL)])
        for _ in range(3):
            try:
                status, content = self._server.ask("/2.4/profiles/update", *self._headers, method="POST", body=body)
                break
            except (ConnectionError, http.client.HTTPException):
                self.repeated += 1
        else:
            raise BenchError("three connections in a row were broken off")
        if status != 202:
            raise BenchError(f"status {status}: {content[:200].decode()}")


class Reloader:
    """Has the service read settings that have changed, so that its workers are replaced one by one."""

    def __init__(self, server: Server, shop: Shop) -> None:
        self._server, self._file = server, shop.file
        self._text = shop.file.read_text()
        self._times = 0

    def reload(self) -> None:
        """Once. Raises BenchError where the workers are not replaced by as many others."""
        self._times += 1
        self._file.write_text(f'{self._text}\n[server]\ncache_control = "private, max-age={self._times}"\n')
        old = set(worker_pids(self._server))
        os.kill(self._server.pids[0], signal.SIGHUP)
        give_up = time.monotonic() + REPLACED_SECONDS_MAX
        while len(now := set(worker_pids(self._server))) != len(old) or now & old:
            if time.monotonic() > give_up:
                raise BenchError("workers have not been replaced")
            time.sleep(0.05)


class Scraper:
    """Asks for the metrics, as Prometheus would."""

    def __init__(self, admin: Server) -> None:
        self._admin = admin

    def scrape(self) -> None:
        """Once. Raises BenchError where there are none."""
        status, text = self._admin.ask("/metrics")
        if status != 200 or b"edgeprofile_requests_total" not in text:
            raise BenchError(f"status {status}")
