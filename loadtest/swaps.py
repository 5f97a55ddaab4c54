"""Swaps of what a running server serves, each confirmed by the workers themselves."""

from __future__ import annotations

from pathlib import Path

from harness import Server

from edgeprofile import snapshot


class Swapper:
    """Swaps a workspace to and fro between its two snapshots, by the pointer that a publishing loader swaps too.

    No loader may be at work on the workspace: it would take away one of the two.
    """

    def __init__(self, home: Path, server: Server, *, workers: int = 1) -> None:
        self._home = home
        self._running = server.running[0]
        self._workers = workers
        self._names = snapshot.names(home)

    def swap(self) -> None:
        """Makes the other one current, and waits until every worker has said that it serves it. Raises BenchError."""
        now = snapshot.current(self._home)
        other = next(name for name in self._names if name != now)
        line = f"workspace {self._home.name}: serving snapshot {other},"
        before = self._running.log.read_text().count(line)
        snapshot.point_current(self._home, other)
        self._running.wait_until(lambda: self._running.log.read_text().count(line) >= before + self._workers)
