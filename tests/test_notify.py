"""What supervisors are told, by server and loader, over a real socket of theirs."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import MakeService
from test_load_watch import FROM_FILE, Watch, watch

from edgeprofile import notify

__all__ = ["watch"]
ALIVE_LIMIT_US = "400000"


class Supervisor:
    """Listens to what it is told."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.settimeout(30)

    def next(self) -> str:
        return self._socket.recv(1_000).decode()

    def next_but_alive(self) -> str:
        while (word := self.next()) == notify.ALIVE:
            pass
        return word

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    """One with a watchdog, whom whatever is started knows of."""
    address = str(tmp_path / "notify")
    made = Supervisor(address)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", ALIVE_LIMIT_US)
    yield made
    made.close()


def test_the_server_tells_of_its_start_its_life_and_its_end(make_service: MakeService, supervisor: Supervisor) -> None:
    service = make_service(workers=2)
    service.start(ready=503)
    assert supervisor.next_but_alive() == notify.READY
    assert [supervisor.next() for _ in range(3)] == [notify.ALIVE] * 3
    service.stop()
    assert supervisor.next_but_alive() == notify.STOPPING


def test_the_loader_tells_of_its_start_its_life_and_its_end(watch: Watch, supervisor: Supervisor) -> None:
    watch.rows("shop", 1)
    watch.spaces(shop=FROM_FILE.format(name="shop"))
    process = watch.start()
    assert supervisor.next_but_alive() == notify.READY
    assert [supervisor.next() for _ in range(3)] == [notify.ALIVE] * 3
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert supervisor.next_but_alive() == notify.STOPPING


def test_a_name_without_a_file_is_an_address_too(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Supervisor(f"\0edgeprofile-{os.getpid()}")
    monkeypatch.setenv("NOTIFY_SOCKET", f"@edgeprofile-{os.getpid()}")
    notify.tell(notify.READY)
    assert made.next() == notify.READY
    made.close()


@pytest.mark.parametrize("address", ["", "nowhere", "/nowhere/at/all", "@nobody"])
def test_without_a_supervisor_nothing_fails(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify.tell(notify.READY)


@pytest.mark.parametrize(
    ("limit_us", "pid", "interval_s"),
    [("30000000", None, 15.0), ("30000000", str(os.getpid()), 15.0), ("30000000", "1", None), ("", None, None)],
    ids=["anybody's", "this process's", "another's", "nobody's"],
)
def test_a_watchdog_is_met_twice_in_time(
    monkeypatch: pytest.MonkeyPatch, limit_us: str, pid: str | None, interval_s: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", limit_us)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    if pid is not None:
        monkeypatch.setenv("WATCHDOG_PID", pid)
    assert notify.alive_interval_s() == interval_s
