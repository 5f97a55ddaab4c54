"""What a worker keeps: memory beyond the snapshots that it has mapped, and open descriptors."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from harness import BenchError, Server, tree

MIB = 1024 * 1024
SNAPSHOT = "profiles.mdb"


class Kept(NamedTuple):
    """What a process keeps at a moment."""

    bytes: int
    descriptors: int


def worker_pids(server: Server) -> list[int]:
    """The workers: those processes of a server that have a snapshot mapped. Raises BenchError for none."""
    found = [process.pid for process in tree(server.pids) if mapped(process.pid, SNAPSHOT)]
    if not found:
        raise BenchError("no worker has a snapshot mapped")
    return found


def kept_by(pid: int) -> Kept:
    """Now. The bytes are those of every page that is resident in any of its mappings, code of libraries that other
    processes share included, but for mappings of a snapshot.
    """
    total, counts = 0, False
    for line in _read(pid, "smaps").splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):
            counts = SNAPSHOT not in rest
        elif name == "Rss:" and counts:
            total += int(rest.split()[0]) * 1024
    return Kept(total, len(list(Path(f"/proc/{pid}/fd").iterdir())))


def mapped(pid: int, file_name: str) -> int:
    """How many files of that name a process has mapped."""
    return len({line.split()[4] for line in _read(pid, "maps").splitlines() if f"/{file_name}" in line})


def _read(pid: int, name: str) -> str:
    """A file of /proc; nothing where the process is gone."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/{name}").read_text()
    return ""
