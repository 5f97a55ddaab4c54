"""What is known of a running service, as Prometheus's families: the shared file's counters, snapshots and outcomes.

Labels are surfaces, statuses, workspaces, names of snapshots, outcomes and reasons, of which there are few.
No id, value or key is one.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import suppress

from prometheus_client import Metric
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from edgeprofile import locks, outcomes, snapshot
from edgeprofile._limiter import SharedMap
from edgeprofile.errors import EdgeprofileError
from edgeprofile.metrics import BOUNDS_NS, OTHER_STATUS, STATUSES, Counter, Surface, limited_slot, slots
from edgeprofile.reader import live_profiles
from edgeprofile.settings import Settings

# On in every service; the others are shown once they have had a request.
ALWAYS_ON = {Surface.NATIVE, Surface.NATIVE_BATCH, Surface.OTHER}
TOTALS = {
    Counter.RECORDS_DAMAGED: ("edgeprofile_record_damaged_total", "Damaged records that lookups met."),
    Counter.SNAPSHOTS_REFUSED: ("edgeprofile_snapshot_refused_total", "Snapshots that workers refused as damaged."),
    Counter.SNAPSHOTS_OPENED: ("edgeprofile_snapshot_opened_total", "Snapshots that workers opened."),
    Counter.LOOKUPS_DEFERRED: (
        "edgeprofile_lookup_deferred_total",
        "Lookups that took the longer way through the loop.",
    ),
    Counter.WORKERS_DIED: ("edgeprofile_worker_died_total", "Workers that ended without being told to."),
    Counter.LOG_LINES_DROPPED: (
        "edgeprofile_log_lines_dropped_total",
        "Log lines that standard error did not take in time.",
    ),
}


class Exposition(Collector):
    """Reads everything anew at each scrape. `started_at` is the service's, in Unix seconds; `workers` is how many.

    `expires_at` is when the certificate is over that the workers present, in Unix seconds; None without TLS.
    """

    def __init__(
        self, settings: Settings, shared: SharedMap, started_at: float, workers: int, expires_at: float | None = None
    ) -> None:
        self._settings = settings
        self._shared = shared
        self._started_at = started_at
        self._workers = workers
        self._expires_at = expires_at

    def collect(self) -> Iterator[Metric]:
        """All families, those without a sample too."""
        yield from self._requests()
        limited = CounterMetricFamily(
            "edgeprofile_limited_total", "Requests refused for being over their limit.", labels=["workspace"]
        )
        for number, name in enumerate(self._settings.workspaces):
            limited.add_metric([name], self._shared.counter(limited_slot(number)))
        yield limited
        for counter, (name, meaning) in TOTALS.items():
            yield CounterMetricFamily(name, meaning, self._shared.counter(counter))
        yield from self._snapshots()
        yield from self._refreshes()
        yield GaugeMetricFamily("edgeprofile_workers", "Server processes that are kept running.", self._workers)
        yield GaugeMetricFamily(
            "edgeprofile_start_time_seconds", "When the service started, in Unix seconds.", self._started_at
        )
        expiry = GaugeMetricFamily(
            "edgeprofile_certificate_expiry_timestamp_seconds", "When the certificate is over, in Unix seconds."
        )
        if self._expires_at is not None:
            expiry.add_metric([], self._expires_at)
        yield expiry
        free = GaugeMetricFamily("edgeprofile_disk_free_bytes", "Room where the data folder lies.")
        with suppress(OSError):
            free.add_metric([], shutil.disk_usage(self._settings.data_dir).free)
        yield free

    def _requests(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("edgeprofile_requests_total", "Requests answered.", labels=["surface", "status"])
        durations = HistogramMetricFamily(
            "edgeprofile_request_duration_seconds", "How long requests took.", labels=["surface"]
        )
        for surface in Surface:
            label, where = surface.name.lower(), slots(surface)
            for status in (*STATUSES, OTHER_STATUS):
                if count := self._shared.counter(where.statuses[status]):
                    requests.add_metric([label, str(status) if status else "other"], count)
            counts = [self._shared.counter(where.buckets + at) for at in range(len(BOUNDS_NS) + 1)]
            if any(counts) or surface in ALWAYS_ON:
                total_s = self._shared.counter(where.sum_ns) / 1e9
                durations.add_metric([label], _cumulated(counts), total_s)
        yield requests
        yield durations

    def _snapshots(self) -> Iterator[Metric]:
        """What is published, of each workspace where that is whole as far as its manifest tells."""
        info = InfoMetricFamily("edgeprofile_snapshot", "The published snapshot.", labels=["workspace"])
        age, staleness, size, profiles, live = (
            GaugeMetricFamily(name, meaning, labels=["workspace"])
            for name, meaning in (
                ("edgeprofile_snapshot_age_seconds", "Age of the published snapshot."),
                ("edgeprofile_staleness_seconds", "Since the warehouse was last seen to hold what is served."),
                ("edgeprofile_snapshot_bytes", "What the published snapshot takes on disk."),
                ("edgeprofile_profiles", "Profiles in the published snapshot."),
                ("edgeprofile_live_profiles", "Profiles that changed since that snapshot."),
            )
        )
        rejected = GaugeMetricFamily(
            "edgeprofile_rejected_rows",
            "Rows that are left out of the published snapshot.",
            labels=["workspace", "model", "reason"],
        )
        for name in self._settings.workspaces:
            home = snapshot.home(self._settings.data_dir, name)
            with suppress(EdgeprofileError, OSError):
                manifest = snapshot.current_manifest(home)
                now = time.time()
                info.add_metric([name], {"snapshot": manifest.name})
                age.add_metric([name], max(0.0, now - manifest.finished_at))
                staleness.add_metric([name], max(0.0, now - outcomes.read(home).seen_at(manifest)))
                size.add_metric([name], manifest.file_bytes)
                profiles.add_metric([name], manifest.profiles)
                live.add_metric([name], live_profiles(snapshot.folder(home, manifest.name)))
                for model, counts in (("profiles", manifest.rejected), ("events", manifest.events_rejected)):
                    for reason, count in counts.items():
                        rejected.add_metric([name, model, reason], count)
        yield from (info, age, staleness, size, profiles, live, rejected)

    def _refreshes(self) -> Iterator[Metric]:
        """How loading goes, which is another process's doing: all of it is read from the workspaces' folders."""
        total = CounterMetricFamily(
            "edgeprofile_refresh_total", "Refreshes that ended, and rollbacks.", labels=["workspace", "outcome"]
        )
        duration = SummaryMetricFamily(
            "edgeprofile_refresh_duration_seconds", "How long refreshes took.", labels=["workspace"]
        )
        evicted = CounterMetricFamily(
            "edgeprofile_evicted_total", "Profiles that a new snapshot no longer had.", labels=["workspace"]
        )
        staleness_max, rolled_back, watched = (
            GaugeMetricFamily(name, meaning, labels=["workspace"])
            for name, meaning in (
                ("edgeprofile_staleness_max_seconds", "What the staleness stays below where every refresh succeeds."),
                ("edgeprofile_rolled_back", "Whether an older snapshot was chosen, and nothing loaded since."),
                ("edgeprofile_watched", "Whether a process keeps the workspace fresh."),
            )
        )
        for name, workspace in self._settings.workspaces.items():
            home = snapshot.home(self._settings.data_dir, name)
            known, watcher = outcomes.read(home), locks.watcher(home)
            for outcome, count in known.counts.items():
                total.add_metric([name, outcome], count)
            duration.add_metric([name], known.refreshes, known.seconds)
            evicted.add_metric([name], known.evicted)
            staleness_max.add_metric([name], known.staleness_max_s(workspace.refresh_s))
            rolled_back.add_metric([name], known.rolled_back)
            watched.add_metric([name], watcher is not None and watcher.alive)
        yield from (total, duration, evicted, staleness_max, rolled_back, watched)


def _cumulated(counts: list[int]) -> list[tuple[str, float]]:
    """The buckets as Prometheus has them: each with its bound, in seconds, and all that is not longer."""
    bounds = [*(str(bound / 1e9) for bound in BOUNDS_NS), "+Inf"]
    return [(bound, sum(counts[: at + 1])) for at, bound in enumerate(bounds)]
