"""All that the console shows, as one JSON document: the service, the last minutes, every workspace, and one in full.

No id, value or key is in it: what it has are counts, names of workspaces and snapshots, and what became of refreshes.
"""

from __future__ import annotations

import time
from importlib.metadata import version

import msgspec

from edgeprofile import health
from edgeprofile._limiter import SharedMap
from edgeprofile.metrics import Counter, limited_slot
from edgeprofile.settings import Settings
from edgeprofile.timeline import STEP_S, Timeline

# Every reader of one second sees the same. With so many workspaces that reading takes long, it is done more seldom.
FRESH_S = 1.0
WORK_SHARE_MAX = 0.05
# Of the last outcomes of each workspace; the one that is shown in full has all that are kept.
OUTCOMES_SHOWN = 16
SHOWN = ("workspace", "health", "snapshot", "staleness", "staleness_max", "profiles", "live_profiles", "loading_since")

Found = dict[str, object]


class Overview:
    """Makes the document. `fixed` is what does not change: `started_at`, in Unix seconds, how many `workers` there
    are, and `certificate_expires_at`, in Unix seconds, or None without TLS.
    """

    def __init__(self, settings: Settings, shared: SharedMap, timeline: Timeline, **fixed: float | None) -> None:
        self._settings = settings
        self._shared = shared
        self._timeline = timeline
        self._fixed = {"version": version("edgeprofile"), **fixed}
        self._workspaces: dict[str, Found] = {}
        self._fresh_until = 0.0

    def state(self, workspace: str | None, after: float) -> bytes:
        """As JSON, with this workspace in full, or that in most need of attention, and what came `after` a moment."""
        found = self._read()
        total = {counter.name.lower(): self._shared.counter(counter) for counter in Counter}
        total["limited"] = sum(int(str(each["limited"])) for each in found.values())
        return msgspec.json.encode(
            {
                "now": time.time(),
                **self._fixed,
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


def _shown(found: Found) -> Found:
    history = found["history"]
    assert isinstance(history, list)
    last = [outcome["outcome"] for outcome in history[-OUTCOMES_SHOWN:]]
    return {name: found.get(name) for name in SHOWN} | {"last": last}


def _urgency(found: Found) -> int:
    return health.HEALTHS.index(str(found["health"]))
