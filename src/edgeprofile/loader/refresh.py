"""One refresh of a workspace: run the model, build, guard, publish, clean up, and say how it ended."""

from __future__ import annotations

import contextlib
import shutil
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgeprofile import locks, outcomes, snapshot
from edgeprofile.errors import (
    ModelError,
    NoSnapshot,
    RefreshRefused,
    SnapshotDamaged,
    StoreError,
)
from edgeprofile.loader import delta
from edgeprofile.loader.apply import LiveWriter
from edgeprofile.loader.build import Built, Models, build
from edgeprofile.loader.events import BuiltEvents
from edgeprofile.loader.evictions import Kept
from edgeprofile.loader.fold import Fold
from edgeprofile.loader.following import erased_upto, follow, forget, is_live_whole, live_watermark_us, void
from edgeprofile.loader.model import EventsPlan, Plan, plan, plan_events
from edgeprofile.loader.rows import Progress
from edgeprofile.loader.source import Source, open_source
from edgeprofile.loader.writer import WriterError, store_error
from edgeprofile.outcomes import Attempt, Outcome
from edgeprofile.reader import reading_back
from edgeprofile.settings import Settings, Workspace


def describe(settings: Settings, name: str) -> Models:
    """The plans of a workspace's models, without running them. Raises ModelError or SourceError."""
    workspace = settings.workspaces[name]
    scratch = snapshot.home(settings.data_dir, name) / snapshot.SCRATCH
    with open_source(workspace.source, settings.loader, settings.folder, scratch) as source:
        return _models(source, workspace, {})


def _models(source: Source, workspace: Workspace, audience_ids: dict[str, int]) -> Models:
    """The plans of both models. What is wrong with either is raised together."""
    problems: list[str] = []
    profiles: tuple[str, Plan] | None = None
    events: tuple[str, EventsPlan] | None = None
    try:
        sql = source.statement(workspace.profiles.text)
        profiles = sql, plan(workspace.profiles, source.describe(sql), audience_ids, workspace.dialect_columns)
    except ModelError as error:
        problems += error.problems
    if workspace.events is not None:
        try:
            with source.running("the events' model"):
                sql = source.statement(workspace.events.text)
                events = sql, plan_events(workspace.events, source.describe(sql), workspace.dialect_params)
        except ModelError as error:
            problems += error.problems
    if profiles is None or problems:
        raise ModelError(problems)
    events_sql, events_plan = events or (None, None)
    return Models(*profiles, events_sql, events_plan)


class Wish(NamedTuple):
    """How a refresh is asked for: to be published whatever the guards say, or by way of the live layer where it may."""

    force: bool
    delta: bool


def refresh(
    settings: Settings,
    name: str,
    *,
    force: bool,
    progress: Progress,
    at: snapshot.AtStep = snapshot.nothing,
    delta: bool = False,
    attempt: Attempt | None = None,
) -> Outcome:
    """Refreshes a workspace once. Whatever goes wrong, the snapshot that was current stays current.

    With `delta`, it brings only the rows that changed, unless a full refresh is due. It is the `attempt` that somebody
    began, or one that begins now.

    The outcome is also noted in the workspace's refresh.json. Raises the EdgeprofileError that ended it;
    LoaderBusy means that another loader is at it and nothing was done.
    """
    home = snapshot.home(settings.data_dir, name)
    attempt = attempt or Attempt.begin()
    try:
        with locks.loading(home):
            # The watcher has asked before this process started, since when somebody may have rolled back.
            if delta and outcomes.read(home).rolled_back:
                return attempt.held(name)
            return _noted(settings, name, home, attempt, Wish(force, delta), progress, at)
    except OSError as error:
        raise store_error(error, settings.data_dir) from error


