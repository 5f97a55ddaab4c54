"""The life of a server and its end: signals, workers that die, clients that stay, a terminal that is closed."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import socket
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import PROFILES
from service import HOST, Service, many, request, until
from workshop import Workshop

MakeService = Callable[..., Service]


@pytest.fixture
def served(make_service: MakeService) -> Service:
    service = make_service(workers=2, with_admin=True)
    service.start(ready=503)
    return service


def everyone(service: Service) -> list[int]:
    """The pids of all children: two workers and the admin listener."""
    admin = until(service.admin, "there is an admin listener")
    assert admin is not None
    return [*service.workers(), admin]


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie, which a container may leave uncollected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except OSError:
        return False


def test_all_processes_end_when_the_main_process_was_killed(served: Service) -> None:
    children = everyone(served)
    assert len(children) == 3
    process = served.release()
    process.kill()
    process.wait()
    until(lambda: not any(map(is_running, children)), "no process is left")


def test_a_main_process_that_was_killed_leaves_nobody_behind_for_long(make_service: MakeService) -> None:
    service = make_service(server="drain_seconds = 1")
    service.start(ready=503)
    (worker,) = service.workers()
    with service.connect() as stuck:
        stuck.send(HALF)
        until(lambda: service.worker_of(stuck) == worker, "the worker has it")
        process = service.release()
        process.kill()
        process.wait()
        until(lambda: not is_running(worker), "its worker is gone too")


def test_a_closed_terminal_ends_the_server(make_service: MakeService) -> None:
    service = make_service(workers=2, with_admin=True)
    terminal, its = pty.openpty()
    service.start(ready=503, preexec_fn=lambda: fcntl.ioctl(its, termios.TIOCSCTTY), start_new_session=True)
    os.close(its)
    children = everyone(service)
    process = service.release()
    os.close(terminal)
    assert process.wait(30) == 0
    until(lambda: not any(map(is_running, children)), "no process is left")


# --- the end -------------------------------------------------------------------------------------------------------

JANE = "/v1/profiles/id/12345"
BATCH = b'{"profiles":[{"id":"12345"}]}'
HALF = b"GET /livez HTTP/1.1\r\nHost: te"


@pytest.fixture
def slow_to_end(make_service: MakeService) -> Service:
    """One that says for a long time that it is about to end."""
    service = make_service(workers=2, server="ready_delay_seconds = 60\ndrain_seconds = 5")
    service.run_sql(PROFILES.replace("{ids}", "['a']"))
    service.load()
    return service.start()


def test_a_server_that_is_about_to_end_says_so_first_and_answers_on(slow_to_end: Service) -> None:
    service, key = slow_to_end, slow_to_end.key()
    kept = service.connect_to_each() + service.connect_to_each()
    os.kill(service.pid, signal.SIGTERM)
    until(lambda: {service.get("/readyz").status for _ in range(20)} == {503}, "all workers say that they end")
    assert "about to end" in service.get("/readyz").json()["detail"]

    for connection, asked in zip(kept, [request(JANE, key), request("/livez")] * 2, strict=True):
        answer = connection.ask(asked)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert connection.is_closed()
        connection.close()
    for asked in (request(JANE, key), request("/livez"), many({"profiles": [{"id": "12345"}]}, key)):
        answer = service.ask(asked)
        assert (answer.status, answer.headers["connection"]) == (200, "close")

    # Whoever sends another signal does not want to wait.
    process = service.release()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


def test_requests_in_flight_are_answered_before_the_end(slow_to_end: Service) -> None:
    service, key = slow_to_end, slow_to_end.key()
    begun = service.connect_to_each()
    for connection in begun:
        connection.send(many(b"", key, ("Expect", "100-continue"), length=len(BATCH)))
        assert connection.is_to_continue(), "the request is being answered"
        connection.send(BATCH[:9])
    process = service.release()
    process.send_signal(signal.SIGINT)
    until(lambda: refuses(service), "it listens no more")
    for connection in begun:
        connection.send(BATCH[9:])
        assert connection.read().status == 200
        connection.close()
    assert process.wait(3) == 0


def refuses(service: Service) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, service.port)) != 0


def test_clients_that_stay_hold_up_the_end_for_so_long_and_no_longer(make_service: MakeService) -> None:
    service = make_service(server="ready_delay_seconds = 0\ndrain_seconds = 1", with_admin=True)
    service.start(ready=503)
    key = service.key()
    idle, silent, half, half_body = (service.connect() for _ in range(4))
    idle.ask(request("/livez"))
    half.send(HALF)
    half_body.send(many(BATCH[:9], key, length=len(BATCH)))
    until(lambda: all(service.worker_of(each) for each in (silent, half, half_body)), "the worker has them")
    children, began = everyone(service), time.monotonic()
    service.stop()
    # Half of the limit that a supervisor has by default would still be far away.
    assert time.monotonic() - began < 10
    assert not any(map(is_running, children))
    for connection in (idle, silent, half, half_body):
        connection.close()


def test_who_only_keeps_a_connection_does_not_hold_up_the_end_at_all(make_service: MakeService) -> None:
    service = make_service(server="ready_delay_seconds = 0\ndrain_seconds = 60")
    service.start(ready=503)
    idle, silent = service.connect(), service.connect()
    idle.ask(request("/livez"))
    until(lambda: service.worker_of(silent), "the worker has it")
    service.stop()  # which waits for less
    assert idle.is_closed()
    idle.close()
    silent.close()


def test_a_client_that_went_without_a_word_is_looked_for(make_service: MakeService) -> None:
    service = make_service()
    service.start(ready=503)
    with service.connect() as connection:
        until(lambda: service.worker_of(connection), "the worker has it")
        ours = f":{service.port:04X} 0100007F:{connection.port:04X} "
        (line,) = [line for line in Path("/proc/net/tcp").read_text().splitlines() if ours in line]
        assert line.split()[5].startswith("02:"), "the kernel's timer that asks whether a peer is there"


# --- workers that die ----------------------------------------------------------------------------------------------


def has_stopped(pid: int) -> bool:
    states = [path.read_text().rsplit(") ", 1)[1][0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return set(states) == {"T"}


def test_who_waits_for_a_worker_that_was_killed_is_answered_by_the_next(make_service: MakeService) -> None:
    service = make_service()
    service.start(ready=503)
    (victim,) = service.workers()
    os.kill(victim, signal.SIGSTOP)
    until(lambda: has_stopped(victim), "it takes no connections any more")
    waiting = [service.connect() for _ in range(5)]
    for connection in waiting:
        connection.send(request("/livez"))
    os.kill(victim, signal.SIGKILL)
    assert [connection.read().status for connection in waiting] == [200] * 5
    for connection in waiting:
        connection.close()


def test_one_worker_that_was_killed_is_replaced_and_the_others_go_on(served: Service) -> None:
    victim, other = served.workers()
    kept = {served.worker_of(connection): connection for connection in served.connect_to_each()}
    os.kill(victim, signal.SIGKILL)
    assert kept[other].ask(request("/livez")).status == 200
    until(lambda: len(served.workers()) == 2 and victim not in served.workers(), "there is another worker")
    assert other in served.workers()
    assert kept[other].ask(request("/livez")).status == 200
    for connection in kept.values():
        connection.close()


class Client(threading.Thread):
    """Asks over one connection, and over another where that was broken off, until it is told to stop."""

    def __init__(self, service: Service) -> None:
        super().__init__()
        self.connection = service.connect()
        self.statuses: list[int] = []
        self.broken_at: list[int] = []
        self.stopping = threading.Event()
        self._service = service

    def run(self) -> None:
        while not self.stopping.is_set():
            try:
                self.statuses.append(self.connection.ask(request("/livez")).status)
            except ConnectionError:
                self.broken_at.append(len(self.statuses))
                self.connection.close()
                self.connection = self._service.connect()
        self.connection.close()


def test_a_worker_killed_under_load_takes_no_request_with_it_but_those_in_its_hands(served: Service) -> None:
    clients = [Client(served) for _ in range(12)]
    holders = [until(lambda: served.worker_of(client.connection), "it is held") for client in clients]  # noqa: B023
    for client in clients:
        client.start()
    for _ in range(2):
        until(lambda: all(client.statuses for client in clients), "all are answered")
        before = served.workers()
        os.kill(before[0], signal.SIGKILL)
        until(lambda: len(served.workers()) == 2 and before[0] not in served.workers(), "there is another worker")  # noqa: B023
        asked = [len(client.statuses) for client in clients]
        until(lambda: all(len(c.statuses) > n + 50 for c, n in zip(clients, asked, strict=True)), "all go on")  # noqa: B023
    for client in clients:
        client.stopping.set()
        client.join()
    assert {status for client in clients for status in client.statuses} == {200}
    # The other worker, which nobody killed, has broken nothing off; and each kill cost a client one request at most.
    killed = {holder for holder in holders if holder not in served.workers()}
    for client, holder in zip(clients, holders, strict=True):
        assert len(client.broken_at) <= 2
        assert client.broken_at or holder not in killed
    assert any(client.broken_at for client in clients)


def test_workers_that_crash_again_and_again_end_the_server_with_status_1(served: Service) -> None:
    children = everyone(served)
    process = served.release()
    seen: set[int] = set()
    while process.poll() is None:
        for pid in set(served.workers()) - seen:
            seen.add(pid)
            os.kill(pid, signal.SIGABRT)
    assert process.wait() == 1
    assert len(seen) <= 6
    assert "giving up" in served.log()
    until(lambda: not any(map(is_running, children)), "no process is left")


# --- what keeps it from starting -----------------------------------------------------------------------------------


def test_a_workspace_without_a_snapshot_is_said_once_for_each_worker(served: Service) -> None:
    until(lambda: served.log().count("nothing is published yet: run edgeprofile load") >= 2, "both workers say so")


def test_a_data_folder_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    shop = Workshop(tmp_path).model("SELECT 1 AS id")
    (tmp_path / "var").write_text("a file")
    for command in ("serve", "load"):
        ended = shop.run(command, env={"EDGEPROFILE_SERVER__PORT": "18471", "EDGEPROFILE_SERVER__ADMIN_PORT": "0"})
        assert ended.status == 1
        assert len(ended.complaints) == 1
        assert f"{tmp_path / 'var'} cannot be used: " in ended.complaints[0]
        assert "data_dir" in ended.err
