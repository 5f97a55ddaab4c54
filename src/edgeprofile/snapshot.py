"""The files of a workspace: what each is called, and how a snapshot is published, found, pruned and rolled back.

    <home>/CURRENT                                       the name of the published snapshot, one line
    <home>/loader.lock  watch.lock  replica.lock         held by the one loader, watcher and sender: see locks.py
    <home>/refresh.json                                  how the last refreshes ended: see outcomes.py
    <home>/updates.mdb  updates.mdb-lock                 what updates have said: see loader/overlay.py
    <home>/updates.lock                                  held by who changes the overlay and the live layer together
    <home>/updates.sock                                  where the watcher takes updates: see wire.py
    <home>/snapshots/<UTC time>-<short hash>/            a published snapshot, never changed:
        profiles.mdb  manifest.json  rejects.ndjson
        live.mdb  live.seq                               what changed since: see loader/live.py
    <home>/snapshots/.building-<pid>/                    one that is being built
    <home>/.scratch/                                     what DuckDB spills meanwhile

`home` is DATA/<workspace>. Readers need `CURRENT` and what it names, nothing else.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from edgeprofile.errors import (
    EdgeprofileError,
    FormatUnsupported,
    NoSnapshot,
    SnapshotDamaged,
    StoreError,
)
from edgeprofile.priority import leave_a_processor

MANIFEST_FORMAT = 3
CURRENT = "CURRENT"
SNAPSHOTS = "snapshots"
PROFILES = "profiles.mdb"
LIVE = "live.mdb"
SEQUENCE = "live.seq"
UPDATES = "updates.mdb"
UPDATES_LOCK = "updates.lock"
MANIFEST = "manifest.json"
REJECTS = "rejects.ndjson"
BUILDING = ".building-"
SCRATCH = ".scratch"
LOWEST_PRIORITY = 19
NAME = re.compile(r"\d{8}T\d{6}\.\d{6}Z-[0-9a-f]{8}")

# Why a row is left out of what was erased, or is marked as deleted. Such rows are never listed.
UNLISTED = ERASED, DELETED = "erased", "deleted"
# What is left out without a fault of its model: such rows, and events that might be served if their profiles were.
WITHOUT_PROFILE = (*UNLISTED, "refused_profile", "unknown_profile")

# The crash points of `publish`, in order. After any of them the readers see the old snapshot or the new one, whole.
STEPS = (
    "built",
    "truncated",
    "synced",
    "hashed",
    "verified",
    "live_made",
    "manifest_synced",
    "caught_up",
    "renamed",
    "folder_synced",
    "current_written",
    "current_swapped",
    "current_synced",
)

AtStep = Callable[[str], None]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What `manifest.json` says of a snapshot. Times are seconds since 1970; `sequence` orders snapshots.

    `content` is a hash of all that is served but the time of the refresh, `model` of what it was made by.
    `evicted` counts the profiles of the snapshot before that this one lacks; None where that one is damaged.
    `forced` tells of one that no guard has looked at. Without a model of events, `events_schema` is None, unless
    updates have brought some; `histories` counts the profiles that have events. `updates` is the overlay's last change
    that is in it, and `made` counts the profiles that only updates made. `watermark_us` is the latest time of update of
    the model's rows, behind which a delta refresh looks on; None where they have none.
    """

    format: int = MANIFEST_FORMAT
    name: str
    sequence: int
    previous: str | None
    schema: dict[str, object]
    profiles: int
    identifiers: dict[str, int]
    segments: int
    file_bytes: int
    record_bytes: int
    sha256: str
    content: str
    model: str
    started_at: float
    finished_at: float
    rows: int
    rejected: dict[str, int]
    events_schema: dict[str, object] | None
    events: int
    histories: int
    event_segments: int
    event_bytes: int
    event_rows: int
    events_rejected: dict[str, int]
    evicted: int | None = None
    forced: bool = False
    updates: int = 0
    made: int = 0
    watermark_us: int | None = None

    @property
    def refused(self) -> int:
        """How many rows of either model cannot be served."""
        return faults(self.rejected) + faults(self.events_rejected)


def faults(rejected: dict[str, int]) -> int:
    """How many rows of these, counted by reason, are a fault of the model's."""
    return sum(count for reason, count in rejected.items() if reason not in WITHOUT_PROFILE)


def home(data_dir: Path, workspace: str) -> Path:
    """The folder of a workspace."""
    return data_dir / workspace


def folder(home: Path, name: str) -> Path:
    """The folder of a snapshot."""
    return home / SNAPSHOTS / name


def name_of(finished_at: float, content: str) -> str:
    """The name of a snapshot that was finished then and has that content."""
    moment = dt.datetime.fromtimestamp(finished_at, dt.UTC)
    return f"{moment:%Y%m%dT%H%M%S.%f}Z-{content[:8]}"


