"""The open-loop generator of openloop.c, compiled and run: percentiles that a stall of the server cannot hide."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec
from harness import HOST, BenchError, Load, Server, Stage, find_program

SOURCE = Path(__file__).with_suffix(".c")
COMPILERS = ("cc", "gcc", "clang")
# The generator waits five seconds for the last answers; the rest is for it to sort what it measured.
GRACE_SECONDS = 20


class Latencies(msgspec.Struct, frozen=True):
    """What one run found. Times are microseconds; openloop.c says what each count means."""

    sent: int
    answered: int
    errors: int
    unanswered: int
    unsent: int
    reconnects: int
    waited: int
    statuses: dict[str, int]
    measured: int
    p50: float
    p90: float
    p99: float
    p99_9: float
    max: float
    late_p99: float
    late_p99_9: float
    late_max: float

    def failed(self) -> int:
        """Requests that were answered by something else than 200, or not at all."""
        return self.sent + self.unsent - self.statuses.get("200", 0)


def lacking_compiler() -> str:
    """Why the generator cannot be had, as words for a row; empty where it can."""
    return "" if _compiler() else "no C compiler"


def _compiler() -> str | None:
    return next(filter(None, map(find_program, COMPILERS)), None)


class Generator:
    """The program, compiled anew into the folder of a stage, which also ends the runs that nobody ended.

    It runs on one `processor`, where one is given.
    """

    def __init__(self, stage: Stage, *, processor: int | None = None) -> None:
        """Raises BenchError where the machine has no C compiler."""
        compiler = _compiler()
        if compiler is None:
            raise BenchError(lacking_compiler())
        self._stage, self._processor = stage, processor
        self._program = stage.folder / "openloop"
        subprocess.run([compiler, "-O2", "-o", str(self._program), str(SOURCE), "-lm"], check=True)

    def start(
        self, server: Server, load: Load, rate: float, seconds: float, options: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        """Starts a run, of which `finish` or `read` tells the end. `options` are the program's own."""
        headers = [word for header in load.headers for word in ("-H", header)]
        command = [str(self._program), "-r", str(rate), "-d", str(seconds), *headers, *options]
        command += [f"{HOST}:{server.port}", str(load.requests)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self._stage.callback(_end, process)
        if self._processor is not None:
            os.sched_setaffinity(process.pid, {self._processor})
        return process

    def run(self, server: Server, load: Load, rate: float, seconds: float, options: Sequence[str] = ()) -> Latencies:
        """A whole run: a second of warm-up, which is not measured, and then so many."""
        return self.read(self.start(server, load, rate, seconds, options), seconds + GRACE_SECONDS)

    def finish(self, process: subprocess.Popen[bytes]) -> Latencies:
        """Ends a run before its time."""
        process.send_signal(signal.SIGTERM)
        return self.read(process, GRACE_SECONDS)

    @staticmethod
    def read(process: subprocess.Popen[bytes], seconds_max: float) -> Latencies:
        """Waits for the end of a run. Raises BenchError where it failed."""
        printed, _ = process.communicate(timeout=seconds_max)
        if process.returncode != 0:
            raise BenchError(f"openloop ended with status {process.returncode}")
        return msgspec.json.decode(printed, type=Latencies)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.communicate()
