"""A clock that is set forward by a day and back by a year under real processes. What must not jump does not: limits,
cadences, beats and time limits count by the clock that never does."""

from __future__ import annotations

import http.client
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import MakeService
from service import HOST, Service, many, until
from test_http_tokens import AUDIENCE, MPARTICLE, PROFILE, ask, client, token_of
from test_load_watch import FROM_FILE, Watch, watch
from workshop import environment, stop

from edgeprofile import snapshot

__all__ = ["watch"]  # a fixture
SOURCE = Path(__file__).with_name("clock.c")
DAY_S, YEAR_S = 86_400, 365 * 86_400
ASKED = b'{"profiles":[{"id":"7"}]}'


class Clock:
    """What processes that have its environment take for the time of day."""

    def __init__(self, folder: Path) -> None:
        self._file, library = folder / "clock", folder / "clock.so"
        compiler = shutil.which("cc")
        assert compiler is not None, "there is no C compiler"
        subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", library, SOURCE], check=True)
        self.set(0)
        self.environment = {"LD_PRELOAD": str(library), "CLOCK": str(self._file)}

    def set(self, ahead_s: int) -> None:
        """By so much ahead of the machine's, or behind it, for all that run."""
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(ahead_s.to_bytes(8, "little", signed=True))


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    made = Clock(tmp_path)
    made.set(DAY_S)
    program = "import time; print(time.time() - time.monotonic())"
    changed = environment() | made.environment
    seen = subprocess.run([sys.executable, "-c", program], env=changed, capture_output=True, check=True)
    assert float(seen.stdout) - (time.time() - time.monotonic()) == pytest.approx(DAY_S, abs=60)
    made.set(0)
    return made


# --- what serves ---------------------------------------------------------------------------------------------------


def test_a_service_goes_on_and_limits_expiries_and_tokens_are_those_of_the_time(
    make_service: MakeService, clock: Clock
) -> None:
    declared = MPARTICLE.format(name="shop", number=3, audience=AUDIENCE)
    service = make_service({"shop": declared}, with_admin=True)
    service.run_sql("CREATE TABLE profiles AS SELECT 7 AS id, 'x' AS name")
    service.load()
    service.start(env=environment() | clock.environment)
    key, limited = service.key(), service.key(rate=0.01, burst_rate=10, burst_seconds=0)
    expiring = service.key(expires_at=int(time.time()) + 3_600)
    token = token_of(ask(service, client(key)))
    workers = service.workers()

    def statuses() -> list[int]:
        asked = (("/v1/profiles/id/7", key), ("/v1/profiles/id/7", expiring), (PROFILE, token), ("/readyz", None))
        return [service.get(target, its).status for target, its in asked]

    passed = [service.get("/v1/profiles/id/7", limited).status for _ in range(4)]
    assert (passed, statuses()) == ([200] * 4, [200] * 4)
    for ahead_s, expected in ((DAY_S, [200, 401, 401, 200]), (-YEAR_S, [200, 200, 401, 200]), (0, [200] * 4)):
        with service.connect() as slow:
            slow.send(many(ASKED[:9], key, length=len(ASKED)))
            until(lambda: service.worker_of(slow), "the worker has it")
            clock.set(ahead_s)
            until(lambda: statuses() == expected, "it heeds the time of day")  # noqa: B023
            # A body that took a moment is not thought to have taken a day.
            slow.send(ASKED[9:])
            assert slow.read().status == 200
        passed.append(service.get("/v1/profiles/id/7", limited).status)
        assert "edgeprofile_requests_total" in metrics(service)
        service.run_sql(f"CREATE OR REPLACE TABLE profiles AS SELECT 7 AS id, 'at {ahead_s}' AS name")
        service.load()
        until(lambda: service.get("/v1/profiles/id/7", key).json()["name"] == f"at {ahead_s}", "it is served")  # noqa: B023
    # A bucket of ten, of which one drop a hundred seconds comes back: no jump has filled it.
    passed += [service.get("/v1/profiles/id/7", limited).status for _ in range(6)]
    assert passed == [200] * 10 + [429] * 3
    assert service.workers() == workers


def metrics(service: Service) -> str:
    connection = http.client.HTTPConnection(HOST, service.admin_port, timeout=20)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return text


# --- what loads ----------------------------------------------------------------------------------------------------


def test_no_jump_delays_a_refresh_by_more_than_a_cadence_nor_hides_what_it_brings(watch: Watch, clock: Clock) -> None:
    watch.spaces(shop=FROM_FILE.format(name="shop"), refresh="1s")
    watch.rows("shop", 1)
    process = watch.start(env=clock.environment)
    until(lambda: watch.profiles("shop") == 1, "it is loaded")
    for number, ahead_s in enumerate((DAY_S, -YEAR_S, 0, -DAY_S), start=2):
        clock.set(ahead_s)
        watch.rows("shop", *range(number))
        until(lambda: watch.profiles("shop") == number, "what is new is served")  # noqa: B023
    newest, before = snapshot.manifests(watch.home("shop"))[:2]
    assert (newest.profiles, before.profiles, newest.previous) == (5, 4, before.name)
    assert stop(process) == 0
    rolled = watch.run("snapshots", "rollback", "--workspace", "shop")
    assert rolled.status == 0
    assert watch.profiles("shop") == 4
