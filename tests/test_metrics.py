"""What is counted, by the compiled recorder and by whole services, and how it is told to Prometheus."""

from __future__ import annotations

import asyncio
import bisect
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import BANK, BANK_PROFILES, PROFILES, MakeService
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families
from service import DECLARED, HOST, Service, exchange, is_listening, request, until
from starlette.types import Message, Receive, Scope, Send
from test_server_life import is_running
from test_shared_map import COUNTERS, workers
from workshop import roll_back

from edgeprofile import locks, metrics, outcomes, snapshot
from edgeprofile._limiter import SharedMap
from edgeprofile._metrics import Recorder, clock_ns
from edgeprofile.app import SHARED_MAP, _recorded
from edgeprofile.exposition import TOTALS
from edgeprofile.metrics import BOUNDS_NS, STATUSES, Surface, limited_slot, slots
from edgeprofile.settings import WORKSPACES_MAX

JANE = "/v1/profiles/id/12345"
Samples = dict[str, dict[tuple[str, ...], float]]


def samples(text: str) -> Samples:
    """The samples of a scrape by name, and by the values of their labels in the order of the labels' names."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values = tuple(value for _, value in sorted(sample.labels.items()))
            assert found.setdefault(sample.name, {}).setdefault(values, sample.value) == sample.value
    return found


def scrape(service: Service) -> Samples:
    answer = exchange(service.admin_port, request("/metrics"))
    assert answer.status == 200
    return samples(answer.body.decode())


def requests(found: Samples) -> Counter[tuple[str, str]]:
    """How many requests there were of each surface and status."""
    labelled = found.get("edgeprofile_requests_total", {})
    return Counter({(surface, status): int(count) for (status, surface), count in labelled.items()})


# --- the recorder --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> SharedMap:
    return SharedMap(tmp_path_factory.mktemp("metrics") / "shared.map")


AROUND_BOUNDS = st.builds(int.__add__, st.sampled_from(BOUNDS_NS), st.integers(-1, 1))
DURATIONS = st.one_of(AROUND_BOUNDS, st.integers(0, 100_000), st.integers(-10, 2**41))
RECORDED = st.tuples(st.sampled_from(Surface), st.sampled_from(STATUSES) | st.integers(-700, 70_000), DURATIONS)


@given(recorded=st.lists(RECORDED), started_ns=st.integers(10, 2**62))
def test_the_compiled_recorder_adds_what_the_plain_one_does(
    shared: SharedMap, recorded: list[tuple[Surface, int, int]], started_ns: int
) -> None:
    shared.clear_counters()
    expected = Counter[int]()
    for surface, status, taken_ns in recorded:
        Recorder(shared, *slots(surface)).record(status, started_ns, started_ns + taken_ns)
        where = slots(surface)
        expected[where.statuses[status if status in STATUSES else 0]] += 1
        expected[where.buckets + bisect.bisect_left(BOUNDS_NS, taken_ns)] += 1
        expected[where.sum_ns] += max(0, taken_ns)
    assert {slot: n for slot in range(COUNTERS) if (n := shared.counter(slot))} == +expected


def test_every_counter_is_served() -> None:
    assert set(TOTALS) == set(metrics.Counter)


def test_no_two_things_are_counted_in_one_slot() -> None:
    taken = [*metrics.Counter, *map(limited_slot, range(WORKSPACES_MAX))]
    for surface in Surface:
        where = slots(surface)
        taken += {where.sum_ns, *where.statuses, *range(where.buckets, where.buckets + len(BOUNDS_NS) + 1)}
        assert len({where.statuses[status] for status in (0, *STATUSES)}) == len(STATUSES) + 1
    assert len(set(taken)) == len(taken)
    assert max(taken) < metrics.SLOTS <= COUNTERS


def test_the_clock_is_the_one_that_a_recorder_reads(shared: SharedMap) -> None:
    shared.clear_counters()
    where = slots(Surface.NATIVE)
    recorder = Recorder(shared, *where)
    before = clock_ns()
    recorder.record(200, before)
    assert 0 < shared.counter(where.sum_ns) <= clock_ns() - before


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"statuses": (0,) * 599}, ValueError),
        ({"statuses": (0,) * 599 + (COUNTERS,)}, IndexError),
        ({"buckets": COUNTERS - len(BOUNDS_NS)}, IndexError),
        ({"sum_ns": COUNTERS}, IndexError),
        ({"bounds_ns": (1, 3, 2)}, ValueError),
        ({"bounds_ns": (1, 1)}, ValueError),
        ({"bounds_ns": tuple(range(32))}, ValueError),
    ],
)
def test_a_recorder_refuses_slots_that_there_are_not(
    shared: SharedMap, changes: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        Recorder(shared, **{**slots(Surface.NATIVE)._asdict(), **changes})


RECORD = """
from edgeprofile import _metrics, metrics
recorder = _metrics.Recorder(_limiter.SharedMap(path), *metrics.slots(metrics.Surface.NATIVE))
for number in range(100_000):
    recorder.record(404 if number % 4 == 0 else 200, 0, 49_000 + number % 2 * 2_000)
