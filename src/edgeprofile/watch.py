"""A worker's watchers: threads that notice new snapshots and changed keys, open them, and swap one reference.

It polls, because polling cannot miss: a few `stat` calls ten times a second. Opening and closing happen here, off
the event loop; a lookup sees the old snapshot or the new one, and the same keys from its start to its end.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Generic

from edgeprofile import keys, limiter, signing, snapshot
from edgeprofile._front import Front
from edgeprofile._gate import Gate, Grant, Meter
from edgeprofile._limiter import Policy, SharedMap
from edgeprofile._live import Live
from edgeprofile._store import Store, Workspace, take_unheld
from edgeprofile.errors import EdgeprofileError, KeyFileError, NoSnapshot, SnapshotDamaged, StoreError
from edgeprofile.keyfile import KeyFile, Row
from edgeprofile.keys import Key, KeyTable
from edgeprofile.life import Life
from edgeprofile.metrics import Counter
from edgeprofile.reader import LIVE_DATABASES, Reader, read_events_schema, read_schema
from edgeprofile.settings import Settings

POLL_INTERVAL_S = 0.1
# A snapshot that was refused is tried again this much later, or at once when CURRENT names another.
RETRY_INTERVAL_S = 10.0
STOP_SECONDS_MAX = 1.0
# What takes less time than to start a process.
HASHED_HERE_BYTES_MAX = 32 * 1024 * 1024

log = logging.getLogger("edgeprofile")


class SnapshotWatcher:
    """Keeps one workspace on its current snapshot."""

    def __init__(self, home: Path, workspace: Workspace, shared: SharedMap) -> None:
        self._home = home
        self._workspace = workspace
        self._shared = shared
        self._refused: tuple[str, float] | None = None
        self._unhashed: Reader | None = None
        self._waits = False
        self._retired: list[Store] = []

    def poll(self) -> None:
        """Opens the current snapshot if it is not the one that is served. A refusal leaves the old one."""
        self._close_retired()
        self._hash_first()
        try:
            name = snapshot.current(self._home)
        except NoSnapshot:
            if not self._waits:
                log.warning("workspace %s: nothing is published yet: run edgeprofile load", self._home.name)
            self._waits = True
            return
        except (EdgeprofileError, OSError) as error:
            self._refuse("", error)
            return
        store = self._workspace.store
        if store is not None and store.reader.name == name:
            return
        if self._refused is not None and self._refused[0] == name and time.monotonic() < self._refused[1]:
            return
        try:
            reader = self._open(name, is_first=store is None)
            opened = Store(reader, self._live_of(reader, is_first=store is None), read_schema, read_events_schema)
        except (EdgeprofileError, OSError, UnicodeDecodeError) as error:
            self._refuse(name, error)
            return
        self._workspace.store = opened
        self._refused = None
        self._shared.add(Counter.SNAPSHOTS_OPENED, 1)
        log.info("workspace %s: serving snapshot %s, %d profiles", self._home.name, name, reader.manifest.profiles)
        if store is not None:
            self._retired.append(store)

    def _open(self, name: str, *, is_first: bool) -> Reader:
        """Opens and checks a snapshot. The first one is served at once, and hashed by the next poll."""
        folder = snapshot.folder(self._home, name)
        manifest = snapshot.read_manifest(folder)
        if not is_first:
            _check_hash(folder, manifest)
        reader = Reader(folder, manifest)
        try:
            reader.check_samples()
        except EdgeprofileError:
            reader.close()
            raise
        self._unhashed = reader if is_first else None
        return reader

    def _live_of(self, reader: Reader, *, is_first: bool) -> Live | None:
        """The live layer beside a snapshot. One that is damaged refuses it, unless there is nothing else to serve."""
        folder = snapshot.folder(self._home, reader.name)
        try:
            return Live(folder / snapshot.LIVE, folder / snapshot.SEQUENCE, LIVE_DATABASES)
        except FileNotFoundError:
            return None
        except (EdgeprofileError, OSError) as error:
            if not is_first:
                reader.close()
                raise
            log.error("workspace %s: served without what is live: %s", self._home.name, error)
            self._shared.add(Counter.SNAPSHOTS_REFUSED, 1)
            return None

    def _hash_first(self) -> None:
        """There is no other to fall back on, so a damaged one stays; its records are checked one by one anyway."""
        reader, self._unhashed = self._unhashed, None
        if reader is not None:
            try:
                _check_hash(snapshot.folder(self._home, reader.name), reader.manifest)
            except (EdgeprofileError, OSError) as error:
                log.error("workspace %s: served for want of another: %s", self._home.name, error)
                self._shared.add(Counter.SNAPSHOTS_REFUSED, 1)

    def _refuse(self, name: str, error: Exception) -> None:
        if self._refused is None or self._refused[0] != name:
            log.error("workspace %s: snapshot refused, the one before stays: %s", self._home.name, error)
            self._shared.add(Counter.SNAPSHOTS_REFUSED, 1)
        self._refused = (name, time.monotonic() + RETRY_INTERVAL_S)

    def _close_retired(self) -> None:
        """Unmaps what no lookup holds any more, so that none finds itself unmapping gigabytes."""
        for store in take_unheld(self._retired):
            store.reader.close()


def _check_hash(folder: Path, manifest: snapshot.Manifest) -> None:
    """Hashes a large file in a process of its own, at the lowest priority.

    Here it would take a core from lookups, and after each piece the interpreter's lock.
    """
    if manifest.file_bytes <= HASHED_HERE_BYTES_MAX:
        snapshot.check_hash(folder, manifest)
        return
    command = [sys.executable, "-P", "-m", "edgeprofile.snapshot", str(folder)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip().rpartition("\n")[2][:200]
        raise SnapshotDamaged(why or f"snapshot {folder.name} could not be hashed")


class _Changes(Generic[Row]):
    """The rows of a file of keys, whenever they have changed."""

    def __init__(self, file: KeyFile[Row], data_dir: Path) -> None:
        self._file = file
        self._data_dir = data_dir
        self._seen: object = "never"

    def rows(self) -> list[Row] | None:
        """None where nothing has changed. A file that is damaged changes nothing, and is said once."""
        stamp: object = None
        rows = None
        try:
            stamp = self._file.stamp(self._data_dir)
            if stamp != self._seen:
                rows = self._file.read(self._data_dir)
        except KeyFileError as error:
            if stamp != self._seen:
                log.error("the keys stay as they were: %s", error)
        self._seen = stamp
        return rows


class KeyWatcher:
    """Keeps the gate's grants as the key file has them."""

    def __init__(self, settings: Settings, gate: Gate, workspaces: dict[str, Workspace], shared: SharedMap) -> None:
        self._changes = _Changes(keys.FILE, settings.data_dir)
        self._settings = settings
        self._gate = gate
        self._workspaces = workspaces
        self._shared = shared
        self._table = KeyTable({})

    def verify(self, token: bytes) -> bool:
        """Whether a token is a key that is good now: its hash is compared, in constant time."""
        return self._table.find(token, time.time()) is not None

    def poll(self) -> None:
        """Takes over a changed key file."""
        rows = self._changes.rows()
        if rows is None:
            return
        table = KeyTable.of(rows)
        # Expired keys too: the lookup asks the clock at each request, and the clock may be wrong just now.
        usable = [key for key in table.keys.values() if key.revoked_at is None and key.workspace in self._workspaces]
        grants = {}
        for key in usable:
            try:
                grants[key.public_id.encode()] = self._grant(key)
            except (ValueError, StoreError) as error:
                # One key that cannot be served must not keep the others from being withdrawn.
                log.error("key %s is refused: %s", key.public_id, error)
        # The table first: a grant that is new is verified against it.
        self._table = table
        self._gate.set_grants(grants)

    def _grant(self, key: Key) -> Grant:
        return Grant(
            self._workspaces[key.workspace],
            key.public_id.encode(),
            self._meter(key, "native", self._limits_of(key)),
            self._meters(key),
            "read" in key.scopes,
            "write" in key.scopes,
            key.expires_at or 0,
        )

    def _limits_of(self, key: Key) -> limiter.Policy:
        defaults = self._settings.limits
        rate = defaults.rate if key.rate is None else key.rate
        burst_rate = defaults.burst_rate if key.burst_rate is None else key.burst_rate
        burst_seconds = defaults.burst_seconds if key.burst_seconds is None else key.burst_seconds
        return limiter.policy(rate, max(rate, burst_rate), burst_seconds)

    def _meters(self, key: Key) -> dict[str, Meter]:
        """Of the dialects whose limits take the place of the default ones."""
        intilery = self._settings.workspaces[key.workspace].intilery
        if intilery is None or key.rate is not None:
            return {}
        return {"intilery": self._meter(key, "intilery", limiter.policy(intilery.rate, intilery.burst, 0))}

    def _meter(self, key: Key, kind: str, limits: limiter.Policy) -> Meter:
        return Meter(Policy(limits.pairs), limits, self._shared.cell(f"{key.public_id}:{kind}".encode()))


