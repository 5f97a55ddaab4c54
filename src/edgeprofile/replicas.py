"""Snapshots by way of an object store: one machine sends what it publishes, others fetch it and publish it too.

    <url>/<workspace>/CURRENT                            the snapshot to fetch: its name, and the SHA-256 of its list
    <url>/<workspace>/snapshots/<name>/manifest.json     its list: its manifest, and the parts of its profiles.mdb
    <url>/<workspace>/parts/<SHA-256>                    a part, named by what is in it

What is sent goes there in the reverse order, parts first, and each object is put at once or not at all: whatever breaks
off, CURRENT names a snapshot that is whole. What is removed goes in this order. A part that is there is not sent again,
and one that the replica has in its current snapshot is not fetched. One machine sends a workspace, any number fetch it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from edgeprofile import locks, snapshot
from edgeprofile.errors import (
    DiskFull,
    FormatUnsupported,
    NoSnapshot,
    SnapshotDamaged,
    StoreError,
    UsageError,
)
from edgeprofile.loader.following import follow
from edgeprofile.objectstore import SEND_AGAIN, Store
from edgeprofile.reader import reading_back
from edgeprofile.settings import Settings

FORMAT = 1
PARTS = "parts"
# Small enough that little is sent twice and that few in memory at once take little of it.
PART_BYTES = 16 * 1024 * 1024
STREAMS = 4
POINTER_BYTES_MAX = 1_000
LIST_BYTES_MAX = 256 * 1024 * 1024
# A snapshot that was removed while it was fetched leads to the next; nobody publishes faster than that forever.
TRIES = 3
# The crash points of `send`, in order.
STEPS = ("part_sent", "parts_sent", "list_sent", "current_sent", "lists_removed", "parts_removed")

Item = TypeVar("Item")
Progress = Callable[[str, float, float], None]
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot in the store: its manifest as the sender has it, and its parts in their order, all of one size but
    the last."""

    format: int = FORMAT
    part_bytes: Annotated[int, Meta(ge=1, le=1 << 30)]
    parts: list[Sha256]
    manifest: msgspec.Raw


class Pointer(NamedTuple):
    """What CURRENT in the store says."""

    snapshot: str
    sha256: str


class Copied(NamedTuple):
    """What was done: `parts` is how many the snapshot has, `moved` how many of them went over the line."""

    outcome: Literal["sent", "published", "unchanged"]
    snapshot: str
    profiles: int = 0
    parts: int = 0
    moved: int = 0
    moved_bytes: int = 0
    seconds: float = 0.0

    def line(self, workspace: str) -> str:
        """One line for a log."""
        done = f"{workspace}: {self.outcome}"
        if self.outcome != "unchanged":
            megabytes = f"{self.moved_bytes / 1e6:,.1f} MB"
            done += f", {self.profiles:,} profiles, {self.moved:,} of {self.parts:,} parts ({megabytes}) copied"
            done += f" in {self.seconds:.1f} s"
        return f"{done} (snapshot {self.snapshot})"


# --- sending -------------------------------------------------------------------------------------------------------


