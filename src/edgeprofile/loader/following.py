"""What binds the overlay and the snapshots together: live layers catch up with it, and it forgets what none needs."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from edgeprofile import snapshot
from edgeprofile._live import Live as LiveReader
from edgeprofile.errors import LiveDamaged, StoreError
from edgeprofile.loader.base import Base
from edgeprofile.loader.live import Live
from edgeprofile.loader.overlay import Erasure, has_overlay, open_overlay
from edgeprofile.reader import LIVE_DATABASES, LIVE_META

VOID_AT_ONCE = 10_000


def follow(home: Path, folder: Path, manifest: snapshot.Manifest) -> None:
    """Brings the live layer of a snapshot up to the overlay as of now. It is made where there is none that can be used:
    nobody reads it before the snapshot is current."""
    with Base(folder, manifest) as base, _opened(folder, base) as live:
        if has_overlay(home):
            with open_overlay(home) as overlay, overlay.view() as view:
                live.catch_up(view)
    snapshot.sync(folder)


def _opened(folder: Path, base: Base) -> Live:
    try:
        return Live(folder, base)
    except LiveDamaged:
        for name in (snapshot.LIVE, snapshot.SEQUENCE):
            (folder / name).unlink(missing_ok=True)
        return Live(folder, base)


def is_live_whole(home: Path, manifest: snapshot.Manifest) -> bool:
    """Whether the live layer of the current snapshot can be written on. One that is damaged, it or its snapshot, is not
    mended: the next snapshot has another."""
    folder = snapshot.folder(home, manifest.name)
    try:
        snapshot.check_size(folder, manifest)
        with snapshot.updating(home), Base(folder, manifest) as base, Live(folder, base):
            return True
    except StoreError:
        return False


def void(home: Path, primaries: list[bytes], before: snapshot.Manifest | None) -> None:
    """Forgets what was said of these profiles up to the current snapshot, which evicted them.

    Until now it was only passed over, so that a rollback to one that has them had all of it.
    """
    for first in range(0, len(primaries), VOID_AT_ONCE):
        assert before is not None
        with snapshot.updating(home), open_overlay(home) as overlay, overlay.change() as change:
            for primary in primaries[first : first + VOID_AT_ONCE]:
                change.drop(primary, before.updates)


def forget(home: Path) -> None:
    """Lets the overlay forget the changes that every snapshot has itself, so that a live layer can be made anew."""
    kept = snapshot.manifests(home)
    if kept and has_overlay(home):
        with open_overlay(home) as overlay:
            overlay.forget(min(each.updates for each in kept))


def live_watermark_us(home: Path, manifest: snapshot.Manifest) -> int | None:
    """Up to where delta refreshes have brought rows into the live layer of a snapshot; None where there was none."""
    folder = snapshot.folder(home, manifest.name)
    with contextlib.suppress(StoreError, OSError):
        live = LiveReader(folder / snapshot.LIVE, folder / snapshot.SEQUENCE, LIVE_DATABASES)
        found = live.get(LIVE_META, b"watermark")
        return None if found is None else int.from_bytes(found, "big", signed=True)
    return None


def erased_upto(home: Path, within_s: float) -> int:
    """The last change that erased a profile so long ago that no snapshot of before it may be kept; 0 for none."""
    now = time.time()
    return max((each.sequence for _, each in erasures(home) if each.due_at(within_s) <= now), default=0)


def erasures(home: Path, primary: str | None = None) -> list[tuple[str, Erasure]]:
    """The erased profiles, by the keyed hashes of their ids, the first first; or that of one id, if it is erased.

    Those that were restored are none.
    """
    if not has_overlay(home):
        return []
    with open_overlay(home) as overlay, overlay.view() as view:
        only = None if primary is None else view.erased_key(primary.encode())
        found = [(key, each) for key, each in view.erasures() if not each.restored and only in (None, key)]
    return [(key.hex(), each) for key, each in sorted(found, key=lambda pair: pair[1].sequence)]


def restore(home: Path, primary: str | None) -> int:
    """Lets an erased profile, or all of them, come back with the next snapshot, as far as the model has them.

    Returns how many there were.
    """
    if not has_overlay(home):
        return 0
    with open_overlay(home) as overlay, overlay.change() as change:
        if primary is not None:
            return int(change.restore(primary.encode()))
        return change.restore_all()