def sync(path: Path) -> None:
    """fsync of a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, content: bytes) -> None:
    """Writes a new file and syncs it, or leaves none; the caller makes its name durable."""
    try:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise


# --- reading -------------------------------------------------------------------------------------------------------


def current(home: Path) -> str:
    """The name of the published snapshot. Raises NoSnapshot, or SnapshotDamaged where CURRENT makes no sense."""
    try:
        name = (home / CURRENT).read_bytes()[:100].decode("ascii", "replace").strip()
    except FileNotFoundError:
        raise NoSnapshot("nothing is published yet", hint="run: edgeprofile load") from None
    if not NAME.fullmatch(name):
        raise SnapshotDamaged(f"{CURRENT} does not hold the name of a snapshot")
    return name


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a snapshot. Raises SnapshotDamaged or FormatUnsupported."""
    try:
        content = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise SnapshotDamaged(f"snapshot {folder.name}: no {MANIFEST} ({error.strerror})") from None
    return parse_manifest(content, folder.name)


def parse_manifest(content: bytes, name: str) -> Manifest:
    """The manifest of the snapshot of that name. Raises SnapshotDamaged or FormatUnsupported."""
    try:
        version = msgspec.json.decode(content, type=dict[str, msgspec.Raw])["format"]
        if bytes(version) != b"%d" % MANIFEST_FORMAT:
            raise FormatUnsupported(
                f"snapshot {name} has format {bytes(version)[:20].decode()}; this build reads {MANIFEST_FORMAT}",
                hint="run the version of edgeprofile that wrote it, or load anew",
            )
        manifest = msgspec.json.decode(content, type=Manifest)
    except (msgspec.MsgspecError, KeyError, UnicodeDecodeError):
        raise SnapshotDamaged(f"snapshot {name}: {MANIFEST} is damaged") from None
    if manifest.name != name:
        raise SnapshotDamaged(f"snapshot {name}: {MANIFEST} is another snapshot's")
    return manifest


def current_manifest(home: Path) -> Manifest:
    """The manifest of the published snapshot, whose file has the length that it says.

    Raises NoSnapshot, SnapshotDamaged or FormatUnsupported.
    """
    here = folder(home, current(home))
    manifest = read_manifest(here)
    check_size(here, manifest)
    return manifest


def names(home: Path) -> list[str]:
    """The names of all published snapshots, by name. What else lies in the folder is not ours and is ignored."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(n for n in os.listdir(home / SNAPSHOTS) if NAME.fullmatch(n))
    return []


def manifests(home: Path) -> list[Manifest]:
    """The readable manifests, the newest first."""
    found = []
    for name in names(home):
        with contextlib.suppress(SnapshotDamaged, FormatUnsupported):
            found.append(read_manifest(folder(home, name)))
    return sorted(found, key=lambda m: m.sequence, reverse=True)


def check_size(folder: Path, manifest: Manifest) -> None:
    """The cheap half of a check: a file that is missing or has another length is refused."""
    try:
        size = (folder / PROFILES).stat().st_size
    except OSError as error:
        raise SnapshotDamaged(f"snapshot {folder.name}: no {PROFILES} ({error.strerror})") from None
    if size != manifest.file_bytes:
        raise SnapshotDamaged(f"snapshot {folder.name}: {PROFILES} has {size} bytes, not {manifest.file_bytes}")


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_hash(folder: Path, manifest: Manifest) -> None:
    """The dear half: reads the whole file."""
    check_size(folder, manifest)
    if hash_file(folder / PROFILES) != manifest.sha256:
        raise SnapshotDamaged(f"snapshot {folder.name}: {PROFILES} does not match its SHA-256")


# --- writing: by the loader alone ----------------------------------------------------------------------------------


def make_folder(folder: Path) -> None:
    """Makes a folder of customers' data, which nobody else on the machine has a business in. Raises StoreError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder} cannot be used: {error.strerror}", hint="see the setting data_dir") from None


@contextlib.contextmanager
def updating(home: Path) -> Iterator[None]:
    """Waits until nobody else changes what is live: the overlay and the current live layer together, or CURRENT."""
    with (home / UPDATES_LOCK).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def clear(home: Path) -> None:
    """Clears away what crashed refreshes left; call it with the lock held."""
    for leftover in (*(home / SNAPSHOTS).glob(BUILDING + "*"), home / SCRATCH):
        shutil.rmtree(leftover, ignore_errors=True)
    for leftover in home.glob("*.new"):
        leftover.unlink(missing_ok=True)


def start_build(home: Path) -> Path:
    """An empty folder to build in. Call it with the lock held."""
    snapshots = home / SNAPSHOTS
    snapshots.mkdir(parents=True, exist_ok=True)
    clear(home)
    building = snapshots / f"{BUILDING}{os.getpid()}"
    building.mkdir()
    return building


def nothing(step: str) -> None:
    """What happens at a step outside of tests."""


