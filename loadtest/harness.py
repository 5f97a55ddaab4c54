"""What every program here shares: servers that it starts and ends, CPU of all their processes, pairs, and rows.

A program is a generator of rows handed to `run`, which reads the command line, prints each row as soon as it is
measured, and keeps those so far when interrupted. Two servers that are compared run at once on this machine and are
loaded in turn, so that both see the same noise; what counts is the median of the ratios of such pairs.
"""

from __future__ import annotations

import argparse
import http.client
import importlib.util
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Literal, NamedTuple, Self, TypeVar

import msgspec

from edgeprofile import demo, keys, settings
from edgeprofile.loader.refresh import refresh

T = TypeVar("T")
Peer = TypeVar("Peer")

HOST = "127.0.0.1"
CONNECTIONS = 16
PROFILES = 5_000
FOLDER = Path(__file__).resolve().parent
READY_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 30.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Debian keeps servers where only root's PATH has them.
PROGRAM_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
COLUMNS = ("what", "ours", "peer", "figure", "target", "verdict")
WIDTHS = (50, 22, 22, 26, 22, 0)


class BenchError(Exception):
    """A measurement that cannot be had; the message is one line."""


# --- figures and rows ----------------------------------------------------------------------------------------------


def number(figure: float) -> str:
    """A figure with the digits that it deserves: 1.083, 12.4, 48,213."""
    if abs(figure) >= 100:
        return f"{figure:,.0f}"
    return f"{figure:.1f}" if abs(figure) >= 10 else f"{figure:.3f}"


class Spread(NamedTuple):
    """The median of some figures, and the least and the greatest of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Iterable[float]) -> Self:
        """Raises ValueError where there is no figure."""
        known = sorted(figures)
        if not known:
            raise ValueError("no figures")
        return cls(statistics.median(known), known[0], known[-1])

    def __str__(self) -> str:
        if self.low == self.high:
            return number(self.median)
        return f"{number(self.median)} ({number(self.low)} to {number(self.high)})"


class Target(NamedTuple):
    """What a figure should be: at most, or at least, so much."""

    sign: Literal["≤", "≥"]
    limit: float

    def is_reached(self, figure: float) -> bool:
        return figure <= self.limit if self.sign == "≤" else figure >= self.limit

    def __str__(self) -> str:
        return f"{self.sign} {self.limit:,.0f}" if self.limit == int(self.limit) else f"{self.sign} {self.limit:.2f}"


class Row(msgspec.Struct, frozen=True):
    """A row of the table, as text. `peer` is empty where there is none, `target` where nothing was promised."""

    what: str
    ours: str = ""
    peer: str = ""
    figure: str = ""
    target: str = ""
    verdict: str = ""

    @classmethod
    def measured(
        cls,
        what: str,
        figure: Spread | float,
        target: Target | None = None,
        *,
        unit: str = "×",
        ours: str = "",
        peer: str = "",
    ) -> Self:
        """A row that was measured. Its verdict is by the median, "reached" or "missed", or none without a target."""
        spread = figure if isinstance(figure, Spread) else Spread.of([figure])
        if target is None:
            return cls(what, ours, peer, f"{spread} {unit}")
        verdict = "reached" if target.is_reached(spread.median) else "missed"
        return cls(what, ours, peer, f"{spread} {unit}", f"{target} {unit}", verdict)

    @classmethod
    def not_run(cls, what: str, why: str, target: Target | None = None, *, unit: str = "×") -> Self:
        return cls(what, target=f"{target} {unit}" if target else "", verdict=f"not run: {why}")

    def line(self) -> str:
        """The row in columns, for the terminal."""
        cells: tuple[str, ...] = msgspec.structs.astuple(self)
        return " ".join(f"{cell:{width}}" for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


def alternate(ours: Callable[[], T], peer: Callable[[], Peer], pairs: int) -> list[tuple[T, Peer]]:
    """Runs both so often, as (ours, peer) pairs. Who goes first alternates: a, b, b, a, a, b, …"""
    measured = []
    for pair in range(pairs):
        if pair % 2 == 0:
            first = ours()
            measured.append((first, peer()))
        else:
            second = peer()
            measured.append((ours(), second))
    return measured


# --- processes -----------------------------------------------------------------------------------------------------


class Process(NamedTuple):
    """A line of /proc/PID/stat: who it is, whose child, and the CPU time of it and of those it has waited for."""

    pid: int
    parent: int
    ticks: int


def tree(pids: Iterable[int]) -> list[Process]:
    """These processes and all that descend from them; one that ends meanwhile is left out."""
    wanted, everything = set(pids), []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name may hold spaces and brackets; only what follows it is regular.
            fields = stat.read_text().rpartition(") ")[2].split()
            everything.append(Process(int(stat.parent.name), int(fields[1]), sum(map(int, fields[11:15]))))
    # A child's pid may be less than its parent's, so one pass is not enough.
    while grown := {process.pid for process in everything if process.parent in wanted} - wanted:
        wanted |= grown
    return [process for process in everything if process.pid in wanted]


def cpu_s(*pids: int) -> float:
    """CPU seconds, user's and system's, that these processes and all their descendants have used so far."""
    return sum(process.ticks for process in tree(pids)) / TICKS_PER_S


def find_program(name: str) -> str | None:
    """Where a program is installed, None where it is not."""
    return shutil.which(name, path=PROGRAM_PATH)


def absent(*programs: str, modules: Sequence[str] = ()) -> str:
    """What of this is not installed, as words for a row; empty where all is there."""
    missing = [name for name in programs if find_program(name) is None]
    missing += [name for name in modules if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)} not installed" if missing else ""


def free_port() -> int:
    """A port that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


