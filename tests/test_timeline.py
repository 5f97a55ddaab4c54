"""The last minutes of a service, as the console draws them: what came between two readings of the counters."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprofile._limiter import SharedMap
from edgeprofile._metrics import Recorder
from edgeprofile.metrics import BOUNDS_NS, OTHER_STATUS, STATUSES, Surface, slots
from edgeprofile.timeline import KEPT, Timeline, class_of, quantile_s

US = 1_000


@pytest.fixture
def shared(tmp_path: Path) -> SharedMap:
    return SharedMap(tmp_path / "shared.map")


def record(shared: SharedMap, surface: Surface, status: int, taken_ns: int, times: int = 1) -> None:
    for _ in range(times):
        Recorder(shared, *slots(surface)).record(status, 0, taken_ns)


def test_a_stretch_has_what_came_since_the_last_one(shared: SharedMap) -> None:
    record(shared, Surface.NATIVE, 200, 40 * US, 7)
    timeline = Timeline(shared)
    record(shared, Surface.NATIVE, 200, 40 * US, 3)
    record(shared, Surface.NATIVE, 304, 75 * US)
    record(shared, Surface.NATIVE, 429, 20 * US, 2)
    record(shared, Surface.INSIDER, 500, 2_000_000 * US)
    record(shared, Surface.OTHER, 418, 20 * US)
    timeline.note()
    timeline.note()
    full, empty = timeline.after(0)
    assert {name: count for name, (count, _, _) in full.surfaces.items()} == {"native": 6, "insider": 1, "other": 1}
    assert full.answers == {"2xx": 3, "3xx": 1, "429": 2, "5xx": 1, "other": 1}
    assert full.surfaces["insider"][1:] == (1, 1), "longer than the last bound is told as that"
    assert (empty.surfaces, empty.answers) == ({}, {})
    assert full.at <= empty.at
    assert full.seconds > 0


def test_only_the_last_stretches_are_kept_and_of_these_only_new_ones_told(shared: SharedMap) -> None:
    timeline = Timeline(shared)
    for _ in range(KEPT + 5):
        timeline.note()
    kept = timeline.after(0)
    assert len(kept) == KEPT
    assert timeline.after(kept[-3].at) == [each for each in kept if each.at > kept[-3].at]
    assert timeline.after(kept[-1].at) == []


def test_every_status_is_of_one_class() -> None:
    found = {status: class_of(status) for status in (*STATUSES, OTHER_STATUS)}
    assert {found[status] for status in (200, 202, 204)} == {"2xx"}
    assert (found[304], found[404], found[429], found[503], found[OTHER_STATUS]) == (
        "3xx",
        "4xx",
        "429",
        "5xx",
        "other",
    )


def test_a_quantile_lies_between_the_bounds_of_its_bucket() -> None:
    counts = [0] * (len(BOUNDS_NS) + 1)
    counts[0], counts[3] = 100, 100
    assert quantile_s(counts, 0.25) == 25e-6
    assert quantile_s(counts, 0.5) == 50e-6
    assert quantile_s(counts, 0.75) == 375e-6, "half way from 250 to 500 µs"
    counts[-1] = 1_000
    assert quantile_s(counts, 0.99) == 1


@given(
    counts=st.lists(st.integers(0, 10_000), min_size=len(BOUNDS_NS) + 1, max_size=len(BOUNDS_NS) + 1).filter(any),
    shares=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
)
def test_quantiles_are_in_order_and_never_below_their_bucket(counts: list[int], shares: list[float]) -> None:
    low, high = (quantile_s(counts, share) for share in shares)
    assert 0 <= low <= high <= 1
    reached = list(itertools.accumulate(counts))
    bucket = next(at for at, seen in enumerate(reached) if seen >= shares[0] * reached[-1])
    bounds = [0, *(bound / 1e9 for bound in BOUNDS_NS), BOUNDS_NS[-1] / 1e9]
    assert bounds[bucket] - 1e-7 <= low <= bounds[bucket + 1] + 1e-7
