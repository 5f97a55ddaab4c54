"""A lookup that an operator makes by hand: answered by the parts that a worker answers by, put together for this one.

The key's limits, scopes and expiry hold as for every caller, and the request is counted as one. The snapshot is opened
for each anew: who looks up a profile now and then should not have the process beside the workers keep, check and hash
what these do already.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from edgeprofile import snapshot
from edgeprofile._front import Front
from edgeprofile._gate import Gate
from edgeprofile._limiter import SharedMap
from edgeprofile._live import Live
from edgeprofile._metrics import Recorder
from edgeprofile._store import Store, Workspace
from edgeprofile.app import build_lookup, limited
from edgeprofile.errors import EdgeprofileError
from edgeprofile.metrics import Counter, Surface, limited_slot, slots
from edgeprofile.reader import LIVE_DATABASES, open_current, read_events_schema, read_schema
from edgeprofile.settings import Settings
from edgeprofile.watch import KeyWatcher

Headers = list[tuple[bytes, bytes]]


class Answered(NamedTuple):
    """What the native API answered, and how long that took without the opening of the snapshot."""

    status: int
    headers: Headers
    body: bytes
    seconds: float


class Inquiry:
    """Asks the native API, in this process. One request at a time, whoever asks: each opens and closes a snapshot."""

    def __init__(self, settings: Settings, shared: SharedMap) -> None:
        self._asking = threading.Lock()
        self._data_dir = settings.data_dir
        workspaces = {name: Workspace(name, limited_slot(number)) for number, name in enumerate(settings.workspaces)}
        self._gate = Gate(shared, verify=lambda token: self._keys.verify(token), limited=limited)
        self._keys = KeyWatcher(settings, self._gate, workspaces, shared)
        self._front = Front(
            _nobody,
            build_lookup(settings, self._gate),
            [],
            shared,
            recorder=Recorder(shared, *slots(Surface.NATIVE)),
            damaged_counter=Counter.RECORDS_DAMAGED,
            deferred_counter=Counter.LOOKUPS_DEFERRED,
            request_bytes_max=settings.limits.request_bytes_max,
        )

    def ask(self, path: bytes, query: bytes, authorizations: list[str]) -> Answered:
        """What a GET of this native path is answered, with these headers by which the caller says who is asking."""
        headers = [(b"authorization", value.encode("latin-1")) for value in authorizations]
        token = headers[0][1].partition(b" ")[2] if headers else b""
        messages: list[dict[str, Any]] = []
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "GET",
            "raw_path": path,
            "query_string": query,
            "headers": headers,
        }
        with self._asking, self._opened(token):
            began = time.perf_counter()
            self._front.answer_now(scope, _nobody, messages.append)
            seconds = time.perf_counter() - began
        start, body = messages
        return Answered(start["status"], start["headers"], body["body"], seconds)

    @contextlib.contextmanager
    def _opened(self, token: bytes) -> Iterator[None]:
        """Has the workspace of a good key serve what is published. What is wrong, the answer says."""
        self._keys.poll()
        with contextlib.ExitStack() as held:
            with contextlib.suppress(EdgeprofileError, OSError):
                workspace = self._gate.grant_of(token).workspace
                home = snapshot.home(self._data_dir, workspace.name)
                reader = open_current(home)
                held.callback(reader.close)
                live = _live_of(snapshot.folder(home, reader.name))
                workspace.store = Store(reader, live, read_schema, read_events_schema)
                held.callback(setattr, workspace, "store", None)
            yield


def _live_of(folder: Path) -> Live | None:
    with contextlib.suppress(FileNotFoundError):
        return Live(folder / snapshot.LIVE, folder / snapshot.SEQUENCE, LIVE_DATABASES)
    return None


async def _nobody(*_: object) -> None:
    """What is behind the lookups of a worker, and is not needed for one."""
