"""Exports as callers ask for them, look at them and download them."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator

import pytest
from batches import BATCHED, call
from conftest import BANK, BANK_PROFILES
from msgspec import structs
from service import Service
from test_exports import made, written
from test_http_batch import SHOP, assert_error

from edgeprofile import exports
from edgeprofile.exports import KEPT_SECONDS

VIEW, DOWNLOAD = "/2.4/exports/view?id=", "/2.4/exports/download?id="


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    bank = f'{BANK}\n[workspaces.bank.batch]\nproject = "project_bank"\n'
    made = Service(tmp_path_factory.mktemp("exports"), {"shop": BATCHED, "bank": bank})
    made.run_sql(SHOP)
    made.run_sql(BANK_PROFILES, "bank")
    made.load("shop")
    made.load("bank")
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def key(service: Service) -> str:
    return service.key()


def test_an_export_is_shown_and_sent(service: Service, key: str) -> None:
    export = written(service.home(), attributes=["email", "$language"], identifiers=["custom_id"])
    file = export.id.replace("export_", "file_")
    shown = service.ask(call(VIEW + export.id, key, method="GET"))
    assert shown.status == 200
    moments = {name: shown.json()[name] for name in ("request_date", "start_date", "completion_date")}
    assert shown.json() == {
        "id": export.id,
        "scope": "PROFILE_ATTRIBUTES",
        "status": "SUCCESS",
        "request": {
            "export_type": "ATTRIBUTES",
            "attributes": ["email", "$language"],
            "identifiers": ["custom_id"],
        },
        "files": [{"id": file, "part": 1, "size": export.file_bytes, "url": DOWNLOAD + file}],
        **moments,
    }
    assert all(time.strptime(moment, "%Y-%m-%dT%H:%M:%SZ") for moment in moments.values())
    for id in (export.id, file):
        sent = service.ask(call(DOWNLOAD + id, key, method="GET"))
        assert (sent.status, sent.headers["content-type"]) == (200, "application/gzip")
        assert sent.headers["content-disposition"] == f'attachment; filename="{export.id}.ndjson.gz"'
        assert json.loads(gzip.decompress(sent.body)) == {
            "identifiers": {"custom_id": "12345"},
            "attributes": {"email": "jane@example.com"},
        }
    # Without a version, the file is too.
    bare = service.ask(call(VIEW.removeprefix("/2.4") + export.id, key, method="GET"))
    assert bare.json()["files"][0]["url"] == (DOWNLOAD + file).removeprefix("/2.4")


@pytest.mark.parametrize("status", ["PENDING", "RUNNING", "FAILURE"])
def test_an_export_that_has_no_file_is_shown_and_not_sent(status: str, service: Service, key: str) -> None:
    export = made(service.home(), status=status)
    shown = service.ask(call(VIEW + export.id, key, method="GET")).json()
    assert (shown["status"], shown["files"]) == (status, [])
    message = assert_error(service.ask(call(DOWNLOAD + export.id, key, method="GET")), 404, "EXPORT_NOT_FOUND")
    assert status in message


def test_an_export_is_found_by_its_own_workspace_and_for_a_day(service: Service, key: str) -> None:
    export = written(service.home(), attributes=["email"], identifiers=[])
    other = call(VIEW + export.id, service.key("bank"), method="GET", project="project_bank")
    assert_error(service.ask(other), 404, "EXPORT_NOT_FOUND")
    assert export.finished_at is not None
    exports.write(service.home(), structs.replace(export, finished_at=export.finished_at - KEPT_SECONDS - 60))
    for path in (VIEW, DOWNLOAD):
        assert_error(service.ask(call(path + export.id, key, method="GET")), 404, "EXPORT_NOT_FOUND")


@pytest.mark.parametrize("id", ["", "x", "../../bank/exports/export_" + "0" * 32, "export_" + "0" * 32])
def test_an_id_of_nothing_finds_nothing(id: str, service: Service, key: str) -> None:
    for path in (VIEW, DOWNLOAD):
        assert_error(service.ask(call(path + id, key, method="GET")), 404, "EXPORT_NOT_FOUND")


@pytest.mark.parametrize("query", ["", "?", "?file=x", "?id=x&id=y"])
def test_one_id_is_asked_for(query: str, service: Service, key: str) -> None:
    for path in ("/2.4/exports/view", "/2.4/exports/download"):
        assert_error(service.ask(call(path + query, key, method="GET")), 400, "MALFORMED_PARAMETER")


def test_exports_are_for_keys_that_may_read_and_count_as_requests(service: Service) -> None:
    writer = service.key(scopes=("write",))
    limited = service.key(rate=0.01, burst_rate=1, burst_seconds=0)
    for refused in (
        call(VIEW, None, method="GET"),
        call(DOWNLOAD, writer, method="GET"),
        call("/2.4/profiles/export", writer, {}),
        call(VIEW, limited, method="GET", project="project_1"),
    ):
        assert_error(service.ask(refused), 401, "AUTHENTICATION_INVALID")
    assert_error(service.ask(call(VIEW + "x", limited, method="GET")), 404, "EXPORT_NOT_FOUND")
    denied = service.ask(call(VIEW + "x", limited, method="GET"))
    assert_error(denied, 429, "TOO_MANY_REQUESTS")
    assert int(denied.headers["retry-after"]) > 1


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b"", "MALFORMED_JSON_BODY", "truncated"),
        (b"{", "MALFORMED_JSON_BODY", "truncated"),
        ([], "MALFORMED_PARAMETER", "`array`"),
        ({}, "MALFORMED_PARAMETER", "`export_type`"),
        ({"export_type": "EVENTS", "attributes": ["a"]}, "MALFORMED_PARAMETER", "$.export_type"),
        ({"export_type": "ATTRIBUTES"}, "MALFORMED_PARAMETER", "attributes, identifiers, or both"),
        ({"export_type": "ATTRIBUTES", "attributes": []}, "MALFORMED_PARAMETER", "attributes, identifiers, or both"),
        ({"export_type": "ATTRIBUTES", "attributes": ["$x"]}, "MALFORMED_PARAMETER", "$email_address, $phone_number"),
        ({"export_type": "ATTRIBUTES", "attributes": [""]}, "MALFORMED_PARAMETER", "$.attributes[0]"),
        ({"export_type": "ATTRIBUTES", "attributes": ["a"] * 501}, "MALFORMED_PARAMETER", "$.attributes"),
        (
            {"export_type": "ATTRIBUTES", "identifiers": ["installation_ids"]},
            "MALFORMED_PARAMETER",
            "$.identifiers[0]",
        ),
        ({"export_type": "ATTRIBUTES", "attributes": ["a"], "filter": {}}, "MALFORMED_PARAMETER", "`filter`"),
    ],
)
def test_what_cannot_be_exported_is_refused(body: object, code: str, message: str, service: Service, key: str) -> None:
    assert message in assert_error(service.ask(call("/2.4/profiles/export", key, body)), 400, code)
