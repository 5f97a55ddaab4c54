"""How a workspace fares: what is published and how old it is, how loading goes, and in one word what that comes to.

All of it is read from the workspace's folder, beside whoever loads and serves it.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import msgspec

from edgeprofile import locks, outcomes, snapshot
from edgeprofile.errors import EdgeprofileError, NoSnapshot
from edgeprofile.outcomes import ROLLED_BACK, SUCCESSES, Outcomes
from edgeprofile.reader import live_profiles
from edgeprofile.schedule import next_delay_s
from edgeprofile.settings import Settings
from edgeprofile.snapshot import Manifest

# By how much a refresh may be later than it should before anybody needs to know.
LATE_SECONDS = 10.0
# What a workspace's health is in one word, the gravest first: of several that one. `empty` has published nothing yet.
DAMAGED, STALE, EMPTY, FAILING, UNWATCHED, OK = "damaged", "stale", "empty", "failing", "unwatched", "ok"
HEALTHS = (DAMAGED, STALE, EMPTY, FAILING, ROLLED_BACK, UNWATCHED, OK)


def of_workspace(settings: Settings, name: str) -> tuple[dict[str, object], list[str]]:
    """The state of a workspace, and what is wrong with it. Ages and times are in seconds.

    `staleness` is how long ago the warehouse was last seen to hold what is served. `next_refresh_at` is when the next
    refresh begins at the latest, and None where nobody keeps the workspace fresh.
    """
    home = snapshot.home(settings.data_dir, name)
    known = outcomes.read(home)
    watcher = locks.watcher(home)
    cadence_s = settings.workspaces[name].refresh_s
    staleness_max = known.staleness_max_s(cadence_s)
    is_watched = watcher is not None and watcher.alive
    found: dict[str, object] = {
        "workspace": name,
        "snapshot": None,
        "staleness_max": staleness_max,
        "rolled_back": known.rolled_back,
        "watcher": None if watcher is None else {"pid": watcher.pid, "alive": watcher.alive},
        "loading_since": locks.loading_since(home),
        "next_refresh_at": next_refresh_at(known, cadence_s) if is_watched else None,
        "refreshes": known.counts,
        "last_refresh": msgspec.to_builtins(known.last[-1]) if known.last else None,
        "history": msgspec.to_builtins(known.last),
    }
    problems: list[str] = []
    if watcher is not None and not watcher.alive:
        problems.append(f"process {watcher.pid}, which watched it, was killed: start edgeprofile load --watch again")
    health = OK if is_watched else UNWATCHED
    if known.rolled_back:
        health = ROLLED_BACK
    elif known.last and known.last[-1].outcome not in SUCCESSES:
        health = FAILING
    try:
        manifest = snapshot.current_manifest(home)
        staleness = max(0.0, time.time() - known.seen_at(manifest))
        found |= {"staleness": staleness} | _published(home, manifest)
        # Who loads by hand or from cron knows how often.
        if watcher is not None and staleness > staleness_max + LATE_SECONDS:
            # What somebody chose to have older is so on purpose.
            health = health if known.rolled_back else STALE
            problems.append(f"what is served is {staleness:,.0f} s old, where {staleness_max:,.0f} s is the most")
    except NoSnapshot:
        health = EMPTY
    except EdgeprofileError as error:
        health = DAMAGED
        problems.append(str(error))
    return found | {"health": health}, problems


def next_refresh_at(known: Outcomes, cadence_s: float) -> float | None:
    """When a watcher begins the next refresh at the latest. None where it holds, or has not begun any yet."""
    if known.rolled_back or not known.last:
        return None
    failed = itertools.takewhile(lambda outcome: outcome.outcome not in SUCCESSES, reversed(known.last))
    last = known.last[-1]
    return last.finished_at + next_delay_s(cadence_s, last.seconds, len(list(failed)), share=0.0)


def _published(home: Path, manifest: Manifest) -> dict[str, object]:
    """Of the snapshot that is published. Raises LiveDamaged."""
    return {
        "snapshot": manifest.name,
        "age": max(0.0, time.time() - manifest.finished_at),
        "profiles": manifest.profiles,
        "identifiers": manifest.identifiers,
        "rejected": manifest.rejected,
        "evicted": manifest.evicted,
        "forced": manifest.forced,
        "events": manifest.events,
        "events_rejected": manifest.events_rejected,
        "file_bytes": manifest.file_bytes,
        "live_profiles": live_profiles(snapshot.folder(home, manifest.name)),
    }