def send(
    store: Store,
    settings: Settings,
    name: str,
    *,
    force: bool = False,
    progress: Progress = lambda *_: None,
    at: snapshot.AtStep = snapshot.nothing,
    part_bytes: int = PART_BYTES,
) -> Copied:
    """Sends a workspace's current snapshot, unless it is there; `force` sends even the parts that are there.

    Raises NoSnapshot or SnapshotDamaged where there is nothing good to send, LoaderBusy where it is being sent already.
    """
    began = time.monotonic()
    home = snapshot.home(settings.data_dir, name)
    with _on_disk("read"), locks.sending(home):
        manifest = snapshot.current_manifest(home)
        if not force and _is_sent(store, name, manifest):
            return Copied("unchanged", manifest.name)
        folder = snapshot.folder(home, manifest.name)
        # Opened once: what a load removes meanwhile stays readable.
        with (folder / snapshot.PROFILES).open("rb") as file:
            raw = msgspec.Raw((folder / snapshot.MANIFEST).read_bytes())
            parts, sha256 = _hashes(file, part_bytes, progress)
            if sha256 != manifest.sha256:
                raise SnapshotDamaged(f"snapshot {manifest.name}: {snapshot.PROFILES} does not match its SHA-256")
            store.remove_unfinished(name)
            there = {} if force else store.sizes(f"{name}/{PARTS}")
            missing = {
                part: number
                for number, part in enumerate(parts)
                if there.get(_part(name, part)) != _size(manifest, part_bytes, number)
            }

            def put(item: tuple[str, int]) -> int:
                part, number = item
                content = _read_at(file, number * part_bytes, part_bytes)
                _check(content, part)
                store.put(_part(name, part), content)
                at("part_sent")
                return len(content)

            moved_bytes = _in_streams(put, missing.items(), "send", progress)
        at("parts_sent")
        listing = msgspec.json.encode(Listing(part_bytes=part_bytes, parts=parts, manifest=raw))
        store.put(_list(name, manifest.name), listing)
        at("list_sent")
        store.put(f"{name}/{snapshot.CURRENT}", f"{manifest.name} {_sha256(listing)}\n".encode())
        at("current_sent")
        _prune(store, name, manifest.name, settings.workspaces[name].keep, at)
    seconds = time.monotonic() - began
    return Copied("sent", manifest.name, manifest.profiles, len(parts), len(missing), moved_bytes, seconds)


def _is_sent(store: Store, name: str, manifest: snapshot.Manifest) -> bool:
    with contextlib.suppress(NoSnapshot, SnapshotDamaged):
        return _pointer(store, name).snapshot == manifest.name
    return False


def _prune(store: Store, name: str, current: str, keep: int, at: snapshot.AtStep) -> None:
    """Removes all but the current snapshot and the `keep` newest others, then the parts that none of these has."""
    lists = {path: path.split("/")[2] for path in store.sizes(f"{name}/{snapshot.SNAPSHOTS}") if path.count("/") == 3}
    others = sorted(found for found in lists.values() if found != current and snapshot.NAME.fullmatch(found))
    store.remove(path for path, found in lists.items() if found in others[:-keep])
    at("lists_removed")
    needed: set[str] = set()
    for found in (current, *others[-keep:]):
        content = store.get(_list(name, found), LIST_BYTES_MAX)
        try:
            needed |= {_part(name, part) for part in _read_list(content, found).parts}
        except (SnapshotDamaged, FormatUnsupported):
            return  # what it needs is not known, so nothing is removed
    store.remove(path for path in store.sizes(f"{name}/{PARTS}") if path not in needed and _is_part(path))
    at("parts_removed")


# --- fetching ------------------------------------------------------------------------------------------------------


def fetch(
    store: Store,
    settings: Settings,
    name: str,
    *,
    force: bool = False,
    progress: Progress = lambda *_: None,
    at: snapshot.AtStep = snapshot.nothing,
) -> Copied:
    """Publishes here what was sent last, unless it is current here; `force` fetches even that again.

    Whatever goes wrong, the snapshot that was current stays current. Raises NoSnapshot where nothing was sent yet,
    SnapshotDamaged where what was sent is not whole, FormatUnsupported where this build does not read it, DiskFull or
    StoreError where it cannot be written, LoaderBusy, and UsageError for a workspace that is loaded here, unless by
    `force`.
    """
    with _on_disk("written"):
        pointer = _pointer(store, name)
        for _ in range(TRIES - 1):
            try:
                return _take(store, settings, name, pointer, force, progress, at)
            except SnapshotDamaged:
                # Perhaps it has been removed meanwhile, because there are newer ones.
                before, pointer = pointer, _pointer(store, name)
                if pointer == before:
                    raise
        return _take(store, settings, name, pointer, force, progress, at)


