"""What a lookup costs, against the floor: Granian's ASGI answering a constant of the same size.

Both servers run at once on this machine, one worker each; `wrk` loads them in turn, so that both see the same noise.
Printed are CPU microseconds of all server processes a request, requests a second, and the medians of the ratios of the
pairs. Run it alone: `python loadtest/bench_lookup.py [--pairs N] [--seconds S]`. Needs `wrk`.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from edgeprofile import demo, keys, settings
from edgeprofile.loader.refresh import refresh
from edgeprofile.server import free_port

CONNECTIONS = 16
CONSTANT = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({{"type": message["type"] + ".complete"}})
            if message["type"] == "lifespan.shutdown":
                return
    await send({{"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}})
    await send({{"type": "http.response.body", "body": b"x" * {size}}})
"""


class Measured(NamedTuple):
    """One run of wrk."""

    cpu_us: float
    rate: float


class Server(NamedTuple):
    """A server under test: its first process, and what to ask of it."""

    process: subprocess.Popen[bytes]
    url: str
    header: str

    def cpu_s(self) -> float:
        """CPU time of the process and its children."""
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                name_and_rest = stat.read_text().rsplit(") ", 1)
            except OSError:
                continue
            fields = name_and_rest[1].split()
            if self.process.pid in (int(stat.parent.name), int(fields[1])):
                ticks += int(fields[11]) + int(fields[12])
        return ticks / 100

    def run(self, seconds: int) -> Measured:
        """Loads it for so long."""
        before = self.cpu_s()
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-H", self.header, self.url]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        if "Non-2xx" in printed:
            raise SystemExit(f"some requests failed:\n{printed}")
        requests = int(re.findall(r"(\d+) requests in", printed)[0])
        return Measured((self.cpu_s() - before) / requests * 1e6, requests / seconds)


def main() -> None:
    """Prints the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--pairs", type=int, default=5)
    arguments.add_argument("--seconds", type=int, default=4)
    chosen = arguments.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("bench_lookup: needs wrk (Debian: apt install wrk)")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        served, size = start_edgeprofile(folder, stack)
        constant = start_constant(folder, size, stack)
        shapes = {
            "by id, whole": f"/v1/profiles/id/{demo.PROFILE_ID}",
            "by id, two sections": f"/v1/profiles/id/{demo.PROFILE_ID}?fields=attributes,audiences",
            "by email": "/v1/profiles/identifier/email/jane@example.com",
        }
        print(f"{'lookup':24}{'CPU µs':>10}{'constant':>10}{'ratio':>8}{'rate':>10}{'constant':>10}{'ratio':>8}")
        for name, path in shapes.items():
            compare(name, served._replace(url=served.url + path), constant, chosen.pairs, chosen.seconds)


def compare(name: str, ours: Server, floor: Server, pairs: int, seconds: int) -> None:
    """Runs them in turn and prints the medians."""
    measured = [(ours.run(seconds), floor.run(seconds)) for _ in range(pairs)]

    def median(of: list[float]) -> float:
        return statistics.median(of)

    cpu = median([a.cpu_us / b.cpu_us for a, b in measured])
    rate = median([a.rate / b.rate for a, b in measured])
    print(
        f"{name:24}{median([a.cpu_us for a, _ in measured]):10.1f}"
        f"{median([b.cpu_us for _, b in measured]):10.1f}{cpu:8.2f}"
        f"{median([a.rate for a, _ in measured]):10,.0f}{median([b.rate for _, b in measured]):10,.0f}{rate:8.2f}",
        flush=True,
    )


def start_edgeprofile(folder: Path, stack: ExitStack) -> tuple[Server, int]:
    """The sample shop, served with limits that do not get in the way; and the size of the answer."""
    file = demo.make_shop(folder / "shop", 5_000)
    loaded = settings.load(file, {})
    refresh(loaded, demo.WORKSPACE, force=True, progress=lambda *_: None)
    secret, _ = keys.create(loaded.data_dir, demo.WORKSPACE, rate=1e6, burst_rate=1e6, burst_seconds=0)
    port = free_port("127.0.0.1", 18_000)
    environment = {"EDGEPROFILE_SERVER__PORT": str(port), "PATH": "/usr/bin:/bin"}
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeprofile", "serve", "--config", str(file)], env=environment, cwd=folder
    )
    stack.callback(stop, process)
    url, header = f"http://127.0.0.1:{port}", f"Authorization: Bearer {secret}"
    answer = wait_for(f"{url}/v1/profiles/id/{demo.PROFILE_ID}", header)
    return Server(process, url, header), len(answer)


def start_constant(folder: Path, size: int, stack: ExitStack) -> Server:
    """Granian with the same options, answering as many bytes."""
    (folder / "constant.py").write_text(CONSTANT.format(size=size))
    port = free_port("127.0.0.1", 19_000)
    granian = [sys.executable, "-m", "granian", "--interface", "asgi", "--http", "1", "--no-ws", "--loop", "uvloop"]
    process = subprocess.Popen([*granian, "--port", str(port), "--no-log", "constant:app"], cwd=folder)
    stack.callback(stop, process)
    wait_for(f"http://127.0.0.1:{port}/", "X-None: 1")
    return Server(process, f"http://127.0.0.1:{port}/", "X-None: 1")


def wait_for(url: str, header: str) -> bytes:
    """The first good answer; gives up after twenty seconds."""
    name, _, value = header.partition(": ")
    for _ in range(200):
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers={name: value}), timeout=5) as answer:
                body: bytes = answer.read()
                return body
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"{url} did not answer")


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a server that this program started."""
    process.terminate()
    process.wait(30)


if __name__ == "__main__":
    main()
