"""Clients that take their time, by the hundred: others are answered as ever, and what they held comes back."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PROFILES
from service import HOST, Service, request, until
from slow import SlowClients, kinds
from test_malformed import descriptors, own_memory

JANE = "/v1/profiles/id/12345"
ATTACKS, ATTACK_SECONDS = 250, 4
SLOW, SLOW_SECONDS = 60, 2.0
IDLE = 1_000
GROWTH_BYTES_MAX = 32 * 1024 * 1024
# Of slowhttptest: headers, bodies (which are refused at once without a key), slow reading of three answers, and ranges.
MODES = {"headers": "-H", "body": "-B", "read": "-X -k 3 -n 1 -w 1 -y 16 -z 1", "range": "-R"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("slow"), workers=2)
    service.run_sql(PROFILES.replace("{ids}", "['a']"))
    service.load()
    yield service.start()
    service.stop()


def probe(service: Service, key: str, seconds: float) -> int:
    """Asks over a connection that is kept and over new ones, until so long has passed; how often that was."""
    asked, give_up = 0, time.monotonic() + seconds
    with service.connect() as kept:
        while time.monotonic() < give_up:
            assert kept.ask(request(JANE, key)).status == 200
            assert service.get(JANE, key).status == 200
            assert service.get("/livez").status == 200
            asked += 3
    return asked


def test_a_service_that_slowhttptest_attacks_in_all_its_ways_stays_available(served: Service, tmp_path: Path) -> None:
    program = shutil.which("slowhttptest")
    assert program is not None, "slowhttptest is not installed"
    key, workers = served.key(), served.workers()
    opened = {pid: descriptors(pid) for pid in workers}
    attacks: list[subprocess.Popen[bytes]] = []
    for mode, options in MODES.items():
        limits = f"-c {ATTACKS} -r {ATTACKS} -i 1 -l {ATTACK_SECONDS} -p 5 -s 4096 -u http://{HOST}:{served.port}/livez"
        with (tmp_path / mode).open("wb") as output:
            attacks.append(subprocess.Popen([program, *options.split(), *limits.split()], stdout=output, stderr=output))
    assert probe(served, key, ATTACK_SECONDS) > 30
    for attack in attacks:
        assert attack.wait(60) == 0
    for mode in MODES:
        # It says so every few seconds and at the end, in colours.
        said = re.findall(r"service available:\s*(\w+)", re.sub(r"\x1b\[[\d;]*m", "", (tmp_path / mode).read_text()))
        assert said, mode
        assert set(said) == {"YES"}, mode
    assert served.workers() == workers
    until(lambda: all(descriptors(pid) <= opened[pid] for pid in workers), "no connection is left")


def test_slow_clients_with_a_key_hold_up_nobody_and_take_little(served: Service) -> None:
    key, workers = served.key(), served.workers()
    slow = kinds(JANE, f"Authorization: Bearer {key}")
    before = {pid: (descriptors(pid), own_memory(pid)) for pid in workers}
    with SlowClients(served.port, dict.fromkeys(slow.values(), SLOW)) as clients:
        until(lambda: clients.connected == SLOW * len(slow), "all are connected")
        assert probe(served, key, SLOW_SECONDS) > 30
        assert all(own_memory(pid) - before[pid][1] < GROWTH_BYTES_MAX for pid in workers)
    until(lambda: all(descriptors(pid) <= before[pid][0] for pid in workers), "no connection is left")
    assert served.workers() == workers


def test_a_thousand_idle_connections_are_all_answered_and_given_back(served: Service) -> None:
    key, workers = served.key(), served.workers()
    # A worker may still be closing what an earlier client had.
    opened = {pid: min(descriptors(pid) for _ in range(50)) for pid in workers}
    idle = [served.connect() for _ in range(IDLE)]
    for _ in range(2):
        for connection in idle:
            connection.send(request("/livez"))
        assert {connection.read().status for connection in idle} == {200}
    assert probe(served, key, 0.5) > 10
    assert sum(descriptors(pid) - opened[pid] for pid in workers) >= IDLE
    for connection in idle:
        connection.close()
    until(lambda: all(descriptors(pid) <= opened[pid] for pid in workers), "no connection is left")