class SigningWatcher:
    """Keeps the signing keys as their file has them."""

    def __init__(self, data_dir: Path, signing_keys: signing.SigningKeys) -> None:
        self._changes = _Changes(signing.FILE, data_dir)
        self._keys = signing_keys

    def poll(self) -> None:
        """Takes over a changed file. One that is gone changes nothing: whoever means to end all tokens rotates."""
        rows = self._changes.rows()
        if rows:
            self._keys.replace(rows)


class BodyWatcher:
    """Refuses requests whose body takes too long to come in."""

    def __init__(self, front: Front) -> None:
        self._front = front

    def poll(self) -> None:
        """Looks at all that are coming in."""
        self._front.expire_bodies()


class ParentWatcher:
    """Ends a process whose main process was killed: nobody else would, and it holds the port.

    What it does is let come to its end for `drain_s`.
    """

    def __init__(self, drain_s: float = 0) -> None:
        self._parent = os.getppid()
        self._drain_s = drain_s
        self._kill_at: float | None = None

    def poll(self) -> None:
        """Asks who the parent is now. SIGTERM goes out once: Granian would wait for ever to take note of a third."""
        if os.getppid() == self._parent:
            return
        if self._kill_at is None:
            self._kill_at = time.monotonic() + self._drain_s
            log.error("the server's main process is gone: this one ends")
            os.kill(os.getpid(), signal.SIGTERM)
        elif time.monotonic() >= self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


Watched = SnapshotWatcher | KeyWatcher | SigningWatcher | BodyWatcher | ParentWatcher | Life


class Watcher(threading.Thread):
    """Polls one of them until it is stopped. A fault in one poll is logged, and the next goes on.

    Each has a thread of its own: hashing a large snapshot takes seconds, and a revoked key must not wait for it.
    """

    def __init__(self, watched: Watched) -> None:
        super().__init__(name=f"edgeprofile-{type(watched).__name__}", daemon=True)
        self._watched = watched
        self._stopping = threading.Event()

    def poll(self) -> None:
        """One round."""
        try:
            self._watched.poll()
        except Exception:
            log.exception("a poll failed")

    def run(self) -> None:
        """Until `stop`."""
        while not self._stopping.wait(POLL_INTERVAL_S):
            self.poll()

    def stop(self) -> None:
        """Ends the thread and waits for it, but not for a long hash: the process is about to end anyway."""
        self._stopping.set()
        self.join(STOP_SECONDS_MAX)
