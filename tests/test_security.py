"""What docs/security.md says and no other file shows: where a caller's reach ends, and what answers and files tell."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import pytest
from batches import BATCHED, UPDATE, call
from conftest import BANK, BANK_PROFILES, PROFILES
from service import HOST, Answer, Service, exchange, many, request

from edgeprofile import snapshot
from edgeprofile.settings import Limits, Server

JANE = "/v1/profiles/id/12345"
INTERNALS = re.compile(rb"Traceback|File \"|\.py\b|\.pyx\b|/state/|LMDB|DuckDB|[Pp]ython|Starlette|SELECT")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two workspaces, of which both have a profile 12345, with a watcher that writes for both."""
    made = Service(tmp_path_factory.mktemp("security"), {"shop": BATCHED, "bank": BANK}, with_admin=True)
    made.run_sql(PROFILES.replace("{ids}", "['a']"))
    made.run_sql(BANK_PROFILES, "bank")
    made.load()
    made.load("bank")
    made.start()
    made.watch()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def key(service: Service) -> str:
    return service.key(scopes=("read", "write"))


def test_a_key_erases_profiles_of_its_own_workspace_alone(service: Service, key: str) -> None:
    writer, reader = service.key("bank", scopes=("write",)), service.key("bank")
    for path in (JANE, "/v1/profiles/id/types"):
        assert service.get(path, writer, method="DELETE").status == 204, "as where there is nothing"
    assert service.get(JANE, reader).code() == "profile_not_found"
    assert service.get(JANE, key).json()["first_name"] == "Jane"
    assert service.get("/v1/profiles/id/types", key).status == 200


def test_what_a_caller_names_is_never_called(service: Service, key: str) -> None:
    with socket.create_server((HOST, 0)) as listener:
        host = f"{HOST}:{listener.getsockname()[1]}"
        url = f"http://{host}/x"
        escaped = url.replace("/", "%2F")
        told = [(name, url) for name in ("Referer", "Origin", "X-Original-URL", "X-Forwarded-For", "Callback", "Link")]
        told += [("X-Forwarded-Host", host), ("Forwarded", f"host={host}"), ("Accept", f"application/json, {url}")]
        update = [{"identifiers": {"custom_id": url}, "attributes": {"url(page)": url, "text": url}}]
        asked = [
            request(f"/v1/profiles/id/{escaped}?callback={escaped}&fields=identifiers", key, *told),
            request(f"/v1/profiles/identifier/email/{escaped}", key, *told),
            request(url, key, *told),
            many({"profiles": [{"id": url}, {"namespace": "email", "value": url}]}, key, *told),
            call(UPDATE, key, update, *told),
            call(f"/2.4/exports/view?id={escaped}", key, method="GET"),
        ]
        assert [service.ask(each).status for each in asked] == [404, 404, 404, 200, 202, 404]
        assert service.get(f"/v1/profiles/id/{escaped}", key).json()["page"] == url, "it is kept as text"
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_no_answer_tells_what_it_is_made_of(service: Service, key: str) -> None:
    asked = [request(path, key) for path in (JANE, "/nothing", "/v1/profiles/id/%ff", "/v1/profiles/identifier/x/y")]
    asked += [request(JANE), request(JANE, key, method="PUT"), request("/v1/profiles/id/" + "x" * 9_000, key)]
    asked += [many(b"{", key), many({"profiles": 7}, key), call(UPDATE, key, b"["), call(UPDATE, None), b"x\r\n\r\n"]
    answers = [*map(service.ask, asked), exchange(service.admin_port, request("/nothing"))]
    assert {answer.status // 100 for answer in answers} == {2, 4}
    for answer in answers:
        assert_tells_nothing(answer, str(service.folder))


def assert_tells_nothing(answer: Answer, folder: str) -> None:
    assert not INTERNALS.search(answer.body)
    assert folder.encode() not in answer.body
    assert answer.headers.get("server", "granian") == "granian", "and no version"
    assert not [name for name in answer.headers if name.startswith("x-") and name != "x-request-id"]
    if answer.status >= 400 and answer.body:
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-type"] in {"application/problem+json", "application/json"}


def test_no_page_of_another_site_may_read_an_answer(service: Service, key: str) -> None:
    origin = ("Origin", "https://elsewhere.example")
    for method in ("GET", "OPTIONS"):
        answer = service.get(JANE, key, origin, ("Access-Control-Request-Method", "GET"), method=method)
        assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_what_is_kept_is_for_its_owner_alone(service: Service) -> None:
    data_dir = service.settings.data_dir
    closed = [data_dir, *map(service.home, service.settings.workspaces)]
    secret = [data_dir / "keys.json", *data_dir.glob("*.sock"), *data_dir.glob("*/*.sock"), *data_dir.glob("**/*.mdb")]
    secret = [path for path in secret if path.name != snapshot.PROFILES]
    assert len(secret) >= 6
    assert [path for path in (*closed, *secret) if path.stat().st_mode & 0o077] == []


def test_by_default_it_listens_to_this_machine_alone_and_bounds_what_a_key_may_ask() -> None:
    assert Server().host == Server().admin_host == HOST
    assert (Limits().rate, Limits().burst_rate) == (500, 1_000)
    assert Limits().request_bytes_max == Limits().response_bytes_max == 1_048_576