"""


def test_processes_that_record_at_once_lose_nothing(tmp_path: Path) -> None:
    with workers(3, RECORD, tmp_path / "shared.map") as started:
        assert [worker.wait(60) for worker in started] == [0, 0, 0]
    shared, where = SharedMap(tmp_path / "shared.map"), slots(Surface.NATIVE)
    assert [shared.counter(where.statuses[status]) for status in (200, 404)] == [225_000, 75_000]
    assert [shared.counter(where.buckets + at) for at in range(3)] == [150_000, 150_000, 0]
    assert shared.counter(where.sum_ns) == 300_000 * 50_000


def test_counters_are_cleared_without_the_limiters_cells(tmp_path: Path) -> None:
    shared = SharedMap(tmp_path / "shared.map")
    cell = shared.cell(b"key")
    for slot in (0, COUNTERS - 1):
        shared.add(slot, 7)
    before = (tmp_path / "shared.map").read_bytes()
    shared.clear_counters()
    after = (tmp_path / "shared.map").read_bytes()
    assert after[: 64 + 8 * COUNTERS] == before[:64] + bytes(8 * COUNTERS)
    assert after[64 + 8 * COUNTERS :] == before[64 + 8 * COUNTERS :]
    assert shared.cell(b"key") == cell


def test_a_request_that_fails_counts_as_500_where_no_other_status_was_sent(shared: SharedMap) -> None:
    started = {"type": "http.response.start", "status": 204, "headers": []}

    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/late":
            await send(started)
        raise LookupError

    async def received() -> Message:
        return {"type": "http.request"}

    async def sent(_: Message) -> None:
        """Nobody listens."""

    shared.clear_counters()
    app = _recorded(failing, Recorder(shared, *slots(Surface.OTHER)))

    async def ask(kind: str, path: str) -> None:
        with pytest.raises(LookupError):
            await app({"type": kind, "path": path}, received, sent)

    for kind, path in (("http", "/"), ("http", "/late"), ("lifespan", "/")):
        asyncio.run(ask(kind, path))
    where = slots(Surface.OTHER)
    assert [shared.counter(where.statuses[status]) for status in (500, 204)] == [1, 1]
    assert sum(shared.counter(where.buckets + at) for at in range(len(BOUNDS_NS) + 1)) == 2


# --- a service -----------------------------------------------------------------------------------------------------


@pytest.fixture
def service(make_service: MakeService) -> Service:
    """Two workers and an admin listener, not started; `shop` has a snapshot, and `bank` none yet."""
    made = make_service({"shop": DECLARED, "bank": BANK}, workers=2, with_admin=True)
    made.run_sql(PROFILES.replace("{ids}", "['a']"))
    made.run_sql(BANK_PROFILES, "bank")
    made.load()
    return made


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One that runs, for tests that only ask."""
    made = Service(tmp_path_factory.mktemp("metrics-service"), with_admin=True)
    made.run_sql(PROFILES.replace("{ids}", "['a']"))
    made.load()
    yield made.start()
    made.stop()