def _noted(
    settings: Settings, name: str, home: Path, attempt: Attempt, wish: Wish, progress: Progress, at: snapshot.AtStep
) -> Outcome:
    """Runs the cycle with the lock held, cleans up behind it, and keeps a note of how it ended."""
    outcome: Outcome | None = None
    try:
        outcome = _cycle(settings.workspaces[name], settings, home, attempt, wish, progress, at)
        return outcome
    except (OSError, WriterError) as error:
        known = store_error(error, home)
        outcome = attempt.failed(known)
        raise known from error
    except BaseException as error:
        outcome = attempt.failed(error)
        raise
    finally:
        if outcome is None or outcome.outcome not in outcomes.SUCCESSES:
            for leftover in (home / snapshot.SNAPSHOTS).glob(snapshot.BUILDING + "*"):
                _keep_rejects(leftover, home)
        # What is published is published, whether or not there is room for a note of it.
        with contextlib.suppress(OSError):
            snapshot.clear(home)
            if outcome is not None:
                outcomes.note(home, outcome)


def _cycle(
    workspace: Workspace,
    settings: Settings,
    home: Path,
    attempt: Attempt,
    wish: Wish,
    progress: Progress,
    at: snapshot.AtStep,
) -> Outcome:
    force = wish.force
    before = _current_manifest(home)
    if before is not None and wish.delta and (done := _delta(workspace, settings, home, before, attempt, progress, at)):
        return done
    # Where the current snapshot is damaged, the newest that is not stands for it.
    served = before or next(iter(snapshot.manifests(home)), None)
    building = snapshot.start_build(home)
    progress("model", 0, 0)
    scratch = home / snapshot.SCRATCH
    brought = None if before is None else live_watermark_us(home, before)
    moved: dict[bytes, bool] = {}
    if brought is not None:
        with contextlib.suppress(StoreError), LiveWriter(home) as writer:
            moved = writer.moved()
    with (
        Fold(home, scratch, served, moved) as fold,
        open_source(workspace.source, settings.loader, settings.folder, scratch) as source,
    ):
        models = _models(source, workspace, _audience_ids(home))
        models = models._replace(plan=fold.over(models.plan))
        kept = Kept(home, served)
        built = build(source, models, building, int(attempt.at * 1e6), workspace.rejects_max, progress, kept, fold)
    finished_at = time.time()
    rejected = snapshot.faults(built.rejected) + (built.events.refused if built.events else 0)
    # What a delta refresh brought is what the live layer would go on to serve.
    is_same = before is not None and before.content == built.content and brought is None
    if before is not None and is_same and not force and _is_whole(home, before):
        shutil.rmtree(building)
        _clean_up(home, workspace)
        return attempt.ended(
            "unchanged", snapshot=before.name, profiles=before.profiles, events=before.events, rejected=rejected
        )
    if not force:
        _guard(served, built, workspace.shrink_max)
    progress("publish", 0, 0)

    def manifest_of(file_bytes: int, sha256: str) -> snapshot.Manifest:
        manifest = _manifest(home, served, models, built, file_bytes, sha256, attempt.at, finished_at)
        return msgspec.structs.replace(manifest, evicted=kept.evicted, forced=force)

    void(home, fold.void, served)
    catch_up = partial(follow, home)
    with reading_back(building) as verify:
        manifest = snapshot.publish(home, building, manifest_of, verify, catch_up, built.pages_bytes, at)
    _clean_up(home, workspace)
    return attempt.ended(
        "published",
        snapshot=manifest.name,
        profiles=manifest.profiles,
        events=manifest.events,
        rejected=rejected,
        evicted=manifest.evicted,
    )


def _delta(
    workspace: Workspace,
    settings: Settings,
    home: Path,
    before: snapshot.Manifest,
    attempt: Attempt,
    progress: Progress,
    at: snapshot.AtStep,
) -> Outcome | None:
    """Brings what changed into the live layer of the current snapshot; None where that calls for a full refresh."""
    if not delta.is_due(home, workspace, before):
        return None
    progress("changes", 0, 0)
    scratch = home / snapshot.SCRATCH
    with open_source(workspace.source, settings.loader, settings.folder, scratch) as source:
        models = _models(source, workspace, _audience_ids(home))
        if models.fingerprint != before.model:
            return None
        found = delta.run(source, models, workspace, home, before, int(attempt.at * 1e6), at)
    if found is None:
        return None
    _clean_up(home, workspace)
    return attempt.ended(
        outcomes.DELTA,
        snapshot=before.name,
        profiles=before.profiles,
        events=before.events,
        rejected=found.rejected,
        changed=found.changed,
        deleted=found.deleted,
    )