def publish(
    home: Path,
    building: Path,
    manifest_of: Callable[[int, str], Manifest],
    verify: Callable[[Path, Manifest], None],
    catch_up: Callable[[Path, Manifest], None],
    pages_bytes: int,
    at: AtStep = nothing,
) -> Manifest:
    """Makes a finished build in `building` the current snapshot, or raises and leaves the old one current.

    `pages_bytes` is how much of profiles.mdb is in use; `manifest_of(file_bytes, sha256)` says the rest of it,
    `verify(folder, manifest)` raises where the file cannot be read back; `catch_up(folder, manifest)` makes the live
    layer, or brings it up to all updates so far, so that none that was acknowledged is ever lost from sight. `at` is
    called behind each of STEPS.
    """
    profiles = building / PROFILES
    at("built")
    os.truncate(profiles, pages_bytes)
    at("truncated")
    # Both at once: one waits for the disk, and the other reads what the system still has in memory.
    with ThreadPoolExecutor(1) as thread:
        syncing = thread.submit(sync, profiles)
        sha256 = hash_file(profiles)
        syncing.result()
    at("synced")
    manifest = manifest_of(pages_bytes, sha256)
    at("hashed")
    verify(building, manifest)
    at("verified")
    catch_up(building, manifest)
    at("live_made")
    write_synced(building / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    sync(building)
    at("manifest_synced")
    with updating(home):
        # What came meanwhile: little, so that updates do not wait for long.
        catch_up(building, manifest)
        at("caught_up")
        _make_current(home, building, manifest.name, at)
    return manifest


def _make_current(home: Path, building: Path, name: str, at: AtStep) -> None:
    try:
        building.rename(folder(home, name))
        at("renamed")
        sync(home / SNAPSHOTS)
        at("folder_synced")
        point_current(home, name, at)
    except BaseException:
        if _current_or_none(home) != name:
            # Nobody follows it, and on a full disk each further try would leave one more.
            with contextlib.suppress(FileNotFoundError):
                folder(home, name).rename(building)
        raise


def _current_or_none(home: Path) -> str | None:
    with contextlib.suppress(NoSnapshot, SnapshotDamaged, OSError):
        return current(home)
    return None


def point_current(home: Path, name: str, at: AtStep = nothing) -> None:
    """Swaps the pointer that readers follow."""
    temporary = home / (CURRENT + ".new")
    write_synced(temporary, name.encode() + b"\n")
    at("current_written")
    temporary.rename(home / CURRENT)
    at("current_swapped")
    sync(home)
    at("current_synced")


def prune(home: Path, keep: int, erased_upto: int = 0) -> list[str]:
    """Removes all but the current snapshot and the `keep` newest others; returns the names of the removed.

    Of the others, those go too that are older than the overlay's change `erased_upto`, and so may hold what it erased.
    Workers that still have one of them mapped keep it until they let go: unlinking does not take it from them.
    """
    now = read_manifest(folder(home, current(home)))
    others = [m.name for m in manifests(home) if m.name != now.name and m.updates >= erased_upto]
    others.sort(key=lambda name: name != now.previous)  # what a rollback goes to is the last to go
    kept = {now.name, *others[:keep]}
    removed = [n for n in names(home) if n not in kept]
    for old in removed:
        # Renamed first, so that a crash in the middle leaves no half a snapshot under a good name.
        doomed = home / SNAPSHOTS / f"{BUILDING}{old}"
        folder(home, old).rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    return removed


def rollback(home: Path, catch_up: Callable[[Path, Manifest], None]) -> Manifest:
    """Makes the snapshot before the current one current, or the next older that is whole, and its live layer as
    `publish` does.

    Raises NoSnapshot where there is none, SnapshotDamaged where none is whole.
    """
    try:
        now = read_manifest(folder(home, current(home)))
        name, previous = now.name, now.previous
    except (SnapshotDamaged, FormatUnsupported):
        # What is to be left is so broken that it does not say what was before it: the newest that is older, or else
        # where not even its name is known, the newest.
        name = _current_or_none(home) or "~"
        previous = next((m.name for m in manifests(home) if m.name < name), None)
    if previous is None or previous not in names(home):
        raise NoSnapshot(f"there is no snapshot before {name}", hint="the setting `keep` says how many are kept")
    damage: SnapshotDamaged | FormatUnsupported | None = None
    for candidate in [previous, *reversed([n for n in names(home) if n < previous])]:
        try:
            before = read_manifest(folder(home, candidate))
            check_hash(folder(home, candidate), before)
        except (SnapshotDamaged, FormatUnsupported) as error:
            damage = damage or error
        else:
            catch_up(folder(home, candidate), before)
            with updating(home):
                catch_up(folder(home, candidate), before)
                point_current(home, candidate)
            return before
    raise damage or NoSnapshot(f"there is no snapshot before {name}")


if __name__ == "__main__":
    # A worker runs this for a large snapshot that it is to take over.
    os.nice(LOWEST_PRIORITY)
    leave_a_processor()
    try:
        check_hash(Path(sys.argv[1]), read_manifest(Path(sys.argv[1])))
    except (EdgeprofileError, OSError) as error:
        sys.exit(str(error))