def test_a_scrape_has_every_request_to_every_worker(service: Service) -> None:
    key, limited = service.mint(), service.mint(rate=0.001, burst_rate=1, burst_seconds=0)
    service.start()
    connections = service.connect_to_each()
    etag = connections[0].ask(request(JANE, limited)).headers["etag"]
    before = scrape(service)
    sent = {
        ("native", "200"): request(JANE, key),
        ("native", "304"): request(JANE, key, ("If-None-Match", etag)),
        ("native", "400"): request("/v1/profiles/identifier/nickname/jj", key),
        ("native", "401"): request(JANE, key[:-1]),
        ("native", "404"): request("/v1/profiles/identifier/email/nobody%40example.com", key),
        ("native", "406"): request(JANE, key, ("Accept", "text/html")),
        ("native", "414"): request("/v1/profiles/id/" + "1" * 9_000, key),
        ("native", "429"): request(JANE, limited),
        ("other", "200"): request("/livez", key),
        ("other", "404"): request("/v1/profiles/12345", key),
        ("other", "405"): request("/livez", key, method="POST"),
    }
    expected = Counter[tuple[str, str]]()
    for times, ((surface, status), content) in enumerate(sent.items(), 1):
        for connection in connections:
            for _ in range(times):
                assert str(connection.ask(content).status) == status
                expected[surface, status] += 1
    for connection in connections:
        connection.close()
    # An answer may be here before it is counted.
    until(lambda: (requests(scrape(service)) - requests(before)).total() >= expected.total(), "all is counted")
    after = scrape(service)

    assert requests(after) - requests(before) == expected
    assert_durations(after)
    assert after["edgeprofile_limited_total"] == {("shop",): expected["native", "429"], ("bank",): 0}


def assert_durations(found: Samples) -> None:
    """Checks that the histogram of each surface is one, and of as many requests as were counted."""
    bounds = [str(bound / 1e9) for bound in BOUNDS_NS] + ["+Inf"]
    for surface in ("native", "native_batch", "other"):
        buckets = [found["edgeprofile_request_duration_seconds_bucket"][bound, surface] for bound in bounds]
        count = sum(n for (of, _), n in requests(found).items() if of == surface)
        assert buckets == sorted(buckets)
        assert buckets[-1] == found["edgeprofile_request_duration_seconds_count"][surface,] == count
        assert (found["edgeprofile_request_duration_seconds_sum"][surface,] > 0) == (count > 0)
    assert len(found["edgeprofile_request_duration_seconds_bucket"]) == 3 * len(bounds)


def test_a_scrape_tells_which_snapshots_are_published(service: Service) -> None:
    service.start()
    manifest = snapshot.current_manifest(service.home())
    found = scrape(service)
    assert found["edgeprofile_snapshot_info"] == {(manifest.name, "shop"): 1}
    assert found["edgeprofile_profiles"] == {("shop",): manifest.profiles}
    assert 0 <= found["edgeprofile_snapshot_age_seconds"]["shop",] < time.time() - manifest.started_at
    assert found["edgeprofile_snapshot_opened_total"] == {(): 2}
    assert found["edgeprofile_workers"] == {(): 2}
    assert found["edgeprofile_worker_died_total"] == {(): 0}
    assert found["edgeprofile_snapshot_bytes"] == {("shop",): manifest.file_bytes}
    assert 0 < found["edgeprofile_disk_free_bytes"][()] <= shutil.disk_usage(service.folder).total
    assert "edgeprofile_certificate_expiry_timestamp_seconds" not in found, "there is none"
    assert manifest.finished_at < found["edgeprofile_start_time_seconds"][()] < time.time()

    service.load("bank")
    assert scrape(service)["edgeprofile_profiles"] == {("shop",): manifest.profiles, ("bank",): 1}
    (service.home() / snapshot.CURRENT).write_bytes(b"\xff\x00 no name")
    until(lambda: scrape(service)["edgeprofile_snapshot_refused_total"][()] == 2, "both workers have refused it")
    damaged = scrape(service)
    assert damaged["edgeprofile_profiles"] == {("bank",): 1}
    assert [workspace for _, workspace in damaged["edgeprofile_snapshot_info"]] == ["bank"]


