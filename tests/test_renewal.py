"""A service that runs on while its certificate or its settings change: who asks meanwhile does not notice."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from authority import Authority, Issued, replace
from conftest import PROFILES, MakeService
from http2 import Http2
from service import HOST, Connection, Service, exchange, is_listening, request, until

AUTHORITY = Authority()
JANE = "/v1/profiles/id/12345"
SERVER = "ready_delay_seconds = 0\ndrain_seconds = 2"
TLS = f'tls_certificate = "server.pem"\ntls_key = "server.key"\n{SERVER}'


@pytest.fixture
def make_secured(make_service: MakeService) -> Callable[..., Service]:
    """Makes a service that speaks TLS and has profiles, and starts it."""

    def make(workers: int = 1, with_admin: bool = False) -> Service:
        service = make_service(server=TLS, context=AUTHORITY.client(), workers=workers, with_admin=with_admin)
        AUTHORITY.issue().write(service.folder, "server")
        service.run_sql(PROFILES.replace("{ids}", "['a']"))
        service.load()
        return service.start()

    return make


def presented(service: Service) -> int:
    """The serial number of the certificate that a new connection is shown."""
    assert service.context is not None
    plain = socket.create_connection((HOST, service.port))
    with service.context.wrap_socket(plain, server_hostname=HOST) as secure:
        certificate = secure.getpeercert()
    assert certificate is not None
    return int(str(certificate["serialNumber"]), 16)


def serial(issued: Issued) -> int:
    return issued.certificate.serial_number


class Caller(threading.Thread):
    """Asks again and again until told to stop. Whatever fails ends it, and is its fault."""

    def __init__(self, service: Service, key: str) -> None:
        super().__init__()
        self.service, self.key = service, key
        self.stopping, self.asked = threading.Event(), 0
        self.fault: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.stopping.is_set():
                self.ask()
                self.asked += 1
        except BaseException as fault:
            self.fault = fault
        self.close()

    def ask(self) -> None:
        """Over a connection of its own."""
        assert self.service.get(JANE, self.key).status == 200

    def close(self) -> None:
        pass


class Keeper(Caller):
    """Keeps its connection until an answer says that it was the last one."""

    connection: Connection | None = None

    def ask(self) -> None:
        self.connection = self.connection or self.service.connect()
        answer = self.connection.ask(request(JANE, self.key))
        assert answer.status == 200
        if answer.headers.get("connection") == "close":
            self.close()

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


class Multiplexer(Caller):
    """Asks several at once over HTTP/2, and keeps its connection until the server takes leave."""

    connection: Http2 | None = None

    def ask(self) -> None:
        self.connection = self.connection or Http2(self.service.port, AUTHORITY.client(None, "h2"))
        assert {answer.status for answer in self.connection.ask_all([JANE] * 5, self.key)} == {200}
        if self.connection.is_leaving:
            self.close()

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


@contextmanager
def asked_meanwhile(service: Service, *kinds: type[Caller]) -> Iterator[None]:
    """Two of each kind ask without a pause, and none of the answers may fail."""
    key = service.key()
    callers = [kind(service, key) for kind in kinds for _ in range(2)]
    for caller in callers:
        caller.start()
    try:
        until(lambda: all(caller.asked > 10 or caller.fault for caller in callers), "all have begun")
        yield
        before = [caller.asked for caller in callers]
        until(lambda: all(c.asked > n + 10 or c.fault for c, n in zip(callers, before, strict=True)), "all go on")
    finally:
        for caller in callers:
            caller.stopping.set()
        for caller in callers:
            caller.join()
    assert [caller.fault for caller in callers] == [None] * len(callers)


def all_replaced(service: Service, old: list[int]) -> bool:
    workers = service.workers()
    return len(workers) == service.workers_wanted and not set(workers) & set(old)


# --- certificates --------------------------------------------------------------------------------------------------


def test_a_certificate_is_renewed_and_no_request_fails(make_secured: Callable[..., Service]) -> None:
    service = make_secured(workers=2)
    with asked_meanwhile(service, Caller, Keeper, Multiplexer):
        for _ in range(2):
            old, renewed = service.workers(), AUTHORITY.issue()
            renewed.write(service.folder, "server")
            until(lambda: all_replaced(service, old), "all workers are new ones")  # noqa: B023
            assert {presented(service) for _ in range(20)} == {serial(renewed)}
    assert service.log().count("the certificate was renewed") == 2


def test_metrics_tell_when_the_certificate_that_is_presented_is_over(make_service: MakeService) -> None:
    service = make_service(server=TLS, context=AUTHORITY.client(), with_admin=True)
    first, renewed = AUTHORITY.issue(days=2), AUTHORITY.issue(days=9)
    first.write(service.folder, "server")
    service.start(ready=503)
    assert told_expiry(service) == first.certificate.not_valid_after_utc.timestamp()
    renewed.write(service.folder, "server")
    until(lambda: told_expiry(service) == renewed.certificate.not_valid_after_utc.timestamp(), "it is told")


def told_expiry(service: Service) -> float:
    """What the admin listener says; 0 while one takes the place of another."""
    with suppress(ConnectionError):
        text = exchange(service.admin_port, request("/metrics")).body.decode()
        found = re.search(r"^edgeprofile_certificate_expiry_timestamp_seconds (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0
    return 0.0


def test_half_a_renewal_changes_nothing_until_it_is_whole(make_secured: Callable[..., Service]) -> None:
    service = make_secured(with_admin=True)
    first = presented(service)
    renewed = AUTHORITY.issue()
    replace(service.folder / "server.pem", renewed.pem)
    until(lambda: "the certificate stays as it was: " in service.log(), "it is said")
    assert presented(service) == first

    # Who takes a worker's place meanwhile knows what the worker did.
    (victim,) = service.workers()
    os.kill(victim, signal.SIGKILL)
    until(lambda: all_replaced(service, [victim]), "there is another worker")
    assert presented(service) == first

    # So does the admin listener that takes another's.
    admin = service.admin()
    assert admin is not None
    os.kill(admin, signal.SIGKILL)
    until(lambda: service.admin() not in (None, admin) and is_listening(service.admin_port), "it is back")
    assert b"\nedgeprofile_certificate_expiry_timestamp_seconds " in metrics(service)

    replace(service.folder / "server.key", renewed.key_pem)
    until(lambda: presented(service) == serial(renewed), "the certificate is the new one")
    assert service.log().count("the certificate stays as it was: ") == 1


def test_a_certificate_that_is_over_is_served_and_said(make_service: MakeService) -> None:
    service = make_service(server=TLS, context=AUTHORITY.client())
    assert service.context is not None
    service.context.check_hostname, service.context.verify_mode = False, ssl.CERT_NONE
    AUTHORITY.issue(days=1).write(service.folder, "server")
    service.start(ready=503)
    assert re.search(r"WARNING .* the certificate was good until ", service.log())


def test_handshakes_under_way_are_finished_by_a_worker_that_is_replaced(make_secured: Callable[..., Service]) -> None:
    service = make_secured()
    begun = [Handshake(service) for _ in range(5)]
    (old,) = service.workers()
    until(lambda: all(service.worker_at(each.port) == old for each in begun), "the worker has them")
    renewed = AUTHORITY.issue()
    renewed.write(service.folder, "server")
    until(lambda: presented(service) == serial(renewed), "the certificate is the new one")
    assert [each.finish(request("/livez"))[:15] for each in begun] == [b"HTTP/1.1 200 OK"] * 5


class Handshake:
    """A handshake of which the first message is sent."""

    def __init__(self, service: Service) -> None:
        assert service.context is not None
        self._socket = socket.create_connection((HOST, service.port), 20)
        self.port: int = self._socket.getsockname()[1]
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._secure = service.context.wrap_bio(self._in, self._out, server_hostname=HOST)
        with pytest.raises(ssl.SSLWantReadError):
            self._secure.do_handshake()
        self._socket.sendall(self._out.read())

    def finish(self, content: bytes) -> bytes:
        """Ends it, sends a request, and returns the first bytes of the answer."""
        with self._socket:
            self._until_it_is_there(self._secure.do_handshake)
            self._secure.write(content)
            self._socket.sendall(self._out.read())
            return self._until_it_is_there(lambda: self._secure.read(100))

    def _until_it_is_there(self, act: Callable[[], bytes | None]) -> bytes:
        while True:
            try:
                return act() or b""
            except ssl.SSLWantReadError:
                self._socket.sendall(self._out.read())
                received = self._socket.recv(16_384)
                assert received, "closed by the server"
                self._in.write(received)


# --- settings ------------------------------------------------------------------------------------------------------


def change(service: Service, old: str, new: str) -> None:
    text = service.file.read_text(encoding="utf-8")
    assert old in text
    replace(service.file, text.replace(old, new).encode())


@pytest.fixture
def service(make_service: MakeService) -> Service:
    made = make_service(server=SERVER, workers=2, with_admin=True)
    made.run_sql(PROFILES.replace("{ids}", "['a']"))
    made.load()
    return made.start()


def hang_up(service: Service) -> None:
    os.kill(service.pid, signal.SIGHUP)


def test_settings_are_read_again_and_no_request_fails(service: Service) -> None:
    old, admin = service.workers(), service.admin()
    change(service, SERVER, f'{SERVER}\ncache_control = "private, max-age=5"')
    with asked_meanwhile(service, Caller, Keeper):
        hang_up(service)
        until(lambda: all_replaced(service, old), "all workers are new ones")
    key = service.key()
    assert {service.get(JANE, key).headers["cache-control"] for _ in range(20)} == {"private, max-age=5"}
    until(lambda: service.admin() not in (None, admin), "the admin listener is another one too")
    assert "ERROR" not in service.log()


def test_a_workspace_can_be_added_while_it_runs(service: Service) -> None:
    old = service.workers()
    service.add_workspace("bank", 'id = "profile_id"')
    service.run_sql("CREATE TABLE profiles AS SELECT 'x' AS profile_id", "bank")
    service.load("bank")
    hang_up(service)
    until(lambda: all_replaced(service, old), "all workers are new ones")
    bank_key = service.key("bank")
    assert service.get("/v1/profiles/id/x", bank_key).json()["profile_id"] == "x"
    until(lambda: b'edgeprofile_profiles{workspace="bank"} 1.0' in metrics(service), "its metrics are there too")


def test_what_a_new_workspace_needs_beside_the_workers_is_started(service: Service) -> None:
    assert service.gateway() is None
    service.add_workspace("bank", 'id = "profile_id"\n[workspaces.bank.batch]\nproject = "project_1"')
    hang_up(service)
    until(service.gateway, "there is a gateway")


def metrics(service: Service) -> bytes:
    try:
        return exchange(service.admin_port, request("/metrics")).body
    except ConnectionError:
        return b""


NOT_TAKEN = [
    ("drain_seconds = 2", "drain_seconds = -1", "server.drain_seconds: expected a number from 0 to 86400, found -1"),
    ("workers = 2", 'workers = 2\ntls_certificate = "no.pem"\ntls_key = "no.key"', "server.tls_certificate: expected"),
    (
        "[workspaces.shop",
        "[workspaces.store",
        "to remove or rename a workspace, or to move it forward, needs a restart",
    ),
]


def test_settings_that_cannot_be_taken_over_change_nothing(service: Service) -> None:
    workers = service.workers()
    for old, new, line in NOT_TAKEN:
        change(service, old, new)
        hang_up(service)
        until(lambda: line in service.log(), "it is said")  # noqa: B023
        change(service, new, old)
    hang_up(service)
    until(lambda: "the settings have not changed" in service.log(), "all is as it was")
    assert service.log().count("the settings stay as they were: ") == len(NOT_TAKEN)
    assert service.workers() == workers
    assert service.get("/readyz").status == 200


def test_what_needs_a_restart_stays_and_the_rest_is_taken_over(service: Service) -> None:
    old = service.workers()
    change(service, "workers = 2", f'workers = 3\nhost = "{HOST.replace("1", "2")}"\ncache_control = "no-store"')
    change(service, 'data_dir = "state"', 'data_dir = "other"')
    hang_up(service)
    until(lambda: all_replaced(service, old), "all workers are new ones")
    assert "needs a restart to change: server.host, server.workers, data_dir" in service.log()
    assert service.get(JANE, service.key()).headers["cache-control"] == "no-store"