def _take(
    store: Store,
    settings: Settings,
    name: str,
    pointer: Pointer,
    force: bool,
    progress: Progress,
    at: snapshot.AtStep,
) -> Copied:
    began = time.monotonic()
    home = snapshot.home(settings.data_dir, name)
    if not force and _current(home) == pointer.snapshot:
        return Copied("unchanged", pointer.snapshot)
    content = store.get(_list(name, pointer.snapshot), LIST_BYTES_MAX)
    if content is not None and _sha256(content) != pointer.sha256:
        raise SnapshotDamaged(f"snapshot {pointer.snapshot}: its list in the store is damaged", hint=SEND_AGAIN)
    listing = _read_list(content, pointer.snapshot)
    manifest = snapshot.parse_manifest(bytes(listing.manifest), pointer.snapshot)
    if len(listing.parts) != -(-manifest.file_bytes // listing.part_bytes):
        raise SnapshotDamaged(f"snapshot {pointer.snapshot}: its list in the store is damaged", hint=SEND_AGAIN)
    moved = moved_bytes = 0
    with locks.loading(home):
        if not force:
            _refuse_own(home)
        if not force and pointer.snapshot in snapshot.names(home) and _is_whole(home, manifest):
            # One that was rolled back to, where it was made.
            snapshot.point_current(home, manifest.name, at)
        else:
            building = snapshot.start_build(home)
            try:
                moved, moved_bytes = _fetch_parts(store, name, home, building, listing, manifest, progress)
                progress("publish", 0, 0)
                _publish(home, building, manifest, at)
            finally:
                snapshot.clear(home)
        with contextlib.suppress(OSError):
            snapshot.prune(home, settings.workspaces[name].keep)
    seconds = time.monotonic() - began
    return Copied("published", manifest.name, manifest.profiles, len(listing.parts), moved, moved_bytes, seconds)


def _current(home: Path) -> str | None:
    """The current snapshot's name, if its file looks right."""
    with contextlib.suppress(StoreError):
        return snapshot.current_manifest(home).name
    return None


def _is_whole(home: Path, manifest: snapshot.Manifest) -> bool:
    with contextlib.suppress(SnapshotDamaged, FormatUnsupported):
        folder = snapshot.folder(home, manifest.name)
        snapshot.check_hash(folder, manifest)
        return snapshot.read_manifest(folder) == manifest
    return False


def _refuse_own(home: Path) -> None:
    """Of two who publish in turn, neither would know what is served. Only a load lists the rows that it refused."""
    current = _current(home)
    if current is not None and (snapshot.folder(home, current) / snapshot.REJECTS).exists():
        raise UsageError(
            f"workspace {home.name} is loaded here, so it cannot be a replica",
            hint="where it is not loaded here any more, make it one by --force",
        )


def _fetch_parts(
    store: Store,
    name: str,
    home: Path,
    building: Path,
    listing: Listing,
    manifest: snapshot.Manifest,
    progress: Progress,
) -> tuple[int, int]:
    """Puts profiles.mdb together in `building`; returns how many parts came from the store, and their bytes."""
    with contextlib.ExitStack() as files:
        file = files.enter_context((building / snapshot.PROFILES).open("wb"))
        old, here = None, dict[str, int]()
        if (current := _current(home)) is not None:
            old = files.enter_context((snapshot.folder(home, current) / snapshot.PROFILES).open("rb"))
            here = {part: number for number, part in enumerate(_hashes(old, listing.part_bytes, progress)[0])}

        def take(item: tuple[int, str]) -> int:
            number, part = item
            size = _size(manifest, listing.part_bytes, number)
            if old is not None and part in here:
                content: bytes | None = _read_at(old, here[part] * listing.part_bytes, size)
            else:
                content = store.get(_part(name, part), size)
            if content is None:
                raise SnapshotDamaged(f"snapshot {manifest.name}: a part of it is not in the store", hint=SEND_AGAIN)
            _check(content, part)
            _write_at(file, number * listing.part_bytes, content)
            return 0 if part in here else size

        moved_bytes = _in_streams(take, list(enumerate(listing.parts)), "fetch", progress)
    return sum(part not in here for part in listing.parts), moved_bytes


def _publish(home: Path, building: Path, manifest: snapshot.Manifest, at: snapshot.AtStep) -> None:
    """The same steps as those of a load, but that the manifest is there already."""

    def manifest_of(file_bytes: int, sha256: str) -> snapshot.Manifest:
        if (file_bytes, sha256) != (manifest.file_bytes, manifest.sha256):
            raise SnapshotDamaged(f"snapshot {manifest.name}: what was fetched does not match its SHA-256")
        return manifest

    def verify(folder: Path, made: snapshot.Manifest) -> None:
        read_back(folder, made)
        # A snapshot of that name is here only when it is damaged, or to be replaced by force.
        with contextlib.suppress(FileNotFoundError):
            snapshot.folder(home, made.name).rename(building.with_name(f"{snapshot.BUILDING}{made.name}"))

    # Nothing is live of a replica, but it has the files in which it would be.
    with reading_back(building) as read_back:
        snapshot.publish(home, building, manifest_of, verify, partial(follow, home), manifest.file_bytes, at)


# --- both ways -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _on_disk(done: str) -> Iterator[None]:
    """What goes wrong with our own files is said as of other snapshots."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull from error
        raise StoreError(f"the snapshot could not be {done}: {error.strerror or type(error).__name__}") from error


def _part(name: str, part: str) -> str:
    return f"{name}/{PARTS}/{part}"


def _is_part(path: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}", path.rpartition("/")[2]) is not None


def _list(name: str, of: str) -> str:
    return f"{name}/{snapshot.SNAPSHOTS}/{of}/{snapshot.MANIFEST}"


def _size(manifest: snapshot.Manifest, part_bytes: int, number: int) -> int:
    return min(part_bytes, manifest.file_bytes - number * part_bytes)


def _hashes(file: BinaryIO, part_bytes: int, progress: Progress) -> tuple[list[str], str]:
    """The SHA-256 of each part of a file, and that of the whole file."""
    parts, whole, size = [], hashlib.sha256(), os.fstat(file.fileno()).st_size
    while content := file.read(part_bytes):
        parts.append(_sha256(content))
        whole.update(content)
        progress("hash", len(parts), -(-size // part_bytes))
    return parts, whole.hexdigest()


def _read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    return os.pread(file.fileno(), size, offset)


def _write_at(file: BinaryIO, offset: int, content: bytes) -> None:
    written = 0
    while written < len(content):
        written += os.pwrite(file.fileno(), content[written:], offset + written)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _check(content: bytes, part: str) -> None:
    if _sha256(content) != part:
        raise SnapshotDamaged("a part does not match its SHA-256", hint=SEND_AGAIN)


def _in_streams(work: Callable[[Item], int], items: Collection[Item], stage: str, progress: Progress) -> int:
    """Does the work on some items at a time; returns the sum of what it gives. The first error ends it."""
    total = done = 0
    progress(stage, 0, len(items))
    with ThreadPoolExecutor(STREAMS) as pool:
        for moved in pool.map(work, items):
            total, done = total + moved, done + 1
            progress(stage, done, len(items))
    return total


def _pointer(store: Store, name: str) -> Pointer:
    """What CURRENT in the store says. Raises NoSnapshot, or SnapshotDamaged where that makes no sense."""
    content = store.get(f"{name}/{snapshot.CURRENT}", POINTER_BYTES_MAX)
    if content is None:
        raise NoSnapshot(f"no snapshot of {name} is in the store", hint="send one: edgeprofile replicate --to URL")
    found = re.fullmatch(rf"({snapshot.NAME.pattern}) ([0-9a-f]{{64}})\n", content.decode("ascii", "replace"))
    if found is None:
        raise SnapshotDamaged(f"{snapshot.CURRENT} in the store does not name a snapshot", hint=SEND_AGAIN)
    return Pointer(found[1], found[2])


def _read_list(content: bytes | None, of: str) -> Listing:
    """A snapshot's list. Raises SnapshotDamaged, or FormatUnsupported."""
    if content is None:
        raise SnapshotDamaged(f"snapshot {of}: its list is not in the store", hint=SEND_AGAIN)
    try:
        version = msgspec.json.decode(content, type=dict[str, msgspec.Raw])["format"]
        if bytes(version) != b"%d" % FORMAT:
            raise FormatUnsupported(
                f"snapshot {of} was sent in format {bytes(version)[:20].decode()}; this build reads {FORMAT}",
                hint="run the same version of edgeprofile on both sides",
            )
        return msgspec.json.decode(content, type=Listing)
    except (msgspec.MsgspecError, KeyError, UnicodeDecodeError):
        raise SnapshotDamaged(f"snapshot {of}: its list in the store is damaged", hint=SEND_AGAIN) from None