def test_a_scrape_tells_how_loading_goes(running: Service) -> None:
    before = scrape(running)
    running.load()
    running.run_sql("INSERT INTO profiles BY NAME SELECT NULL AS profile_id, 'x@example.com' AS email")
    running.run_sql("INSERT INTO profiles BY NAME SELECT unnest(range(200))::VARCHAR AS profile_id")
    running.load()
    running.run_sql("DELETE FROM profiles WHERE try_cast(profile_id AS BIGINT) < 200 OR profile_id IS NULL")
    running.load()
    found = scrape(running)
    for outcome, more in (("published", 2), ("unchanged", 1)):
        counts = [each["edgeprofile_refresh_total"].get((outcome, "shop"), 0) for each in (before, found)]
        assert counts[1] - counts[0] == more
    assert found["edgeprofile_evicted_total"]["shop",] - before["edgeprofile_evicted_total"]["shop",] == 200
    durations = [each["edgeprofile_refresh_duration_seconds_sum"]["shop",] for each in (before, found)]
    assert 0 < durations[0] < durations[1]
    assert found["edgeprofile_refresh_duration_seconds_count"]["shop",] == sum(
        found["edgeprofile_refresh_total"].values()
    )
    assert 0 <= found["edgeprofile_staleness_seconds"]["shop",] < 600
    assert found["edgeprofile_staleness_max_seconds"]["shop",] > running.settings.workspaces["shop"].refresh_s
    assert "edgeprofile_rejected_rows" not in found
    assert (found["edgeprofile_rolled_back"]["shop",], found["edgeprofile_watched"]["shop",]) == (0, 0)

    with locks.watching(running.home()), locks.loading(running.home()):
        rolled_back = roll_back(running.home())
        outcomes.note(running.home(), outcomes.Attempt.begin().ended("rolled_back", snapshot=rolled_back.name))
        found = scrape(running)
    assert (found["edgeprofile_rolled_back"]["shop",], found["edgeprofile_watched"]["shop",]) == (1, 1)
    assert found["edgeprofile_refresh_total"]["rolled_back", "shop"] == 1
    assert found["edgeprofile_rejected_rows"] == {("profiles", "null_id", "shop"): 1}
    running.load()


def test_nothing_of_a_profile_or_a_key_is_in_a_scrape(running: Service) -> None:
    key = running.key()
    for target in ("id/types", "identifier/email/jane%40example.com", "id/nobody", "nobody/nobody"):
        running.get(f"/v1/profiles/{target}", key)
    text = exchange(running.admin_port, request("/metrics")).body.decode()
    for secret in ("types", "jane", "nobody", *key.split("_")[2:], str(running.folder)):
        assert secret not in text


def test_the_admin_port_serves_no_profiles_and_the_other_no_metrics(running: Service) -> None:
    key = running.key()
    assert running.get("/metrics", key).code() == "no_such_route"
    for target in (JANE, "/livez", "/metrics/", "/metrics/x", "//"):
        answer = exchange(running.admin_port, request(target, key))
        assert (answer.status, answer.code()) == (404, "no_such_route")
        assert answer.headers["content-type"] == "application/problem+json"
    refused = exchange(running.admin_port, request("/metrics", method="POST"))
    assert (refused.status, refused.code(), refused.headers["allow"]) == (405, "method_not_allowed", "GET, HEAD")
    head = exchange(running.admin_port, request("/metrics", method="HEAD"))
    assert (head.status, head.body) == (200, b"")
    assert int(head.headers["content-length"]) > 0


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain;version=none", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text;version=1.0.0,text/plain;q=0.5", "application/openmetrics-text; version=1.0.0"),
    ],
)
def test_a_scraper_has_the_format_that_it_asks_for(running: Service, accept: str, content_type: str) -> None:
    answer = exchange(running.admin_port, request("/metrics", None, ("Accept", accept)))
    assert answer.headers["content-type"].startswith(content_type)
    read = openmetrics_families if "openmetrics" in content_type else text_string_to_metric_families
    families = {family.name: family.samples for family in read(answer.body.decode())}
    assert [sample.labels for sample in families["edgeprofile_profiles"]] == [{"workspace": "shop"}]