def _clean_up(home: Path, workspace: Workspace) -> None:
    """Removes what is no longer kept. What stays for want of a permission or the like is tried again next time."""
    with contextlib.suppress(OSError, WriterError):
        snapshot.prune(home, workspace.keep, erased_upto(home, workspace.erase_within_s))
        forget(home)


def _current_manifest(home: Path) -> snapshot.Manifest | None:
    """The current snapshot's; a damaged one is no reason not to publish a good one."""
    with contextlib.suppress(NoSnapshot, StoreError):
        return snapshot.read_manifest(snapshot.folder(home, snapshot.current(home)))
    return None


def _is_whole(home: Path, manifest: snapshot.Manifest) -> bool:
    """Whether a snapshot's file is what its manifest says, and its live layer is good: what was cut, flipped or removed
    is published anew."""
    try:
        snapshot.check_hash(snapshot.folder(home, manifest.name), manifest)
    except SnapshotDamaged:
        return False
    return is_live_whole(home, manifest)


def _audience_ids(home: Path) -> dict[str, int]:
    """Those of all that is kept, because after a rollback the current snapshot does not know the latest."""
    known: dict[str, int] = {}
    for manifest in snapshot.manifests(home):
        with contextlib.suppress(msgspec.ValidationError):
            given = msgspec.convert(manifest.schema.get("audience_ids", {}), dict[str, int])
            known |= {name: number for name, number in given.items() if name not in known}
    return known


def _guard(before: snapshot.Manifest | None, built: Built, shrink_max: float) -> None:
    """Refuses a result that is more likely a fault of the warehouse than the truth."""
    advice = "look at the model's sources; if it is right, publish it with --force"
    # What was erased is meant to be gone.
    given = built.profiles + built.rejected.get(snapshot.ERASED, 0)
    if given == built.made:
        raise RefreshRefused("the model gave no profiles", outcome="empty", hint=advice)
    if before is not None and given < (1 - shrink_max) * before.profiles:
        raise RefreshRefused(
            f"the model gave {built.profiles} profiles where {before.profiles} are served, "
            f"which is more of a loss than shrink_max allows ({shrink_max:.0%})",
            outcome="shrunk",
            hint=advice,
        )
    # Without a model of events there are meant to be none.
    events = None if built.events is None else built.events.events + built.events.rejected.get(snapshot.ERASED, 0)
    if before is not None and events is not None and events < (1 - shrink_max) * before.events:
        raise RefreshRefused(
            f"the events' model gave {events} events where {before.events} are served, "
            f"which is more of a loss than shrink_max allows ({shrink_max:.0%})",
            outcome="shrunk",
            hint=advice,
        )


def _manifest(
    home: Path,
    before: snapshot.Manifest | None,
    models: Models,
    built: Built,
    file_bytes: int,
    sha256: str,
    started_at: float,
    finished_at: float,
) -> snapshot.Manifest:
    known = snapshot.manifests(home)
    events = built.events or BuiltEvents(None, 0, 0, 0, 0, 0, {})
    return snapshot.Manifest(
        name=snapshot.name_of(finished_at, built.content),
        sequence=1 + max((m.sequence for m in known), default=0),
        previous=before.name if before is not None else None,
        schema=msgspec.to_builtins(models.plan.schema),
        profiles=built.profiles,
        identifiers=built.identifiers,
        segments=built.segments,
        file_bytes=file_bytes,
        record_bytes=built.record_bytes,
        sha256=sha256,
        content=built.content,
        model=models.fingerprint,
        started_at=started_at,
        finished_at=finished_at,
        rows=built.rows,
        rejected=built.rejected,
        events_schema=msgspec.to_builtins(events.schema) if events.schema else None,
        events=events.events,
        histories=events.histories,
        event_segments=events.segments,
        event_bytes=events.events_bytes,
        event_rows=events.rows,
        events_rejected=events.rejected,
        updates=built.updates,
        made=built.made,
        watermark_us=built.watermark_us,
    )


def _keep_rejects(building: Path, home: Path) -> None:
    """The list of refused rows outlives a build that was given up because of them."""
    with contextlib.suppress(FileNotFoundError):
        (building / snapshot.REJECTS).replace(home / snapshot.REJECTS)
