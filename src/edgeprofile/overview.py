"""All that the console shows, as one JSON document: the service, the last minutes, every workspace, and one in full.

No id, value or key is in it: what it has are counts, names of workspaces and snapshots, and what became of refreshes.
"""

from __future__ import annotations

import contextlib
import time
from importlib.metadata import version

import msgspec

from edgeprofile import health, tls
from edgeprofile._limiter import SharedMap
from edgeprofile.errors import SettingsError
from edgeprofile.metrics import Counter, limited_slot
from edgeprofile.settings import Settings
from edgeprofile.timeline import STEP_S, Timeline

# Every reader of one second sees the same. With so many workspaces that reading takes long, it is done more seldom.
FRESH_S = 1.0
WORK_SHARE_MAX = 0.05
CERTIFICATE_FRESH_S = 60.0
# Of the last outcomes of each workspace; the one that is shown in full has all that are kept.
OUTCOMES_SHOWN = 16
SHOWN = ("workspace", "health", "snapshot", "staleness", "staleness_max", "profiles", "live_profiles", "loading_since")

Found = dict[str, object]


class Overview:
    """Makes the document. `started_at` is the service's, in Unix seconds; `workers` is how many there are."""

    def __init__(
        self, settings: Settings, shared: SharedMap, timeline: Timeline, started_at: float, workers: int
    ) -> None:
        self._settings = settings
        self._shared = shared
        self._timeline = timeline
        self._fixed = {"version": version("edgeprofile"), "started_at": started_at, "workers": workers}
        self._workspaces: dict[str, Found] = {}
        self._fresh_until = 0.0
        self._certificate: tuple[float, float | None] = (0.0, None)

    def state(self, workspace: str | None, after: float) -> bytes:
        """As JSON, with this workspace in full, or that in most need of attention, and what came `after` a moment."""
        found = self._read()
        total = {counter.name.lower(): self._shared.counter(counter) for counter in Counter}
        total["limited"] = sum(int(str(each["limited"])) for each in found.values())
        return msgspec.json.encode(
            {
                "now": time.time(),
                **self._fixed,
                "certificate_expires_at": self._certificate_expires_at(),
                "total": total,
                "step": STEP_S,
                "timeline": self._timeline.after(after),
                "workspaces": [_shown(each) for each in found.values()],
                "workspace": found.get(workspace or "", min(found.values(), key=_urgency, default=None)),
            }
        )

    def _read(self) -> dict[str, Found]:
        """Every workspace in full."""
        began = time.monotonic()
        if began >= self._fresh_until:
            self._workspaces = {name: self._one(number, name) for number, name in enumerate(self._settings.workspaces)}
            ended = time.monotonic()
            self._fresh_until = ended + max(FRESH_S, (ended - began) / WORK_SHARE_MAX)
        return self._workspaces

    def _one(self, number: int, name: str) -> Found:
        found, problems = health.of_workspace(self._settings, name)
        limited = self._shared.counter(limited_slot(number))
        cadence_s = self._settings.workspaces[name].refresh_s
        return found | {"problems": problems, "limited": limited, "refresh": cadence_s}

    def _certificate_expires_at(self) -> float | None:
        """Of the file that the settings name, in Unix seconds; None where there is none that can be read."""
        read_at, expires_at = self._certificate
        if not read_at or time.monotonic() - read_at > CERTIFICATE_FRESH_S:
            expires_at = None
            with contextlib.suppress(SettingsError):
                if identity := tls.read(self._settings):
                    expires_at = identity.expires_at.timestamp()
            self._certificate = (time.monotonic(), expires_at)
        return expires_at


def _shown(found: Found) -> Found:
    history = found["history"]
    assert isinstance(history, list)
    last = [outcome["outcome"] for outcome in history[-OUTCOMES_SHOWN:]]
    return {name: found.get(name) for name in SHOWN} | {"last": last}


def _urgency(found: Found) -> int:
    return health.HEALTHS.index(str(found["health"]))