def test_counters_outlive_a_worker_but_not_the_service(service: Service) -> None:
    limited = service.mint(rate=0.001, burst_rate=1, burst_seconds=0)
    service.start()
    assert [service.get(JANE, limited).status for _ in range(3)] == [200, 429, 429]
    victim = service.workers()[0]
    os.kill(victim, signal.SIGKILL)
    until(lambda: len(service.workers()) == 2 and victim not in service.workers(), "there is another worker")
    assert service.get(JANE, limited).status == 429, "the limits go on"
    until(lambda: requests(scrape(service))["native", "429"] == 3, "all is counted")
    assert scrape(service)["edgeprofile_worker_died_total"][()] == 1
    assert requests(scrape(service))["native", "200"] == 1

    service.stop()
    service.start()
    assert requests(scrape(service))["native", "429"] == 0
    assert service.get(JANE, limited).status == 429, "the limits go on"
    until(lambda: scrape(service)["edgeprofile_limited_total"]["shop",] == 1, "it is counted")


def test_an_admin_listener_that_dies_is_replaced_and_the_workers_stay(service: Service) -> None:
    key = service.mint()
    service.start()
    service.get(JANE, key)
    until(lambda: requests(scrape(service))["native", "200"] == 1, "it is counted")
    workers, killed = service.workers(), service.admin()
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    until(lambda: not is_running(killed), "it is gone")
    assert service.get(JANE, key).status == 200
    until(lambda: service.admin() not in (None, killed) and is_listening(service.admin_port), "it is back")
    assert requests(scrape(service))["native", "200"] == 2
    assert service.workers() == workers


def test_a_supervisor_may_tell_all_processes_to_end_at_once(service: Service) -> None:
    service.start()
    everyone = [*service.workers(), service.admin()]
    process = service.release()
    for pid in (everyone[-1], process.pid):
        assert pid is not None
        os.kill(pid, signal.SIGTERM)
    assert process.wait(30) == 0
    assert "is started again" not in service.log()
    until(lambda: not any(is_running(pid) for pid in everyone if pid is not None), "no process is left")


def test_an_admin_port_that_is_taken_ends_it_before_anything_starts(service: Service) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, service.admin_port))
        taken.listen()
        command = [sys.executable, "-m", "edgeprofile", "serve", "--config", str(service.file)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert ended.stderr == (
        f"edgeprofile: {HOST}:{service.admin_port} is in use\n  hint: set server.admin_port to a free port\n"
    )
    assert not (service.settings.data_dir / SHARED_MAP).exists()


def test_names_and_units_are_as_prometheus_has_them(running: Service) -> None:
    text = exchange(running.admin_port, request("/metrics")).body.decode()
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    helps = dict(re.findall(r"^# HELP (\S+) (.+)$", text, re.MULTILINE))
    assert types.keys() == helps.keys()
    for name, kind in types.items():
        assert re.fullmatch(r"edgeprofile_[a-z]+(_[a-z]+)*", name)
        assert name.endswith("_total") == (kind == "counter")
        assert not re.search(r"_(ms|us|ns|milliseconds|minutes|count|sum|bucket|created)$", name)
        assert not name.removeprefix("edgeprofile_").startswith(kind)
        assert helps[name].endswith(".")
