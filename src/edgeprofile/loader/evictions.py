"""Evictions: how many profiles of the snapshot before are not in the one that is being built."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeprofile import snapshot
from edgeprofile._tree import Tree
from edgeprofile.errors import StoreError
from edgeprofile.reader import DATABASES, PROFILES


class Kept:
    """Counts the new snapshot's profiles that the one before has too; None before the first."""

    def __init__(self, home: Path, before: snapshot.Manifest | None) -> None:
        self._profiles = before.profiles if before is not None else 0
        self._kept = 0
        self._tree: Tree | None = None
        self._known = True
        if before is not None:
            file = snapshot.folder(home, before.name) / snapshot.PROFILES
            # A damaged one is no reason not to publish a good one.
            try:
                self._tree = Tree(file, before.file_bytes, DATABASES)
            except (StoreError, OSError):
                self._known = False

    def add(self, entries: Sequence[tuple[bytes, bytes]]) -> None:
        """Takes in profiles of the new snapshot, by their primary ids."""
        if self._tree is None:
            return
        try:
            self._kept += self._tree.count(PROFILES, entries)
        except StoreError:
            self._tree, self._known = None, False

    @property
    def evicted(self) -> int | None:
        """How many were not kept; None where the snapshot before is damaged."""
        return self._profiles - self._kept if self._known else None