class Stage(ExitStack):
    """A temporary folder, and servers that run in it; when it is left, they are ended and it is removed."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory(prefix="edgeprofile-bench-")))
        self._started = 0

    def start(self, command: Sequence[str | Path], environment: dict[str, str] | None = None) -> Running:
        """Starts a server. What it prints is kept, to be shown if it does not come up."""
        self._started += 1
        log = self.folder / f"{self._started}.log"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("EDGEPROFILE_")}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(part) for part in command],
                env={**inherited, **(environment or {})},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # A Ctrl-C at the terminal is for us, who end the servers after what loads them.
                start_new_session=True,
            )
        self.callback(end, process)
        return Running(process, log)


class Running(NamedTuple):
    """A process that a Stage started, and the file with what it prints."""

    process: subprocess.Popen[bytes]
    log: Path

    def wait_until(self, is_ready: Callable[[], T]) -> T:
        """Polls until `is_ready` gives something true, and returns it. An OSError is a no.

        Raises BenchError where the process ends, or after a minute, with the end of what it printed.
        """
        give_up = time.monotonic() + READY_SECONDS_MAX
        while time.monotonic() < give_up and self.process.poll() is None:
            with suppress(OSError):
                if found := is_ready():
                    return found
            time.sleep(0.01)
        printed = self.log.read_text(errors="replace").strip().splitlines()[-8:]
        name = Path(str(self.process.args[0])).name if isinstance(self.process.args, list) else "server"
        raise BenchError("\n".join([f"{name} did not come up; it printed:", *printed]))


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process that a Stage started: by SIGTERM, if it heeds that, and then what it left of its children."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS_MAX)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# --- requests and loads --------------------------------------------------------------------------------------------


class Load(NamedTuple):
    """What wrk sends: always the same path, or, where a file is given, the requests in it in turn."""

    path: str
    headers: tuple[str, ...] = ()
    requests: Path | None = None


def walk(folder: Path, requests: Iterable[str], *headers: str) -> Load:
    """A load that goes through these requests again and again: paths, or "PATH BODY" for a POST."""
    file = Path(tempfile.mkstemp(".txt", dir=folder)[1])
    file.write_text("".join(f"{request}\n" for request in requests))
    return Load("/", headers, file)


class Measured(NamedTuple):
    """One run of wrk, and the server's CPU time meanwhile: `rate` requests a second, `cpu_us` microseconds for one."""

    requests: int
    seconds: float
    cpu_s: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds

    @property
    def cpu_us(self) -> float:
        return self.cpu_s / self.requests * 1e6


