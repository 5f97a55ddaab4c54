"""Disks of a few megabytes, in a mount namespace of the tests' own: what fills one fills nobody else's."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18
PAGE_BYTES = 4_096
_LIBC = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: bytes | int | None) -> None:
    if getattr(_LIBC, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


class SmallDisk:
    """A folder that is a file system of its own. The processes that this thread starts from then on see it too."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root may mount a disk")
        folder.mkdir(parents=True)
        _call("unshare", CLONE_NEWNS)
        _call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
        _call("mount", b"none", os.fsencode(folder), b"tmpfs", 0, b"mode=700,size=%d" % size_bytes)
        self._folder = folder
        self._filler = folder / "filler"

    @property
    def free_bytes(self) -> int:
        found = os.statvfs(self._folder)
        return found.f_bavail * found.f_frsize

    def fill(self, but_for_bytes: int = 0) -> None:
        """Has a file take all room, but for so much, that is there when it is removed."""
        self.free()
        taken = self.free_bytes - but_for_bytes
        with self._filler.open("wb") as file:
            if taken > 0:
                os.posix_fallocate(file.fileno(), 0, taken // PAGE_BYTES * PAGE_BYTES)

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)

    def unmount(self) -> None:
        """Whatever still has a file of it open."""
        _call("umount2", os.fsencode(self._folder), 2)
