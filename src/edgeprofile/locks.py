"""Who may change a workspace: its one loader, while it loads; its one watcher, which has it loaded; and who may
send it to replicas.

Each holds a lock of the kernel's on a file with its pid in it. The lock goes with its process, however that ends; the
pid is for people.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from edgeprofile.errors import LoaderBusy
from edgeprofile.snapshot import make_folder

LOADER, WATCHER, SENDER = "loader.lock", "watch.lock", "replica.lock"
# Who only asks whether a lock is held has it for a moment.
TRIES, INTERVAL_S = 20, 0.05


class Watcher(NamedTuple):
    """The process that keeps a workspace fresh, or that did when it was killed."""

    pid: str
    alive: bool


@contextlib.contextmanager
def loading(home: Path) -> Iterator[None]:
    """Makes this process the workspace's only loader. Raises LoaderBusy where there is one already."""
    with _owned(home, LOADER, "is being loaded", "wait for it, or stop it"):
        yield


@contextlib.contextmanager
def watching(home: Path) -> Iterator[None]:
    """Makes this process the workspace's only watcher. Raises LoaderBusy where there is one already."""
    with _owned(home, WATCHER, "is being watched", "one watcher is enough: stop that one first"):
        yield


@contextlib.contextmanager
def sending(home: Path) -> Iterator[None]:
    """Makes this process the only one here that sends the workspace to replicas. Raises LoaderBusy otherwise."""
    with _owned(home, SENDER, "is being sent", "one sender is enough: wait for it, or stop it"):
        yield


def watcher(home: Path) -> Watcher | None:
    """The workspace's watcher; None where none was started, or the last was stopped in good order."""
    with contextlib.suppress(OSError), (home / WATCHER).open("rb") as file:
        alive = _is_held(file)
        pid = _pid(file)
        return Watcher(pid, alive) if pid else None
    return None


def loading_since(home: Path) -> float | None:
    """When the workspace's loader has begun, in Unix seconds; None where nobody loads it just now."""
    with contextlib.suppress(OSError), (home / LOADER).open("rb") as file:
        return os.fstat(file.fileno()).st_mtime if _is_held(file) else None
    return None


def _is_held(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


@contextlib.contextmanager
def _owned(home: Path, name: str, done: str, hint: str) -> Iterator[None]:
    make_folder(home.parent)
    make_folder(home)
    with (home / name).open("a+b") as file:
        if not _locked(file):
            raise LoaderBusy(f"workspace {home.name} {done} by process {_pid(file) or 'unknown'}", hint=hint)
        file.truncate(0)
        file.write(b"%d\n" % os.getpid())
        file.flush()
        try:
            yield
        finally:
            # The pid of who was killed stays.
            file.truncate(0)


def _locked(file: BinaryIO) -> bool:
    for _ in range(TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(INTERVAL_S)
    return False


def _pid(file: BinaryIO) -> str:
    file.seek(0)
    return file.read(20).decode("ascii", "replace").strip()