class Server(NamedTuple):
    """A server under test: all processes that are its, and the port on which it answers."""

    running: tuple[Running, ...]
    port: int

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(running.process.pid for running in self.running)

    def ask(self, path: str, *headers: str, method: str = "GET", body: bytes | None = None) -> tuple[int, bytes]:
        """Status and body of one request. A header is a line such as "Accept: text/plain"."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=30)
        try:
            connection.request(method, path, body, dict(header.split(": ", 1) for header in headers))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def wrk(self, load: Load, seconds: int, connections: int = CONNECTIONS) -> Measured:
        """Loads it to capacity for so long. Raises BenchError where a request failed."""
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s"]
        command += [word for header in load.headers for word in ("-H", header)]
        command += ["-s", str(FOLDER / "walk.lua")] if load.requests else []
        command += [f"http://{HOST}:{self.port}{load.path}", "--", str(load.requests)]
        before = cpu_s(*self.pids)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        used = cpu_s(*self.pids) - before
        counted = re.search(r"(\d+) requests in ([\d.]+)(ms|s|m)", done.stdout)
        failed = re.search(r"Non-2xx.*|Socket errors.*", done.stdout)
        if done.returncode or failed or not counted or counted[1] == "0":
            raise BenchError(f"wrk: {failed[0] if failed else (done.stderr or done.stdout).strip()}")
        return Measured(int(counted[1]), float(counted[2]) * {"ms": 0.001, "s": 1, "m": 60}[counted[3]], used)


def compare(
    ours: Server, peer: Server, load: Load, pairs: int, seconds: int, connections: int = CONNECTIONS
) -> list[tuple[Measured, Measured]]:
    """Pairs of runs of wrk, after one of a second each that does not count: what is lazy has happened then."""
    for server in (ours, peer):
        server.wrk(load, 1, connections)
    return alternate(lambda: ours.wrk(load, seconds, connections), lambda: peer.wrk(load, seconds, connections), pairs)


def cost(runs: Iterable[Measured]) -> str:
    """Medians of CPU a request and requests a second, as text: "24.1 µs, 47,213/s"."""
    known = list(runs)
    cpu_us, rate = statistics.median(run.cpu_us for run in known), statistics.median(run.rate for run in known)
    return f"{cpu_us:.1f} µs, {rate:,.0f}/s"


# --- the servers ---------------------------------------------------------------------------------------------------


class Shop(NamedTuple):
    """The sample shop, loaded, and a key of it that no limit touches."""

    file: Path
    loaded: settings.Settings
    key: str

    @property
    def header(self) -> str:
        return f"Authorization: Bearer {self.key}"


def make_shop(folder: Path, profiles: int = PROFILES) -> Shop:
    """Makes and loads the sample of so many profiles, whose ids count up from `demo.PROFILE_ID`."""
    file = demo.make_shop(folder, profiles)
    loaded = settings.load(file, {})
    refresh(loaded, demo.WORKSPACE, force=True, progress=lambda *_: None)
    return Shop(file, loaded, unlimited_key(loaded.data_dir, demo.WORKSPACE))


def unlimited_key(data_dir: Path, workspace: str) -> str:
    """A key with limits as high as they go."""
    rate = keys.RATE_MAX
    return keys.create(data_dir, workspace, rate=rate, burst_rate=rate, burst_seconds=0)[0]


def start_edgeprofile(
    stage: Stage, file: Path, *, workers: int = 1, environment: dict[str, str] | None = None
) -> Server:
    """`edgeprofile serve` with these settings, ready to answer. `environment` overrides settings, by their names."""
    variables, port = _listening(workers)
    running = stage.start([*demo.COMMAND, "serve", "--config", file], {**variables, **(environment or {})})
    server = Server((running,), port)
    running.wait_until(lambda: server.ask("/readyz")[0] == 200)
    return server


def start_constant(stage: Stage, file: Path, body_bytes: int, *, workers: int = 1) -> Server:
    """Granian with the options that these settings give our own server, answering anything with so many bytes."""
    variables, port = _listening(workers)
    running = stage.start([sys.executable, "-P", FOLDER / "constant.py", file, str(body_bytes)], variables)
    server = Server((running,), port)
    running.wait_until(lambda: len(server.ask("/")[1]) == body_bytes)
    return server


def _listening(workers: int) -> tuple[dict[str, str], int]:
    port = free_port()
    prefix = "EDGEPROFILE_SERVER__"
    return {f"{prefix}PORT": str(port), f"{prefix}WORKERS": str(workers), f"{prefix}ADMIN_PORT": "0"}, port


# --- the command line ----------------------------------------------------------------------------------------------


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options of every program; one may add its own."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--pairs", type=int, default=6, help="how often both of a pair are measured (default 6)")
    made.add_argument("--seconds", type=int, default=3, help="how long each run lasts (default 3)")
    made.add_argument("--quick", action="store_true", help="one pair of one second: shows that all of it runs")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    return made


Measure = Callable[[argparse.Namespace], Iterator[Row]]


def run(doc: str | None, measure: Measure, options: argparse.ArgumentParser | None = None) -> None:
    """A program's main: prints the rows that `measure` gives as they come, and exits.

    Status 0 whatever the verdicts, 1 where something could not be measured, 130 when interrupted; the rows so far are
    written in any case.
    """
    options = options or parser(doc)
    chosen = options.parse_args()
    if chosen.quick:
        chosen.pairs = chosen.seconds = 1
    if min(chosen.pairs, chosen.seconds) < 1:
        options.error("--pairs and --seconds take numbers from 1 on")
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, interrupt)
    rows: list[Row] = []
    status = 0
    print(Row(*COLUMNS).line(), flush=True)
    try:
        for row in measure(chosen):
            rows.append(row)
            print(row.line(), flush=True)
            if chosen.json:
                chosen.json.write_bytes(msgspec.json.encode(rows))
    except KeyboardInterrupt:
        status = 130
    except BenchError as error:
        print(error, file=sys.stderr)
        status = 1
    sys.exit(status)


def interrupt(*_: object) -> None:
    """Handles the first signal; a second must not cut short the ending of what was started."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt
